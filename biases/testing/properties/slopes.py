"""Promises of slopes: callables () -> (H,), how much the logit of each head falls a token of distance.

The rules are those of the authors: ALiBi (arXiv:2108.12409; ``get_slopes`` of ofirpress/attention_with_linear_biases)
and retention (arXiv:2307.08621 Eq. 8). Catalogue of published faults of this kind: mlx#343 and PR#3071, aprender#2143,
Baichuan2#225.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import magnitude, promises
from biases.testing.properties.locality import declared_rates
from biases.testing.subject import BuildError, Layer, NotApplicable, Raised, Violation, cast
from biases.traits import RATES, Traits

_SLOPES = ("slopes",)
_SEQUENCE = ("sequence",)
_EPS32 = torch.finfo(torch.float32).eps
# Besides the heads drawn, numbers of heads are tried in four classes, from these on in steps of 4.
_FIRST = {"first": (1, 2, 3, 4)}
_MOST = {"alibi": 128, "retention": 16}
_RULE = "Traits.decay.rates names a rule"


def _rates(traits: Traits) -> str | tuple[float, ...] | None:
    return traits.decay.rates if traits.decay is not None else None


def _no_rates(traits: Traits) -> str | None:
    return None if _rates(traits) is not None else "Traits.decay.rates is not declared"


def _no_rule(traits: Traits) -> str | None:
    return None if _rates(traits) in RATES else f"Traits.decay.rates names none of the rules {', '.join(RATES)}"


def _power_of_two(heads: int) -> int:
    """The largest power of two that is at most ``heads``."""
    return 1 << (heads.bit_length() - 1)


def _called(case: Case, layer: Layer, heads: int) -> Tensor:
    """What the subject returns, checked to be (H,) numbers."""
    try:
        got: Any = case.invoke(layer)
    except Raised as error:
        raise Raised(f"{heads} heads: {error}") from error
    if not isinstance(got, Tensor) or got.shape != (heads,):
        form = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
        raise Violation(f"slopes of {heads} heads: expected a tensor of shape ({heads},), got {form}")
    return got.detach().cpu()


def _rounding(got: Tensor) -> float:
    """16 roundings in the dtype of the slopes, or in float32, which they may be computed in."""
    return 16 * max(_EPS32, torch.finfo(got.dtype).eps if got.is_floating_point() else 0.0)


def _built(case: Case, heads: int) -> Layer:
    dim = case.dim if heads == case.heads else 8 * heads
    raw = case.subject.build(dim, heads, seed=case.example["seed"])
    return cast(raw, case.single, case.device)


def _tried(case: Case) -> Iterator[tuple[int, Tensor]]:
    """Numbers of heads that the subject can be built with, and its slopes for each."""
    rates = _rates(case.subject.traits)
    if isinstance(rates, tuple):
        counts = [len(rates)]
    else:
        counts = sorted({case.heads, *range(case.example["first"], _MOST.get(rates or "", 64) + 1, 4)})
    refused: BuildError | None = None
    served = False
    for heads in counts:
        try:
            layer = _built(case, heads)
        except BuildError as error:
            # A fixed list of slopes, or powers of two only: an honest refusal.
            refused = error
            continue
        served = True
        yield heads, _called(case, layer, heads)
    if not served:
        raise NotApplicable(f"it was built with none of {counts} heads: {refused}")


@promises(
    "slopes-reference",
    "For every number of heads the slopes are those of the declared rule, in its order.",
    trait="Traits.decay.rates is declared",
    reason=_no_rates,
    kinds=_SLOPES,
    domains=_SEQUENCE,
    choices=_FIRST,
)
def slopes_reference(case: Case) -> None:
    decay, rates = case.subject.traits.decay, _rates(case.subject.traits)
    assert decay is not None
    for heads, got in _tried(case):
        expected = declared_rates(decay, heads)
        what = f"slopes of {heads} heads over those of the rule {rates!r}"
        # The rates of retention are the logarithm of a number near 1, which may itself be float32.
        off = _rounding(got) + (8 * _EPS32 / expected.min().item() if rates == "retention" else 0.0)
        some = expected > 0
        ratio = torch.where(some, got.double() / expected.masked_fill(~some, 1), 1 + got.double())
        assert_tolerance(ratio, torch.ones_like(ratio), tolerance=off, what=what)


@promises(
    "slopes-range",
    "Every slope is a finite number above 0, and at most 1 where a rule is declared.",
    kinds=_SLOPES,
    domains=_SEQUENCE,
    choices=_FIRST,
)
def slopes_range(case: Case) -> None:
    rates = _rates(case.subject.traits)
    least, most = (0.0, 1.0) if rates in RATES else (0.0, math.inf)
    for heads, got in _tried(case):
        bad = ~((got > least) | ((got == 0) & isinstance(rates, tuple))) | (got > most) | ~got.isfinite()
        if bad.any():
            at = int(bad.nonzero()[0])
            upper = f"at most {most:g}" if most < math.inf else "finite"
            raise Violation(
                f"slopes of {heads} heads: expected numbers above 0 and {upper}, got {got[at].item():.6g} at head {at}"
            )


@promises(
    "slopes-order",
    "From head to head the slopes fall; those of ALiBi fall within the powers of two, and among the rest.",
    trait=_RULE,
    reason=_no_rule,
    kinds=_SLOPES,
    domains=_SEQUENCE,
    choices=_FIRST,
)
def slopes_order(case: Case) -> None:
    rule = _rates(case.subject.traits)
    for heads, got in _tried(case):
        power = _power_of_two(heads) if rule == "alibi" else heads
        for first, part in ((0, got[:power]), (power, got[power:])):
            rising = (part.diff() >= 0).nonzero()
            if len(rising):
                at = first + int(rising[0])
                pair = f"{got[at].item():.6g} at head {at}, then {got[at + 1].item():.6g}"
                raise Violation(f"slopes of {heads} heads: expected them to fall from head to head, got {pair}")


@promises(
    "slopes-isolated",
    "Slopes do not depend on the numbers of heads that were asked for before.",
    kinds=_SLOPES,
    domains=_SEQUENCE,
    choices=_FIRST,
)
def slopes_isolated(case: Case) -> None:
    counts = []
    alone = {}
    for heads in (case.heads, case.heads + case.example["first"], 12, 2):
        try:
            with case.subject.isolated():
                alone[heads] = _called(case, _built(case, heads), heads)
        except BuildError:
            continue
        counts.append(heads)
    if len(alone) < 2:
        raise NotApplicable("it can be built with one number of heads only")
    for heads in (*counts, *reversed(counts)):
        got = _called(case, _built(case, heads), heads)
        what = f"slopes of {heads} heads after others were asked for, against before"
        assert_tolerance(got, alone[heads], tolerance=_rounding(got) * magnitude(got), what=what)
