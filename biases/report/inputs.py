"""Recognising results by their content: files and folders in, the sections of the page out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases.report import ablation, asv_history, bench, claims, history, measurements, studies, text, verification

KNOWN = (
    "a study's folder (cells/), asv's results (benchmarks.json), or JSON of `biases check`, `bench`, `stats` or "
    "`claims` with --json"
)
LIMIT = 200
DEFAULTS = ("runs", "benchmarks/results")
SKIPPED_FOLDERS = ("cells", "profile")


@dataclass
class Found:
    """What was recognised.

    Attributes:
        sections: section -> its parts, each with the ``file`` and ``command`` that it comes from.
        skipped: (path, why) of what a folder holds beside results, and what could not be used.
    """

    sections: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, section: str, part: Mapping[str, Any], path: Path, command: str) -> None:
        """Enter a part, after its section has shown that it can show it."""
        CHECKS[section](part)
        self.sections.setdefault(section, []).append({"command": command, **part, "file": str(path)})

    def pass_over(self, path: Path, why: Exception) -> None:
        """Enter what cannot be used."""
        self.skipped.append((str(path), str(why).removeprefix(f"{path}: ")))


class Foreign(ValueError):
    """JSON that none of the commands wrote."""


CHECKS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "verification": lambda part: verification.view(part, LIMIT),
    "bench": bench.view,
    "history": history.view,
    "ablation": ablation.view,
    "claims": lambda part: claims.view(part, LIMIT),
}


def gather(paths: Iterable[str | Path]) -> Found:
    """Everything in these files and folders.

    Raises:
        ValueError: a path that is not there, a named file that is none of the known ones or is broken, a folder in
            which nothing was recognised; the message names it, what was expected and what was got.
    """
    found = Found()
    for path in map(Path, paths):
        if not path.exists():
            fail(str(path), KNOWN, "no such file or folder")
        before = sum(map(len, found.sections.values()))
        _read(path, found)
        if path.is_dir() and sum(map(len, found.sections.values())) == before:
            why = "; ".join(f"{name}: {reason}" for name, reason in found.skipped[-3:])
            fail(str(path), KNOWN, f"a folder without any{f' ({why})' if why else ''}")
    _without_repetitions(found)
    return found


def gather_defaults(folder: Path) -> Found:
    """What is found below a working directory: ``runs/`` and ``benchmarks/results/``, and the package's analyses of
    studies of which neither has the cells."""
    from biases.claims.analyses import KEPT

    found = Found()
    for name in DEFAULTS:
        if (folder / name).is_dir():
            _scan(folder / name, found)
    for path in sorted(KEPT.glob("*-*.json")):
        try:
            _file(path, found)
        except (ValueError, OSError) as error:
            found.pass_over(path, error)
    _without_repetitions(found)
    return found


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
        if path.is_dir() and path.name not in SKIPPED_FOLDERS:
            try:
                if not _folder(path, found):
                    _scan(path, found)
            except (ValueError, OSError, ModuleNotFoundError) as error:
                found.pass_over(path, error)
        elif path.suffix == ".json":
            try:
                _file(path, found)
            except Foreign:
                foreign.append(path.name)
            except (ValueError, OSError) as error:
                found.pass_over(path, error)
    if foreign:
        found.skipped.append((str(folder), f"no results of these commands: {text.listing(foreign)}"))


def _folder(path: Path, found: Found) -> bool:
    """Enter a folder that is a result as a whole; whether it is one."""
    if asv_history.is_results_folder(path):
        for part in asv_history.read_folder(path):
            found.add("history", part, path, "asv run")
        return True
    if (path / "cells").is_dir():
        analysis = studies.read_folder(path)
        part = studies.part_of(analysis)
        found.add("ablation", part, path, f"biases ablate {path / 'study.toml'} --out {path}")
        return True
    return False


def _file(path: Path, found: Found) -> None:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    known = _document(document) if isinstance(document, dict) else None
    if known is None:
        got = f"an object with {', '.join(list(document)[:6]) or 'nothing'}" if isinstance(document, dict) else ""
        raise Foreign(f"{path}: expected {KNOWN}, got {got or f'JSON of a {type(document).__name__}'}")
    try:
        for section, command, make in known:
            found.add(section, make(document), path, command)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{path}: expected results as {known[0][1]!r} writes them, got {what}") from error


Known = tuple[str, str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]


def _document(document: Mapping[str, Any]) -> list[Known] | None:
    """(section, command, how to read it) of every part of a document; ``None`` for a foreign one."""
    if _lists(document, "results", "subject", "property", "status"):
        return [("verification", "biases check", dict)]
    if _lists(document, "claims", "id", "statement", "status"):
        return [("claims", "biases claims", dict)]
    if _lists(document, "rows", "name", "setting", "samples"):
        return [("bench", "biases bench", measurements.of_bench)]
    if _lists(document, "rows", "name", "ratio", "seconds_median"):
        return [("bench", "biases bench", dict)]
    if isinstance(document.get("pieces"), Mapping) and "made_by" in document:
        return [("bench", "python benchmarks/ratios.py", measurements.of_pieces)]
    cells = document.get("cells")
    if isinstance(cells, Mapping) and any("backends" in cell for cell in cells.values() if isinstance(cell, Mapping)):
        return [("bench", "python -m benchmarks.gpu", measurements.of_backends)]
    if all(name in document for name in ("study", "arms", "contrasts", "statistics")):
        return [("ablation", "biases stats", studies.part_of)]
    if isinstance(document.get("arms"), Mapping) and isinstance(document.get("contrasts"), list):
        return [("ablation", "biases demo", dict)]
    several = [name for name in ("verification", "bench", "ablation") if isinstance(document.get(name), Mapping)]
    if several and "versions" in document:
        return [(name, "biases demo", itemgetter(name)) for name in several]
    return None


def _lists(document: Mapping[str, Any], name: str, *keys: str) -> bool:
    """Whether ``name`` holds a list whose first entry has these keys; an empty one shows nothing of its kind."""
    rows = document.get(name)
    return bool(isinstance(rows, list) and rows and isinstance(rows[0], dict) and all(key in rows[0] for key in keys))


def _without_repetitions(found: Found) -> None:
    """One part a study and size, that with the most finished cells; of equal ones the first, once each."""
    for section, parts in found.sections.items():
        best: dict[str, dict[str, Any]] = {}
        for part in parts:
            plain = {key: value for key, value in part.items() if key not in ("file", "command")}
            study = part.get("study") if section == "ablation" else None
            key = str(study or json.dumps(plain, default=str, sort_keys=True))
            other = best.get(key)
            if other is None or (study and studies.finished(part) > studies.finished(other)):
                best[key] = part
            if other is not None:
                left = other if best[key] is part else part
                found.skipped.append((left["file"], f"shown from {best[key]['file']}"))
        found.sections[section] = list(best.values())
