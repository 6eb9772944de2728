"""Biases that are right, and those with one fault: a slope, a sign, an edge, a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.traits import Decay, Traits

Sizes = Callable[[int, int], Tensor]

ALIBI = Traits(
    causal=True,
    alignment="lower-right",
    decay=Decay("linear", "past", "logits", "alibi"),
    equivariant_to=("shift",),
)
SYMMETRIC = Traits(decay=Decay("linear", "absolute", "logits", "alibi"), equivariant_to=("shift", "flip"))
RETENTION = Traits(causal=True, decay=Decay("exponential", "past", "logits", "retention"), equivariant_to=("shift",))
MANHATTAN = Traits(
    domain="image",
    decay=Decay("exponential", "manhattan", "logits", "retention"),
    equivariant_to=("flip", "transpose", "shift"),
)
# Without rates, so that a slope that depends on something else is no breach of them.
ALIBI_OF_ANY_RATE = Traits(causal=True, decay=Decay("linear", "past", "logits"))
OPERATOR = Traits(causal=True, normalisation="row", decay=Decay("linear", "past", "logits", "alibi"))


def slopes(heads: int) -> Tensor:
    """The slopes of ALiBi (arXiv:2108.12409, the authors' code), (H,)."""
    power = 2 ** int(math.log2(heads))
    first = 2.0 ** (-8.0 * torch.arange(1, power + 1, dtype=torch.float64) / power)
    if power == heads:
        return first
    between = 2.0 ** (-4.0 * torch.arange(1, 2 * power + 1, 2, dtype=torch.float64) / power)
    return torch.cat([first, between[: heads - power]])


def past(L: int, S: int) -> Tensor:
    """How far each key lies before its query, the last query standing at the last key: (L, S)."""
    return torch.arange(L)[:, None] + (S - L) - torch.arange(S)


def hide_future(bias: Tensor, L: int, S: int) -> Tensor:
    return bias.masked_fill(past(L, S) < 0, -torch.inf)


@sound("alibi-bias", ALIBI, kind="bias")
def alibi(dim: int, heads: int) -> Sizes:
    return with_slopes(slopes(heads))


@sound("alibi-bias-relative-to-the-last", ALIBI, kind="bias")
def alibi_of_key(dim: int, heads: int) -> Sizes:
    """Of the key alone: it differs by a constant of the row, which a softmax does not see."""
    return lambda L, S: hide_future(slopes(heads).float()[:, None, None] * torch.arange(1 - S, 1), L, S)


@sound("alibi-symmetric-bias", SYMMETRIC, kind="bias")
def alibi_symmetric(dim: int, heads: int) -> Sizes:
    return lambda L, S: -slopes(heads)[:, None, None] * past(L, S).abs()


@sound("retention-bias", RETENTION, kind="bias")
def retention(dim: int, heads: int) -> Sizes:
    """In float32, through the powers themselves."""
    rates = 1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float32))
    return lambda L, S: hide_future((rates[:, None, None] ** past(L, S).clamp(min=0)).log(), L, S)


def on_map(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int, int], Sizes]:
    """A factory of biases whose exponential decay is of ``distance(dy, dx)``, at the rates of retention."""

    def make(dim: int, heads: int) -> Sizes:
        rates = torch.log1p(-(2.0 ** (-5 - torch.arange(heads, dtype=torch.float64))))

        def bias(height: int, width: int) -> Tensor:
            y = torch.arange(height).repeat_interleave(width)
            x = torch.arange(width).repeat(height)
            return rates[:, None, None] * distance(y[:, None] - y, x[:, None] - x)

        return bias

    return make


manhattan = sound("manhattan-bias", MANHATTAN, kind="bias")(on_map(lambda dy, dx: dy.abs() + dx.abs()))


def with_slopes(values: Tensor) -> Sizes:
    return lambda L, S: hide_future(-values[:, None, None] * past(L, S), L, S)


@mutant("bias-heads-last", "the heads are the last axis", ALIBI, caught_by="bias-shape", kind="bias")
def heads_last(dim: int, heads: int) -> Sizes:
    return lambda L, S: alibi(dim, heads)(L, S).permute(1, 2, 0)


@mutant(
    "bias-zero-times-infinity",
    "the future is hidden by a triangle of ones times -inf, which makes NaN of the zeros",
    ALIBI,
    caught_by="bias-shape",
    kind="bias",
)
def zero_times_infinity(dim: int, heads: int) -> Sizes:
    return lambda L, S: -slopes(heads)[:, None, None] * past(L, S) + (past(L, S) < 0) * -torch.inf


@mutant(
    "bias-of-finfo-min",
    "the future gets the smallest number in place of -inf",
    ALIBI,
    caught_by="bias-visibility",
    kind="bias",
)
def of_finfo_min(dim: int, heads: int) -> Sizes:
    return lambda L, S: alibi(dim, heads)(L, S).clamp(min=torch.finfo(torch.float64).min)


@mutant(
    "bias-upper-left",
    "with fewer queries than keys, the first query stands at the first key",
    ALIBI,
    caught_by="bias-visibility",
    kind="bias",
    source="pytorch/pytorch#108108",
)
def upper_left(dim: int, heads: int) -> Sizes:
    return lambda L, S: alibi(dim, heads)(max(L, S), S)[:, :L]


@mutant("bias-rises", "the slopes have the wrong sign", ALIBI_OF_ANY_RATE, caught_by="locality", kind="bias")
def rises(dim: int, heads: int) -> Sizes:
    return with_slopes(-slopes(heads))


@mutant(
    "bias-of-squared-distance",
    "the bias falls with the square of the distance",
    ALIBI_OF_ANY_RATE,
    caught_by="decay-constant",
    kind="bias",
)
def of_squared_distance(dim: int, heads: int) -> Sizes:
    return lambda L, S: hide_future(-slopes(heads)[:, None, None] * past(L, S).square(), L, S)


@mutant(
    "bias-integer-slopes",
    "the slopes are cast to integers, which leaves zeros",
    ALIBI_OF_ANY_RATE,
    caught_by="decay-strict",
    kind="bias",
)
def integer_slopes(dim: int, heads: int) -> Sizes:
    return with_slopes(slopes(heads).long().double())


@mutant(
    "bias-geometric-slopes",
    "the rule of powers of two is used for every number of heads",
    ALIBI,
    caught_by="decay-rate",
    kind="bias",
    source="ml-explore/mlx#343",
)
def geometric_slopes(dim: int, heads: int) -> Sizes:
    return with_slopes(2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads))


@mutant(
    "bias-slopes-from-one",
    "the exponents of the slopes begin at 0, one step early",
    ALIBI,
    caught_by="decay-rate",
    kind="bias",
    source="paiml/aprender#2143",
)
def slopes_from_one(dim: int, heads: int) -> Sizes:
    return with_slopes(2.0 ** (-8.0 * torch.arange(heads, dtype=torch.float64) / heads))


@mutant(
    "bias-interleaved-slopes",
    "the slopes of every number of heads are every second one of twice as many",
    ALIBI,
    caught_by="decay-rate",
    kind="bias",
    source="baichuan-inc/Baichuan2#225",
)
def interleaved_slopes(dim: int, heads: int) -> Sizes:
    return with_slopes(slopes(2 * 2 ** math.ceil(math.log2(heads)))[::2][:heads])


@mutant(
    "retention-bias-fifth-power",
    "the rates of the heads start at 1 - 2^-6",
    RETENTION,
    caught_by="decay-rate",
    kind="bias",
)
def fifth_power(dim: int, heads: int) -> Sizes:
    rates = torch.log1p(-(2.0 ** (-6 - torch.arange(heads, dtype=torch.float64))))
    return with_slopes(-rates)


@mutant(
    "bias-counts-from-the-block",
    "distance to keys of the blocks before counts one token too few",
    ALIBI.but(decay=None),
    caught_by="bias-shift-invariance",
    kind="bias",
)
def counts_from_the_block(dim: int, heads: int) -> Sizes:
    def bias(L: int, S: int) -> Tensor:
        query, key = torch.arange(L)[:, None] + (S - L), torch.arange(S)
        distance = past(L, S) - (query // 4 > key // 4).long()
        return hide_future(-slopes(heads)[:, None, None] * distance, L, S)

    return bias


@mutant(
    "bias-steeper-ahead",
    "keys after the query count one step farther than those before it",
    SYMMETRIC.but(equivariant_to=("shift",)),
    caught_by="bias-symmetry",
    kind="bias",
)
def steeper_ahead(dim: int, heads: int) -> Sizes:
    return lambda L, S: -slopes(heads)[:, None, None] * (past(L, S).abs() + (past(L, S) < 0))


@mutant(
    "bias-bends-backwards",
    "keys before the query count for half of their distance",
    Traits(equivariant_to=("flip",)),
    caught_by="flip-equivariance",
    kind="bias",
)
def bends_backwards(dim: int, heads: int) -> Sizes:
    return lambda L, S: -slopes(heads)[:, None, None] * (past(L, S).clamp(min=0) / 2 - past(L, S).clamp(max=0))


mutant(
    "manhattan-bias-of-the-larger",
    "distance on the map is the larger of both sides' in place of their sum",
    MANHATTAN,
    caught_by="bias-separable",
    kind="bias",
)(on_map(lambda dy, dx: torch.maximum(dy.abs(), dx.abs())))

mutant(
    "manhattan-bias-of-two-rates",
    "distance across counts twice",
    MANHATTAN.but(equivariant_to=("flip", "transpose")),
    caught_by="transpose-equivariance",
    kind="bias",
)(on_map(lambda dy, dx: dy.abs() + 2 * dx.abs()))


@mutant(
    "manhattan-bias-sides-swapped",
    "the map is read with height and width in each other's place",
    MANHATTAN.but(equivariant_to=()),
    caught_by="decay-constant",
    kind="bias",
)
def sides_swapped(dim: int, heads: int) -> Sizes:
    return lambda height, width: manhattan(dim, heads)(width, height)


@mutant(
    "bias-slopes-of-the-length",
    "distance is a fraction of the length, so that a longer sequence has flatter slopes",
    ALIBI_OF_ANY_RATE,
    caught_by="length-consistency",
    kind="bias",
)
def slopes_of_the_length(dim: int, heads: int) -> Sizes:
    return lambda L, S: hide_future(-slopes(heads)[:, None, None] * past(L, S) * 8 / S, L, S)


_shared_slopes_cache: dict[str, Tensor] = {}


@mutant(
    "bias-slopes-cached",
    "the slopes of the first instance with enough heads are kept for all",
    ALIBI_OF_ANY_RATE,
    caught_by="calls-independent",
    kind="bias",
    source="ml-explore/mlx#3071",
)
def slopes_cached(dim: int, heads: int) -> Sizes:
    def bias(L: int, S: int) -> Tensor:
        kept = _shared_slopes_cache.get("slopes")
        if kept is None or len(kept) < heads:
            kept = _shared_slopes_cache["slopes"] = slopes(heads)
        return with_slopes(kept[:heads])(L, S)

    return bias


@sound("alibi-operator", OPERATOR, kind="operator")
def alibi_operator(dim: int, heads: int) -> Callable[..., Any]:
    return operator_of(alibi(dim, heads))


def operator_of(bias: Sizes) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.mT / q.shape[-1] ** 0.5
        added = bias(q.shape[-2], k.shape[-2]).to(logits)
        return (logits + added).softmax(-1) @ v

    return attend


@mutant(
    "operator-slopes-of-one-head",
    "every head has the slope of the first",
    OPERATOR,
    caught_by="decay-rate",
    kind="operator",
)
def slopes_of_one_head(dim: int, heads: int) -> Callable[..., Any]:
    return operator_of(with_slopes(slopes(heads)[:1].expand(heads)))


@mutant(
    "operator-bias-twice-removed",
    "the bias is scaled with the logits, and so smaller than declared",
    OPERATOR,
    caught_by="decay-rate",
    kind="operator",
)
def bias_scaled(dim: int, heads: int) -> Callable[..., Any]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        added = alibi(dim, heads)(q.shape[-2], k.shape[-2]).to(q)
        return ((q @ k.mT + added) / q.shape[-1] ** 0.5).softmax(-1) @ v

    return attend
