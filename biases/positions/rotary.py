"""Rotary position embedding (RoFormer, arXiv 2104.09864 Eq. 34): queries and keys are rotated by their position.

The angle of pair ``t`` at position ``p`` is ``p base^(-2 t / D)``. Two conventions of pairing are in use, and a state
of one
is wrong under the other: ``"interleaved"`` pairs channels (2 t, 2 t + 1) (RoFormer, GPT-J, RMT), ``"half"`` pairs
(t, t + D / 2) (GPT-NeoX, Llama).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from biases._checks import divides, even, fail, one_of, rank
from biases.registry import register
from biases.traits import Traits

PAIRINGS = ("interleaved", "half")


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, pairing: str = "interleaved") -> Tensor:
    """Rotate the channel pairs of ``x`` by ``positions * frequencies``.

    Angles are computed in float64 and the rotation in at least float32, whatever the dtype of ``x``: bfloat16 has 8
    bits of mantissa and cannot tell position 256 from 257.

    Args:
        x: (..., T, D).
        positions: (T,).
        frequencies: radians per token, (D / 2,).
        pairing: ``"interleaved"`` or ``"half"``.

    Returns:
        Shape and dtype of ``x``.
    """
    angles = positions.to(device=x.device, dtype=torch.float64)[:, None] * frequencies.to(x.device)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = angles.cos().to(work), angles.sin().to(work)
    if pairing == "interleaved":
        a, b = x.to(work).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
    a, b = x.to(work).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Rotary(nn.Module):
    """Rotates queries and keys, (B, H, T, D) -> the same.

    Args:
        head_dim: D, even.
        base: positive; wavelengths run from 2 pi to 2 pi base tokens.
        pairing: ``"interleaved"`` or ``"half"``, see the module docstring.

    Raises:
        ValueError: odd ``head_dim``, a base that is not positive, unknown pairing.
    """

    def __init__(self, head_dim: int, *, base: float = 10000.0, pairing: str = "interleaved") -> None:
        super().__init__()
        self.head_dim = even("Rotary head_dim", head_dim)
        if not 0 < base < math.inf:
            fail("Rotary base", "a positive finite number", base)
        one_of("Rotary pairing", pairing, PAIRINGS)
        self.base, self.pairing = float(base), pairing

    def frequencies(self) -> Tensor:
        """Radians per token, (D / 2,), float64. Not a buffer: ``.half()`` must not round it."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        return self.base**-exponent

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate (B, H, T, D), whose first token stands at position ``start``."""
        rank("Rotary x", x, "B H T D")
        if x.shape[-1] != self.head_dim:
            fail("Rotary x", f"head dim {self.head_dim}", x.shape[-1])
        positions = torch.arange(start, start + x.shape[-2], device=x.device)
        return rotate(x, positions, self.frequencies(), self.pairing)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, base={self.base:g}, pairing={self.pairing!r}"


@register(
    "rotary",
    kind="position",
    family="positions",
    summary="queries and keys rotated by position, base 10000, interleaved pairs",
    traits=Traits(position="relative", published="2104.09864 Eq. 34"),
    parameters="0",
    notes=("The authors of EGA kept the learned absolute encoding beside it (PE-ROPE); here it stands alone.",),
)
def rotary(
    dim: int, context: int, heads: int, *, base: float = 10000.0, pairing: str = "interleaved"
) -> dict[str, object]:
    return {"rotary": Rotary(divides("rotary", dim, heads), base=base, pairing=pairing)}
