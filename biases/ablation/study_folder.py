"""The folder of a study's run: the study as it was declared, beside the results of its cells."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from biases._checks import fail
from biases._files import write_atomically
from biases.ablation.results import cells_directory
from biases.ablation.study import Study, load_study

STUDY_FILE = "study.toml"


def begin(study: Study, out_dir: str | os.PathLike[str]) -> str | None:
    """Write the study's file into the folder, before any result.

    A folder whose study agrees in all that cells depend on, and differs in seeds, contrasts or words, gets the new
    file; the old one stays beside it under its hash, as contrasts that were declared after results were seen are no
    confirmatory ones.

    Returns:
        what to tell the user where contrasts or statistics were declared otherwise before.

    Raises:
        ValueError: the folder is of another study.
        OSError: the file cannot be written.
    """
    path = Path(out_dir) / STUDY_FILE
    note = None
    before = check_folder(study, out_dir)
    if before is not None:
        if before.source == study.source:
            return None
        kept = path.with_name(f"study-{hashlib.sha256(before.source.encode()).hexdigest()[:8]}.toml")
        write_atomically(kept, before.source.encode())
        declared = (study.family, study.statistics)
        if declared != (before.family, before.statistics):
            note = f"contrasts or statistics were declared otherwise when {out_dir} was begun; that study is {kept}"
    write_atomically(path, study.source.encode())
    return note


def check_folder(study: Study, out_dir: str | os.PathLike[str]) -> Study | None:
    """The study that a folder with cells was begun for; ``None`` where there is no cell yet, or no study's file.

    Raises:
        ValueError: it is another study, or its file cannot be read.
    """
    path = Path(out_dir) / STUDY_FILE
    cells = cells_directory(out_dir)
    if not path.exists() or not any(True for pattern in ("*.json", "*.lock") for _ in cells.glob(pattern)):
        return None
    before = load_study(path)
    old, new = before.identity, study.identity
    for part in (*old, *(part for part in new if part not in old)):
        if old.get(part) != new.get(part):
            expected = f"that of the study begun there, {old.get(part, 'none')}"
            fail(f"{study.file}: {part} in {out_dir}", expected, f"{new.get(part, 'none')}; give another --out")
    return before
