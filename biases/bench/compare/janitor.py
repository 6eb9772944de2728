"""``python janitor.py REPOSITORY PARENT``: a temporary folder for a comparison, and the end of it, however that comes.

It makes the folder in PARENT and writes its path. Then it waits until its standard input ends, as it does also when
the process that holds the other end is killed. Lines on it are ``started PID`` and ``ended PID`` of processes that
lead their own group, and ``worktree PATH``. Last it kills what still runs, and removes the worktrees from the
repository and the folder. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile


def main() -> None:
    """Make the folder, wait, clean up."""
    repository, parent = sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="biases-compare-", dir=parent)
    with contextlib.suppress(BrokenPipeError):
        print(folder, flush=True)
    running: set[int] = set()
    worktrees: list[str] = []
    for line in sys.stdin:
        what, _, value = line.rstrip("\n").partition(" ")
        if what == "started":
            running.add(int(value))
        elif what == "ended":
            running.discard(int(value))
        elif what == "worktree":
            worktrees.append(value)
    for leader in running:
        with contextlib.suppress(OSError):
            os.killpg(leader, signal.SIGKILL)
    for path in worktrees:
        # Files first: git then forgets the worktree even if its creation was cut short, which leaves it locked.
        shutil.rmtree(path, ignore_errors=True)
        command = ["git", "-C", repository, "worktree", "remove", "--force", "--force", path]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        sys.exit(f"could not remove all of {folder}")


if __name__ == "__main__":
    main()
