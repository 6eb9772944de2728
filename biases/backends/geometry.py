"""Where queries and keys stand, and which keys causality and a window leave to a query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Where queries and keys stand.

    Attributes:
        L: number of queries.
        S: number of keys.
        offset: position of query 0 in the coordinates of the keys: 0 for upper-left, S - L for lower-right alignment.
        causal: a query sees the keys at its own position and before.
        window: how many of them, counted from its own position back; ``None`` for all. Needs ``causal``.
    """

    L: int
    S: int
    offset: int = 0
    causal: bool = False
    window: int | None = None

    def positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Query positions (L, 1) and key positions (1, S), in the coordinates of the keys."""
        rows = torch.arange(self.L, device=device) + self.offset
        return rows[:, None], torch.arange(self.S, device=device)[None, :]

    def distances(self, device: torch.device) -> Tensor:
        """Every distance i - j that occurs, ascending: (L + S - 1,)."""
        return torch.arange(self.L + self.S - 1, device=device) - (self.S - 1) + self.offset

    def allowed(self, distance: Tensor) -> Tensor | None:
        """Which distances i - j causality and window leave, bool; ``None``: all."""
        if not self.causal:
            return None
        past = distance >= 0
        return past if self.window is None else past & (distance < self.window)

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """The first key that any of the queries ``start .. stop - 1`` may see, and one past the last; equal if none."""
        if not self.causal:
            return 0, self.S
        last = min(self.S, max(0, stop + self.offset))
        first = 0 if self.window is None else max(0, start + self.offset - self.window + 1)
        return min(first, last), last
