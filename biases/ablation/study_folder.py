"""The folder of a study's run: the study as it was declared, the hash of its data, and the results of its cells."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases._files import write_atomically
from biases.ablation.kinds import Data
from biases.ablation.results import cells_directory, read_result
from biases.ablation.study import Study, load_study

STUDY_FILE = "study.toml"
DATA_FILE = "data.json"
KEPT = "study-*.toml"
"""Names of the studies that a folder was begun with, where :data:`STUDY_FILE` is another by now."""


def begin(study: Study, out_dir: str | os.PathLike[str], data: Data | None = None) -> str | None:
    """Write the study's file into the folder, before any result, and the name and hash of its data.

    A folder whose study agrees in all that cells depend on, and differs in seeds, contrasts or words, gets the new
    file; the old one stays beside it under its hash, as contrasts that were declared after results were seen are no
    confirmatory ones.

    Args:
        data: what the cells are to be trained on; ``None`` leaves unchecked whether it is what it was.

    Returns:
        what to tell the user where contrasts or statistics were declared otherwise before.

    Raises:
        ValueError: the folder is of another study, or of other data.
        OSError: a file cannot be written.
    """
    path = Path(out_dir) / STUDY_FILE
    note = None
    before = check_folder(study, out_dir, data)
    if data is not None:
        pinned = json.dumps({"schema": 1, "name": data.name, "sha256": data.sha256}) + "\n"
        write_atomically(path.with_name(DATA_FILE), pinned.encode())
    if before is not None:
        if before.source == study.source:
            return None
        kept = path.with_name(KEPT.replace("*", hashlib.sha256(before.source.encode()).hexdigest()[:8]))
        write_atomically(kept, before.source.encode())
        if _declared(study) != _declared(before):
            note = f"contrasts or statistics were declared otherwise when {out_dir} was begun; that study is {kept}"
    write_atomically(path, study.source.encode())
    return note


def check_folder(study: Study, out_dir: str | os.PathLike[str], data: Data | None = None) -> Study | None:
    """The study that a folder with cells was begun for; ``None`` where there is no cell yet, or no study's file.

    Raises:
        ValueError: it is another study, or its file cannot be read; the data are others; there is no file, and cells
            that are not the study's.
    """
    path = Path(out_dir) / STUDY_FILE
    cells = [cell for pattern in ("*.json", "*.lock") for cell in cells_directory(out_dir).glob(pattern)]
    if not cells:
        return None
    if data is not None:
        _check_data(study, out_dir, data)
    if not path.exists():
        _check_cells(study, out_dir, {cell.stem for cell in cells if not cell.name.startswith(".")})
        return None
    before = load_study(path)
    old, new = before.identity, study.identity
    for part in (*old, *(part for part in new if part not in old)):
        if old.get(part) != new.get(part):
            expected = f"that of the study begun there, {old.get(part, 'none')}"
            fail(f"{study.file}: {part} in {out_dir}", expected, f"{new.get(part, 'none')}; give another --out")
    return before


def redeclared(study: Study, out_dir: str | os.PathLike[str]) -> list[str]:
    """Names of the files, beside the study's own, whose contrasts or statistics are others than the study's.

    A file that cannot be read is one of them: nothing shows that it agrees.
    """

    def differs(path: Path) -> bool:
        try:
            return _declared(load_study(path)) != _declared(study)
        except ValueError:
            return True

    return sorted(path.name for path in Path(out_dir).glob(KEPT) if differs(path))


def _declared(study: Study) -> tuple[Any, ...]:
    return study.family, study.statistics


def _check_data(study: Study, out_dir: str | os.PathLike[str], data: Data) -> None:
    """Compare with what the folder was begun with."""
    pinned = _pinned(out_dir)
    if pinned is not None and pinned[1] != data.sha256:
        expected = "those of the cells there, {} of SHA-256 {}".format(*pinned)
        fail(f"{study.file}: data in {out_dir}", expected, f"{data.name} of {data.sha256}; give another --out")


def _pinned(out_dir: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Name and hash of a folder's data, by its file or else by one of its results; ``None`` without any."""
    path = Path(out_dir) / DATA_FILE
    if path.exists():
        try:
            pinned = json.loads(path.read_bytes())
            return str(pinned["name"]), str(pinned["sha256"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected name and sha256 of the data, got {error!r}") from error
    for cell in sorted(cells_directory(out_dir).glob("[!.]*.json")):
        # What cannot be read is no obstacle here; whoever needs that cell tells.
        with contextlib.suppress(ValueError):
            told = read_result(cell)["data"]
            return str(told.get("name")), str(told.get("sha256"))
    return None


def _check_cells(study: Study, out_dir: str | os.PathLike[str], found: set[str]) -> None:
    others = sorted(found - {cell.id for cell in study.grid.cells()})
    if others:
        expected = f"{STUDY_FILE} beside its cells, or only cells of the study"
        fail(f"{study.file}: {out_dir}", expected, f"{len(others)} others, such as {others[0]}; give another --out")
