"""Inputs of ``attend_decomposed``: maps, decays and masks along the axes."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from biases import ExponentialDecay
from biases.axial import ORDERS
from biases.testing import assert_close_to, make_tensor

F64 = torch.float64
PLACEMENTS = ("logits", "weights", "weights-renormalised")
orders, placements, sides = st.sampled_from(ORDERS), st.sampled_from(PLACEMENTS), st.integers(1, 4)


def normal(seed: int, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return make_tensor(shape, "normal", seed, dtype)


def qkv(seed: int, heads: int, height: int, width: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(normal(seed + n, 2, heads, height, width, dim) for n in range(3))


def decay_of(heads: int, placement: str = "logits") -> ExponentialDecay:
    rates = torch.log(torch.linspace(0.5, 0.95, heads, dtype=F64))
    return ExponentialDecay(rates, symmetric=True, placement=placement)


def equal(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    assert_close_to(actual, expected, scale=max(scale, expected.abs().max().item()), ulps=200)


def split_masks(height: int, width: int, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Masks along the axes that cut the map in four at (row, column)."""
    down, across = torch.arange(height) < row, torch.arange(width) < column
    return (down[:, None] == down)[None], (across[:, None] == across)[None]


WEIGHTS = ("softmax", "sigmoid", "sigmoid-normalised")
