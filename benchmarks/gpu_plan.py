"""How much of ``python -m benchmarks.gpu`` is run, and of what its pieces are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
SPECIAL = ("flex", "triton")
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` to try the programme out.
        tiny: small shapes and few steps: no evidence of anything.
        deadline: of ``time.monotonic()``; a cell that may take long is stopped soon after.
        out: where results are written.
        committed: where results are that an earlier run wrote and that are not made again.
    """

    device: str
    tiny: bool
    deadline: float
    out: Path
    committed: Path

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def shape(self, length: int) -> dict[str, int]:
        """Sizes at which batch x heads fills the chip: 128 heads of 4096 queries, or as many queries in all."""
        if self.tiny:
            return {"batch": 2, "heads": 2, "length": length, "head_dim": 16}
        return {"batch": max(1, 8 * 4096 // length), "heads": 16, "length": length, "head_dim": 64}


Cell = Callable[[], Outcome | None]
"""Runs and says what it found; ``None`` if it was not begun, as it would not have ended in time."""

Cells = Iterator[tuple[str, Cell | Outcome]]
"""Names, and what is run under them, or what a file of its own has of them already."""


def guarded(run: Callable[[], Outcome], backend: str | None = None) -> Outcome:
    """What ``run`` found; ``status`` is ``"refused"`` where ``backend``, one that need not run everything, cannot run
    the problem, ``"wrong"`` where results differ from the specification, ``"error"`` where it raised anything else."""
    try:
        return run()
    except AssertionError as wrong:
        return {"status": "wrong", "message": str(wrong)}
    except Exception as error:
        if isinstance(error, ValueError) and backend in SPECIAL:
            return {"status": "refused", "message": str(error)}
        return {"status": "error", "message": f"{type(error).__name__}: {str(error)[:2000]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
