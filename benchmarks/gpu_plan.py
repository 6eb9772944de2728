"""How much of ``python -m benchmarks.gpu`` is run, and of what its pieces are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` to try the programme out.
        tiny: small shapes and few steps: no evidence of anything.
        deadline: of ``time.monotonic()``; a cell that may take long is stopped soon after.
    """

    device: str
    tiny: bool
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def shape(self, length: int) -> dict[str, int]:
        """Sizes at which batch x heads fills the chip: 128 heads of 4096 queries, or as many queries in all."""
        if self.tiny:
            return {"batch": 2, "heads": 2, "length": length, "head_dim": 16}
        return {"batch": max(1, 8 * 4096 // length), "heads": 16, "length": length, "head_dim": 64}


Cell = Callable[[], Outcome]
Cells = Iterator[tuple[str, Cell]]
"""Names, and what is run under them."""
