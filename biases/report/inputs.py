"""Recognising results by their content: files and folders in, the sections of the page out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases.report import asv_history, sources, studies, text
from biases.report.kinds import empty, kinds_of
from biases.report.sections import SECTIONS

KNOWN = (
    "a study's folder (cells/), asv's results (benchmarks.json), or JSON of `biases check`, `bench`, `stats` or "
    "`claims` with --json"
)
LIMIT = 200
DEFAULTS = ("runs", "benchmarks/results")
TRACES = ".pt.trace.json"
"""How the names of a profiler's traces end: JSON too, and large."""
PACKAGED = "The package's own study"
PACKAGED_REMARK = (
    "It comes with the package and was not run here. One of your own: "
    f"{SECTIONS['ablation'].made_by}, then {SECTIONS['ablation'].shown_by}."
)
Part = dict[str, Any]
TOLD = ("command", "exact", "file", "machine")
"""What a part says of itself beside its results."""
UNREADABLE = (ArithmeticError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
"""What a document of another form than it seems to have leads to."""


class Foreign(ValueError):
    """JSON that none of the commands wrote."""


@dataclass
class Found:
    """What was recognised.

    Attributes:
        sections: section -> its parts, each with the ``file`` and ``command`` that it comes from, and whether that
            command is ``exact``; those that come with the package are ``packaged``.
        skipped: (path, why) of what a folder holds beside results, and what could not be used.
    """

    sections: dict[str, list[Part]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, section: str, part: Mapping[str, Any], path: Path, command: str, *, exact: bool = True) -> None:
        """Enter a part, after its section has shown that it can show it."""
        SECTIONS[section].view(part, LIMIT, 0)
        told = {"command": command, "exact": exact or "command" in part, **part, "file": str(path)}
        self.sections.setdefault(section, []).append(told)

    def pass_over(self, path: Path, why: Exception) -> None:
        """Enter what cannot be used."""
        self.skipped.append((str(path), str(why).removeprefix(f"{path}: ")))

    def counts(self, *, packaged: bool = False) -> dict[str, int]:
        """Section -> how many parts it has, of those that come with the package or of the others."""
        counted = {
            section: sum(bool(part.get("packaged")) is packaged for part in parts)
            for section, parts in self.sections.items()
        }
        return {section: count for section, count in counted.items() if count}


def gather(paths: Iterable[str | Path]) -> Found:
    """Everything in these files and folders.

    Raises:
        ValueError: a path that is not there, a named file that is none of the known ones, is broken or cannot be read,
            a folder in which nothing was recognised; the message names it, what was expected and what was got.
    """
    found = Found()
    for path in map(Path, paths):
        before = found.counts()
        try:
            if not path.exists():
                fail(str(path), KNOWN, "no such file or folder")
            _read(path, found)
        except OSError as error:
            fail(str(error.filename or path), "a file or folder that can be read", error.strerror or error)
        if path.is_dir() and found.counts() == before:
            why = "; ".join(f"{name}: {reason}" for name, reason in found.skipped[-3:])
            fail(str(path), KNOWN, f"a folder without any{f' ({why})' if why else ''}")
    _without_repetitions(found)
    return found


def gather_defaults(folder: Path) -> Found:
    """What is found below a working directory: ``runs/`` and ``benchmarks/results/``, and the package's analyses of
    the studies of which neither has results."""
    found = Found()
    for path in (folder / name for name in DEFAULTS):
        if path.is_dir():
            _scan(path, found)
    _without_repetitions(found)
    own = {part.get("study") for part in found.sections.get("ablation", [])}
    packaged = [part for part in _packaged() if part["study"] not in own]
    if packaged:
        found.sections.setdefault("ablation", []).extend(packaged)
    return found


def _packaged() -> list[Part]:
    """The analyses of studies that come with the package."""
    from biases.claims.analyses import KEPT

    found = Found()
    for path in sorted(KEPT.glob("*-*.json")):
        _file(path, found)
    parts = found.sections.get("ablation", [])
    return [
        {**part, "packaged": True, "title": f"{PACKAGED}: {part['title']}", "remarks": [PACKAGED_REMARK]}
        for part in parts
    ]


def _read(path: Path, found: Found) -> None:
    """One named path; what cannot be used is an error."""
    if not path.is_dir():
        _file(path, found)
    elif not _folder(path, found):
        _scan(path, found)


def _scan(folder: Path, found: Found) -> None:
    """A folder of results; what cannot be used is passed over, and told."""
    foreign = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        try:
            if path.is_dir():
                if not _folder(path, found):
                    _scan(path, found)
            elif path.name.endswith(TRACES):
                foreign.append(path.name)
            elif path.suffix == ".json":
                _file(path, found)
        except Foreign:
            foreign.append(path.name)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            found.pass_over(path, error)
    if foreign:
        found.skipped.append((str(folder), f"no results of these commands: {', '.join(foreign)}"))


def _folder(path: Path, found: Found) -> bool:
    """Enter a folder that is a result as a whole; whether it is one."""
    if asv_history.is_results_folder(path):
        for part in asv_history.read_folder(path):
            found.add("history", part, path, "asv run")
        return True
    if (path / "cells").is_dir():
        part = studies.part_of(studies.read_folder(path))
        command = ["biases", "ablate", str(path / "study.toml"), "--out", str(path)]
        found.add("ablation", part, path, shlex.join(command))
        return True
    return False


def _file(path: Path, found: Found) -> None:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(document, dict):
        raise Foreign(f"{path}: expected {KNOWN}, got JSON of a {type(document).__name__}")
    kinds = kinds_of(document)
    if not kinds:
        if (nothing := empty(document)) is not None:
            fail(str(path), f"results of `{nothing[1]}`", f"no results in it: its {nothing[0]!r} are empty")
        raise Foreign(f"{path}: expected {KNOWN}, got an object with {', '.join(list(document)[:6]) or 'nothing'}")
    try:
        for kind in kinds:
            part = {**kind.read(document)}
            if kind.section != "bench" and (remark := sources.foreign_schema(document)):
                part["remarks"] = [remark]
            command = kind.command(document)
            found.add(kind.section, part, path, command or kind.program, exact=command is not None)
    except UNREADABLE as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{path}: expected results as {kinds[0].program!r} writes them, got {what}") from error


def _without_repetitions(found: Found) -> None:
    """Every part once, and of the runs of one study those whose cells no other run has all; several are told apart by
    their files."""
    for section, parts in found.sections.items():
        kept: list[Part] = []
        for part in sorted(parts, key=studies.finished, reverse=True) if section == "ablation" else parts:
            other = next((each for each in kept if _repeats(part, each)), None)
            if other is None:
                kept.append(part)
            else:
                found.skipped.append((part["file"], f"the same results are shown from {other['file']}"))
        found.sections[section] = [part for part in parts if any(part is each for each in kept)]
    runs: dict[Any, list[Part]] = {}
    for part in found.sections.get("ablation", []):
        runs.setdefault(part.get("study"), []).append(part)
    for study, several in runs.items():
        for part in several if study and len(several) > 1 else ():
            part["title"] = f"{part.get('title') or study}, {part['file']}"


def _repeats(part: Part, other: Part) -> bool:
    """Whether another part shows all that one has: the same, or a run of the same study with the same cells and
    more."""
    if _plain(part) == _plain(other):
        return True
    if not part.get("study") or part["study"] != other.get("study"):
        return False
    cells, others = _cells(part), _cells(other)
    return cells < others or (cells == others and _dumped(part.get("contrasts")) == _dumped(other.get("contrasts")))


def _plain(part: Part) -> str:
    return _dumped({key: value for key, value in part.items() if key not in TOLD})


def _dumped(value: object) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def _cells(part: Part) -> set[str]:
    """What a study measured, and of what and on what: its values by arm and seed, revisions, data and devices."""
    measured = {
        _dumped([arm, kind, seed, value])
        for arm, raw in text.section(part, "arms").items()
        for kind in ("full", "truncated")
        for seed, value in text.section(raw, kind).items()
    }
    made = text.section(part, "provenance")
    return measured | {f"{what} {name}" for what in ("git", "data", "devices") for name in text.section(made, what)}
