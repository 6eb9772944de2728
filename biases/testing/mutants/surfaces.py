"""Layers with a fault at their surface: shapes, dtypes, gradients, strides, saved state and rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant
from biases.testing.mutants.layers import CAUSAL, Plain
from biases.traits import Traits


@mutant("in-place", "The input is halved in place.", CAUSAL, caught_by="input-unchanged")
class InPlace(Plain):
    def before(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


@mutant("in-place-view", "The first channel is zeroed in a view of the input.", CAUSAL, caught_by="input-unchanged")
class InPlaceView(Plain):
    def before(self, x: Tensor) -> Tensor:
        x[..., :1].zero_()
        return x


@mutant("noisy", "A little noise is added in evaluation mode.", CAUSAL, caught_by="deterministic")
class Noisy(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y + 1e-3 * torch.randn_like(y)


@mutant("dropout-in-eval", "Dropout stays on in evaluation mode.", CAUSAL, caught_by="deterministic")
class DropoutInEval(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return nn.functional.dropout(super().weights(logits), 0.1)


@mutant(
    "unbiased-deviation",
    "The output is scaled by the unbiased deviation of the tokens, 0 / 0 for one of them.",
    Traits(),
    caught_by="single-token",
)
class UnbiasedDeviation(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y / (1 + y.std(1, keepdim=True))


@mutant(
    "strict-mask", "A query does not see itself, so that the first sees nothing.", CAUSAL, caught_by="finite-output"
)
class StrictMask(Plain):
    def mask(self, logits: Tensor) -> Tensor:
        return super().mask(logits).tril(-1)


@mutant(
    "log-of-position",
    "Logits are divided by the logarithm of the number of keys, which is zero for one.",
    CAUSAL,
    caught_by="finite-output",
)
class LogOfPosition(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        keys = torch.arange(1, logits.shape[-1] + 1, device=logits.device)[:, None]
        return super().weights(logits / keys.to(logits).log())


@mutant("root-at-zero", "A square root is taken of what is zero.", CAUSAL, caught_by="finite-gradient")
class RootAtZero(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y * (y - y).abs().sqrt() + y


@mutant("graph-is-cut", "The output is detached.", CAUSAL, caught_by="finite-gradient")
class GraphIsCut(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y.detach()


@mutant("tuple", "A pair is returned.", CAUSAL, caught_by="shape-dtype-device")
class Tupled(Plain):
    def after(self, y: Tensor) -> Any:
        return (y, None)


@mutant("transposed", "Tokens and channels are swapped.", CAUSAL, caught_by="shape-dtype-device")
class Transposed(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2)


@mutant("always-float32", "The output is float32, whatever the input is.", CAUSAL, caught_by="shape-dtype-device")
class AlwaysFloat32(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y.float()


@mutant("even-lengths", "An odd number of tokens raises.", CAUSAL, caught_by="single-token", by_raising=True)
class EvenLengths(Plain):
    def before(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise RuntimeError("an even length is needed")
        return x


@mutant("hidden-half", "The values go through float16.", CAUSAL, caught_by="float64-agreement")
class HiddenHalf(Plain):
    def value(self, v: Tensor) -> Tensor:
        return v.half().to(v.dtype)


@mutant("bfloat16-weights", "The weights are rounded to bfloat16.", CAUSAL, caught_by="float64-agreement")
class BFloat16Weights(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return super().weights(logits).bfloat16().to(logits.dtype)


@mutant(
    "cast-table",
    "A table of angles is cast with the layer and loses its precision.",
    CAUSAL,
    caught_by="bfloat16-budget",
)
class CastTable(Plain):
    angle: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.register_buffer("angle", 37.1 * torch.arange(1.0, 65.0))

    def before(self, x: Tensor) -> Tensor:
        return x * self.angle[: x.shape[1], None].cos()


@mutant(
    "cancelled-offset", "An offset is added to the values and taken off again.", CAUSAL, caught_by="bfloat16-budget"
)
class CancelledOffset(Plain):
    def value(self, v: Tensor) -> Tensor:
        return (v + 64) - 64


@mutant("unsaved-scale", "A random scale is not in the saved state.", CAUSAL, caught_by="state-dict-round-trip")
class UnsavedScale(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.scale = torch.rand(()).item()

    def after(self, y: Tensor) -> Tensor:
        return y * self.scale


@mutant(
    "listed-projections",
    "Projections stand in a plain list, where the saved state does not reach them.",
    CAUSAL,
    caught_by="state-dict-round-trip",
)
class ListedProjections(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.further = [torch.randn(dim, dim) / dim**0.5]

    def after(self, y: Tensor) -> Tensor:
        return y @ self.further[0].to(y)


@mutant("strides", "The input is read as if it were contiguous.", CAUSAL, caught_by="noncontiguous-input")
class Strides(Plain):
    def before(self, x: Tensor) -> Tensor:
        return torch.as_strided(x, x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1), 0)


@mutant(
    "wrong-rank", "An input without a batch axis gives one token in silence.", CAUSAL, caught_by="invalid-arguments"
)
class WrongRank(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x[None])[0, :1] if x.ndim == 2 else super().forward(x)


@mutant(
    "heads-rounded-down",
    "Channels that the heads do not divide are dropped in silence.",
    CAUSAL,
    caught_by="invalid-arguments",
)
class HeadsRoundedDown(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim // heads * heads, heads)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x[..., : self.out.in_features])
