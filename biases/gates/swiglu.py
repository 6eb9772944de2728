"""SwiGLU values: ``V = SiLU(X W_g) . (X W_V)`` (the value gating named by arXiv 2604.06014; a G2-type gate of
2505.06708)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import fail, positive_int
from biases.registry import register
from biases.traits import Traits


class ValueGate(nn.Module):
    """``forward(v, x)``: v (B, T, C) times SiLU of a linear map of x (B, T, C).

    Args:
        dim: C.
        bias: have a bias.
    """

    def __init__(self, dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.projection = nn.Linear(positive_int("ValueGate dim", dim), dim, bias=bias)

    def forward(self, v: Tensor, x: Tensor) -> Tensor:
        if v.shape != x.shape:
            fail("ValueGate v", f"shape {tuple(x.shape)}, as x", tuple(v.shape))
        return v * F.silu(self.projection(x))


@register(
    "swiglu-value",
    family="gates",
    summary="values gated by SiLU of the input",
    traits=Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        gate_sees="token",
        position="none",
        memory="linear",
        fast_path="sdpa (the gate acts before it)",
        published="2604.06014 abstract; 2505.06708 G2",
    ),
    parameters="dim^2",
)
def swiglu_value(dim: int, heads: int) -> dict[str, object]:
    return {"causal": True, "value_gate": ValueGate(dim)}
