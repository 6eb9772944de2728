"""The pytest plug-in of :mod:`biases.testing`: options, a header, and a summary for each subject.

A module beside the package, because pytest imports its plug-ins in every session: importing anything of ``biases``
would import torch.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = {"quick": 5, "default": 25, "thorough": 1000}
# A search of a thousand examples is to end by itself, not by the deadline of one of 25.
_DEADLINES = {"thorough": 1800.0}
_NOTHING_RAN = 3
_SUBJECT, _PROPERTY, _STATUS = "biases_subject", "biases_property", "biases_status"
_COLUMNS = ("ran", "passed", "failed", "xfailed", "not applicable")


@dataclass
class _State:
    """What one session knows.

    Attributes:
        known: subject -> property -> reason, of ``--biases-known-failures``.
        declared: subject -> names of its properties, of all files collected, whether selected or not.
        counts: subject -> column of the summary -> count.
    """

    known: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    declared: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


_STATE = pytest.StashKey[_State]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("biases", "biases: properties of attention (defaults; arguments in a test file win)")
    add = group.addoption
    add("--biases-device", metavar="D", help="where layers and inputs are put (default: cpu)")
    add("--biases-dtype", metavar="T", help="of the checks of behaviour (default: float64 where the subject takes it)")
    add("--biases-seed", type=int, metavar="S", help="of the search (default: 0)")
    add("--biases-max-examples", type=int, metavar="N", help="inputs for each property; wins over the profile")
    numbers = ", ".join(f"{name} {count}" for name, count in EXAMPLES.items())
    add("--biases-profile", choices=list(EXAMPLES), default="default", help=f"inputs for each property: {numbers}")
    add("--biases-known-failures", metavar="FILE", help="TOML: a table a subject, property = reason; strict")
    add("--biases-slow", action="store_true", help="check also what takes seconds an example: compiling, exporting")


def pytest_configure(config: pytest.Config) -> None:
    state = _State()
    config.stash[_STATE] = state
    config.pluginmanager.register(_Reports(state), "biases-reports")
    examples = config.getoption("--biases-max-examples")
    if examples is not None and examples < 1:
        raise pytest.UsageError(f"--biases-max-examples: expected at least 1, got {examples}")
    path = config.getoption("--biases-known-failures")
    if path is not None:
        from biases.testing.targets import read_known_failures

        try:
            state.known = read_known_failures(config.invocation_params.dir / Path(path))
        except ValueError as error:
            raise pytest.UsageError(f"--biases-known-failures: {error}") from error


def defaults(config: pytest.Config) -> dict[str, Any]:
    """The arguments of :func:`biases.testing.check_attention` that the options of the session stand for."""
    chosen: dict[str, Any] = {"max_examples": _examples(config), "slow": config.getoption("--biases-slow")}
    deadline = _DEADLINES.get(config.getoption("--biases-profile"))
    given = {name: config.getoption(f"--biases-{name}") for name in ("device", "dtype", "seed")}
    chosen |= {name: value for name, value in {"deadline": deadline, **given}.items() if value is not None}
    return chosen


def _examples(config: pytest.Config) -> int:
    given = config.getoption("--biases-max-examples")
    return EXAMPLES[config.getoption("--biases-profile")] if given is None else int(given)


def pytest_report_header(config: pytest.Config) -> str:
    names = {"biases": "attention-biases", "torch": "torch", "hypothesis": "hypothesis"}
    versions = ", ".join(f"{name} {_version(distribution)}" for name, distribution in names.items())
    device = config.getoption("--biases-device") or "cpu"
    dtype = config.getoption("--biases-dtype") or "float64 where taken"
    profile = "" if config.getoption("--biases-max-examples") else f" ({config.getoption('--biases-profile')})"
    seed = config.getoption("--biases-seed") or 0
    return f"{versions}; device {device}, dtype {dtype}, {_examples(config)} examples{profile}, seed {seed}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _check_of(item: pytest.Item) -> Any:
    """The check that the item is called with, if :func:`biases.testing.parametrize_with_properties` made it."""
    check = getattr(getattr(item, "callspec", None), "params", {}).get("check")
    return check if hasattr(check, "biases_property") else None


def pytest_itemcollected(item: pytest.Item) -> None:
    check = _check_of(item)
    if check is not None:
        declared = item.config.stash[_STATE].declared.setdefault(check.name, [])
        if check.biases_property not in declared:
            declared.append(check.biases_property)
        item.user_properties += [(_SUBJECT, check.name), (_PROPERTY, check.biases_property)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    check = _check_of(item)
    if check is not None:
        reasons = item.config.stash[_STATE].known.get(check.name, {})
        check.bind(
            defaults(item.config),
            reasons.get(check.biases_property),
            lambda status: item.user_properties.append((_STATUS, status)),
        )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    state = session.config.stash[_STATE]
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["biases_declared"] = state.declared
    elif exitstatus == pytest.ExitCode.OK:
        if _stale(session.config):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif _unchecked(state):
            session.exitstatus = _NOTHING_RAN


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended; only the workers collect."""
    declared = getattr(node, "workeroutput", {}).get("biases_declared", {})
    node.config.stash[_STATE].declared.update(declared)


class _Reports:
    """Counts the reports of tests, which under pytest-xdist come from other processes."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        if _SUBJECT not in told or report.when == "teardown" or (report.when == "setup" and report.passed):
            return
        counts = self._state.counts.setdefault(str(told[_SUBJECT]), dict.fromkeys(_COLUMNS, 0))
        ran = told.get(_STATUS) in ("passed", "failed", "xfailed", "xpassed")
        counts["ran"] += ran
        if report.failed:
            counts["failed"] += 1
        elif hasattr(report, "wasxfail"):
            counts["xfailed"] += 1
        elif ran:
            counts["passed"] += 1
        else:
            counts["not applicable"] += 1


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    state = config.stash[_STATE]
    stale = _stale(config) if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) else []
    if not state.counts and not stale:
        return
    terminalreporter.section("biases: properties of attention")
    for subject, counts in state.counts.items():
        nothing = "" if counts["ran"] else "; NOTHING RAN"
        terminalreporter.line(f"{subject}: " + ", ".join(f"{counts[c]} {c}" for c in _COLUMNS) + nothing)
    for each in stale:
        terminalreporter.line(f"ERROR: {each}", red=True)


def _unchecked(state: _State) -> list[str]:
    return [subject for subject, counts in state.counts.items() if not counts["ran"]]


def _stale(config: pytest.Config) -> list[str]:
    """Known failures that speak of nothing."""
    state = config.stash[_STATE]
    # Of other files than those asked for, nothing is known.
    narrow = any("::" in each or Path(each).is_file() for each in config.args)
    found = []
    for subject, reasons in state.known.items():
        if subject not in state.declared:
            if not narrow:
                names = ", ".join(map(repr, state.declared)) or "none"
                found.append(f"known failures of {subject!r}: expected a subject of the tests ({names})")
            continue
        unknown = [name for name in reasons if name not in state.declared[subject]]
        found += [f"known failures of {subject!r}: expected the name of a property, got {name!r}" for name in unknown]
    return found
