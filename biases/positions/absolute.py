"""Absolute encodings added to the token embeddings: none, learned, sinusoidal."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from biases._checks import even, fail, positive_int, rank
from biases.registry import register
from biases.traits import Traits


class LearnedPosition(nn.Module):
    """A learned vector for each position, added to (B, T, C).

    Args:
        dim: C.
        context: largest T.
    """

    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(positive_int("context", context), positive_int("dim", dim)))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        rank("LearnedPosition x", x, "B T C")
        if x.shape[2] != self.weight.shape[1]:
            fail("LearnedPosition x", f"width {self.weight.shape[1]}", x.shape[2])
        if x.shape[1] > self.weight.shape[0]:
            fail("LearnedPosition x", f"at most {self.weight.shape[0]} tokens", x.shape[1])
        return x + self.weight[: x.shape[1]].to(x.dtype)


def sinusoidal(length: int, dim: int, *, base: float = 10000.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """``PE(p, 2 t) = sin(p base^(-2 t / C))``, ``PE(p, 2 t + 1) = cos(...)`` (arXiv 1706.03762 section 3.5): (T, C)."""
    even("sinusoidal dim", dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * base ** (
        -torch.arange(0, dim, 2, dtype=torch.float64) / dim
    )
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(dtype)


class SinusoidalPosition(nn.Module):
    """The sinusoidal encoding times ``amplitude``, added to (B, T, C).

    Args:
        dim: C, even.
        amplitude: 1 in the papers. Beside embeddings of standard deviation 0.02, as in the EGA papers, the encoding's
            rms of 0.71 drowns the tokens; ``amplitude=0.02 * 2**0.5`` makes both alike.
        base: 10000 in the papers.
    """

    def __init__(self, dim: int, *, amplitude: float = 1.0, base: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.base = even("SinusoidalPosition dim", dim), float(base)
        if not 0 < base < math.inf:
            fail("SinusoidalPosition base", "a positive finite number", base)
        if not amplitude >= 0:
            fail("SinusoidalPosition amplitude", "at least 0", amplitude)
        self.amplitude = float(amplitude)

    def forward(self, x: Tensor) -> Tensor:
        rank("SinusoidalPosition x", x, "B T C")
        if x.shape[2] != self.dim:
            fail("SinusoidalPosition x", f"width {self.dim}", x.shape[2])
        encoding = self.amplitude * sinusoidal(x.shape[1], self.dim, base=self.base)
        return x + encoding.to(x)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, amplitude={self.amplitude:g}, base={self.base:g}"


@register(
    "none",
    kind="position",
    family="positions",
    summary="no position at all (a causal mask still tells order)",
    traits=Traits(position="none"),
    parameters="0",
)
def none(dim: int, context: int, heads: int) -> dict[str, object]:
    return {}


@register(
    "learned",
    kind="position",
    family="positions",
    summary="a learned vector for each position, added to the embeddings",
    traits=Traits(position="absolute", published="2605.21842 section 4.1 (baseline)"),
    parameters="context * dim",
)
def learned(dim: int, context: int, heads: int) -> dict[str, object]:
    return {"embedding": LearnedPosition(dim, context)}


@register(
    "sinusoidal",
    kind="position",
    family="positions",
    summary="sines and cosines of the position, added to the embeddings",
    traits=Traits(position="absolute", published="1706.03762 section 3.5"),
    parameters="0",
    notes=("Unscaled it drowns embeddings of standard deviation 0.02, which is how the EGA papers ran it.",),
)
def sinusoidal_position(
    dim: int, context: int, heads: int, *, amplitude: float = 1.0, base: float = 10000.0
) -> dict[str, object]:
    return {"embedding": SinusoidalPosition(dim, amplitude=amplitude, base=base)}
