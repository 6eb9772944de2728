"""Layers that are right and built in other ways than most: what the battery must not take for a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from biases.testing.mutants.base import sound
from biases.testing.mutants.layers import CAUSAL, Plain
from biases.traits import Traits

LONGEST = 8


@sound("short-table", CAUSAL.but(max_length=LONGEST))
class ShortTable(Plain):
    """Refuses what is longer than its table."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.table = nn.Parameter(0.1 * torch.randn(LONGEST, dim))

    def before(self, x: Tensor) -> Tensor:
        if x.shape[1] > LONGEST:
            raise ValueError(f"x: expected at most {LONGEST} tokens, got {x.shape[1]}")
        return x + self.table[: x.shape[1]].to(x.dtype)


@sound("complex-table", CAUSAL.but(max_length=128))
class ComplexTable(Plain):
    """Turns pairs of channels by a table of complex numbers, as the released Llama does."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        rates = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.arange(128, dtype=torch.float64)[:, None] * rates
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def before(self, x: Tensor) -> Tensor:
        turns: Tensor = self.turns  # type: ignore[assignment]
        work = x if x.dtype == torch.float64 else x.float()
        pairs = torch.view_as_complex(work.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns[: x.shape[1]].to(pairs.dtype)).flatten(-2).to(x.dtype)


@sound("numpy-initialised", CAUSAL)
class NumpyInitialised(Plain):
    """Draws a parameter by numpy."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gain = nn.Parameter(torch.from_numpy(1 + 0.1 * numpy.random.randn(dim)).float())

    def after(self, y: Tensor) -> Tensor:
        return y * self.gain


@sound("own-generator", CAUSAL)
class OwnGenerator(Plain):
    """Draws a parameter by a generator that no seed of the caller's reaches."""

    _generator = numpy.random.default_rng()

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gain = nn.Parameter(torch.from_numpy(1 + 0.1 * self._generator.standard_normal(dim)).float())

    def after(self, y: Tensor) -> Tensor:
        return y * self.gain


@sound("frozen-decay", CAUSAL)
class FrozenDecay(nn.Module):
    """Linear attention with a decay that is a parameter and not trained: beyond 1 it would grow."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.values, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gamma = nn.Parameter(1 - 2.0 ** (-5 - torch.arange(heads).float()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        v = self.values(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        step = torch.arange(x.shape[1], device=x.device)
        distance = step[:, None] - step
        decay = self.gamma[:, None, None] ** distance.clamp(min=0) * (distance >= 0)
        y = decay @ v / decay.sum(-1, keepdim=True)
        return self.out(y.transpose(1, 2).flatten(2))


@sound("mask-required", Traits(mask=("boolean",), equivariant_to=("permutation",)))
class MaskRequired(Plain):
    """Cannot be called without saying which tokens count."""

    causal = False

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:  # type: ignore[override]
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT / q.shape[-1] ** 0.5
        lowest = torch.finfo(logits.dtype).min
        weights = logits.masked_fill(~keep[:, None, None, :], lowest).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@sound("operator-mask-required", Traits(mask=("additive",), normalisation="row"), kind="operator")
def mask_required(dim: int, heads: int) -> Callable[..., Any]:
    """An operator whose fourth argument has no default, and that views its inputs."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        shape = (*q.shape[:3], v.shape[-1])
        flat = [each.reshape(-1, *each.shape[-2:]) for each in (q, k, v)]
        logits = torch.bmm(flat[0], flat[1].mT) / q.shape[-1] ** 0.5
        logits = logits.view(*q.shape[:3], k.shape[2]) + mask
        empty = (logits == float("-inf")).all(-1, keepdim=True)
        weights = logits.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
        return torch.bmm(weights.flatten(0, 1), flat[2]).view(shape)

    return attend
