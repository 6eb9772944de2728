"""Biases of where one pixel of a map stands relative to another: Swin's learned table, and a bias of both axes."""

from __future__ import annotations

import torch
from torch import Tensor

from biases._cache import kept
from biases._checks import fail, positive_int, rank
from biases.backends import Geometry, PairTerm, RelativeTable, RelativeTerm


class MapTerm(PairTerm):
    """A term of two pixels of a height x width map, in raster order (y major).

    Args:
        height, width: size of the map.

    Raises:
        ValueError: sizes that are not positive; at use, other than ``height * width`` queries and keys.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height = positive_int(f"{type(self).__name__} height", height)
        self.width = positive_int(f"{type(self).__name__} width", width)

    def offsets(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns from key ``j`` (1, S) to query ``i`` (L, 1), signed: two of (L, S)."""
        return i // self.width - j // self.width, i % self.width - j % self.width

    def relative(self, table: Tensor, *, side: tuple[int, int] | None = None) -> RelativeTable:
        """The term as a table (H or 1, (2 a - 1) (2 b - 1)) of the offsets (dy, dx) of pixels of an a x b map, raster
        order from (1 - a, 1 - b) on; ``side`` is (a, b), this map's own size by default."""
        a, b = side or (self.height, self.width)
        row, column = _places(self.height, self.width, a, b, table.device)
        return RelativeTable(table, row, column, ("map", self.height, self.width, a, b))

    def steps(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Every offset along a column, (2 H - 1,), and along a row, (2 W - 1,), ascending."""
        down, across = (torch.arange(1 - n, n, device=device) for n in (self.height, self.width))
        return down, across

    def check(self, geometry: Geometry, batch: int, heads: int) -> None:
        super().check(geometry, batch, heads)
        pixels = self.height * self.width
        if (geometry.L, geometry.S, geometry.offset) != (pixels, pixels, 0):
            expected = f"L = S = {self.height} x {self.width} = {pixels}"
            fail(type(self).__name__, expected, f"L = {geometry.L}, S = {geometry.S}, offset {geometry.offset}")


@kept
def _places(height: int, width: int, a: int, b: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each pixel of a map, as a query and as a key: the difference is a place in a table of an a x b map."""
    pixels = torch.arange(height * width, dtype=torch.int32, device=device)
    column = pixels // width * (2 * b - 1) + pixels % width
    return column + (a - 1) * (2 * b - 1) + b - 1, column


class RelativePositionBias(MapTerm):
    """Swin's learned bias: a number for each offset of two pixels of a window and each head (arXiv 2103.14030 Eq. 4).

    The row ``(dy + M - 1) (2 M - 1) + dx + M - 1`` of the table belongs to the offset (dy, dx), query minus key. A map
    smaller than M x M uses the centre of the table.

    Args:
        table: ((2 M - 1)^2, H); may carry gradients.
        height, width: size of the map, at most M.

    Raises:
        ValueError: a table of another number of rows, a side longer than M.
    """

    def __init__(self, table: Tensor, height: int, width: int) -> None:
        super().__init__(height, width)
        rank("RelativePositionBias table", table, "offsets H")
        side = int(table.shape[0] ** 0.5)
        if side * side != table.shape[0] or side % 2 == 0:
            fail("RelativePositionBias table", "(2 M - 1)^2 rows", table.shape[0])
        self.window, self.table, self.heads = (side + 1) // 2, table, table.shape[1]
        if max(height, width) > self.window:
            fail("RelativePositionBias map", f"sides of at most {self.window}", (height, width))

    def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        dy, dx = self.offsets(i, j)
        rows = (dy + self.window - 1) * (2 * self.window - 1) + dx + self.window - 1
        return self.table[rows.to(self.table.device)].to(dtype).permute(2, 0, 1)[None]

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> RelativeTable:
        return self.relative(self.table.to(device=device, dtype=dtype).mT, side=(self.window, self.window))


class AxisSum(MapTerm):
    """A bias of the distance along an axis, taken along both axes of a map and added up.

    It is what the two passes of :func:`biases.axial.attend_decomposed` add in all to the logits of a pair, as one term.

    Args:
        term: the bias along an axis, such as ``ALiBi(...)``.
        height, width: size of the map.
    """

    def __init__(self, term: RelativeTerm, height: int, width: int) -> None:
        super().__init__(height, width)
        if not isinstance(term, RelativeTerm):
            fail("AxisSum term", "a bias of the distance such as ALiBi(...)", type(term).__name__)
        self.term, self.heads = term, term.heads

    def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        dy, dx = self.offsets(i, j)
        return (self.term.by_distance(dy, dtype) + self.term.by_distance(dx, dtype))[None]

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> RelativeTable:
        down, across = (self.term.by_distance(steps, dtype) for steps in self.steps(device))
        return self.relative((down[:, :, None] + across[:, None]).flatten(1))
