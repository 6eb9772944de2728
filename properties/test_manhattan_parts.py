"""Manhattan attention (RMT, arXiv 2309.11523): rates, decay, theta shift and options, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from manhattan_layers import F64, FORMS, PLACEMENTS, apart, build, equal, maps, placements, rate, sides, turned
from torch import Tensor, nn

from biases import ManhattanDecay, zoo
from biases.decays import rmt_log_rates
from biases.layers import ManhattanAttention
from biases.positions import ThetaShift
from biases.testing import assert_same, make_tensor
from biases.testing.strategies import seeds

NAMES = {"decomposed": "manhattan-decomposed", "full": "manhattan"}


@given(st.integers(1, 20), st.floats(0.5, 8.0), st.floats(0.0, 8.0))
def test_rates_are_those_of_equation_8(heads, initial, span):
    layer = ManhattanAttention(2 * heads, heads, initial=initial, span=span)
    expected = [rate(heads, head, initial, span) for head in range(heads)]
    assert layer.decay.log_rates.exp().tolist() == pytest.approx(expected, rel=1e-13)
    rates = layer.decay.log_rates
    assert (rates < 0).all()
    # Vectorised and single exponentials may differ in the last bit.
    assert (rates.diff() >= 4 * torch.finfo(F64).eps * rates[1:]).all()
    if span / heads > 1e-3:
        assert (rates.diff() > 0).all()


@given(st.integers(1, 20), st.floats(0.5, 8.0))
def test_a_span_of_zero_gives_all_heads_one_rate(heads, initial):
    rates = ManhattanAttention(2 * heads, heads, initial=initial, span=0.0).decay.log_rates
    assert rates.tolist() == pytest.approx([math.log1p(-(2**-initial))] * heads, rel=1e-15)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_decay_falls_strictly_with_the_distance_and_with_nothing_else(height, width, heads):
    """Sorted by Manhattan distance, the values of each head fall by log gamma a step."""
    rates = rmt_log_rates(heads)
    values = ManhattanDecay(height, width, rates).dense(height * width, height * width)[0]
    at = torch.arange(height * width)
    distance = (at // width - at[:, None] // width).abs() + (at % width - at[:, None] % width).abs()
    by_distance = torch.stack([values[:, distance == d].amin(-1) for d in range(height + width - 1)], -1)
    assert torch.equal(
        by_distance, torch.stack([values[:, distance == d].amax(-1) for d in range(height + width - 1)], -1)
    )
    assert (by_distance.diff() < 0).all()
    assert (by_distance[:, 0] == 0).all()


@given(sides, sides, sides, sides, placements)
def test_a_resized_decay_is_the_decay_of_that_size(height, width, other_height, other_width, placement):
    decay = ManhattanDecay(height, width, 3, placement=placement)
    resized, fresh = decay.resized(other_height, other_width), ManhattanDecay(other_height, other_width, 3)
    tokens = other_height * other_width
    assert_same(resized.dense(tokens, tokens), fresh.dense(tokens, tokens))
    assert (resized.placement, decay.height, decay.width) == (placement, height, width)


@given(st.sampled_from([2, 4, 8]), sides, sides, seeds())
def test_theta_shift_rotates_by_the_raster_index(dim, height, width, seed):
    """exp(i n theta) with n = y W + x; norms are kept."""
    x = make_tensor((2, 3, height, width, dim), "normal", seed, F64)
    index = torch.arange(height * width, dtype=F64).view(height, width)
    shifted = ThetaShift(dim).on_map(x)
    equal(shifted, turned(x, index))
    equal(shifted.norm(dim=-1), x.norm(dim=-1))


@given(st.sampled_from([2, 4, 8]), sides, sides, seeds())
def test_theta_shifted_products_depend_on_the_index_difference(dim, height, width, seed):
    q, k = (make_tensor((1, dim), "normal", seed + n, F64)[0] for n in range(2))
    on_map = [ThetaShift(dim).on_map(x.expand(1, 1, height, width, dim)).reshape(-1, dim) for x in (q, k)]
    products = on_map[0] @ on_map[1].T
    for difference in range(1 - height * width, height * width):
        line = products.diagonal(difference)
        equal(line, line[:1].expand_as(line), scale=(q.norm() * k.norm()).item())


def test_along_a_column_the_angle_depends_on_the_width():
    """The pixel below is W tokens away: the same column in a wider map has other products, the same row has not."""
    q, k = (make_tensor((1, 8), "normal", n, F64)[0] for n in range(2))
    shift = ThetaShift(8)

    def product(width: int, row: int, column: int) -> Tensor:
        there = shift.on_map(k.expand(1, 1, 3, width, 8))[0, 0, row, column]
        return shift.on_map(q.expand(1, 1, 3, width, 8))[0, 0, 0, 0] @ there

    assert abs(product(4, 1, 0) - product(5, 1, 0)) > 1e-3
    equal(product(4, 1, 0), product(5, 0, 4))
    equal(product(4, 0, 2), product(5, 0, 2))


@pytest.mark.parametrize("form", FORMS)
def test_parameters_are_those_of_the_count(form):
    """4 (C^2 + C) of the projections and 26 C of the convolution; neither decay nor theta shift adds any, or a buffer
    that a cast would round."""
    layer = build(0, (16, 2), form=form)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (16**2 + 16) + 26 * 16
    assert not list(layer.buffers())
    assert layer.to(torch.bfloat16).decay.log_rates.dtype == F64
    names = {name.partition(".")[0] for name in layer.state_dict()}
    assert names == {"query", "key", "value", "output", "enhancement"}


@pytest.mark.parametrize("form", FORMS)
def test_low_precision_and_empty_batches_keep_their_form(form):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        layer = build(0, dtype=dtype, form=form)
        out = layer(maps(0, 3, 5, dtype=dtype))
        assert out.dtype == dtype
        assert out.isfinite().all()
        assert layer(torch.zeros(0, 3, 5, 8, dtype=dtype)).shape == (0, 3, 5, 8)


OPTIONS = [
    {"theta_shift": theta, "enhancement": side, "placement": placement, "weights": weights}
    for theta in (False, True)
    for side in (0, 3)
    for placement in PLACEMENTS
    for weights in ("softmax", "sigmoid", "sigmoid-normalised", "linear")
    if weights != "linear" or placement == "weights"
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_traits_say_what_the_layer_does(form, options):
    """Rows, flips and transposition, for every set of options, on the layer that the zoo builds."""
    name = f"{NAMES[form]}[{', '.join(f'{key}={value}' for key, value in options.items())}]"
    layer, traits = zoo.layer(name, 8, 2).double(), zoo.get(name).traits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    x = maps(0, 4, 4)
    found = {
        "flip": all(apart(layer(x.flip(axis)), layer(x).flip(axis)) < 1e-9 for axis in (1, 2)),
        "transpose": apart(layer(x.transpose(1, 2)), layer(x).transpose(1, 2)) < 1e-9,
    }
    assert {name for name, holds in found.items() if holds} == set(traits.equivariant_to)
    assert traits.domain == "image"
    assert traits.decay.placement == ("logits" if options["placement"] == "logits" else "weights")
    nn.init.zeros_(layer.value.weight)
    nn.init.ones_(layer.value.bias)
    nn.init.eye_(layer.output.weight)
    nn.init.zeros_(layer.output.bias)
    if layer.enhancement is not None:
        nn.init.zeros_(layer.enhancement.convolution.weight)
        nn.init.zeros_(layer.enhancement.convolution.bias)
    sums = layer(x)
    assert (apart(sums, torch.ones_like(sums)) < 1e-9) == (traits.normalisation == "row")


def test_options_of_the_zoo_reach_the_layer():
    layer = zoo.layer("manhattan-decomposed[order=height-first, span=6.0, initial=3.0, enhancement=3]", 8, 2)
    assert (layer.form, layer.order) == ("decomposed", "height-first")
    assert layer.decay.log_rates.tolist() == rmt_log_rates(2, 3.0, 6.0).tolist()
    assert layer.enhancement.convolution.kernel_size == (3, 3)
    assert zoo.layer("manhattan[theta_shift=False]", 9, 3).theta_shift is None


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "odd head width": (lambda: ManhattanAttention(9, 3), "head width: expected even, as the theta shift"),
    "heads that do not divide": (lambda: ManhattanAttention(8, 3), "dim: expected a multiple of heads=3"),
    "theta shift in words": (
        lambda: ManhattanAttention(8, 2, theta_shift="none"),
        "theta_shift: expected one of False, True, got 'none'",
    ),
    "traits of a theta shift in words": (
        lambda: zoo.get("manhattan[theta_shift=none]").traits,
        "theta_shift: expected one of False, True, got 'none'",
    ),
    "unknown form": (lambda: ManhattanAttention(8, 2, form="axial"), "form: expected one of 'decomposed', 'full'"),
    "unknown order": (lambda: ManhattanAttention(8, 2, order="rows"), "order: expected one of"),
    "unknown placement": (lambda: ManhattanAttention(8, 2, placement="after"), "placement: expected one of"),
    "unknown weights": (lambda: ManhattanAttention(8, 2, weights="relu"), "weights: expected one of"),
    "unknown backend": (lambda: ManhattanAttention(8, 2, backend="flux"), "backend: expected one of"),
    "linear weights in the logits": (
        lambda: ManhattanAttention(8, 2, weights="linear"),
        "decay placement with linear weights: expected 'weights'",
    ),
    "even kernel": (lambda: ManhattanAttention(8, 2, enhancement=4), "kernel: expected an odd integer"),
    "kernel of False": (lambda: ManhattanAttention(8, 2, enhancement=False), "enhancement .*: expected .*, got False"),
    "no kernel": (
        lambda: ManhattanAttention(8, 2, enhancement=None),
        "enhancement .*: expected an integer .*, got None",
    ),
    "rates in words": (lambda: ManhattanAttention(8, 2, initial="2"), "initial: expected a positive finite number"),
    "a span in words": (lambda: rmt_log_rates(2, 2.0, "4"), "span: expected a finite number of at least 0, got '4'"),
    "a span of True": (lambda: rmt_log_rates(2, 2.0, True), "span: expected a finite number of at least 0, got True"),
    "negative kernel": (lambda: ManhattanAttention(8, 2, enhancement=-1), "enhancement .*: expected an integer"),
    "growing decay": (lambda: ManhattanAttention(8, 2, initial=0.0), "initial: expected a positive finite number"),
    "falling rates": (lambda: ManhattanAttention(8, 2, span=-1.0), "span: expected a finite number of at least 0"),
    "tokens": (lambda: ManhattanAttention(8, 2)(torch.zeros(2, 6, 8)), r"x: expected shape \(B, H, W, C\)"),
    "other width": (lambda: ManhattanAttention(8, 2)(torch.zeros(2, 3, 3, 6)), "x: expected width 8"),
    "no pixel": (lambda: ManhattanAttention(8, 2)(torch.zeros(2, 0, 3, 8)), "x: expected at least one pixel"),
    "integers": (lambda: ManhattanAttention(8, 2)(torch.zeros(2, 3, 3, 8, dtype=torch.int64)), "a floating dtype"),
    "rotated tokens": (lambda: ThetaShift(4).on_map(torch.zeros(1, 2, 6, 4)), r"expected shape \(B, heads, H, W, D\)"),
    "map without columns": (lambda: ManhattanDecay(2, 3, 2).resized(2, 0), "width: expected an integer of at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_state_expected_and_got(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert ", got " in str(raised.value)
