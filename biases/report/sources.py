"""Where results come from: the command that makes them again, and what a file says of how it was made."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from biases.report import text

SCHEMA = 1
REVISION = 8
"""Digits of a revision that are shown."""
AddArguments = Callable[[argparse.ArgumentParser], None]


def invocation(program: str, add_arguments: AddArguments, values: Mapping[str, Any]) -> str:
    """The command line that gives a parser these values, quoted for a shell; what is a default is left out."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    named: list[str] = []
    options: list[str] = []
    for action in parser._actions:
        value = values.get(action.dest, action.default)
        several = [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
        if value is None or value == action.default:
            continue
        if not action.option_strings:
            named += several
        elif action.nargs == 0:
            options.append(action.option_strings[-1])
        elif isinstance(action, argparse._AppendAction):
            for item in several:
                options += _given(action.option_strings[-1], item)
        elif action.nargs is None:
            options += _given(action.option_strings[-1], several[0])
        else:
            options += [action.option_strings[-1], *several]
    # What begins like an option is one anywhere but behind two hyphens.
    arguments = [*options, "--", *named] if any(name.startswith("-") for name in named) else [*named, *options]
    return shlex.join([*program.split(), *arguments])


def _given(option: str, value: str) -> list[str]:
    return [f"{option}={value}"] if value.startswith("-") else [option, value]


def check_command(document: Mapping[str, Any]) -> str | None:
    """The ``biases check`` that wrote a document; ``None`` where it does not say."""
    from biases.checking.command import add_arguments

    configuration = document.get("configuration")
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    names = {action.dest for action in parser._actions}
    if not isinstance(configuration, Mapping) or not names <= configuration.keys():
        return None
    return invocation("biases check", add_arguments, configuration) + " --json"


def bench_command(document: Mapping[str, Any]) -> str | None:
    """The ``biases bench`` that wrote a document; ``None`` where it does not say."""
    from biases import zoo
    from biases.bench.command import QUICK, SMALLEST_BATCH, USUAL, add_arguments

    plan = _mapping(document.get("configuration"))
    settings = [setting for setting in _list(plan.get("settings")) if isinstance(setting, Mapping)]
    names = _list(plan.get("names"))
    if not settings or not names:
        return None
    level = plan.get("level")
    values: dict[str, Any] = {
        **{key: settings[0].get(key) for key in ("batch", "heads", "head_dim", "dtype", "device", "seed")},
        **{key: list(dict.fromkeys(each.get(key) for each in settings)) for key in ("length", "direction")},
        **{key: plan.get(key) for key in ("level", "backend", "peers", "rounds", "seconds")},
        "names": [] if names == zoo.names("layer" if level in ("operator", "layer") else "model") else names,
    }
    own_heads = any("heads" not in _mapping(row.get("setting")) for row in text.rows(document, "rows"))

    def asked(defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The values without those that the command takes by itself."""
        known = {**defaults, "batch": SMALLEST_BATCH.get(str(level), defaults["batch"])}
        if level == "training":
            known["direction"] = ["forward+backward"]
        return {**values, **{key: None for key, value in known.items() if values[key] == value}}

    commands = [invocation("biases bench", add_arguments, asked(USUAL))]
    commands.append(invocation("biases bench", add_arguments, {**asked(QUICK), "quick": True}))
    # Heads of models that have their own are refused.
    taken = [command for command in commands if not own_heads or "--head" not in command]
    return min(taken, key=len) + " --json" if taken else None


def origin(part: Mapping[str, Any]) -> str:
    """When, from which revision and on what a part was made, and from which seeds, as far as it says; one line."""
    machine, made = _mapping(part.get("machine")), _mapping(part.get("provenance"))
    config = _mapping(part.get("configuration")) or _mapping(part.get("config"))
    first = _mapping(next(iter(_list(config.get("settings"))), None))
    commits = [each for each in _list(part.get("commits")) if isinstance(each, Mapping)]
    ends = [commits[0], commits[-1]] if commits else []
    days: Sequence[Any] = _list(made.get("started")) or [_day(each.get("date")) for each in ends]
    revisions: Sequence[Any] = [*_mapping(made.get("git"))] or [each.get("hash") for each in ends]
    torch: Sequence[Any] = [*_mapping(_mapping(made.get("versions")).get("torch"))] or [machine.get("torch")]
    devices = [*_mapping(made.get("devices"))] or [_device(config.get("device") or first.get("device"), machine)]
    seeds = _list(config.get("seeds")) or [config.get("seed", first.get("seed"))]
    told = [
        " to ".join(_known(str(day)[:10] for day in days or [machine.get("date")] if day)),
        _listed("revision", map(_revision, revisions or [machine.get("git_revision")]), " to " if ends else ", "),
        _listed("torch", map(text.words, (each for each in torch if each))),
        ", ".join(_known(map(str, devices))),
        _listed("seed", (text.words(seed) for seed in seeds if seed is not None)),
    ]
    return " · ".join(filter(None, told))


def foreign_schema(document: Mapping[str, Any]) -> str:
    """A warning where a file has another form than the one that is read; empty where it has not."""
    schema = document.get("schema", SCHEMA)
    if schema == SCHEMA:
        return ""
    return f"Written in schema {text.words(schema)}; what is shown was read as schema {SCHEMA}."


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else []


def _day(milliseconds: object) -> str:
    if not isinstance(milliseconds, int | float):
        return ""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return ""


def _revision(revision: object) -> str:
    """A short revision; what was changed beside it is part of what was measured."""
    whole, _, changed = str(revision or "").partition("-")
    return whole[:REVISION] + (" with changes" if changed else "")


def _device(device: object, machine: Mapping[str, Any]) -> str:
    """A device and the name of what it is: ``cpu (model)``."""
    name = machine.get("cuda_device" if str(device).startswith("cuda") else "cpu")
    if device is None:
        return str(name or "")
    return f"{device} ({name})" if name else str(device)


def _known(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _listed(what: str, values: Iterable[str], between: str = ", ") -> str:
    """``seed 0``, ``seeds 0, 1``; empty where there are none."""
    known = _known(values)
    if not known:
        return ""
    many = what if what == "torch" or len(known) == 1 else f"{what}s"
    return f"{many} {text.listing(known) if between == ', ' else between.join(known)}"
