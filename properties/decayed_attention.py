"""Inputs of attention with a decay, and what it gives to keys that are all alike."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from biases import attend
from biases.testing import assert_close_to, make_tensor

F64 = torch.float64
head_counts = st.integers(1, 4)
sides = st.integers(1, 4)


def normal(seed: int, *shape: int) -> Tensor:
    return make_tensor(shape, "normal", seed, F64)


def qkv(seed: int, heads: int, length: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(normal(seed + n, 2, heads, length, dim) for n in range(3))


def equal(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Equal up to the rounding of a few hundred operations at magnitude ``scale``."""
    assert_close_to(actual, expected, scale=scale, ulps=300)


def weights_of(heads: int, length: int, **options) -> Tensor:
    """The weights (H, L, L) that ``attend`` gives to keys that are all alike: values are the unit vectors."""
    same = torch.ones(1, heads, length, 2, dtype=F64)
    units = torch.eye(length, dtype=F64).expand(1, heads, length, length)
    return attend(same, same, units, **options)[0]


def logits(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / math.sqrt(q.shape[-1])
