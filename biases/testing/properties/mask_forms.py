"""Promises of operators that take a mask: every form and shape of it means the same, and it leaves their own rule.

Catalogue of published faults of this kind: pytorch#109517 (rows of the lowest finite number), unsloth#8253 (the window
lost on the path that takes a mask).
"""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_same, assert_tolerance
from biases.testing.masks import WITH_KEYS, additive, make_mask
from biases.testing.properties.base import promises
from biases.testing.properties.interface import assert_finite
from biases.testing.properties.masking import EMPTYING, FORMS, MASKED, PARTIAL, not_masked
from biases.testing.properties.operands import OPERATOR, drawn_mask, in_form, lengths, operands, run, slack, support
from biases.testing.strategies import MODERATE
from biases.testing.subject import NotApplicable
from biases.traits import Traits


def not_both(traits: Traits) -> str | None:
    both = set(FORMS) <= set(traits.mask)
    return None if both else f"it needs Traits.mask with 'boolean' and 'additive', and it is {traits.mask}"


def not_additive(traits: Traits) -> str | None:
    return None if "additive" in traits.mask else "Traits.mask lacks 'additive'"


def _compare(case: Case, bare: Tensor, first: Tensor | None, second: Tensor | None, what: str) -> None:
    """Assert that two masks give the same outputs, for the queries that ``bare`` leaves a key."""
    L, S = lengths(case)
    op, given = case.raw(case.precise), operands(case, L, S)
    expected, got = run(case, op, *given, first), run(case, op, *given, second)
    has_key = support(case, L, S, bare).any(-1, keepdim=True)
    pair = torch.where(has_key, got, 0), torch.where(has_key, expected, 0)
    assert_tolerance(*pair, tolerance=slack(case, op, given, first, expected), what=what, nan_equal=True)


@promises(
    "mask-forms-agree",
    "A boolean mask and its additive form, 0 and -inf, give the same outputs.",
    trait="Traits.mask has 'boolean' and 'additive'",
    reason=not_both,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    choices={"mask": (*PARTIAL, "empty-rows")},
)
def mask_forms_agree(case: Case) -> None:
    bare = drawn_mask(case, *lengths(case))
    _compare(case, bare, bare, additive(bare, case.precise), "output with the additive mask, against the boolean one")


@promises(
    "finfo-min-mask",
    "The lowest finite number hides a key as -inf does, and a row full of it gives a finite output.",
    trait="Traits.mask has 'additive'",
    reason=not_additive,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    choices={"mask": (*PARTIAL, "empty-rows")},
)
def finfo_min_mask(case: Case) -> None:
    L, S = lengths(case)
    bare = drawn_mask(case, L, S)
    lowest = additive(bare, case.single, torch.finfo(case.single).min)
    q, k, v = operands(case, L, S)
    given = q.to(case.single), k.to(case.single), v.to(case.single)
    op = case.raw(case.single)
    got = run(case, op, *given, lowest)
    reachable = support(case, L, S).any(-1, keepdim=True)
    assert_finite(torch.where(reachable, got, 0), "output with the lowest finite number for -inf")
    expected = run(case, op, *given, additive(bare, case.single))
    has_key = support(case, L, S, bare).any(-1, keepdim=True)
    pair = torch.where(has_key, got, 0), torch.where(has_key, expected, 0)
    tolerance = slack(case, op, given, additive(bare, case.single), expected)
    assert_tolerance(*pair, tolerance=tolerance, what="output, against that with -inf", nan_equal=True)


@promises(
    "mask-broadcast",
    "Masks that broadcast to the same (B, H, L, S) give the same outputs.",
    trait=MASKED,
    reason=not_masked,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    min_batch=2,
    min_length=2,
    choices={
        "mask": ("random", "padding", "causal"),
        "form": FORMS,
        "axes": ("L S", "1 1 L S", "B 1 1 S", "B 1 L S", "1 H L S"),
    },
)
def mask_broadcast(case: Case) -> None:
    L, S = lengths(case)
    sizes = {"B": case.example["batch"], "H": case.heads, "L": L, "S": S, "1": 1}
    shape = [sizes[axis] for axis in case.example["axes"].split()]
    small = make_mask(case.example["mask"], shape, case.example["seed"]).to(case.device)
    full = small.expand(sizes["B"], sizes["H"], L, S).contiguous()
    pair = in_form(case, full, case.precise), in_form(case, small, case.precise)
    what = f"output with a mask {tuple(shape)}, against the same one written out, {tuple(full.shape)}"
    _compare(case, full, *pair, what)


@promises(
    "full-mask",
    "A mask that allows everything gives what no mask gives.",
    trait=MASKED,
    reason=not_masked,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    choices={"form": FORMS},
)
def full_mask(case: Case) -> None:
    L, S = lengths(case)
    full = torch.ones(case.example["batch"], 1, L, S, dtype=torch.bool, device=case.device)
    _compare(case, full, None, in_form(case, full, case.precise), "output with a mask that allows everything")


@promises(
    "mask-unchanged",
    "The operator does not write to its mask.",
    trait=MASKED,
    reason=not_masked,
    kinds=OPERATOR,
    among=("normal",),
    keys=True,
    choices={"mask": (*PARTIAL, *EMPTYING), "form": FORMS},
)
def mask_unchanged(case: Case) -> None:
    L, S = lengths(case)
    mask = in_form(case, drawn_mask(case, L, S), case.precise)
    before = mask.clone()
    run(case, case.raw(case.precise), *operands(case, L, S), mask)
    assert_same(mask, before, "mask after the call")


@promises(
    "mask-and-support",
    "A mask is added to what the operator hides itself: hiding the same pairs by the mask too changes nothing.",
    trait="Traits.mask is declared, with causality or a window",
    reason=lambda traits: (
        not_masked(traits)
        or (None if traits.causal or traits.window else "neither Traits.causal nor Traits.window is declared")
    ),
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    min_length=2,
    choices={"mask": WITH_KEYS, "form": FORMS},
)
def mask_and_support(case: Case) -> None:
    L, S = lengths(case)
    bare = drawn_mask(case, L, S)
    both = support(case, L, S, bare)
    if torch.equal(both.expand(bare.shape[0], case.heads, L, S), bare.expand(bare.shape[0], case.heads, L, S)):
        raise NotApplicable("the mask hides all that the operator hides itself")
    pair = in_form(case, bare, case.precise), in_form(case, both, case.precise)
    _compare(case, both, *pair, "output with the operator's own rule in the mask too")
