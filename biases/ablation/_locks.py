"""One lock file a cell, so that several processes can share a run's directory."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNWRITTEN_SECONDS = 10.0
"""Age at which a lock file without an owner in it is taken for one whose writer was killed."""


def _stat(pid: int) -> tuple[str, str] | None:
    """State and start (clock ticks since boot) of a process, where the system tells.

    A reused pid differs in its start.
    """
    try:
        # The command's name stands in parentheses and may hold spaces; state and start are fields 3 and 22.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[0], after_name[19]
    except (OSError, IndexError):
        return None


def _alive(pid: int, birth: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    stat = _stat(pid)
    if stat is None:
        return True
    state, started = stat
    # A killed process that nobody has waited for is still listed, as a zombie.
    return state not in ("Z", "X") and birth in (None, started)


def _stale(path: Path) -> bool:
    """Whether the owner is a process of this machine that is no more."""
    try:
        content, age = path.read_text(), time.time() - path.stat().st_mtime
    except OSError:
        return False
    try:
        owner = json.loads(content)
        host, pid, birth = owner["host"], int(owner["pid"]), owner["birth"]
    except (ValueError, TypeError, KeyError):
        return age > UNWRITTEN_SECONDS
    if host != socket.gethostname():
        return False
    boot, machine = owner.get("boot"), owner.get("machine")
    here = _boot()
    if boot is not None and here is not None and boot != here:
        # Of two boots of one machine, the earlier is over; another machine may have the same name.
        return machine is not None and machine == _machine()
    return not _alive(pid, birth)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None


@functools.cache
def _boot() -> str | None:
    """Which start of the system this is; containers of one machine have it in common."""
    return _read("/proc/sys/kernel/random/boot_id")


@functools.cache
def _machine() -> str | None:
    return _read("/etc/machine-id")


def _owner() -> dict[str, Any]:
    """What a lock says of this process."""
    pid = os.getpid()
    stat = _stat(pid)
    birth = stat and stat[1]
    return {"pid": pid, "host": socket.gethostname(), "birth": birth, "boot": _boot(), "machine": _machine()}


def _create(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(_owner(), file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time do something in a folder, the others waiting; a kill releases it.

    Where the system has no such locks (``fcntl``), nobody waits.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / ".takeover", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def acquire(path: Path) -> bool:
    """Take the lock if it is free, or if its owner on this machine is dead; never wait.

    Raises:
        OSError: the lock file cannot be written.
    """
    if _create(path):
        return True
    if not _stale(path):
        return False
    # Two that saw the same stale lock could otherwise remove it one after the other, the second one removing the first
    # one's new lock.
    with exclusive(path.parent):
        if _stale(path):
            path.unlink(missing_ok=True)
        return _create(path)


def held(path: Path) -> bool:
    """Whether somebody who may be alive has the lock."""
    return path.exists() and not _stale(path)


def release(path: Path) -> None:
    """Give back a lock if this process holds it: one that was taken from it is its new owner's."""
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text()) == _owner():
            path.unlink()
