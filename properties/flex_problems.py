"""Terms and problems for FlexAttention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, LowRankBias, ManhattanDecay
from biases.attention import _problem
from biases.backends import Geometry, PairTerm, Problem, RelativeTerm
from biases.positions.relative_position import AxisSum, RelativePositionBias
from biases.testing.strategies import make_tensor

HEADS = 2


class LearnedTable(RelativeTerm):
    """A bias of the distance, (H, 2 R + 1), that somebody adds and that knows nothing of FlexAttention."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.heads = table, table.shape[0]

    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        return self.table.to(dtype)[:, distance + self.table.shape[1] // 2]


def tensor(*shape: int, seed: int, learned: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    return make_tensor(shape, seed=seed, dtype=dtype).requires_grad_(learned)


def rates(seed: int, learned: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    return (-tensor(HEADS, 1, seed=seed)[:, 0].abs() / 4).to(dtype).requires_grad_(learned)


def term(kind: str, geometry: Geometry, seed: int, learned: bool, batch: int = 2) -> PairTerm:
    """A term that fits the geometry; maps are 3 pixels wide."""
    L, S = geometry.L, geometry.S
    return {
        "key": lambda: KeyBias(tensor(batch, 1, S, seed=seed, learned=learned)),
        "key of a head": lambda: KeyBias(tensor(1, HEADS, S, seed=seed, learned=learned)),
        "alibi": lambda: ALiBi(-rates(seed, learned)),
        "alibi-symmetric": lambda: ALiBi(-rates(seed, learned), symmetric=True),
        "decay": lambda: ExponentialDecay(rates(seed, learned)),
        "decay-symmetric": lambda: ExponentialDecay(rates(seed, learned), symmetric=True),
        "low-rank": lambda: LowRankBias(
            tensor(HEADS, L, 3, seed=seed, learned=learned), tensor(HEADS, S, 3, seed=seed + 1, learned=learned)
        ),
        "table": lambda: LearnedTable(tensor(HEADS, 2 * (L + S) + 1, seed=seed, learned=learned)),
        "manhattan": lambda: ManhattanDecay(L // 3, 3, rates(seed, learned)),
        "relative-position": lambda: RelativePositionBias(
            tensor((2 * max(L // 3, 3) - 1) ** 2, HEADS, seed=seed, learned=learned), L // 3, 3
        ),
        "axis-sum": lambda: AxisSum(ALiBi(-rates(seed, learned), symmetric=True), L // 3, 3),
    }[kind]()


ANYWHERE = ("key", "key of a head", "alibi", "alibi-symmetric", "decay", "decay-symmetric", "table")
KINDS = (*ANYWHERE, "low-rank", "manhattan", "relative-position", "axis-sum")


def problem(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Problem:
    every: dict[str, Any] = {"bias": None, "key_gate": None, "weights": "softmax", "decay": None, "mask": None}
    every |= {"causal": False, "window": None, "alignment": None, "dropout": 0.0, "scale": None}
    return _problem(q, k, v, **(every | options))
