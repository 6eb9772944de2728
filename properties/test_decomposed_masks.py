"""``attend_decomposed`` under masks along its axes, and in shifted windows."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from decomposed_maps import WEIGHTS, decay_of, equal, normal, orders, placements, qkv, split_masks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from biases.axial import ORDERS, attend_decomposed, decomposed_weights
from biases.testing import assert_same
from biases.testing.strategies import seeds
from biases.windows import Axis, Windows


@given(st.sampled_from(WEIGHTS), orders, st.integers(1, 3), st.integers(1, 3), st.booleans(), seeds())
def test_masks_of_both_passes_isolate_regions_exactly(weights, order, row, column, dense, seed):
    """What stands in one region has influence 0.0 on the others, and each region is as if it were alone."""
    height, width = 4, 5
    q, k, v = qkv(seed, 2, height, width)
    options = {"weights": weights, "decay": decay_of(2), "order": order, "backend": "dense" if dense else "auto"}
    masks = split_masks(height, width, row, column)
    out = attend_decomposed(q, k, v, masks=masks, **options)
    inside = [x.clone() for x in (q, k, v)]
    for x in inside:
        x[:, :, :row, :column] += 50.0
    moved = attend_decomposed(*inside, masks=masks, **options)
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[:row, :column] = False
    assert_same(moved[:, :, outside], out[:, :, outside])
    assert not torch.equal(moved[:, :, :row, :column], out[:, :, :row, :column])
    for rows, columns in product((slice(0, row), slice(row, None)), (slice(0, column), slice(column, None))):
        alone = attend_decomposed(*(x[:, :, rows, columns] for x in (q, k, v)), **options)
        equal(out[:, :, rows, columns], alone, v.abs().max().item())


@pytest.mark.parametrize("masked", ["width", "height"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_mask_of_one_pass_leaks(masked, weights, order):
    """The other pass carries values across: a region sees the one beside it along the unmasked axis."""
    q, k, _ = qkv(0, 1, 4, 4)
    down, across = split_masks(4, 4, 2, 2)
    masks = (down, None) if masked == "height" else (None, across)
    influence = decomposed_weights(q, k, weights=weights, masks=masks, order=order)[:, 0].unflatten(-1, (4, 4))
    first = influence.unflatten(1, (4, 4))[:, 0, 0]
    leak = first[:, 2:, :2] if masked == "width" else first[:, :2, 2:]
    held = first[:, :2, 2:] if masked == "width" else first[:, 2:, :2]
    assert leak.min() > 1e-4
    assert torch.count_nonzero(held) == 0


@given(st.integers(2, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), seeds())
def test_masks_are_used_in_turn(kinds, repeats, height, width, seed):
    """Map b takes mask b mod B': the windows of one image follow one another."""
    batch = kinds * repeats
    q, k, v = (normal(seed + n, batch, 1, height, width, 2) for n in range(3))
    generator = torch.Generator().manual_seed(seed)
    masks = tuple(
        (torch.rand(kinds, length, length, generator=generator) < 0.5) | torch.eye(length, dtype=torch.bool)
        for length in (height, width)
    )
    together = attend_decomposed(q, k, v, masks=masks)
    for b in range(batch):
        own = tuple(mask[b % kinds][None] for mask in masks)
        equal(together[b : b + 1], attend_decomposed(*(x[b : b + 1] for x in (q, k, v)), masks=own))


def regions(axis: Axis) -> list[slice]:
    """The runs of the map that lie between the cuts of its windows."""
    cuts = sorted({0, axis.side, *(c for c in range(axis.shift, axis.side, axis.size))})
    return [slice(start, stop) for start, stop in pairwise(cuts)]


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from(["adaptive", "clamp"]),
    st.sampled_from(WEIGHTS),
    placements,
    orders,
    seeds(),
)
def test_decay_in_shifted_windows_needs_no_correction(
    height, width, window, shifted, rule, weights, placement, order, seed
):
    """For pairs that may attend, the distance in a window is that in the map: rolled, cut and masked windows give what
    each region of the map gives by itself, where it stands."""
    cut = Windows.of(height, width, window, shifted=shifted, rule=rule)
    maps = [normal(seed + n, 2, height, width, 4) for n in range(3)]
    options = {"weights": weights, "decay": decay_of(2, placement), "order": order}

    def heads_first(x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, 2)).permute(0, 3, 1, 2, 4)

    def heads_last(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1, 4).flatten(-2)

    windows = [heads_first(cut.partition(x)) for x in maps]
    out = cut.reverse(heads_last(attend_decomposed(*windows, masks=cut.axis_masks(), **options)))
    expected = torch.empty_like(out)
    for rows, columns in product(regions(cut.rows), regions(cut.columns)):
        alone = attend_decomposed(*(heads_first(x[:, rows, columns]) for x in maps), **options)
        expected[:, rows, columns] = heads_last(alone)
    equal(out, expected, maps[2].abs().max().item())
