"""What is shown of a grid while it runs: bars in a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Tally:
    """Where a run stands, from its events.

    Attributes:
        total: cells that the run is for.
        status: id -> ``"ok"``, ``"failed"``, ``"diverged"``, of cells that have a result.
        finished: the events of the cells that this run finished.
        locked: ids of cells that other processes held.
        flying: id -> the latest event of a cell in flight.
    """

    total: int
    clock: Callable[[], float] = time.monotonic
    status: dict[str, str] = field(default_factory=dict)
    finished: list[dict[str, Any]] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    flying: dict[str, dict[str, Any]] = field(default_factory=dict)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def take(self, event: dict[str, Any]) -> None:
        kind, cell = event["event"], event["id"]
        if kind == "locked":
            self.locked.append(cell)
        elif kind in ("finished", "skipped"):
            self.status[cell] = event["status"]
            self.flying.pop(cell, None)
            if kind == "finished":
                self.finished.append(event)
        # A worker's last words may come after the result.
        elif kind == "started" or cell in self.flying:
            self.flying[cell] = {**self.flying.get(cell, {}), **event}

    @property
    def trained(self) -> list[str]:
        """Ids of the cells that this run finished."""
        return [event["id"] for event in self.finished]

    @property
    def seconds_left(self) -> float | None:
        """By the cells that this run has finished and the shares of those in flight; ``None`` before the first."""
        if not self.finished:
            return None
        shares = sum(event["step"] / event["steps"] for event in self.flying.values() if "step" in event)
        left = self.total - len(self.status) - len(self.locked)
        return (self.clock() - self.began) * max(0.0, left - shares) / (len(self.finished) + shares)

    @property
    def summary(self) -> str:
        left = self.seconds_left
        time_left = "" if left is None or not self.flying else f", about {duration(left)} left"
        return f"{len(self.status)} of {self.total} cells{time_left}"


def _cell(event: dict[str, Any]) -> str:
    return f"{event['arm']} seed {event['seed']}"


def _outcome(event: dict[str, Any]) -> str:
    if event["status"] == "ok":
        return f"done in {duration(event['seconds'])}"
    return f"{event['status']}: {event['error'].strip().splitlines()[-1]}"


def unread(stream: TextIO) -> None:
    """Throw away what is written from here on, as nobody reads it; what is unwritten must not raise at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """A line on standard error, which ends no work where nobody reads it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        unread(sys.stderr)


@contextlib.contextmanager
def show(tally: Tally) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show events until the block is left; yields what is to be called with each.

    What cannot be shown any more, as the terminal or the reader is gone, is only counted.
    """
    with _bars(tally) if sys.stderr.isatty() else contextlib.nullcontext(_line) as draw:

        def tell(event: dict[str, Any]) -> None:
            tally.take(event)
            try:
                draw(tally, event)
            except OSError:
                unread(sys.stderr)

        yield tell


@contextlib.contextmanager
def _bars(tally: Tally) -> Iterator[Callable[[Tally, dict[str, Any]], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, highlight=False)
    bars = Progress(*columns, TextColumn("{task.fields[now]}", markup=False), console=console, transient=True)
    cells = bars.add_task("cells", total=tally.total, now="")
    tasks: dict[str, TaskID] = {}

    def draw(tally: Tally, event: dict[str, Any]) -> None:
        left = tally.seconds_left
        now = "" if left is None else f"about {duration(left)} left"
        bars.update(cells, completed=len(tally.status), now=now)
        kind, cell = event["event"], event["id"]
        if kind == "started":
            tasks[cell] = bars.add_task(_cell(event), total=None, now="")
        elif kind == "step" and cell in tasks:
            shown = f"loss {event['loss']:.4f}"
            bars.update(tasks[cell], total=event["steps"], completed=event["step"], now=shown)
        elif kind == "finished":
            bars.remove_task(tasks.pop(cell))
            if event["status"] != "ok":
                console.print(f"{_cell(event)} ({cell}) {_outcome(event)}", markup=False)

    with contextlib.suppress(OSError):
        bars.start()
    try:
        yield draw
    finally:
        with contextlib.suppress(OSError):
            bars.stop()


def _line(tally: Tally, event: dict[str, Any]) -> None:
    if event["event"] == "started":
        line = "started"
    elif event["event"] == "finished":
        line = f"{_outcome(event)} ({tally.summary})"
    else:
        return
    say(f"{event['id']} {_cell(event)}: {line}")
