"""Tables of positions that end, begin anew, or stretch: right, and with faults that no short run from 0 shows."""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.encodings import ABSOLUTE, RELATIVE, Rotary, Sinusoidal


@sound("table-refuses", RELATIVE, kind="encoding")
class TableRefuses(Rotary):
    """A table of 700 rows that refuses the positions beyond, and does not declare so."""

    rows = 700

    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, torch.arange(self.rows, device=x.device))[self.row_of(positions)]

    def row_of(self, positions: Tensor) -> Tensor:
        return positions


@sound("table-declares-its-end", RELATIVE.but(max_length=100), kind="encoding")
class TableDeclaresItsEnd(TableRefuses):
    """One of 100 rows that declares so."""

    rows = 100


@sound("positions-interpolated", RELATIVE, kind="encoding")
class Interpolated(Rotary):
    """Positions are divided by 32, as linear interpolation does, and phases computed in float64."""

    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return (positions.double()[:, None] / 32) * self.frequencies(x).double()


@sound("rotary-by-complex-powers", RELATIVE, kind="encoding")
class ComplexPowers(Rotary):
    """The rotation as a power of complex numbers of absolute value 1."""

    def table(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        turns = torch.polar(torch.ones_like(self.frequencies(x)).double(), self.phases(x, positions).double())
        return turns.real.to(x.dtype), turns.imag.to(x.dtype)


@mutant(
    "table-wraps-at-64",
    "the table has 64 rows, and begins anew behind them",
    RELATIVE,
    caught_by="relative-shift",
    kind="encoding",
)
class WrapsAt64(Rotary):
    period = 64

    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, positions % self.period)


@mutant(
    "table-wraps-at-2048",
    "the table has 2048 rows, and begins anew behind them",
    RELATIVE,
    caught_by="relative-shift",
    kind="encoding",
)
class WrapsAt2048(WrapsAt64):
    period = 2048


@mutant(
    "table-wraps-at-1000",
    "the table begins anew at no power of two",
    RELATIVE,
    caught_by="relative-shift",
    kind="encoding",
)
class WrapsAt1000(WrapsAt64):
    period = 1000


@mutant(
    "table-wraps-unseen-at-512",
    "two positions 512 apart have one encoding",
    RELATIVE,
    caught_by="distinct-positions",
    kind="encoding",
)
class WrapsAt512(WrapsAt64):
    period = 512


@mutant(
    "sinusoids-wrap-at-2048",
    "sines and cosines that are added begin anew at 2048",
    ABSOLUTE,
    caught_by="distinct-positions",
    kind="encoding",
)
class SinusoidsWrap(Sinusoidal):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, positions % 2048)


@mutant(
    "table-clamps-at-8192",
    "all positions from 8191 on are one, as a gather that clamps makes them",
    RELATIVE,
    caught_by="distinct-positions",
    kind="encoding",
)
class Clamps(Rotary):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, positions.clamp(max=8191))


@mutant(
    "table-wraps-below-its-end",
    "of 100 positions declared, those from 64 on have the rows of the first",
    RELATIVE.but(max_length=100),
    caught_by="relative-shift",
    kind="encoding",
)
class WrapsBelowItsEnd(TableDeclaresItsEnd):
    def row_of(self, positions: Tensor) -> Tensor:
        return positions % 64
