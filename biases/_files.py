"""Files that are whole or absent: what a reader or a killed process can never see half of."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from biases._checks import fail


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` through a temporary file beside ``path``; an existing file stays until replaced.

    Raises:
        OSError: nothing could be written (as on a full disk); ``path`` is as before, no temporary file is
            left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush_directory(path.parent)


def _flush_directory(folder: Path) -> None:
    """Make a rename durable where the system lets a directory be flushed; the file itself already is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(path: Path) -> None:
    """Remove what killed writers of ``path`` left; call it only while no other process writes ``path``."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def writable_file(name: str, path: str | os.PathLike[str]) -> None:
    """Refuse a file that could not be written at the end; it is left as it is, or absent. Its folder is made.

    Raises:
        ValueError: it cannot be written; ``name`` is what the message calls it.
    """
    existed = os.path.lexists(path)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
        if not existed:
            os.unlink(path)
    except OSError as error:
        fail(name, "a file that can be written", error)


def writable_folder(name: str, path: str | os.PathLike[str]) -> None:
    """Make a folder, and refuse one in which nothing can be written.

    Raises:
        ValueError: it cannot be made, or not be written in.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        fail(name, "a folder that can be written in", error)
