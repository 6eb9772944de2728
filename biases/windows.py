"""Shifted windows (Swin, arXiv 2103.14030 section 3.2): how a map is cut, and which of its pixels may see which.

A map whose sides are no multiple of the window is padded with zeros below and on the right, first; then it is rolled
up and to the left by the shift, and cut. A pixel may see those pixels of its window that are its neighbours in the map
as well: neither the ones that the roll brought round from the opposite side, nor padding. For every pair that may see
each other the distance inside the window is the distance in the map, and the rule of a pair is that of its rows *and*
that of its columns, so that two one-dimensional masks say all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from biases._checks import fail, one_of, positive_int

RULES = ("adaptive", "clamp", "divisor")


@dataclass(frozen=True)
class Axis:
    """One side of a map, cut into windows.

    Attributes:
        side: length of the map.
        size: length of a window, at most ``side``.
        shift: by how much the map is rolled, in [0, ``size``); 0 where there is one window only.

    Raises:
        ValueError: a number outside its range.
    """

    side: int
    size: int
    shift: int = 0

    def __post_init__(self) -> None:
        positive_int("window side of the map", self.side)
        if positive_int("window size", self.size) > self.side:
            fail("window size", f"at most the side of the map, {self.side}", self.size)
        one_window = self.size == self.side
        shift = self.shift
        if isinstance(shift, bool) or not isinstance(shift, int) or not 0 <= shift < (1 if one_window else self.size):
            expected = "0 for a single window" if one_window else f"an integer in [0, {self.size})"
            fail("window shift", expected, repr(shift))

    @property
    def count(self) -> int:
        """Number of windows."""
        return -(-self.side // self.size)

    @property
    def padded(self) -> int:
        """Length with padding."""
        return self.count * self.size

    def real(self, device: torch.device | None = None) -> Tensor | None:
        """Which places of each window are of the map, (``count``, ``size``); ``None``: all, as there is no padding."""
        return None if self.padded == self.side else self._rolled(device) % self.padded < self.side

    def mask(self, device: torch.device | None = None) -> Tensor | None:
        """Which place of a window may see which, (``count``, ``size``, ``size``), True = may; ``None``: all."""
        real = self.real(device)
        if self.shift == 0 and real is None:
            return None
        wrapped = self._rolled(device) >= self.padded
        together = wrapped[:, :, None] == wrapped[:, None, :]
        return together if real is None else together & real[:, None, :]

    def _rolled(self, device: torch.device | None) -> Tensor:
        """Where the places of each window stood before the roll, beyond ``padded`` if they were brought round."""
        return torch.arange(self.padded, device=device).view(self.count, self.size) + self.shift


@dataclass(frozen=True)
class Windows:
    """A map of height x width cut into windows.

    Attributes:
        rows: its vertical axis.
        columns: its horizontal axis.
    """

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, height: int, width: int, window: int, *, shifted: bool = False, rule: str = "adaptive") -> Windows:
        """The windows of a map, of about ``window`` x ``window``.

        Args:
            height, width: of the map.
            window: M.
            shifted: roll by half a window along every axis that has more than one.
            rule: what is done with a side that is no multiple of M.

                * ``"adaptive"``: windows of ``ceil(side / n)``, ``n = max(1, round(side / M))``, for each axis; there
                  may be fewer than n. A side of less than 1.5 M is one window, so that attention is global on small
                  maps (for M = 7 on all stages of CIFAR-10, whose maps are 8, 4, 2, 1), as arXiv 2604.06014 reports;
                  the rule itself is ours.
                * ``"clamp"``: where the smaller side is at most M, it becomes the window and nothing is shifted (Swin's
                  code); a side that is no multiple is padded.
                * ``"divisor"``: the largest divisor of the side that is at most M, for each axis; never pads, and has
                  windows of 1 on a prime side greater than M.

        Raises:
            ValueError: sizes that are not positive, an unknown rule, ``shifted`` other than True or False.
        """
        positive_int("window", window)
        one_of("window rule", rule, RULES)
        one_of("window shifted", shifted, (False, True))
        sides = (positive_int("map height", height), positive_int("map width", width))
        if rule == "clamp":
            smaller = min(sides)
            sizes = [min(window, smaller)] * 2
            shifted = shifted and smaller > window
        elif rule == "divisor":
            sizes = [max(d for d in range(1, min(side, window) + 1) if side % d == 0) for side in sides]
        else:
            sizes = [-(-side // max(1, (2 * side + window) // (2 * window))) for side in sides]
        axes = (
            Axis(side, size, size // 2 if shifted and size < side else 0)
            for side, size in zip(sides, sizes, strict=True)
        )
        return cls(*axes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a window."""
        return self.rows.size, self.columns.size

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.rows.count * self.columns.count

    def partition(self, x: Tensor) -> Tensor:
        """Pad, roll and cut: (B, ``rows.side``, ``columns.side``, C) -> ``(B * count, *size, C)``."""
        rows, columns = self.rows, self.columns
        cut = self.roll(x).unflatten(2, (columns.count, columns.size)).unflatten(1, (rows.count, rows.size))
        return cut.transpose(2, 3).flatten(0, 2)

    def reverse(self, x: Tensor) -> Tensor:
        """Undo :meth:`partition`: ``(B * count, *size, C)`` -> (B, ``rows.side``, ``columns.side``, C)."""
        rows, columns = self.rows, self.columns
        if x.ndim != 4 or tuple(x.shape[1:3]) != self.size or x.shape[0] % self.count:
            expected = f"shape (B * {self.count}, {rows.size}, {columns.size}, C)"
            fail("Windows.reverse x", expected, tuple(x.shape))
        cut = x.unflatten(0, (x.shape[0] // self.count, rows.count, columns.count))
        return self.unroll(cut.transpose(2, 3).flatten(3, 4).flatten(1, 2))

    def roll(self, x: Tensor) -> Tensor:
        """Pad and roll, without cutting: (B, height, width, C) -> (B, ``rows.padded``, ``columns.padded``, C)."""
        rows, columns = self.rows, self.columns
        _expect("Windows.roll x", x, rows.side, columns.side)
        below, right = rows.padded - rows.side, columns.padded - columns.side
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        return x.roll((-rows.shift, -columns.shift), (1, 2)) if rows.shift or columns.shift else x

    def unroll(self, x: Tensor) -> Tensor:
        """Undo :meth:`roll`: (B, ``rows.padded``, ``columns.padded``, C) -> (B, ``rows.side``, ``columns.side``, C)."""
        rows, columns = self.rows, self.columns
        _expect("Windows.unroll x", x, rows.padded, columns.padded)
        if rows.shift or columns.shift:
            x = x.roll((rows.shift, columns.shift), (1, 2))
        return x[:, : rows.side, : columns.side]

    def axis_masks(self, device: torch.device | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Masks along the columns and along the rows of each window: (``count``, h, h) and (``count``, w, w).

        True = may attend; ``None`` where all may. A pair of places may attend where both allow it.
        """
        return self._by_window(self.rows.mask(device), self.columns.mask(device))

    def real(self, device: torch.device | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Which rows and which columns of each window are of the map: (``count``, h) and (``count``, w).

        ``None`` where all are. A place holds a pixel where both are.
        """
        return self._by_window(self.rows.real(device), self.columns.real(device))

    def _by_window(self, down: Tensor | None, across: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """From what is said of the windows of each axis, what holds for each window of the map, in their order."""
        if down is not None:
            down = down.repeat_interleave(self.columns.count, 0)
        if across is not None:
            across = across.repeat(self.rows.count, *(1,) * (across.ndim - 1))
        return down, across

    def mask(self, device: torch.device | None = None) -> Tensor | None:
        """Which place of each window may see which, in raster order: (``count``, h w, h w), or ``None``: all."""
        (h, w), (down, across) = self.size, self.axis_masks(device)
        if down is None and across is None:
            return None
        everywhere = torch.ones((), dtype=torch.bool, device=device)
        vertical = everywhere if down is None else down[:, :, None, :, None]
        horizontal = everywhere if across is None else across[:, None, :, None, :]
        return (vertical & horizontal).expand(self.count, h, w, h, w).reshape(self.count, h * w, h * w)


def _expect(what: str, x: Tensor, height: int, width: int) -> None:
    if x.ndim != 4 or tuple(x.shape[1:3]) != (height, width):
        fail(what, f"shape (B, {height}, {width}, C)", tuple(x.shape))
