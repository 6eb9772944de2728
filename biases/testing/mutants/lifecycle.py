"""Layers that change with their mode, their copies, casts or moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.layers import CAUSAL, Plain
from biases.traits import Traits


@sound("dropout", Traits(causal=True, training_differs=True))
class Dropout(Plain):
    """Dropout on the weights, declared."""

    def weights(self, logits: Tensor) -> Tensor:
        return nn.functional.dropout(super().weights(logits), 0.3, self.training)


@mutant(
    "training-unscaled",
    "the path that is taken in training leaves out the scale of the logits",
    CAUSAL,
    caught_by="train-eval-agreement",
)
class TrainingUnscaled(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return super().weights(2 * logits if self.training else logits)


@mutant(
    "copy-tied",
    "a function made in the constructor holds on to the layer, and a deep copy goes on using its parameters",
    CAUSAL,
    caught_by="deepcopy-agreement",
)
class CopyTied(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gain = nn.Parameter(torch.ones(heads, 1, 1))
        self.scaled = lambda v: v * self.gain

    def value(self, v: Tensor) -> Tensor:
        return self.scaled(v)


@sound("growing-table", CAUSAL)
class GrowingTable(Plain):
    """What is added at each position is a buffer that grows when it is asked for more, and is not saved."""

    table: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.register_buffer("table", torch.zeros(0, dim), persistent=False)

    def before(self, x: Tensor) -> Tensor:
        if len(self.table) < x.shape[1]:
            self.table = added(x)
        return x + self.table[: x.shape[1]].to(x)


def added(x: Tensor) -> Tensor:
    """Sines of the positions, (T, C)."""
    rates = 10 ** -torch.linspace(0, 2, x.shape[-1], device=x.device)
    return (torch.arange(x.shape[1], device=x.device)[:, None] * rates).sin().to(x.dtype)


@mutant(
    "table-of-first-dtype",
    "a table of positions is an attribute that keeps the dtype of the first input",
    CAUSAL,
    caught_by="dtype-round-trip",
)
class TableOfFirstDtype(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.table: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        if self.table is None or len(self.table) < x.shape[1] or self.table.device != x.device:
            self.table = added(x)
        return x + self.table[: x.shape[1]].to(x)


@mutant(
    "running-mean-in-evaluation",
    "a running mean is updated in evaluation too",
    CAUSAL,
    caught_by="state-unchanged",
)
class RunningMean(Plain):
    mean: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.register_buffer("mean", torch.zeros(dim))

    def before(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.detach().mean((0, 1)).to(self.mean), 0.1)
        return x


@mutant(
    "inference-without-mask",
    "the path that is taken without gradients forgets the causal mask",
    CAUSAL,
    caught_by="grad-mode-agreement",
)
class InferenceWithoutMask(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return super().weights(logits) if torch.is_grad_enabled() else logits.softmax(-1)


@mutant(
    "mask-on-the-cpu",
    "the mask is made without a device",
    CAUSAL,
    caught_by="device-moves",
)
class MaskOnTheCpu(Plain):
    def mask(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[-2:], dtype=torch.bool).tril()


@mutant(
    "table-not-registered",
    "a table of positions is a plain attribute, which a move leaves behind",
    CAUSAL,
    caught_by="device-moves",
)
class TableNotRegistered(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.table: Any = torch.linspace(-1, 1, 512)[:, None]

    def before(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]].to(x.dtype)
