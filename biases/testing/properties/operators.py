"""Promises of operators (q, k, v) -> out: what they make of the values, and of sizes that differ.

Catalogue of published faults of this kind: pytorch#103082, pytorch#108108, flashinfer#348 (which query meets which key
where L != S), vllm#945 (a decoding step against the row of the whole).
"""

from __future__ import annotations

import torch

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.masks import WITH_KEYS
from biases.testing.properties.base import promises
from biases.testing.properties.operands import (
    OPERATOR,
    ROW,
    lengths,
    maybe_masked,
    not_placeless,
    not_row,
    not_weights,
    operands,
    require,
    run,
    slack,
)
from biases.testing.strategies import MODERATE
from biases.testing.subject import NotApplicable, Raised


@promises(
    "value-linearity",
    "With queries and keys fixed, the output is linear in the values.",
    trait="Traits.normalisation is declared: weights times values",
    reason=not_weights,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
)
def value_linearity(case: Case) -> None:
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    other = case.normal(v, 3)
    first, second = run(case, op, q, k, v), run(case, op, q, k, other)
    both = run(case, op, q, k, 2 * v - 0.5 * other)
    tolerance = 4 * (slack(case, op, (q, k, v), None, first) + slack(case, op, (q, k, other), None, second))
    expected = 2 * first - 0.5 * second
    assert_tolerance(both, expected, tolerance=tolerance, what="output for 2 v - 0.5 v'", nan_equal=True)


@promises(
    "value-hull",
    "Each channel of an output lies between the least and the greatest of the values that its query may see.",
    trait=ROW,
    reason=not_row,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    choices={"mask": WITH_KEYS},
)
def value_hull(case: Case) -> None:
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    mask, may = maybe_masked(case, L, S, q.dtype)
    out = run(case, op, q, k, v, mask)
    seen = may.expand(*out.shape[:2], L, S)[..., None]
    offered = v[:, :, None].expand(-1, -1, L, -1, -1)
    least = torch.where(seen, offered, torch.inf).amin(-2)
    most = torch.where(seen, offered, -torch.inf).amax(-2)
    has_key = seen.any(-2).expand_as(out)
    inside = torch.where(has_key, out.clamp(least, most), out)
    what = "output, against the nearest value between those that the query may see"
    tolerance = slack(case, op, (q, k, v), mask, out)
    assert_tolerance(torch.where(has_key, out, 0), torch.where(has_key, inside, 0), tolerance=tolerance, what=what)


@promises(
    "weights-sum-to-one",
    "Values that are all one give outputs that are all one, for every query that may see a key.",
    trait=ROW,
    reason=not_row,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    choices={"mask": WITH_KEYS},
)
def weights_sum_to_one(case: Case) -> None:
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    mask, may = maybe_masked(case, L, S, q.dtype)
    ones = torch.ones_like(v)
    out = run(case, op, q, k, ones, mask)
    expected = torch.where(may.any(-1, keepdim=True), torch.ones_like(out), out)
    # Normalisers with a guard such as 1e-6 in the denominator are off by about so much.
    tolerance = 1e-4 + slack(case, op, (q, k, ones), mask, out)
    assert_tolerance(out, expected, tolerance=tolerance, what="sum of the weights", nan_equal=True)


@promises(
    "head-independence",
    "The output of a head does not change with the values of another, nor, with heads that are alike, with its "
    "queries and keys.",
    trait=ROW,
    reason=not_row,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
)
def head_independence(case: Case) -> None:
    require(case.heads > 1, "there is one head only")
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    out = run(case, op, q, k, v)
    changed = [v] if "heads" not in case.subject.traits.equivariant_to else [q, k, v]
    replaced = [torch.cat([x[:, :1], case.normal(x, 3 + at)[:, 1:]], dim=1) for at, x in enumerate(changed)]
    after = run(case, op, *(q, k, v)[: 3 - len(replaced)], *replaced)
    what = f"output of head 0 with other {'values' if len(replaced) == 1 else 'q, k and v'} in the others"
    tolerance = slack(case, op, (q, k, v), None, out)
    assert_tolerance(after[:, :1], out[:, :1], tolerance=tolerance, what=what, nan_equal=True)


@promises(
    "head-permutation",
    "Permuting the heads of q, k and v permutes the heads of the output.",
    trait="Traits.equivariant_to has 'heads'",
    reason=lambda traits: None if "heads" in traits.equivariant_to else "Traits.equivariant_to lacks 'heads'",
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
)
def head_permutation(case: Case) -> None:
    require(case.heads > 1, "there is one head only")
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    out = run(case, op, q, k, v)
    order = torch.arange(case.heads, device=case.device).roll(1)
    got = run(case, op, q[:, order], k[:, order], v[:, order])
    what = f"output for the heads in the order {order.tolist()}"
    tolerance = slack(case, op, (q, k, v), None, out)
    assert_tolerance(got, out[:, order], tolerance=tolerance, what=what, nan_equal=True)


@promises(
    "permuted-keys",
    "Permuting keys, values and the keys of the mask together changes nothing.",
    trait="Traits.position is 'none', without causality, window or decay",
    reason=not_placeless,
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    min_length=2,
    choices={"mask": WITH_KEYS},
)
def permuted_keys(case: Case) -> None:
    L, S = lengths(case)
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    mask, _ = maybe_masked(case, L, S, q.dtype)
    order = torch.randperm(S, generator=case.generator()).to(case.device)
    if torch.equal(order, torch.arange(S, device=case.device)):
        order = order.flip(0)
    out = run(case, op, q, k, v, mask)
    got = run(case, op, q, k[:, :, order], v[:, :, order], None if mask is None else mask[..., order])
    what = f"output for the keys in the order {order.tolist()}"
    tolerance = slack(case, op, (q, k, v), mask, out)
    assert_tolerance(got, out, tolerance=tolerance, what=what, nan_equal=True)


@promises(
    "cross-lengths",
    "Other lengths of queries and keys, and another width of the values, give (B, H, L, Dv), each channel of the "
    "values on its own.",
    trait="Traits.alignment is declared, or places do not matter",
    reason=lambda traits: None if traits.alignment is not None else not_placeless(traits),
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    choices={"width": ("wider", "same", "narrower")},
)
def cross_lengths(case: Case) -> None:
    (L, S), D = lengths(case), case.dim // case.heads
    op, (q, k, v) = case.raw(case.precise), operands(case, L, S)
    out = run(case, op, q, k, v)
    kept = {"wider": D + 3, "same": D, "narrower": max(1, D - 3)}[case.example["width"]]
    try:
        other = run(case, op, q, k, torch.cat([v, v[..., :3]], dim=-1)[..., :kept])
    except Raised as error:
        raise NotApplicable(f"it does not serve values of {kept} channels with keys of {D}: {error}") from error
    both = min(kept, D)
    what = f"channels 0..{both - 1} of the output for values of {kept} channels, against those for {D}"
    tolerance = slack(case, op, (q, k, v), None, out)
    assert_tolerance(other[..., :both], out[..., :both], tolerance=tolerance, what=what, nan_equal=True)


@promises(
    "alignment",
    "With L != S, an output is the one that the same query has, at its declared place, where L is S.",
    trait="Traits.alignment is declared, or places do not matter",
    reason=lambda traits: None if traits.alignment is not None else not_placeless(traits),
    kinds=OPERATOR,
    among=MODERATE,
    keys=True,
    choices={"queries": ("drawn", "one")},
)
def alignment(case: Case) -> None:
    L, S = lengths(case)
    # One query is a decoding step, for which there often is a path of its own.
    L = 1 if case.example["queries"] == "one" else L
    op, (q, k, v) = case.raw(case.precise), operands(case, max(L, S), S)
    last = case.subject.traits.alignment == "lower-right"
    part, square = (q[:, :, -L:], q[:, :, -S:]) if last else (q[:, :, :L], q[:, :, :S])
    out, whole = run(case, op, part, k, v), run(case, op, square, k, v)
    shared = min(L, S)
    got, expected = (out[:, :, -shared:], whole[:, :, -shared:]) if last else (out[:, :, :shared], whole[:, :, :shared])
    what = f"outputs of {shared} queries where L {L} and S {S}, against L {S} and S {S}"
    assert_tolerance(got, expected, tolerance=slack(case, op, (square, k, v), None, whole), what=what, nan_equal=True)
