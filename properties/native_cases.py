"""Problems that the native kernel can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, ManhattanDecay, attend
from biases.backends import DecayTerm, RelativeTerm
from biases.positions import AxisSum, RelativePositionBias
from biases.testing.strategies import make_tensor, seeds

F32, F64 = torch.float32, torch.float64
WEIGHTS = ("softmax", "sigmoid", "sigmoid-normalised")
BIASES = ("none", "key", "alibi", "slopes", "table", "low-rank", "all", "swin", "axes")
DECAYS = ("none", "logits", "weights", "weights-renormalised", "manhattan", "manhattan-weights")
GATES = ("none", "renormalised", "plain")
LAYOUTS = ("tokens by heads", "heads by tokens", "channels by tokens", "every other channel", "channels first")
MASKS = ("none", "padding", "pairs", "rows", "batch-and-heads", "regions", "repeated")
ON_MAPS = ("swin", "axes", "manhattan", "manhattan-weights")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """``x`` (B, H, L, D) with its numbers elsewhere in memory."""
    if layout == "every other channel":
        return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]
    axes = {"tokens by heads": (0, 2, 1, 3), "channels by tokens": (0, 1, 3, 2), "channels first": (3, 0, 1, 2)}
    order = axes.get(layout, (0, 1, 2, 3))
    back = [order.index(axis) for axis in range(4)]
    return x.permute(order).contiguous().permute(back)


class Table(RelativeTerm):
    """A learned bias of the distance, (H or 1, 2 R + 1)."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.heads = table, table.shape[0]

    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        return self.table.to(dtype)[:, distance + self.table.shape[1] // 2]


class Reach(Table, DecayTerm):
    """The same as a decay of the weights, in logarithms."""

    placement = "weights"

    def __init__(self, table: Tensor) -> None:
        super().__init__(table[None])


@dataclass(frozen=True)
class Case:
    """Shapes and kinds of a problem; its numbers follow from ``seed``."""

    weights: str = "softmax"
    bias: str = "none"
    decay: str = "none"
    gate: str = "none"
    mask: str = "none"
    causal: bool = False
    window: int | None = None
    batch: int = 1
    heads: int = 2
    L: int = 7
    S: int = 7
    D: int = 4
    Dv: int = 4
    lower_right: bool = False
    layout: str = "heads by tokens"
    size: float = 1.0
    seed: int = 0

    @property
    def map(self) -> tuple[int, int]:
        width = next(w for w in (8, 7, 5, 3, 2, 1) if self.L % w == 0)
        return self.L // width, width

    def leaves(self) -> dict[str, Tensor]:
        """Everything that takes a gradient, float32."""
        B, H, L, S = self.batch, self.heads, self.L, self.S
        side = max(self.map)
        shapes: dict[str, tuple[int, ...]] = {"q": (B, H, L, self.D), "k": (B, H, S, self.D), "v": (B, H, S, self.Dv)}
        of_kind: dict[str, dict[str, tuple[int, ...]]] = {
            "key": {"key": (B, 1, S)},
            "slopes": {"slopes": (1, H)},
            "table": {"table": (1, 2 * (L + S) + 1)},
            "low-rank": {"left": (H, L, 3), "right": (H, S, 3)},
            "all": {"key": (1, H, S), "slopes": (1, H), "table": (H, 2 * (L + S) + 1)},
            "swin": {"swin": ((2 * side - 1) ** 2, H)},
            "axes": {"slopes": (1, H)},
        }
        shapes |= of_kind.get(self.bias, {})
        shapes |= {"gate": (B, 1, S)} if self.gate != "none" else {}
        shapes |= {"rates": (1, H)} if self.decay != "none" else {}
        made = {name: make_tensor(shape, seed=self.seed + n) for n, (name, shape) in enumerate(shapes.items())}
        made["q"] = made["q"] * self.size
        for name in "qkv":
            made[name] = laid_out(made[name], self.layout)
        return made

    def call(self, backend: str, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Output and gradients, of a fixed direction."""
        leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in self.leaves().items()}
        assert dtype != F32 or all(leaves[name].stride() == x.stride() for name, x in self.leaves().items())
        out = attend(leaves["q"], leaves["k"], leaves["v"], backend=backend, **self.options(leaves))
        direction = laid_out(make_tensor(tuple(out.shape), seed=99, dtype=F64).to(dtype), self.layout)
        grads = torch.autograd.grad(out, list(leaves.values()), direction, allow_unused=True)
        return out.detach(), {name: g for name, g in zip(leaves, grads, strict=True) if g is not None}

    def options(self, leaves: dict[str, Tensor]) -> dict[str, Any]:
        H, (height, width) = self.heads, self.map
        slopes = lambda: leaves["slopes"][0] / 4  # noqa: E731
        biases = {
            "none": lambda: (),
            "key": lambda: (KeyBias(leaves["key"]),),
            "alibi": lambda: (ALiBi(torch.linspace(0.0, 4.0, H), symmetric=True),),
            "slopes": lambda: (ALiBi(slopes(), allow_negative=True),),
            "table": lambda: (Table(leaves["table"]),),
            "low-rank": lambda: (LowRankBias(leaves["left"], leaves["right"]),),
            "all": lambda: (
                KeyBias(leaves["key"]),
                ALiBi(slopes(), symmetric=True, allow_negative=True),
                Table(leaves["table"]),
            ),
            "swin": lambda: (RelativePositionBias(leaves["swin"], height, width),),
            "axes": lambda: (AxisSum(ALiBi(slopes(), allow_negative=True), height, width),),
        }[self.bias]()
        gate = None
        if self.gate != "none":
            gate = KeyGate(torch.nn.functional.logsigmoid(3 * leaves["gate"]), renormalise=self.gate == "renormalised")
        decay: Any = None
        if self.decay != "none":
            rates = -leaves["rates"][0].abs() / 2
            if self.decay.startswith("manhattan"):
                placement = "weights" if self.decay.endswith("weights") else "logits"
                decay = ManhattanDecay(height, width, rates, placement=placement)
            else:
                decay = ExponentialDecay(rates, symmetric=not self.causal, placement=self.decay)
        return {
            "weights": self.weights,
            "bias": biases,
            "key_gate": gate,
            "decay": decay,
            "mask": self.drawn_mask(),
            "causal": self.causal,
            "window": self.window,
            "alignment": None if self.L == self.S else "lower-right" if self.lower_right else "upper-left",
        }

    def drawn_mask(self) -> Tensor | None:
        B, H, L, S = self.batch, self.heads, self.L, self.S
        shapes = {"padding": (B, 1, 1, S), "pairs": (L, S), "rows": (B, 1, L, S), "batch-and-heads": (B, H, L, S)}
        shapes["repeated"] = (1, 1, L, S)
        if self.mask == "none":
            return None
        if self.mask == "regions":
            # Whole blocks of pairs that may attend, or may not; in the first example all may.
            pieces = [torch.arange(n) * 3 // n for n in (L, S)]
            mask = (pieces[0][:, None] == pieces[1]).repeat(B, 1, 1, 1)
            mask[0] = True
            return mask
        mask = torch.rand(shapes[self.mask], generator=torch.Generator().manual_seed(self.seed)) < 0.7
        if self.mask == "rows":
            mask[:, :, L // 2] = False
        if self.mask == "padding":
            mask[0] = False
        return mask.expand(B, 1, L, S) if self.mask == "repeated" else mask


@st.composite
def cases(draw: st.DrawFn) -> Case:
    bias, decay = draw(st.sampled_from(BIASES)), draw(st.sampled_from(DECAYS))
    L = draw(st.integers(1, 80))
    square = bias in ON_MAPS or decay in ON_MAPS or draw(st.booleans())
    S = L if square else draw(st.integers(1, 80))
    causal = draw(st.booleans())
    return Case(
        weights=draw(st.sampled_from(WEIGHTS)),
        bias=bias,
        decay=decay,
        gate=draw(st.sampled_from(GATES)),
        mask=draw(st.sampled_from(MASKS)),
        causal=causal,
        window=draw(st.sampled_from([None, 1, 5, 50])) if causal else None,
        batch=draw(st.sampled_from([1, 2, 5])),
        heads=draw(st.integers(1, 3)),
        L=L,
        S=S,
        D=draw(st.sampled_from([1, 4, 16, 20, 33, 64, 70])),
        Dv=draw(st.sampled_from([1, 3, 16, 31, 32, 70])),
        lower_right=bias != "low-rank" and draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        size=draw(st.sampled_from([1.0, 1.0, 30.0])),
        seed=draw(seeds()),
    )


def largest(*tensors: Tensor) -> float:
    return max(float(x.detach().abs().max()) for x in tensors if x.numel())
