"""Layers that mix what is independent: examples, layers, calls, and tokens of a set or of a window."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant
from biases.testing.mutants.layers import CAUSAL, SET, WINDOW, Plain, Symmetric, Windowed


@mutant("batch-statistics", "The mean over the batch is taken off.", CAUSAL, caught_by="batch-independence")
class BatchStatistics(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y - y.mean(0, keepdim=True)


@mutant(
    "batch-scale", "All examples are scaled by the largest value in the batch.", CAUSAL, caught_by="batch-independence"
)
class BatchScale(Plain):
    def before(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs().amax())


@mutant("batch-order", "Each example is multiplied by its number.", CAUSAL, caught_by="batch-permutation")
class BatchOrder(Plain):
    def after(self, y: Tensor) -> Tensor:
        return y * torch.arange(1, len(y) + 1, device=y.device)[:, None, None]


@mutant(
    "heads-into-batch",
    "Heads and batch are merged in one order and taken apart in the other.",
    CAUSAL,
    caught_by="batch-independence",
)
class HeadsIntoBatch(Plain):
    def value(self, v: Tensor) -> Tensor:
        return v.flatten(0, 1).unflatten(0, (self.heads, -1)).transpose(0, 1)


@mutant(
    "first-cache",
    "The first layer's scale is kept on the class, under a key that lacks the layer.",
    CAUSAL,
    caught_by="no-hidden-state",
)
class FirstCache(Plain):
    seen: ClassVar[dict[int, Tensor]] = {}

    def after(self, y: Tensor) -> Tensor:
        return y * self.seen.setdefault(y.shape[-1], self.out.weight[0, 0].detach().double())


@mutant("last-cache", "The layer built last is kept on the class, and used.", CAUSAL, caught_by="no-hidden-state")
class LastCache(Plain):
    latest: ClassVar[list[nn.Module]] = []

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.latest[:] = [self.out]

    def after(self, y: Tensor) -> Tensor:
        last: Any = self.latest[0]
        return y * (1 + last.weight[0, 0].item())


@mutant("counter", "The output grows with the number of calls.", CAUSAL, caught_by="no-hidden-state")
class Counter(Plain):
    calls = 0

    def after(self, y: Tensor) -> Tensor:
        self.calls += 1
        return y * self.calls


@mutant(
    "longest-mask",
    "The mask of the longest input so far is kept, and its last rows are taken.",
    CAUSAL,
    caught_by="no-hidden-state",
)
class LongestMask(Plain):
    kept: Tensor | None = None

    def mask(self, logits: Tensor) -> Tensor:
        length = logits.shape[-1]
        if self.kept is None or len(self.kept) < length:
            self.kept = super().mask(logits)
        return self.kept[-length:, :length]


@mutant("numbered", "A number of the token is added in a layer of sets.", SET, caught_by="permutation-equivariance")
class Numbered(Symmetric):
    def after(self, y: Tensor) -> Tensor:
        return y + torch.arange(y.shape[1], device=y.device)[:, None]


@mutant("neighbour-mixing", "Each token is mixed with its neighbour.", SET, caught_by="permutation-equivariance")
class NeighbourMixing(Symmetric):
    def before(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=1)


@mutant("absolute-position", "The position itself is added, not a distance.", WINDOW, caught_by="shift-equivariance")
class AbsolutePosition(Windowed):
    def after(self, y: Tensor) -> Tensor:
        return y + torch.arange(y.shape[1], device=y.device)[:, None]


@mutant("growing-window", "The window grows by a key a row.", WINDOW, caught_by="shift-equivariance")
class GrowingWindow(Plain):
    def mask(self, logits: Tensor) -> Tensor:
        whole = super().mask(logits)
        rows = torch.arange(len(whole), device=whole.device)
        return whole & (rows[:, None] - rows < 3 + rows[:, None] // 2)
