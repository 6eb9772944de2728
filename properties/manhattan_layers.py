"""Layers of Manhattan attention to be compared, and what they are made of by hand."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from biases.layers import ManhattanAttention
from biases.testing import assert_close_to, make_tensor

F64 = torch.float64
FORMS = ("decomposed", "full")
PLACEMENTS = ("logits", "weights", "weights-renormalised")
forms, placements, sides = st.sampled_from(FORMS), st.sampled_from(PLACEMENTS), st.integers(1, 5)
shapes = st.sampled_from([(8, 2), (12, 3), (4, 1), (16, 2)])


def build(seed: int, shape: tuple[int, int] = (8, 2), dtype: torch.dtype = F64, **options: Any) -> ManhattanAttention:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = ManhattanAttention(*shape, **options)
        # As they start, queries and keys are so small that attention is nearly uniform.
        for projection in (layer.query, layer.key):
            nn.init.normal_(projection.weight, std=shape[0] ** -0.5)
    return layer.to(dtype)


def maps(seed: int, height: int, width: int, dim: int = 8, dtype: torch.dtype = F64) -> Tensor:
    return make_tensor((2, height, width, dim), "normal", seed, dtype)


def equal(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    assert_close_to(actual, expected, scale=max(scale, expected.abs().max().item()), ulps=300)


def apart(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def rate(heads: int, head: int, initial: float = 2.0, span: float = 4.0) -> float:
    """gamma of a head, Eq. 8."""
    return 1 - 2 ** (-initial - span * head / heads)


def turned(x: Tensor, index: Tensor) -> Tensor:
    """Channel pairs of (..., D) as complex numbers, multiplied by exp(i index theta)."""
    theta = 10000 ** -torch.linspace(0, 1, x.shape[-1] // 2, dtype=F64)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(()).double(), index[..., None] * theta)).flatten(-2)
