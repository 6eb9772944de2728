"""Files that are whole or absent: what a reader or a killed process can never see half of."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from pathlib import Path

from biases._checks import fail


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` through a temporary file beside ``path``; an existing file stays until replaced.

    A link stays one, and the file that it names is replaced. What :func:`is_stream` says has nothing to replace: it is
    written to.

    Raises:
        OSError: nothing could be written (as on a full disk), or ``path`` is a folder, a socket or a disk; ``path`` is
            as before, no temporary file is left.
    """
    stream = _stream(path)
    if stream is not None:
        with open(stream, "wb", closefd=isinstance(stream, Path)) as file:
            file.write(content)
        return
    target = _linked(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush_directory(target.parent)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is an open descriptor (``/dev/stdout``, ``/dev/fd/N``), a pipe or a character device.

    Raises:
        OSError: it can be neither written to nor replaced: a folder, a socket, a disk.
    """
    return _stream(path) is not None


def _linked(path: str | os.PathLike[str]) -> Path:
    """The file that a link names, which need not be there; any other path as it is, made absolute."""
    return Path(os.path.realpath(path))


def _stream(path: str | os.PathLike[str]) -> Path | int | None:
    """What to open where there is nothing to replace: a descriptor of this process, or the path of a pipe or device."""
    descriptor = _descriptor(path)
    if descriptor is not None:
        return descriptor
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return Path(path)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Neither a file nor a pipe nor a character device", str(path))


def _descriptor(path: str | os.PathLike[str]) -> int | None:
    """The open descriptor that ``/dev/stdout``, ``/dev/fd/N`` or a link to them names.

    By its name it could be opened a second time at most, with a position of its own, and a socket not at all.
    """
    descriptors = os.path.realpath("/dev/fd")
    link, seen = os.path.join(os.getcwd(), path), set[str]()
    while link not in seen:
        seen.add(link)
        folder, name = os.path.split(link)
        if name.isdecimal() and os.path.realpath(folder) == descriptors:
            return int(name)
        if not os.path.islink(link):
            break
        link = os.path.join(folder, os.readlink(link))
    return None


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
    target = _linked(path)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def writable_file(name: str, path: str | os.PathLike[str]) -> None:
    """Refuse what :func:`write_atomically` could not write at the end; it is left as it is, or absent. Its folder is
    made.

    Raises:
        ValueError: it cannot be written; ``name`` is what the message calls it.
    """
    try:
        stream = _stream(path)
        if stream is not None:
            # To open a pipe and close it again would be its end for who reads it.
            if isinstance(stream, int):
                os.fstat(stream)
            elif not os.access(stream, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return
        target = _linked(path)
        existed = target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab"):
            pass
        if not existed:
            target.unlink()
        # A file is replaced by one that is written beside it.
        with tempfile.TemporaryFile(dir=target.parent):
            pass
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
