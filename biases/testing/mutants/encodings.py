"""Positional encodings that are right, and encodings whose positions, phases or tables go wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.traits import Traits

RELATIVE = Traits(position="relative")
ABSOLUTE = Traits(position="absolute")


@sound("rotary", RELATIVE, kind="encoding")
class Rotary(nn.Module):
    """Rotation of the pairs (t, t + D / 2) by ``position base^(-2 t / D)``; the faults are overrides of one step."""

    def __init__(self, dim: int, heads: int, *, base: float = 10000.0) -> None:
        super().__init__()
        self.head_dim, self.base = dim // heads, base

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.table(x, positions)
        return self.rotate(x, cos, sin)

    def frequencies(self, x: Tensor) -> Tensor:
        exponent = torch.arange(0, self.head_dim, 2, device=x.device, dtype=torch.float32) / self.head_dim
        return 1.0 / self.base**exponent

    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return positions.float()[:, None] * self.frequencies(x)

    def table(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        phases = self.phases(x, positions)
        return phases.cos().to(x.dtype), phases.sin().to(x.dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


@sound("rotary-table", RELATIVE, kind="encoding")
class RotaryTable(Rotary):
    """The same from a table in float32 that grows with the positions asked for."""

    def __init__(self, dim: int, heads: int, *, base: float = 10000.0) -> None:
        super().__init__(dim, heads, base=base)
        self.cache: Tensor | None = None

    def table(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        longest = int(positions.max()) + 1
        if self.cache is None or self.must_grow(self.cache, longest):
            self.cache = self.kept(self.phases(x, torch.arange(longest, device=x.device)), x)
        phases = self.cache[self.rows(positions, len(self.cache))]
        return phases.cos().to(x.dtype), phases.sin().to(x.dtype)

    def must_grow(self, cache: Tensor, longest: int) -> bool:
        return len(cache) < longest

    def kept(self, phases: Tensor, x: Tensor) -> Tensor:
        return phases

    def rows(self, positions: Tensor, length: int) -> Tensor:
        return positions


@sound("rotary-pairs", RELATIVE, kind="encoding")
class RotaryPairs(Rotary):
    """The same with the pairs (2 t, 2 t + 1), by complex numbers, in at least float32."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        work = torch.promote_types(x.dtype, torch.float32)
        turned = torch.view_as_complex(x.to(work).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(turned * torch.complex(cos.to(work), sin.to(work))).flatten(-2).to(x.dtype)


@sound("dynamic-ntk", RELATIVE.but(max_length=2048), kind="encoding")
class DynamicNTK(Rotary):
    """The base grows with the length beyond 2048, so that products are those of distances only up to there."""

    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        grown = max(1.0, 2 * (int(positions.max()) + 1) / 2048 - 1) ** (self.head_dim / max(1, self.head_dim - 2))
        exponent = torch.arange(0, self.head_dim, 2, device=x.device, dtype=torch.float32) / self.head_dim
        return positions.float()[:, None] / (self.base * grown) ** exponent


@sound("sinusoidal", ABSOLUTE, kind="encoding")
class Sinusoidal(Rotary):
    """Sines and cosines of the position, added."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x + torch.cat([sin, cos], -1)


@sound("learned-positions", ABSOLUTE.but(max_length=64), kind="encoding")
class Learned(nn.Module):
    """A table of 64 learned vectors, added."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(64, dim // heads))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table[positions]


@mutant(
    "encoding-layout",
    "cosines and sines are laid out for pairs (2 t, 2 t + 1), and the halves are rotated",
    RELATIVE,
    caught_by="relative-shift",
    kind="encoding",
    source="facebookresearch/xformers#779",
)
class Layout(Rotary):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin


@mutant(
    "encoding-sign",
    "the sine has the same sign in both rows of the rotation",
    RELATIVE,
    caught_by="norm-preservation",
    kind="encoding",
)
class Sign(Rotary):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos + b * sin, a * sin + b * cos], -1)


@mutant(
    "encoding-autocast",
    "phases are a matmul, which autocast rounds to bfloat16",
    RELATIVE,
    caught_by="autocast-keeps-positions",
    kind="encoding",
    source="huggingface/transformers#29285",
)
class Autocast(Rotary):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return positions.float()[:, None] @ self.frequencies(x)[None]


@mutant(
    "encoding-buffer",
    "frequencies are a buffer, which a cast of the module rounds",
    RELATIVE,
    caught_by="dtype-cast-keeps-positions",
    kind="encoding",
    source="huggingface/transformers#25681",
)
class Buffered(Rotary):
    def __init__(self, dim: int, heads: int, *, base: float = 10000.0) -> None:
        super().__init__(dim, heads, base=base)
        self.rates: Tensor
        self.register_buffer("rates", super().frequencies(torch.empty(0)), persistent=False)

    def frequencies(self, x: Tensor) -> Tensor:
        return self.rates.float()


@mutant(
    "encoding-bfloat16-table",
    "cosines and sines are kept in bfloat16",
    RELATIVE,
    caught_by="position-budget",
    kind="encoding",
    source="KellerJordan/modded-nanogpt#39",
)
class LowTable(Rotary):
    def table(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        phases = self.phases(x, positions)
        # In float64 as it should be: the reference of a table is the layer itself.
        low = torch.bfloat16 if x.dtype != torch.float64 else x.dtype
        return phases.cos().to(low).to(x.dtype), phases.sin().to(low).to(x.dtype)


@mutant(
    "encoding-rounded-frequencies",
    "frequencies are rounded to the dtype of the input before they meet the positions",
    RELATIVE,
    caught_by="position-budget",
    kind="encoding",
    source="sgl-project/sglang-jax#1473",
)
class RoundedFrequencies(Rotary):
    def frequencies(self, x: Tensor) -> Tensor:
        return super().frequencies(x).to(x.dtype).float()


@mutant(
    "encoding-rounded-positions",
    "positions and frequencies are rounded to the dtype of the input, and so is their product",
    RELATIVE,
    caught_by="relative-shift-at-large-positions",
    kind="encoding",
    source="huggingface/candle#3520",
)
class RoundedPositions(Rotary):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return positions.to(x.dtype)[:, None] * self.frequencies(x).to(x.dtype)


@mutant(
    "encoding-tf32",
    "phases are a float32 matmul, which has 10 bits of mantissa where matmuls may be TF32",
    RELATIVE,
    caught_by="matmul-precision-agreement",
    kind="encoding",
    source="huggingface/transformers#48428",
)
class TF32(Rotary):
    """TF32 by hand, as no CPU has it."""

    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        left, right = positions.float()[:, None], self.frequencies(x)[None]
        if torch.get_float32_matmul_precision() != "highest":
            left, right = _tf32(left), _tf32(right)
        return left @ right


def _tf32(x: Tensor) -> Tensor:
    """Rounded to 10 bits of mantissa."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@mutant(
    "encoding-cache-key",
    "the cache of frequencies that all instances share has a key without the base, as that of equinox 0.13.8",
    RELATIVE,
    caught_by="instance-isolation",
    kind="encoding",
)
class CacheKey(Rotary):
    shared: dict[Any, Tensor] = {}  # noqa: RUF012

    def frequencies(self, x: Tensor) -> Tensor:
        key = (self.head_dim, x.device)
        if key not in self.shared:
            self.shared[key] = super().frequencies(x)
        return self.shared[key]


@mutant(
    "encoding-counts",
    "tokens are counted from 0, whatever their positions",
    RELATIVE,
    caught_by="positions-respected",
    kind="encoding",
)
class Counts(Rotary):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, torch.arange(len(positions), device=x.device))


@mutant(
    "encoding-first-position",
    "tokens are counted from the position of the first, so that gaps are closed",
    RELATIVE,
    caught_by="positions-respected",
    kind="encoding",
)
class FirstPosition(Rotary):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, positions[0] + torch.arange(len(positions), device=x.device))


@mutant(
    "encoding-table-dtype",
    "the table keeps the dtype of the first input that it met",
    RELATIVE,
    caught_by="table-growth",
    kind="encoding",
)
class TableDtype(RotaryTable):
    def kept(self, phases: Tensor, x: Tensor) -> Tensor:
        return phases.to(x.dtype)


@mutant(
    "encoding-table-ends",
    "the table never grows, and later positions are those at its end",
    RELATIVE,
    caught_by="table-growth",
    kind="encoding",
)
class TableEnds(RotaryTable):
    def must_grow(self, cache: Tensor, longest: int) -> bool:
        return False

    def rows(self, positions: Tensor, length: int) -> Tensor:
        return positions.clamp(max=length - 1)


@mutant(
    "encoding-alike",
    "positions are bfloat16, which has no number between 256 and 258",
    RELATIVE,
    caught_by="distinct-positions",
    kind="encoding",
)
class Alike(Rotary):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, positions.to(torch.bfloat16))


@mutant(
    "encoding-overflow",
    "positions are float16, which is infinite from 65520 on",
    RELATIVE,
    caught_by="extrapolates-finite",
    kind="encoding",
)
class Overflow(Rotary):
    def phases(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().phases(x, positions.half())


@mutant(
    "encoding-scaled",
    "the token is scaled by the square root of its width on the way",
    ABSOLUTE,
    caught_by="absolute-added",
    kind="encoding",
)
class Scaled(Sinusoidal):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate(x * x.shape[-1] ** 0.5, cos, sin)
