"""Shifted windows (Swin, arXiv 2103.14030 section 3.2) against brute force over the pixels of the map."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from biases import attend
from biases.testing import assert_close_to, assert_same, make_tensor
from biases.testing.strategies import seeds
from biases.windows import RULES, Axis, Windows

F64 = torch.float64
sides, sizes, rules, flags = st.integers(1, 9), st.integers(1, 9), st.sampled_from(RULES), st.booleans()


@st.composite
def windows(draw, *, most: int = 9) -> Windows:
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    return Windows.of(height, width, draw(sizes), shifted=draw(flags), rule=draw(rules))


def same_window(first: int, second: int, axis: Axis) -> bool:
    """Whether two coordinates of the map lie in one window and were neighbours there before the map was rolled.

    Windows are cut at shift, shift + size, ...: what lies before the first cut shares its window with the end of the
    padded map, but not its neighbourhood.
    """
    return (first - axis.shift) // axis.size == (second - axis.shift) // axis.size


def expected_support(cut: Windows) -> Tensor:
    """Which pixel of the map may see which, from the words above: (H W, H W), bool."""
    pixels = list(product(range(cut.rows.side), range(cut.columns.side)))
    pairs = [[same_window(y, t, cut.rows) and same_window(x, u, cut.columns) for t, u in pixels] for y, x in pixels]
    return torch.tensor(pairs)


def pixels_of(cut: Windows) -> tuple[list[list[int | None]], list[dict[int, tuple[int, int]]]]:
    """Of each window: the pixel (its raster index) at each place, ``None`` for padding, and where each pixel stands."""
    height, width = cut.rows.side, cut.columns.side
    raster = torch.arange(1, height * width + 1).view(1, height, width, 1)
    held = [[n - 1 if n else None for n in window] for window in cut.partition(raster).flatten(1).tolist()]
    places = [{p: divmod(at, cut.size[1]) for at, p in enumerate(window) if p is not None} for window in held]
    return held, places


def offset_is_kept(cut: Windows, query: int, key: int, places: dict[int, tuple[int, int]]) -> bool:
    """Whether the two pixels of one window are as far apart in it as they are in the map."""
    here, there = divmod(query, cut.columns.side), divmod(key, cut.columns.side)
    return all(there[axis] - here[axis] == places[key][axis] - places[query][axis] for axis in (0, 1))


def seen_by_the_mask(cut: Windows, mask: Tensor | None) -> Tensor:
    """The pairs of pixels that ``mask`` lets attend, (H W, H W); a key of padding must not be seen by any pixel."""
    held, _ = pixels_of(cut)
    seen = torch.zeros(cut.rows.side * cut.columns.side, cut.rows.side * cut.columns.side, dtype=torch.bool)
    for number, window in enumerate(held):
        allowed = torch.ones(len(window), len(window), dtype=torch.bool) if mask is None else mask[number]
        for place, query in enumerate(window):
            if query is None:
                continue
            for other in allowed[place].nonzero().flatten().tolist():
                key = window[other]
                assert key is not None, "a pixel sees padding"
                seen[query, key] = True
    return seen


def product_of_axes(cut: Windows) -> Tensor | None:
    """The mask over pairs of places from the two masks of the axes, by the pair: (count, h w, h w)."""
    (h, w), (down, across) = cut.size, cut.axis_masks()
    if down is None and across is None:
        return None
    full = torch.ones(cut.count, h * w, h * w, dtype=torch.bool)
    at = torch.arange(h * w)
    if down is not None:
        full &= down[:, at // w][:, :, at // w]
    if across is not None:
        full &= across[:, at % w][:, :, at % w]
    return full


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shifted", [False, True])
def test_masks_are_the_brute_force_on_every_small_map(rule, shifted):
    """A pair may attend just where it stands in one window and as far apart in it as in the map: the two-dimensional
    mask, the product of the two masks of the axes, and windows counted on the map itself say the same. Every map up to
    9 x 9, every window up to 9, what is smaller than a window and what windows do not divide included."""
    cuts = {
        Windows.of(height, width, window, shifted=shifted, rule=rule)
        for height, width, window in product(range(1, 10), repeat=3)
    }
    for cut in cuts:
        assert_masks_are_the_brute_force(cut)


def assert_masks_are_the_brute_force(cut: Windows) -> None:
    mask, factors = cut.mask(), product_of_axes(cut)
    assert torch.equal(seen_by_the_mask(cut, mask), expected_support(cut)), cut
    assert (mask is None) == (factors is None)
    if mask is not None:
        assert mask.shape == (cut.count, math.prod(cut.size), math.prod(cut.size))
        assert torch.equal(mask, factors), cut


def every_axis(most: int) -> list[Axis]:
    """All sides up to ``most``, with all windows and all shifts: 0 alone where there is one window."""
    return [
        Axis(side, size, shift)
        for side in range(1, most + 1)
        for size in range(1, side + 1)
        for shift in range(size if size < side else 1)
    ]


@pytest.mark.parametrize("upright", [False, True])
def test_masks_are_the_brute_force_for_every_shift_of_an_axis(upright):
    """Not only for the half of a window that the rules choose: every side and window up to 9."""
    line = Axis(1, 1)
    for axis in every_axis(9):
        cut = Windows(axis, line) if upright else Windows(line, axis)
        assert_masks_are_the_brute_force(cut)
        x = torch.arange(2 * axis.side).view(2, cut.rows.side, cut.columns.side, 1)
        assert torch.equal(cut.reverse(cut.partition(x)), x), cut


def test_masks_are_the_brute_force_for_every_pair_of_shifts():
    """The axes together, each with its own side, window and shift. The rule of a pair is that of its rows and that of
    its columns, so that maps up to 4 x 4 show how the two are put together."""
    for rows, columns in product(every_axis(4), repeat=2):
        cut = Windows(rows, columns)
        assert_masks_are_the_brute_force(cut)
        assert_real_places_hold_pixels(cut)


@given(windows())
def test_real_places_are_those_with_a_pixel(cut):
    assert_real_places_hold_pixels(cut)


def assert_real_places_hold_pixels(cut: Windows) -> None:
    """Padding is whole rows and whole columns: a place holds a pixel where its row and its column are of the map."""
    down, across = cut.real()
    held = cut.partition(torch.ones(1, cut.rows.side, cut.columns.side, 1))[..., 0] > 0
    rows = torch.ones(cut.count, cut.size[0], dtype=torch.bool) if down is None else down
    columns = torch.ones(cut.count, cut.size[1], dtype=torch.bool) if across is None else across
    assert torch.equal(rows[:, :, None] & columns[:, None], held), cut
    assert (down is None) == (cut.rows.padded == cut.rows.side)
    assert (across is None) == (cut.columns.padded == cut.columns.side)


@given(windows(most=9))
def test_a_pair_attends_just_where_its_offset_survived_the_roll(cut):
    """Same window and unchanged offset, in place of the cuts: the reason why neither decay nor a position bias needs to
    know of the shift. Two pixels that the roll brought together have another offset in the window than in the map."""
    _, places = pixels_of(cut)
    seen = seen_by_the_mask(cut, cut.mask())
    for inside in places:
        for query, key in product(inside, inside):
            assert seen[query, key] == offset_is_kept(cut, query, key, inside)


@given(windows(), st.integers(0, 3), st.integers(1, 3), seeds())
def test_reverse_undoes_partition(cut, batch, channels, seed):
    x = make_tensor((batch, cut.rows.side, cut.columns.side, channels), "normal", seed, F64)
    parts = cut.partition(x)
    assert parts.shape == (batch * cut.count, *cut.size, channels)
    assert_same(cut.reverse(parts), x)
    assert_same(cut.unroll(cut.roll(x)), x)


@given(windows())
def test_every_pixel_is_in_exactly_one_window(cut):
    """And the rest of the places is padding."""
    held, _ = pixels_of(cut)
    counts = Counter(pixel for window in held for pixel in window)
    pixels = cut.rows.side * cut.columns.side
    padding = cut.rows.padded * cut.columns.padded - pixels
    assert counts == Counter({**dict.fromkeys(range(pixels), 1), **({None: padding} if padding else {})})


@given(windows(), st.integers(2, 3))
def test_windows_of_one_map_follow_one_another(cut, batch):
    """Window n of map b is at b * count + n, which is the order of the masks."""
    x = torch.arange(batch * cut.rows.side * cut.columns.side).view(batch, cut.rows.side, cut.columns.side, 1)
    together = cut.partition(x)
    for b in range(batch):
        assert torch.equal(together[b * cut.count : (b + 1) * cut.count], cut.partition(x[b : b + 1]))


@given(windows())
def test_without_shift_and_padding_there_is_no_mask(cut):
    plain = all(axis.shift == 0 and axis.padded == axis.side for axis in (cut.rows, cut.columns))
    assert (cut.mask() is None) == plain
    assert (cut.axis_masks() == (None, None)) == plain


@given(windows())
def test_every_pixel_sees_itself_and_is_seen_where_it_sees(cut):
    support = expected_support(cut)
    assert support.diagonal().all()
    assert torch.equal(support, support.T)
    assert torch.equal(seen_by_the_mask(cut, cut.mask()), support)


def attend_in_windows(cut: Windows, q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """One head of windowed attention over maps (B, H, W, C)."""
    tokens = [cut.partition(x).flatten(1, 2)[:, None] for x in (q, k, v)]
    mask = cut.mask()
    mask = None if mask is None else mask.repeat(len(q), 1, 1)[:, None]
    out = attend(*tokens, mask=mask, backend=backend)
    return cut.reverse(out[:, 0].unflatten(1, cut.size))


@given(windows(most=6), st.sampled_from(["auto", "reference"]), seeds())
def test_attention_reaches_the_brute_force_and_nothing_else(cut, backend, seed):
    """By gradients: each output depends on exactly the pixels that it may see, and by 0.0 on all others."""
    shape = (1, cut.rows.side, cut.columns.side, 3)
    q, k, v = (make_tensor(shape, "normal", seed + n, F64) for n in range(3))
    influence = torch.autograd.functional.jacobian(
        lambda both: attend_in_windows(cut, q, both[0], both[1], backend), torch.stack([k, v])
    )
    pixels = shape[1] * shape[2]
    reached = influence.reshape(pixels, 3, 2, pixels, 3).abs().amax((1, 2, 4)) > 0
    assert torch.equal(reached, expected_support(cut))


@given(windows(most=6), seeds(), st.data())
def test_windows_are_independent_bit_for_bit(cut, seed, data):
    """A pixel that changes leaves every output that may not see it with the same bits."""
    shape = (1, cut.rows.side, cut.columns.side, 3)
    x = make_tensor(shape, "normal", seed, F64)
    before = attend_in_windows(cut, x, x, x)
    y, u = data.draw(st.integers(0, shape[1] - 1), label="row"), data.draw(st.integers(0, shape[2] - 1), label="column")
    x = x.clone()
    x[:, y, u] += 100.0
    same = ~expected_support(cut)[:, y * shape[2] + u].view(shape[1:3])
    after = attend_in_windows(cut, x, x, x)
    assert_same(after[:, same], before[:, same])
    assert not torch.equal(after[:, ~same], before[:, ~same])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(-4, 4), st.integers(-4, 4), seeds())
def test_unshifted_windows_that_divide_the_map_move_with_it(rows, columns, window, down, across, seed):
    """Attention in M x M windows is equivariant to cyclic translation of the map by multiples of M."""
    cut = Windows.of(rows * window, columns * window, window)
    assert cut.size == (window, window)
    x = make_tensor((2, rows * window, columns * window, 3), "normal", seed, F64)
    by = (down * window, across * window)
    moved = x.roll(by, (1, 2))
    expected = attend_in_windows(cut, x, x, x).roll(by, (1, 2))
    assert_close_to(attend_in_windows(cut, moved, moved, moved), expected, scale=x.abs().max().item())


def test_they_do_not_move_by_less_than_a_window():
    x = make_tensor((1, 6, 6, 3), "normal", 0, F64)
    cut = Windows.of(6, 6, 3)
    moved = x.roll(1, 2)
    difference = attend_in_windows(cut, moved, moved, moved) - attend_in_windows(cut, x, x, x).roll(1, 2)
    assert difference.abs().max() > 1e-2


def test_the_shift_connects_what_windows_separate():
    """Swin's purpose for it: pixels on both sides of a border of the first cut share a window of the second."""
    plain, shifted = (expected_support(Windows.of(8, 8, 4, shifted=flag)) for flag in (False, True))
    left, right = 3 * 8 + 3, 3 * 8 + 4
    assert not plain[left, right]
    assert shifted[left, right]
    both = (plain.double() @ shifted.double() @ plain.double()) > 0
    assert both.all()


@pytest.mark.parametrize("side", [56, 28, 14, 7])
def test_adaptive_windows_are_swins_at_224_pixels(side):
    """The maps of a 224 x 224 image after a stem of stride 4: windows of 7 divide them all, the last map is one."""
    plain, shifted = (Windows.of(side, side, 7, shifted=flag) for flag in (False, True))
    assert plain.size == shifted.size == (7, 7)
    assert plain == Windows.of(side, side, 7, rule="clamp") == Windows.of(side, side, 7, rule="divisor")
    assert shifted.rows.shift == (0 if side == 7 else 3)
    assert plain.mask() is None


@pytest.mark.parametrize("side", [8, 4, 2, 1])
def test_adaptive_windows_are_global_on_cifar(side):
    """The maps of a 32 x 32 image: one window of the whole map, which nothing shifts (arXiv 2604.06014 abstract)."""
    cut = Windows.of(side, side, 7, shifted=True)
    assert (cut.size, cut.count, cut.rows.shift, cut.columns.shift) == ((side, side), 1, 0, 0)
    assert cut.mask() is None


def test_the_other_rules_cut_cifar_maps():
    """What the adaptive rule is for: with M = 7 on 8 x 8, Swin's rule pads to 14 x 14, the divisor rule cuts 4 x 4."""
    clamp, divisor = (Windows.of(8, 8, 7, rule=rule) for rule in ("clamp", "divisor"))
    assert (clamp.size, clamp.count, clamp.rows.padded) == ((7, 7), 4, 14)
    assert (divisor.size, divisor.count, divisor.rows.padded) == ((4, 4), 4, 8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), flags)
def test_adaptive_windows_are_near_the_asked_size(height, width, window, shifted):
    """A side of n M has n windows of M; no window is longer than 1.5 M, or shorter than 3/4 M but in a map that is;
    padding is less than a pixel a window; the shift is half a window, or 0 where there is one only."""
    cut = Windows.of(height, width, window, shifted=shifted)
    for axis in (cut.rows, cut.columns):
        wanted = max(1, math.floor(axis.side / window + 0.5))
        assert 2 * axis.size <= 3 * window
        assert 4 * axis.size >= 3 * min(window, axis.side)
        assert 0 <= axis.padded - axis.side < wanted
        assert axis.count <= wanted
        assert axis.shift == (axis.size // 2 if shifted and axis.count > 1 else 0)
        if axis.side % window == 0:
            assert axis.size == window


@given(sides, sides, sizes, flags)
def test_clamped_windows_are_swins(height, width, window, shifted):
    """Square windows of min(M, H, W); a map whose smaller side is at most M is not shifted (Swin's code)."""
    cut = Windows.of(height, width, window, shifted=shifted, rule="clamp")
    smaller = min(height, width)
    assert cut.size == (min(window, smaller),) * 2
    shift = window // 2 if shifted and smaller > window else 0
    assert (cut.rows.shift, cut.columns.shift) == (shift, shift)


@given(sides, sides, sizes, flags)
def test_divisor_windows_never_pad(height, width, window, shifted):
    cut = Windows.of(height, width, window, shifted=shifted, rule="divisor")
    for axis in (cut.rows, cut.columns):
        assert axis.padded == axis.side
        assert axis.size <= window
        assert not [d for d in range(axis.size + 1, min(window, axis.side) + 1) if axis.side % d == 0]


def test_padding_is_zero():
    cut = Windows.of(3, 5, 4, rule="clamp")
    parts = cut.partition(torch.ones(1, 3, 5, 2))
    assert cut.columns.padded == 6
    assert parts.sum() == 3 * 5 * 2
    assert set(parts.flatten().tolist()) == {0.0, 1.0}


def test_windows_of_low_precision_and_of_strided_maps():
    cut = Windows.of(6, 6, 4, shifted=True, rule="clamp")
    x = make_tensor((2, 3, 6, 6), "normal", 0, torch.bfloat16).permute(0, 2, 3, 1)
    assert cut.partition(x).dtype == torch.bfloat16
    assert_same(cut.partition(x), cut.partition(x.contiguous()))
    assert_same(cut.reverse(cut.partition(x)), x)


WRONG = {
    "no window": (lambda: Windows.of(4, 4, 0), "window: expected an integer of at least 1"),
    "no height": (lambda: Windows.of(0, 4, 2), "map height: expected an integer of at least 1"),
    "fractional width": (lambda: Windows.of(4, 4.0, 2), "map width: expected an integer of at least 1"),
    "unknown rule": (lambda: Windows.of(4, 4, 2, rule="adaptiv"), "did you mean 'adaptive'"),
    "shifted in words": (lambda: Windows.of(4, 4, 2, shifted="no"), "window shifted: expected one of False, True"),
    "window beyond the map": (lambda: Axis(3, 4), "window size: expected at most the side of the map, 3, got 4"),
    "shift of a window": (lambda: Axis(8, 4, 4), r"window shift: expected an integer in \[0, 4\)"),
    "negative shift": (lambda: Axis(8, 4, -1), r"window shift: expected an integer in \[0, 4\)"),
    "boolean shift": (lambda: Axis(8, 4, True), r"window shift: expected an integer in \[0, 4\)"),
    "shift of one window": (lambda: Axis(4, 4, 2), "window shift: expected 0 for a single window"),
    "map of another size": (lambda: Windows.of(4, 6, 2).partition(torch.zeros(1, 6, 4, 3)), r"shape \(B, 4, 6, C\)"),
    "no channels": (lambda: Windows.of(4, 6, 2).partition(torch.zeros(4, 6, 3)), r"shape \(B, 4, 6, C\)"),
    "rolled map unrolled": (
        lambda: Windows.of(5, 5, 4, rule="clamp").unroll(torch.zeros(1, 5, 5, 3)),
        r"shape \(B, 8, 8, C\)",
    ),
    "too few windows": (lambda: Windows.of(4, 4, 2).reverse(torch.zeros(3, 2, 2, 1)), r"shape \(B \* 4, 2, 2, C\)"),
    "other windows": (lambda: Windows.of(4, 4, 2).reverse(torch.zeros(4, 4, 4, 1)), r"shape \(B \* 4, 2, 2, C\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_state_expected_and_got(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert re.search(r"expected .*, got ", str(raised.value))
