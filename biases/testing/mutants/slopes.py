"""Slopes that are right, and slopes that follow another rule than they say."""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.traits import Decay, Traits

ALIBI = Traits(decay=Decay("linear", "past", "logits", "alibi"))
RETENTION = Traits(decay=Decay("exponential", "past", "weights", "retention"))


@sound("slopes-alibi", ALIBI, kind="slopes")
class Slopes:
    """The slopes of ALiBi, by the recursion of its authors' code; the faults are overrides of one step."""

    def __init__(self, dim: int, heads: int) -> None:
        self.heads = heads

    def __call__(self) -> Tensor:
        return torch.tensor(self.slopes(self.heads))

    def slopes(self, heads: int) -> list[float]:
        power = 2 ** (heads.bit_length() - 1)
        if power == heads:
            return self.geometric(heads)
        return self.joined(self.slopes(power), self.slopes(2 * power)[::2][: heads - power])

    def geometric(self, heads: int) -> list[float]:
        return [2.0 ** (-8.0 * k / heads) for k in range(1, heads + 1)]

    def joined(self, slopes: list[float], more: list[float]) -> list[float]:
        return slopes + more


@sound("slopes-retention", RETENTION, kind="slopes")
class Rates(Slopes):
    """The rates of retention, from gamma in float32."""

    def slopes(self, heads: int) -> list[float]:
        gamma = 1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float32))
        return (-gamma.log()).tolist()


@mutant(
    "slopes-geometric",
    "the rule for powers of two is used for every number of heads",
    ALIBI,
    caught_by="slopes-reference",
    kind="slopes",
    source="ml-explore/mlx#343",
)
class Geometric(Slopes):
    def slopes(self, heads: int) -> list[float]:
        return self.geometric(heads)


@mutant(
    "slopes-exponent",
    "exponents count from 0, so that the first slope is 1",
    ALIBI,
    caught_by="slopes-reference",
    kind="slopes",
    source="paiml/aprender#2143",
)
class Exponent(Slopes):
    def geometric(self, heads: int) -> list[float]:
        return [2.0 ** (-8.0 * k / heads) for k in range(heads)]


@mutant(
    "slopes-interleaved",
    "the slopes beyond the power of two stand between the others, and not after them",
    ALIBI,
    caught_by="slopes-reference",
    kind="slopes",
    source="baichuan-inc/Baichuan2#225",
)
class Interleaved(Slopes):
    def joined(self, slopes: list[float], more: list[float]) -> list[float]:
        return sorted(slopes + more, reverse=True)


@mutant(
    "slopes-rising",
    "the rates of retention are listed from the last head to the first",
    RETENTION,
    caught_by="slopes-order",
    kind="slopes",
)
class Rising(Rates):
    def slopes(self, heads: int) -> list[float]:
        return super().slopes(heads)[::-1]


@mutant(
    "slopes-signed",
    "the slopes have the sign of the bias",
    ALIBI,
    caught_by="slopes-range",
    kind="slopes",
)
class Signed(Slopes):
    def geometric(self, heads: int) -> list[float]:
        return [-slope for slope in super().geometric(heads)]


@mutant(
    "slopes-cache",
    "a cache that all instances share is cut to the number of heads, where it is long enough",
    ALIBI,
    caught_by="slopes-isolated",
    kind="slopes",
    source="ml-explore/mlx#3071",
)
class Cached(Slopes):
    longest: tuple[float, ...] = ()

    def __call__(self) -> Tensor:
        if len(type(self).longest) < self.heads:
            type(self).longest = tuple(self.slopes(self.heads))
        return torch.tensor(type(self).longest[: self.heads])
