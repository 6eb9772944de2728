"""Swin's shifted-window attention: who sees whom, the learned bias, the two ways of masking, and the fast path.

What a layer should give is computed here over all pairs of pixels of the map, without cutting it: pixels meet where
``floor((y - shift) / window)`` agrees on both axes, and the bias is that of their offset in the map.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from biases import attend, set_backend, specification, zoo
from biases.layers import SwinAttention
from biases.positions import AxisSum, RelativePositionBias
from biases.testing import assert_close_to, assert_same, assert_within, make_tensor
from biases.testing.strategies import seeds

F64 = torch.float64
shapes = st.sampled_from([(8, 2), (6, 1), (9, 3)])
sides = st.integers(1, 9)
windows = st.integers(1, 5)


def build(seed: int, dim: int, heads: int, **options) -> SwinAttention:
    """A layer whose table is large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = SwinAttention(dim, heads, **options).double()
        torch.nn.init.normal_(layer.relative_position)
    return layer


def images(seed: int, height: int, width: int, dim: int, batch: int = 2) -> Tensor:
    return make_tensor((batch, height, width, dim), seed=seed, dtype=F64)


def cut(height: int, width: int, window: int, shifted: bool) -> tuple[int, int]:
    """Side and shift of the windows, by the rule of Swin's code."""
    if min(height, width) <= window:
        return min(height, width), 0
    return window, window // 2 if shifted else 0


def meets(height: int, width: int, side: int, shift: int) -> Tensor:
    """Which pixels are in one window and are neighbours in the map, (H W, H W)."""
    y, x = (place.flatten() for place in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    rows, columns = ((place - shift).div(side, rounding_mode="floor") for place in (y, x))
    return (rows[:, None] == rows) & (columns[:, None] == columns)


def by_definition(layer: SwinAttention, x: Tensor) -> Tensor:
    """The layer as attention over all pairs of pixels of the map, in a loop over heads."""
    height, width, dim = x.shape[1:]
    side, shift = cut(height, width, layer.window, layer.shifted)
    allowed = meets(height, width, side, shift)
    y, c = (place.flatten() for place in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    dy, dx, M = y[:, None] - y, c[:, None] - c, layer.window
    flat, size, parts = x.flatten(1, 2), dim // layer.heads, []
    table = layer.relative_position.unflatten(0, (2 * M - 1, 2 * M - 1))
    bias = table[(dy + M - 1).clamp(0, 2 * M - 2), (dx + M - 1).clamp(0, 2 * M - 2)]
    for h in range(layer.heads):
        rows = slice(h * size, (h + 1) * size)
        q, k, v = (flat @ part.weight[rows].T + part.bias[rows] for part in (layer.query, layer.key, layer.value))
        logits = (q @ k.mT / math.sqrt(size) + bias[..., h]).masked_fill(~allowed, -torch.inf)
        parts.append(torch.softmax(logits, -1) @ v)
    out = torch.cat(parts, -1) @ layer.output.weight.T + layer.output.bias
    return out.unflatten(1, (height, width))


def equal(actual: Tensor, expected: Tensor) -> None:
    assert_close_to(actual, expected, scale=max(1.0, expected.abs().max().item()), ulps=300)


@given(shapes, sides, sides, windows, st.booleans(), seeds())
def test_the_layer_is_masked_attention_over_the_whole_map(shape, height, width, window, shifted, seed):
    """Rolling, cutting and padding amount to attention among the pixels of a window that are neighbours in the map."""
    layer = build(seed, *shape, window=window, shifted=shifted)
    x = images(seed, height, width, shape[0])
    equal(layer(x), by_definition(layer, x))


@given(sides, sides, windows, st.booleans(), seeds())
def test_a_pixel_reaches_exactly_its_region(height, width, window, shifted, seed):
    """Changing a pixel changes the outputs of its region, and no bit of any other."""
    layer = build(seed, 6, 2, window=window, shifted=shifted)
    x = images(seed, height, width, 6, batch=1).expand(height * width, -1, -1, -1)
    pixel = torch.eye(height * width, dtype=F64).view(-1, height, width, 1)
    changed = layer(x + pixel) != layer(x.contiguous())
    side, shift = cut(height, width, window, shifted)
    assert torch.equal(changed.any(-1).flatten(1), meets(height, width, side, shift))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), seeds(), st.data())
def test_windows_side_by_side_are_equivariant_to_their_own_translations(rows, columns, window, seed, data):
    """A cyclic translation by whole windows carries the output along, where nothing is padded or shifted."""
    layer = build(seed, 8, 2, window=window)
    x = images(seed, rows * window, columns * window, 8)
    by = (window * data.draw(st.integers(0, rows)), window * data.draw(st.integers(0, columns)))
    equal(layer(x.roll(by, (1, 2))), layer(x).roll(by, (1, 2)))


@given(shapes, st.integers(1, 5), st.integers(1, 5), seeds(), st.booleans())
def test_without_a_table_one_window_is_plain_attention(shape, side, window, seed, shifted):
    """softmax(Q K^T / sqrt(D)) V over all pixels, where the map is one window and the table zero."""
    layer = build(seed, *shape, window=max(side, window), shifted=shifted)
    torch.nn.init.zeros_(layer.relative_position)
    x = images(seed, side, side, shape[0])
    q, k, v = (
        part(x).flatten(1, 2).unflatten(-1, (shape[1], -1)).transpose(1, 2)
        for part in (layer.query, layer.key, layer.value)
    )
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    equal(layer(x).flatten(1, 2), layer.output(plain))
    assert layer.windows(side, side).rows.shift == 0


@given(st.integers(1, 5), st.data(), seeds())
def test_the_bias_is_the_entry_of_the_offset(window, data, seed):
    """Row (dy + M - 1) (2 M - 1) + dx + M - 1 of the table, for a map of any size up to M x M."""
    height, width = (data.draw(st.integers(1, window), label=name) for name in ("height", "width"))
    table = make_tensor(((2 * window - 1) ** 2, 3), seed=seed, dtype=F64)
    dense = RelativePositionBias(table, height, width).dense(height * width, height * width)
    assert dense.shape == (1, 3, height * width, height * width)
    for i in range(height * width):
        for j in range(height * width):
            dy, dx = i // width - j // width, i % width - j % width
            row = (dy + window - 1) * (2 * window - 1) + dx + window - 1
            assert torch.equal(dense[0, :, i, j], table[row])


def test_a_smaller_window_trains_the_centre_of_the_table():
    """On a 2 x 2 map the offsets are -1, 0, 1: the other entries of a table for 4 x 4 get no gradient."""
    layer = build(0, 8, 2, window=4)
    layer(images(0, 2, 2, 8)).square().sum().backward()
    used = layer.relative_position.grad.unflatten(0, (7, 7)).abs().sum(-1) > 0
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert torch.equal(used, expected)


@given(shapes, st.integers(3, 8), st.integers(3, 8), st.integers(2, 3), seeds())
def test_minus_one_hundred_is_all_but_exclusion(shape, height, width, window, seed):
    """Weights of e^-100 are far below the rounding of float64; without a shift there is nothing to mask."""
    exact = build(seed, *shape, window=window, shifted=True)
    soft = build(seed, *shape, window=window, shifted=True, mask_value=-100.0)
    x = images(seed, height, width, shape[0])
    equal(soft(x), exact(x))
    plain, also = (build(seed, *shape, window=window, mask_value=value) for value in (None, -100.0))
    assert_same(also(x), plain(x))


@given(st.integers(0, 3), seeds())
def test_minus_one_hundred_leaks_and_exclusion_does_not(corner, seed):
    """A value of 1e42 in one region reaches the others, brought beside it by the roll, times about e^-100."""
    x = images(seed, 4, 4, 8, batch=1)
    y, c = ((0, 0), (0, 3), (3, 0), (3, 3))[corner]
    x[..., 7] = 0.0
    large = x.clone()
    large[:, y, c, 7] = 1e42
    for mask_value in (None, -100.0):
        layer = build(seed, 8, 2, window=2, shifted=True, mask_value=mask_value)
        with torch.no_grad():
            layer.query.weight[:, 7] = 0.0
            layer.key.weight[:, 7] = 0.0
        moved = (layer(large) - layer(x)).abs().amax(-1)[0]
        moved[y, c] = 0.0
        if mask_value is None:
            assert torch.count_nonzero(moved) == 0
        else:
            # The four corners of the map share the last window.
            corners = moved[[0, 0, 3, 3], [0, 3, 0, 3]]
            assert torch.count_nonzero(corners) == 3
            assert torch.count_nonzero(moved) == 3
            assert corners.max() < 1e42 * math.exp(-100 + 20)


@given(sides, sides, windows, st.booleans(), seeds())
def test_padding_is_excluded_by_either_mask(height, width, window, shifted, seed):
    """Under -100 too, a map that windows do not divide gives what its pixels alone determine."""
    layer = build(seed, 6, 1, window=window, shifted=shifted, mask_value=-100.0)
    x = images(seed, height, width, 6)
    equal(layer(x), by_definition(layer, x))


@given(
    st.sampled_from([F64, torch.float32, torch.bfloat16, torch.float16]),
    sides,
    sides,
    windows,
    st.booleans(),
    st.sampled_from([None, -100.0]),
    seeds(),
)
def test_the_fast_path_is_the_specification(dtype, height, width, window, shifted, mask_value, seed):
    """Forward and backward, as near to float64 as the dense formulas in the dtype of the layer."""
    fast = build(seed, 8, 2, window=window, shifted=shifted, mask_value=mask_value).to(dtype)
    dense = set_backend(copy.deepcopy(fast), "dense")
    x = images(seed, height, width, 8).to(dtype)
    direction = images(seed + 1, height, width, 8).to(dtype)
    results = [outcome(layer, x, direction) for layer in (fast, specification(fast), dense)]
    # The gradient of the bias of the keys is zero, as its terms cancel.
    slack = 32.0 if dtype == F64 else 1.0
    size = slack * max(exact.abs().max().item() for exact in results[1].values())
    for name, exact in results[1].items():
        assert_within(results[0][name], exact, results[2][name], what=name, magnitude=size)


def outcome(layer: SwinAttention, x: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """Output and gradients, by name."""
    dtype = next(layer.parameters()).dtype
    given = x.to(dtype).requires_grad_()
    out = layer(given)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out, [given, *parameters], direction.to(dtype))
    return {"output": out.detach(), **dict(zip(("x", *names), gradients, strict=True))}


@given(sides, sides, seeds(), st.sampled_from(["channels-first", "width-first", "cropped"]))
def test_the_layout_of_a_map_does_not_matter(height, width, seed, layout):
    layer = build(seed, 8, 2, window=3, shifted=True)
    x = images(seed, height, width, 8)
    if layout == "cropped":
        larger = torch.zeros(2, height + 1, width + 2, 8, dtype=F64)
        larger[:, 1:, :-2] = x
        laid_out = larger[:, 1:, :-2]
    else:
        order = (0, 3, 1, 2) if layout == "channels-first" else (0, 2, 1, 3)
        back = (0, 2, 3, 1) if layout == "channels-first" else (0, 2, 1, 3)
        laid_out = x.permute(order).contiguous().permute(back)
    equal(layer(laid_out), layer(x))


@pytest.mark.parametrize(("dim", "heads", "window"), [(16, 2, 7), (24, 3, 4), (6, 1, 1)])
def test_parameters(dim, heads, window):
    """Four maps with bias and a table of (2 M - 1)^2 offsets a head, whatever the size of the map."""
    layer = zoo.layer("swin", dim, heads, window=window)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (dim * dim + dim) + heads * (2 * window - 1) ** 2
    assert layer.relative_position.shape == ((2 * window - 1) ** 2, heads)
    assert layer.relative_position.abs().max() < 0.02 * 8


def test_the_backend_is_the_one_that_is_set():
    layer = build(0, 8, 2, window=2)
    set_backend(layer, "dense")
    assert layer.backend == "dense"
    layer.backend = "none such"
    with pytest.raises(ValueError, match="backend: expected one of"):
        layer(images(0, 3, 3, 8))


def test_an_empty_batch_stays_empty():
    assert build(0, 8, 2, window=2, shifted=True)(torch.zeros(0, 5, 4, 8, dtype=F64)).shape == (0, 5, 4, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "dim: expected a multiple of heads=3, got 8"),
        ({"window": 0}, "window: expected an integer of at least 1, got 0"),
        ({"shifted": "yes"}, "shifted: expected one of False, True, got 'yes'"),
        ({"mask_value": -50.0}, r"mask_value: expected one of None, -100\.0, got -50\.0"),
        ({"backend": "fast"}, "backend: expected one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SwinAttention(**{"dim": 8, "heads": 2, **options})


@pytest.mark.parametrize("shape", [(2, 4, 8), (2, 4, 4, 6), (2, 0, 4, 8)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match="SwinAttention x"):
        SwinAttention(8, 2)(torch.zeros(shape))


def test_terms_of_a_map_refuse_other_sizes():
    with pytest.raises(ValueError, match=r"\(2 M - 1\)\^2 rows, got 16"):
        RelativePositionBias(torch.zeros(16, 2), 2, 2)
    with pytest.raises(ValueError, match="sides of at most 2"):
        RelativePositionBias(torch.zeros(9, 2), 3, 1)
    with pytest.raises(ValueError, match="a bias of the distance"):
        AxisSum(RelativePositionBias(torch.zeros(9, 2), 2, 2), 2, 2)
    q = torch.zeros(1, 2, 6, 4)
    with pytest.raises(ValueError, match="L = S = 2 x 2 = 4"):
        attend(q, q, q, bias=RelativePositionBias(torch.zeros(9, 2), 2, 2))
