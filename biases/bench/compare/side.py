"""The resident process that measures one side."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases.bench.compare.workspace import Workspace

LISTING_SECONDS = 600.0


class SideError(Exception):
    """The process of a side ended or did not answer in time; the message says how."""


class Side:
    """One side: a process that holds the suite with one tree first on its path.

    Args:
        workspace: that the tree is in.
        tree: files that are measured.
        others: other trees of the same repository.
        suite: folder of the suite.
        python: the interpreter.
    """

    def __init__(self, workspace: Workspace, tree: Path, others: list[Path], suite: Path, python: str) -> None:
        self.workspace, self.tree, self.python = workspace, tree, python
        self.arguments = [str(suite), str(tree), *map(str, others)]
        self.log = workspace.folder / f"{tree.name}.log"
        self.name = tree.name
        self.process: subprocess.Popen[bytes] | None = None
        self.listing: dict[str, Any] = {}
        self._pending = b""

    def start(self, hash_seed: int) -> None:
        """A new process in place of the old one, which begins to list the benchmarks; :meth:`wait` for it.

        Raises:
            ValueError: the interpreter cannot be run.
        """
        self.stop()
        environment = {**self.workspace.environment(self.tree), "PYTHONHASHSEED": str(hash_seed)}
        try:
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    [self.python, "-m", "measured_side", *self.arguments],
                    cwd=self.workspace.folder / "tools",
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            fail("python", "an interpreter that can be run", error)
        self.workspace.tell(f"started {self.process.pid}")
        self._pending = b""
        with contextlib.suppress(BrokenPipeError):
            self._send({"do": "discover"})

    def wait(self) -> None:
        """Until the new process has listed the benchmarks; one that fails to has none, and says why as ``broken``."""
        try:
            listing = self._receive(LISTING_SECONDS)
        except SideError as error:
            listing = {"status": "failed", "message": str(error)}
        if "status" in listing:
            listing = {"benchmarks": [], "broken": {"suite": listing["message"]}, "other": [], "python": None}
        self.listing = listing

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The reply to a request.

        Raises:
            SideError: the process ended, or ``timeout`` seconds passed; it is stopped.
        """
        if self.process is None:
            raise SideError("the process is not running")
        try:
            self._send(request)
        except BrokenPipeError:
            raise SideError(self._ended()) from None
        return self._receive(timeout)

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def _receive(self, timeout: float) -> dict[str, Any]:
        return json.loads(self._line(timeout))

    def _line(self, timeout: float) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        descriptor, deadline = self.process.stdout.fileno(), time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.stop()
                    raise SideError(f"no answer within {timeout:g} s")
                chunk = os.read(descriptor, 1 << 16)
                if not chunk:
                    raise SideError(self._ended())
                self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _ended(self) -> str:
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        self.stop()
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        last = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        return f"the process ended ({how}){': ' + ' | '.join(last) if last else ''}"

    def stop(self) -> None:
        """End the process and what it has started."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.workspace.tell(f"ended {process.pid}")
