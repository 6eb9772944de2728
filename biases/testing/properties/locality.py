"""Promises of subjects that declare ``Traits.decay``: influence falls with distance, and by how much.

They are put to a bias, and to an operator whose queries are zero and whose keys are equal, so that the logarithm of
its weights is what its decay adds.

Catalogue of published faults of this kind: mlx#343, aprender#2143, Baichuan2#225.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import promises
from biases.testing.properties.generated import Bias, bias_of, sizes
from biases.testing.subject import BuildError, NotApplicable, Violation
from biases.traits import Decay, Traits

DECAY = "Traits.decay is set"
# Rules of slopes part ways where the number of heads is no power of two.
OTHER_HEADS = (3, 6, 12)


def no_decay(traits: Traits) -> str | None:
    if traits.decay is None:
        return "Traits.decay is not set"
    if traits.domain == "image" and traits.decay.monotone_in != "manhattan":
        return f"in an image, the distance {traits.decay.monotone_in!r} is that of no two pixels"
    return None


def no_rates(traits: Traits) -> str | None:
    why = no_decay(traits)
    if why is None and traits.decay is not None and traits.decay.rates is None:
        return "Decay.rates is not declared"
    return why


def drawn_pairs(traits: Traits) -> Mapping[str, Any]:
    """Sizes with more than one key, small enough to compare keys with each other."""
    return {"min_length": 2, "max_length": 20} if traits.domain == "image" else {"min_length": 2, "keys": True}


@dataclass(frozen=True)
class _Seen:
    """A bias, or the logarithm of weights, with where its tokens stand.

    Attributes:
        values: (H, L, S).
        tolerance: absolute error of values.
        offsets: key minus query along each axis, (L, S, 1) or (L, S, 2).
        counts: (H, L, S), whether the decay speaks of the pair.
        heads: how many heads the subject returned: H, or 1 where all have the same.
    """

    values: Tensor
    tolerance: float
    offsets: Tensor
    counts: Tensor
    heads: int

    @property
    def distance(self) -> Tensor:
        """(L, S)."""
        return self.offsets.abs().sum(-1)


def _seen(case: Case) -> _Seen:
    decay = case.subject.traits.decay
    assert decay is not None
    if case.subject.kind == "operator":
        found, first, second = _log_weights(case, decay)
    else:
        first, second = sizes(case)
        found = bias_of(case, case.raw(case.single), first, second)
    offsets = offsets_of(case, first, second)
    counts = found.values.isfinite()
    if decay.monotone_in == "past":
        counts = counts & (offsets[..., 0] <= 0)
    return _Seen(found.values, found.tolerance, offsets, counts, found.heads)


def offsets_of(case: Case, first: int, second: int) -> Tensor:
    """Place of each key less that of each query, along each axis: (L, S, 1), or (L, S, 2) on a map."""
    if case.grid is None:
        shift = second - first if case.subject.traits.alignment == "lower-right" else 0
        return (torch.arange(second) - torch.arange(first)[:, None] - shift)[..., None]
    down, across = torch.arange(first).repeat_interleave(second), torch.arange(second).repeat(first)
    places = torch.stack([down, across], -1)
    return places[None] - places[:, None]


def _log_weights(case: Case, decay: Decay) -> tuple[Bias, int, int]:
    """Logarithm of the weights of an operator, (H, T, T), for zero queries and equal keys."""
    traits, dtype = case.subject.traits, case.precise
    if case.grid is not None:
        raise NotApplicable("an operator does not know which map its tokens are")
    if traits.normalisation != "row" or decay.placement == "state":
        raise NotApplicable("the weights of an operator can be compared where Traits.normalisation is 'row'")
    operator, length, width = case.raw(dtype), case.length, case.dim // case.heads
    q = torch.zeros(1, case.heads, length, width, dtype=dtype, device=case.device)
    k = case.normal(q[:, :, :1]).expand_as(q).contiguous()
    columns = []
    for start in range(0, length, width):
        v = torch.zeros_like(q)
        for key in range(start, min(start + width, length)):
            v[:, :, key, key - start] = 1
        columns.append(case.check_form(case.invoke(operator, q, k, v), v))
    weights = torch.cat(columns, -1)[0, :, :, :length].detach().cpu()
    eps = max(torch.finfo(weights.dtype).eps, torch.finfo(torch.float32).eps)
    # Below, what is left of a weight has lost its digits.
    vanished = weights < torch.finfo(weights.dtype).tiny / torch.finfo(weights.dtype).eps
    logarithm = weights.double().clamp(min=1e-300).log().masked_fill(vanished, -math.inf)
    return Bias(logarithm, eps, case.heads), length, length


@promises(
    "locality",
    "A key farther away on the same side has no larger bias, or weight, than a nearer one.",
    trait=DECAY,
    reason=no_decay,
    kinds=("bias", "operator"),
    drawn=drawn_pairs,
)
def locality(case: Case) -> None:
    seen = _seen(case)
    near, far = seen.offsets[:, :, None], seen.offsets[:, None]
    on_the_way = ((near * far >= 0) & (near.abs() <= far.abs())).all(-1) & (near != far).any(-1)
    both = seen.counts[:, :, :, None] & seen.counts[:, :, None] & on_the_way
    if not both.any():
        raise NotApplicable("no query sees two keys on one side")
    rise = (seen.values[:, :, None] - seen.values[:, :, :, None]).clamp(min=0.0)
    assert_tolerance(
        torch.where(both, rise, torch.zeros_like(rise)),
        torch.zeros_like(rise),
        tolerance=2 * seen.tolerance,
        what="rise of the bias from a nearer to a farther key, at (head, query, nearer key, farther key)",
    )


@promises(
    "decay-constant",
    "Each step of distance lowers the logarithm of the weight by the same amount, whatever the query.",
    trait=DECAY,
    reason=no_decay,
    kinds=("bias", "operator"),
    drawn=drawn_pairs,
)
def decay_constant(case: Case) -> None:
    seen = _seen(case)
    fall, steps = _falls(seen)
    rates, _ = _rates(fall, steps)
    expected = rates.nan_to_num()[:, None, None] * steps
    what = "fall of the bias from the nearest key, at (head, query, key), against a constant fall a step"
    assert_tolerance(fall, expected, tolerance=4 * seen.tolerance, what=what)


@promises(
    "decay-strict",
    "In one head at least, distance lowers the weight.",
    trait=DECAY,
    reason=no_decay,
    kinds=("bias", "operator"),
    drawn=drawn_pairs,
)
def decay_strict(case: Case) -> None:
    rates, _ = _rates(*_falls(_seen(case)))
    if not (rates > 0).any():
        raise Violation(f"fall of the bias a step of distance, by head: expected one above 0, got {rates.tolist()}")


@promises(
    "decay-rate",
    "Each head decays at its declared rate.",
    trait="Traits.decay is set, with Decay.rates",
    reason=no_rates,
    kinds=("bias", "operator"),
    drawn=drawn_pairs,
)
def decay_rate(case: Case) -> None:
    decay = case.subject.traits.decay
    assert decay is not None
    # Rates that are learned are those declared only before anything has moved them.
    as_made = replace(case, example={**case.example, "parameters": "initial"})
    _assert_rates(decay, case.heads, _seen(as_made))
    if case.subject.kind != "bias" or not isinstance(decay.rates, str):
        return
    for heads in OTHER_HEADS:
        other = replace(case, example={**as_made.example, "heads": heads, "dim": case.dim // case.heads * heads})
        # Whether those can be built is not the question here.
        with suppress(BuildError, Violation):
            seen = _seen(other)
            if seen.heads == heads:
                _assert_rates(decay, heads, seen)


def _assert_rates(decay: Decay, heads: int, seen: _Seen) -> None:
    declared = declared_rates(decay, heads)
    if len(declared) != heads:
        raise NotApplicable(f"Decay.rates has {len(declared)} rates, and the example {heads} heads")
    rates, steps = _rates(*_falls(seen))
    known = ~rates.isnan()
    tolerance = 4 * seen.tolerance / float(steps[known].min())
    got, what = torch.where(known, rates, declared), f"fall of the bias a step of distance, by head of {heads}"
    assert_tolerance(got, declared, tolerance=tolerance, what=what)


def declared_rates(decay: Decay, heads: int) -> Tensor:
    """The rates that :class:`~biases.traits.Decay` declares, (H,), float64."""
    match decay.rates:
        case "alibi":
            return torch.tensor(_press(heads), dtype=torch.float64)
        case "retention":
            return torch.tensor([-math.log1p(-(2.0 ** (-5 - head))) for head in range(heads)], dtype=torch.float64)
        case _:
            return torch.tensor(decay.rates, dtype=torch.float64)


def _press(heads: int) -> list[float]:
    """The slopes of the authors' code (ofirpress/attention_with_linear_biases, commit 4b92f28)."""
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * head / power) for head in range(1, power + 1)]
    return slopes if power == heads else slopes + _press(2 * power)[::2][: heads - power]


def _falls(seen: _Seen) -> tuple[Tensor, Tensor]:
    """Fall of the bias from each query's nearest key, and the steps of distance from there: two (H, L, S)."""
    distance = seen.distance.double().expand_as(seen.values)
    far = torch.where(seen.counts, distance, torch.full_like(distance, math.inf))
    nearest = far.argmin(-1, keepdim=True)
    fall = seen.values.gather(-1, nearest) - seen.values
    steps = distance - distance.gather(-1, nearest)
    zero = torch.zeros_like(distance)
    return torch.where(seen.counts, fall, zero), torch.where(seen.counts, steps, zero)


def _rates(fall: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Fall a step of each head, NaN where it cannot be seen, and over how many steps: two (H,).

    Raises:
        NotApplicable: it can be seen in no head.
    """
    farthest = steps.flatten(1).argmax(-1, keepdim=True)
    most = steps.flatten(1).gather(-1, farthest)[:, 0]
    if not most.any():
        raise NotApplicable("no query sees two keys at different distances")
    return fall.flatten(1).gather(-1, farthest)[:, 0] / torch.where(most > 0, most, math.nan), most
