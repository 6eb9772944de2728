"""Inputs of attention in a sliding window, and the weights that a backend gives them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from biases import attend
from biases.testing import make_tensor

F64 = torch.float64
BACKENDS = ("auto", "dense", "reference")
WEIGHTS = ("softmax", "sigmoid", "sigmoid-normalised", "linear")
SIGMOIDS = ("sigmoid", "sigmoid-normalised")
lengths = st.integers(1, 12)
windows = st.integers(1, 14)
any_backend = st.sampled_from(BACKENDS)


def qkv(seed: int, L: int, S: int | None = None, heads: int = 2, dtype: torch.dtype = F64) -> list[Tensor]:
    sizes = (L, S or L, S or L)
    return [make_tensor((2, heads, size, 4), seed=seed + n, dtype=dtype) for n, size in enumerate(sizes)]


def seen_by_hand(L: int, S: int, window: int, alignment: str = "upper-left") -> Tensor:
    """Which keys each query sees, (L, S) bool: a query at p sees p - window + 1 .. p (arXiv 2502.18845 Eq. 5)."""
    offset = S - L if alignment == "lower-right" else 0
    rows = [[p - window + 1 <= j <= p for j in range(S)] for p in range(offset, offset + L)]
    return torch.tensor(rows).view(L, S)


def weights_of(L: int, S: int, q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """The weights of any backend, (B, H, L, S), as the output for values that are units."""
    units = torch.eye(S, dtype=q.dtype).expand(*q.shape[:2], S, S)
    return attend(q, k, units, **options)
