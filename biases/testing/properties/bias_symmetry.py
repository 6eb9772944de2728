"""Promises of the symmetry of biases: of a shift, of both directions, and of the two sides of a map."""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import promises
from biases.testing.properties.generated import bias_of, sizes
from biases.testing.properties.locality import drawn_pairs, no_decay, offsets_of
from biases.testing.subject import NotApplicable
from biases.traits import Traits


def not_symmetric(traits: Traits) -> str | None:
    why = no_decay(traits)
    if why is None and traits.decay is not None and traits.decay.monotone_in == "past":
        return "Decay.monotone_in is 'past', which looks one way only"
    return "Traits.causal is True, which looks one way only" if why is None and traits.causal else why


def not_shiftable(traits: Traits) -> str | None:
    if "shift" not in traits.equivariant_to:
        return "Traits.equivariant_to lacks 'shift'"
    if traits.domain == "image" and traits.window is not None:
        return "windows of an image stand where they are"
    return None


@promises(
    "bias-shift-invariance",
    "The bias of a query and a key stays the same when both move by one.",
    trait="Traits.equivariant_to has 'shift'",
    reason=not_shiftable,
    kinds=("bias",),
    drawn=drawn_pairs,
)
def bias_shift_invariance(case: Case) -> None:
    first, second = sizes(case)
    found = bias_of(case, case.raw(case.single), first, second)
    values = _from_own_key(case, found.values, first, second)
    if case.grid is None:
        pairs = [("one token on", values[:, 1:, 1:], values[:, :-1, :-1])]
    else:
        on_map = values.reshape(-1, first, second, first, second)
        down = ("one row down", on_map[:, 1:, :, 1:], on_map[:, :-1, :, :-1])
        right = ("one column right", on_map[:, :, 1:, :, 1:], on_map[:, :, :-1, :, :-1])
        pairs = [down, right]
    for where, moved, before in pairs:
        what = f"bias of query and key {where}, less that of the query's own key, against before"
        assert_tolerance(moved, before, tolerance=2 * found.tolerance, what=what)


@promises(
    "bias-symmetry",
    "A bias of the absolute distance is the same from token to token in both directions.",
    trait="Decay.monotone_in is 'absolute' or 'manhattan'",
    reason=not_symmetric,
    kinds=("bias",),
    drawn=drawn_pairs,
)
def bias_symmetry(case: Case) -> None:
    first, second = sizes(case)
    if case.grid is None:
        second = first
    found = bias_of(case, case.raw(case.single), first, second)
    values = _from_own_key(case, found.values, first, second)
    what = "bias from query to key, at (head, query, key), against from key to query"
    assert_tolerance(values, values.mT, tolerance=2 * found.tolerance, what=what)


@promises(
    "bias-separable",
    "On a map, the bias is a sum of one along the column and one along the row.",
    trait="Decay.monotone_in is 'manhattan'",
    reason=no_decay,
    kinds=("bias",),
    domains=("image",),
    drawn=drawn_pairs,
)
def bias_separable(case: Case) -> None:
    height, width = sizes(case)
    found = bias_of(case, case.raw(case.single), height, width)
    values = _from_own_key(case, found.values, height, width).reshape(-1, height, width, height, width)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    # Keys in the query's column, and in its row: (H, height, width, height) and (H, height, width, width).
    column = values.permute(0, 1, 2, 4, 3)[:, y, x, x]
    row = values[:, y, x, y]
    total = column[..., None] + row[..., None, :]
    both = total.isfinite() & values.isfinite()
    zero = torch.zeros_like(values)
    what = "bias at (head, query's y, query's x, key's y, key's x), against column plus row"
    assert_tolerance(
        torch.where(both, values, zero), torch.where(both, total, zero), tolerance=4 * found.tolerance, what=what
    )


def _from_own_key(case: Case, values: Tensor, first: int, second: int) -> Tensor:
    """The bias less that of each query's own key.

    Raises:
        NotApplicable: a query does not see its own key.
    """
    own = (offsets_of(case, first, second) == 0).all(-1)
    seen = own.any(-1)
    anchor = torch.where(own, values, torch.zeros_like(values)).sum(-1, keepdim=True)
    if not seen.all() or not anchor.isfinite().all():
        raise NotApplicable("a query does not see its own key")
    return values - anchor
