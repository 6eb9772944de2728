"""The layers of Gated-SwinRMT: what the gates, the decay, the norms and the symmetries promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gated_swin_definition import F64, KINDS, SWITCHES, build, equal, images, kinds, sides
from hypothesis import given
from hypothesis import strategies as st

from biases import zoo
from biases.axial import decomposed_weights
from biases.testing import assert_same, make_tensor
from biases.testing.strategies import seeds

gates = st.sampled_from(["elementwise", "headwise"])


@given(gates, sides, sides, seeds())
def test_an_output_gate_without_weights_halves(granularity, height, width, seed):
    """W_G = b_G = 0: sigmoid(0) is exactly one half, of attention and local enhancement together (R2)."""
    options = {"window": 3, "shifted": True, "gate_granularity": granularity}
    layer, plain = build("retention", seed, **options), build("retention", seed, **options)
    for parameter in layer.output_gate.parameters():
        torch.nn.init.zeros_(parameter)
    plain.output_gate = None
    for each in (layer, plain):
        torch.nn.init.zeros_(each.output.bias)
    x = images(seed, height, width)
    assert_same(layer(x), plain(x) / 2)


@given(gates, sides, sides, seeds(), st.booleans())
def test_an_output_gate_opens_and_closes(granularity, height, width, seed, shifted):
    """b_G -> +inf gives the ungated layer and b_G -> -inf the bias of the output, to the bit."""
    layer = build("retention", seed, window=3, shifted=shifted, gate_granularity=granularity)
    x = images(seed, height, width)
    torch.nn.init.constant_(layer.output_gate.projection.bias, -math.inf)
    assert torch.equal(layer(x), layer.output.bias.expand_as(x))
    torch.nn.init.constant_(layer.output_gate.projection.bias, math.inf)
    opened = layer(x)
    layer.output_gate = None
    assert_same(opened, layer(x))


@given(gates, sides, sides, seeds())
def test_an_output_gate_only_weakens(granularity, height, width, seed):
    """0 < gate < 1, so each number before the output projection shrinks and keeps its sign; by one factor a head, where
    the gate is headwise."""
    layer = build("retention", seed, window=3, gate_granularity=granularity)
    with torch.no_grad():
        layer.output.weight.copy_(torch.eye(8))
        layer.output.bias.zero_()
    x = images(seed, height, width)
    gated = layer(x)
    layer.output_gate = None
    ungated = layer(x)
    assert (gated.abs() < ungated.abs()).all()
    assert (gated.sign() == ungated.sign()).all()
    ratio = (gated / ungated).unflatten(-1, (2, 4))
    spread = (ratio.amax(-1) - ratio.amin(-1)).max()
    assert spread < 1e-12 if granularity == "headwise" else spread > 1e-3


@given(sides, sides, seeds())
def test_the_output_gate_reads_the_input_of_the_block(height, width, seed):
    """With gate_input="block" only the gate sees block_input; with "normalised" nothing does."""
    x, one, other = images(seed, height, width), images(seed + 1, height, width), images(seed + 2, height, width)
    layer = build("retention", seed, window=3)
    assert (layer(x, block_input=one) != layer(x, block_input=other)).any()
    assert_same(layer(x, block_input=x), layer(x))
    for kind in KINDS:
        blind = build(kind, seed, window=3, gate_input="normalised")
        assert_same(blind(x, block_input=one), blind(x))


@given(st.integers(1, 8), st.integers(1, 8), seeds())
def test_swiglu_without_weights_leaves_no_value(height, width, seed):
    """SiLU(0) = 0: without weights of the gate there are no values, and without its norm the output is b_O."""
    layer = build("sigmoid", seed, window=3, output_norm="none", enhancement=0)
    torch.nn.init.zeros_(layer.value_gate.projection.weight)
    x = images(seed, height, width)
    assert torch.equal(layer(x), layer.output.bias.expand_as(x))


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([2, 3, 4]), seeds(), st.booleans())
def test_decay_bounds_what_a_sigmoid_lets_through(height, width, heads, seed, shifted):
    """0 < B < gamma^(|dy| + |dx|) for both passes, and rows sum to less than ((1 + gamma) / (1 - gamma))^2 whatever the
    window, so that values of 1 give outputs below that."""
    dim = 4 * heads
    options = {"window": 4, "shifted": shifted, "gate": False, "enhancement": 0, "output_norm": "none"}
    layer = build("sigmoid", seed, dim, heads, **options)
    gamma = torch.exp(-layer.decay.slopes)
    q, k = (make_tensor((2, heads, height, width, 4), seed=seed + step, dtype=F64) for step in (0, 1))
    weights = decomposed_weights(q, k, bias=(layer.alibi,), weights=layer.weights, decay=layer.decay)
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    steps = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    assert (weights > 0).all()
    assert (weights < gamma[:, None, None] ** steps).all()
    with torch.no_grad():
        layer.value.weight.zero_()
        layer.value.bias.fill_(1.0)
        layer.output.weight.copy_(torch.eye(dim))
        layer.output.bias.zero_()
    sums = layer(5 * images(seed, height, width, dim))
    assert (sums > 0).all()
    assert (sums < (((1 + gamma) / (1 - gamma)) ** 2).repeat_interleave(4)).all()


@given(kinds, sides, sides, seeds(), st.booleans())
def test_normalised_rows_sum_to_one(kind, height, width, seed, shifted):
    """Values of 1 come out as 1: under a softmax, and under a sigmoid with its rows divided by their sums."""
    options = {"window": 3, "shifted": shifted, "gate": False, "enhancement": 0}
    if kind == "sigmoid":
        options |= {"output_norm": "none", "weights_norm": "row"}
    layer = build(kind, seed, **options)
    with torch.no_grad():
        layer.value.weight.zero_()
        layer.value.bias.fill_(1.0)
        layer.output.weight.copy_(torch.eye(8))
        layer.output.bias.zero_()
    equal(layer(images(seed, height, width)), torch.ones(2, height, width, 8, dtype=F64))


FLIPS: dict[str, Any] = {"window": 3, "window_rule": "divisor", "enhancement": 0}


def flip_gap(kind: str, options: dict[str, Any], seed: int, height: int, width: int) -> float:
    """How far the layer is from flipping with the map, along either side."""
    layer, x = build(kind, seed, **FLIPS | options), images(seed, height, width)
    return max((layer(x.flip(axis)).flip(axis) - layer(x)).abs().max().item() for axis in (1, 2))


symmetric = st.sampled_from(
    [
        ("retention", {}),
        ("retention", {"attention": "full", "gate_granularity": "headwise"}),
        ("sigmoid", {"alibi_distance": "absolute"}),
        ("sigmoid", {"alibi_distance": "negative-absolute", "weights_norm": "row"}),
        ("sigmoid", {"alibi": False}),
    ]
)


@given(symmetric, st.integers(1, 3), st.integers(1, 3), seeds())
def test_flipping_the_map_flips_the_output(drawn, rows, columns, seed):
    """Where nothing tells left from right: no rotation, no signed slope, no shift, no padding, no learned kernel."""
    kind, options = drawn
    assert (
        "flip"
        in zoo.get(f"gated-swin-{'swat' if kind == 'sigmoid' else kind}")
        .traits_of({name: values[0] for name, values in SWITCHES[kind].items()} | FLIPS | options)
        .equivariant_to
    )
    assert flip_gap(kind, options, seed, 3 * rows, 3 * columns) < 1e-12


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sigmoid", {}),
        ("retention", {"theta_shift": "raster"}),
        ("retention", {"shifted": True}),
        ("retention", {"enhancement": 5}),
        ("retention", {"window_rule": "clamp", "window": 4}),
    ],
)
def test_what_breaks_flipping(kind, options):
    """Signed slopes, the raster rotation, a shift, a learned kernel and padding each tell left from right."""
    assert flip_gap(kind, options, 0, 6, 6) > 1e-4


@given(st.integers(1, 3), st.integers(1, 3), seeds())
def test_axis_rotations_are_relative(rows, columns, seed):
    """Rotation along each axis moves with whole windows, as it sees differences of places alone."""
    layer = build("retention", seed, window=3, theta_shift="axis", enhancement=0)
    x = images(seed, 3 * rows, 3 * columns)
    equal(layer(x.roll((3, 3), (1, 2))), layer(x).roll((3, 3), (1, 2)))


@given(kinds, st.integers(1, 2), st.integers(1, 2), seeds())
def test_local_enhancement_differs_at_borders_alone(kind, rows, columns, seed):
    """A 5 x 5 kernel reaches over the border of a window from less than 2 pixels away, in the domain "map"."""
    layer = build(kind, seed, window=6, window_rule="divisor")
    v = images(seed, 6 * rows, 6 * columns)
    results = {}
    for domain in ("map", "window", "rolled"):
        layer.enhancement_domain = domain
        results[domain] = layer._local(v, layer.windows(6 * rows, 6 * columns))
    gap = (results["map"] - results["window"]).abs().amax((0, 3))
    away = [torch.arange(6 * count) % 6 for count in (rows, columns)]
    inner = torch.logical_and(*torch.meshgrid(*((place >= 2) & (place < 4) for place in away), indexing="ij"))
    assert gap[inner].max() < 1e-12
    # Borders of a window that are borders of the map see zeros either way.
    down, side = torch.zeros(6 * rows, dtype=torch.bool), torch.zeros(6 * columns, dtype=torch.bool)
    down[4:8], side[4:8] = rows == 2, columns == 2
    assert torch.equal(gap > 1e-9, down[:, None] | side)
    # Unshifted and unpadded, rolling does nothing.
    assert_same(results["rolled"], results["map"])
