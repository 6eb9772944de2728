"""G1: a gate on the output of attention (Gated Attention for LLMs, arXiv 2505.06708 Eq. 5): ``Y' = Y . sigmoid(X W)``.

Y is the output of attention before the output projection, X the block's normalised input. Elementwise, W is C x C,
headwise C x H. The authors widen the query projection to compute it; a linear map of its own is the same function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import divides, fail, one_of, rank
from biases.registry import register
from biases.traits import Traits

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "silu": F.silu}


class OutputGate(nn.Module):
    """``forward(y, x)``: y (B, H, T, D) times the activation of a linear map of x (B, T, C).

    Args:
        dim: C; heads: H.
        granularity: ``"elementwise"`` or ``"headwise"`` (one number a head: keeps the direction of each head's vector).
        activation: ``"sigmoid"`` (G1) or ``"silu"`` (the swish gate of retention).
        bias: have a bias.

    Raises:
        ValueError: heads not dividing dim, unknown option.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        granularity: str = "elementwise",
        activation: str = "sigmoid",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.head_dim = divides("OutputGate", dim, heads)
        one_of("OutputGate granularity", granularity, ("elementwise", "headwise"))
        one_of("OutputGate activation", activation, ACTIVATIONS)
        self.heads, self.granularity, self.activation = heads, granularity, activation
        self.projection = nn.Linear(dim, dim if granularity == "elementwise" else heads, bias=bias)

    def gate(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, H, T, D) or (B, H, T, 1)."""
        values = ACTIVATIONS[self.activation](self.projection(x))
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        rank("OutputGate y", y, "B H T D")
        if y.shape[1] != self.heads or y.shape[3] != self.head_dim:
            fail("OutputGate y", f"shape (B, {self.heads}, T, {self.head_dim})", tuple(y.shape))
        wanted = (y.shape[0], y.shape[2], self.projection.in_features)
        if tuple(x.shape) != wanted:
            fail("OutputGate x", f"shape {wanted}", tuple(x.shape))
        return y * self.gate(x)

    def extra_repr(self) -> str:
        return f"granularity={self.granularity!r}, activation={self.activation!r}"


class HeadNorm(nn.Module):
    """RMS norm over each head's channels, without parameters: (B, H, T, D) -> the same (torchscale's retention)."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, y: Tensor) -> Tensor:
        work = y.to(torch.promote_types(y.dtype, torch.float32))
        return (work * torch.rsqrt(work.square().mean(-1, keepdim=True) + self.eps)).to(y.dtype)


def _traits(granularity: str) -> Traits:
    return Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        gate_range=(0.0, 1.0),
        gate_sees="token",
        position="none",
        memory="linear",
        fast_path="sdpa (the gate acts after it)",
        published=f"2505.06708 Eq. 5, {granularity}",
    )


@register(
    "g1",
    family="gates",
    summary="sigmoid gate on the output of attention, elementwise",
    traits=_traits("elementwise"),
    parameters="dim^2 + dim",
)
def g1(dim: int, heads: int, *, bias: bool = True) -> dict[str, object]:
    return {"causal": True, "output_gate": OutputGate(dim, heads, bias=bias)}


@register(
    "g1-headwise",
    family="gates",
    summary="sigmoid gate on the output of attention, one number a head",
    traits=_traits("headwise"),
    parameters="heads * (dim + 1)",
)
def g1_headwise(dim: int, heads: int, *, bias: bool = True) -> dict[str, object]:
    return {"causal": True, "output_gate": OutputGate(dim, heads, granularity="headwise", bias=bias)}
