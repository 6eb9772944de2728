"""Manhattan attention (RMT, arXiv 2309.11523 Eq. 4-8): the layer, its decay, theta shift and local enhancement.

The decay as a term, its separability and where it is placed are in ``test_decays.py``; decomposition in general is in
``test_decomposed.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from biases import ManhattanDecay, attend, set_backend, specification, zoo
from biases.axial import attend_decomposed
from biases.decays import rmt_log_rates
from biases.layers import ManhattanAttention
from biases.layers.local_enhancement import LocalEnhancement
from biases.positions import ThetaShift
from biases.testing import assert_close_to, assert_same, assert_within, make_tensor
from biases.testing.strategies import seeds

F64 = torch.float64
FORMS = ("decomposed", "full")
NAMES = {"decomposed": "manhattan-decomposed", "full": "manhattan"}
PLACEMENTS = ("logits", "weights", "weights-renormalised")
forms, placements, sides = st.sampled_from(FORMS), st.sampled_from(PLACEMENTS), st.integers(1, 5)
shapes = st.sampled_from([(8, 2), (12, 3), (4, 1), (16, 2)])


def build(seed: int, shape: tuple[int, int] = (8, 2), dtype: torch.dtype = F64, **options: Any) -> ManhattanAttention:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = ManhattanAttention(*shape, **options)
        # As they start, queries and keys are so small that attention is nearly uniform.
        for projection in (layer.query, layer.key):
            nn.init.normal_(projection.weight, std=shape[0] ** -0.5)
    return layer.to(dtype)


def maps(seed: int, height: int, width: int, dim: int = 8, dtype: torch.dtype = F64) -> Tensor:
    return make_tensor((2, height, width, dim), "normal", seed, dtype)


def equal(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    assert_close_to(actual, expected, scale=max(scale, expected.abs().max().item()), ulps=300)


def apart(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def rate(heads: int, head: int, initial: float = 2.0, span: float = 4.0) -> float:
    """gamma of a head, Eq. 8."""
    return 1 - 2 ** (-initial - span * head / heads)


def turned(x: Tensor, index: Tensor) -> Tensor:
    """Channel pairs of (..., D) as complex numbers, multiplied by exp(i index theta)."""
    theta = 10000 ** -torch.linspace(0, 1, x.shape[-1] // 2, dtype=F64)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(()).double(), index[..., None] * theta)).flatten(-2)


def one_pass(logits: Tensor, distance: Tensor, gamma: float, placement: str) -> Tensor:
    """Weights over the last axis, with the decay placed as named."""
    if placement == "logits":
        return (logits + distance * math.log(gamma)).softmax(-1)
    weights = logits.softmax(-1) * gamma**distance
    return weights / weights.sum(-1, keepdim=True) if placement == "weights-renormalised" else weights


def attention_by_hand(layer: ManhattanAttention, x: Tensor, placement: str, theta_shift: bool) -> Tensor:
    """Concatenated heads before the enhancement, (B, H, W, C), by Eq. 5 or 6 and the rotation of the code."""
    (height, width), size = x.shape[1:3], layer.dim // layer.heads
    y, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, across = ((torch.arange(n)[:, None] - torch.arange(n)).abs().double() for n in (height, width))
    heads = []
    for h in range(layer.heads):
        part = slice(h * size, (h + 1) * size)
        q, k, v = (x @ each.weight[part].T + each.bias[part] for each in (layer.query, layer.key, layer.value))
        if theta_shift:
            q, k = (turned(each, (y * width + u).double()) for each in (q, k))
        content = torch.einsum("bijd,btud->bijtu", q, k) / size**0.5
        gamma = rate(layer.heads, h)
        if layer.form == "full":
            distance = down[:, None, :, None] + across[None, :, None, :]
            weights = one_pass(content.flatten(3), distance.flatten(2), gamma, placement)
            heads.append(torch.einsum("bijn,bnd->bijd", weights, v.flatten(1, 2)))
        else:
            same_row = content.diagonal(dim1=1, dim2=3).movedim(-1, 1)
            same_column = content.diagonal(dim1=2, dim2=4).movedim(-1, 1)
            first = one_pass(same_row, across, gamma, placement)
            second = one_pass(same_column, down, gamma, placement)
            rows = torch.einsum("biju,biud->bijd", first, v)
            heads.append(torch.einsum("bjit,btjd->bijd", second, rows))
    return torch.cat(heads, -1)


@given(forms, shapes, sides, sides, placements, st.booleans(), seeds())
def test_the_layer_is_the_printed_formula(form, shape, height, width, placement, theta_shift, seed):
    """Out = (attention + LCE(V)) W_O + b_O (Eq. 5-7), for both forms, every placement, with and without rotation."""
    layer = build(seed, shape, form=form, placement=placement, theta_shift=theta_shift)
    x = maps(seed, height, width, shape[0])
    with torch.no_grad():
        v = x @ layer.value.weight.T + layer.value.bias
        y = attention_by_hand(layer, x, placement, theta_shift) + enhanced_by_hand(layer.enhancement, v)
        equal(layer(x), y @ layer.output.weight.T + layer.output.bias)


def enhanced_by_hand(enhancement: LocalEnhancement, v: Tensor) -> Tensor:
    """Sum over offsets of the shifted map times the weight of the offset, zero beyond the border."""
    kernel, reach = enhancement.convolution.weight[:, 0], enhancement.convolution.kernel_size[0] // 2
    out = enhancement.convolution.bias.expand_as(v).clone()
    height, width = v.shape[1:3]
    for y in range(height):
        for x in range(width):
            for t in range(max(0, y - reach), min(height, y + reach + 1)):
                for u in range(max(0, x - reach), min(width, x + reach + 1)):
                    out[:, y, x] += v[:, t, u] * kernel[:, t - y + reach, u - x + reach]
    return out


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3, 5, 7]), seeds())
def test_local_enhancement_is_a_depthwise_correlation(height, width, kernel, seed):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        enhancement = LocalEnhancement(4, kernel).double()
        v = maps(seed, height, width, 4)
        equal(enhancement(v), enhanced_by_hand(enhancement, v))


@given(forms, sides, sides, seeds())
def test_a_delta_kernel_adds_the_values_and_a_zero_kernel_nothing(form, height, width, seed):
    layer = build(seed, form=form)
    x = maps(seed, height, width)
    plain = build(seed, form=form, enhancement=0)
    plain.load_state_dict({name: p for name, p in layer.state_dict().items() if "enhancement" not in name})
    convolution = layer.enhancement.convolution
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    assert_same(layer(x), plain(x))
    with torch.no_grad():
        convolution.weight[:, 0, 2, 2] = 1.0
    values = layer.value(x) @ layer.output.weight.T
    equal(layer(x), plain(x) + values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["auto", "dense", "reference"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_single_pixel_attends_to_itself(form, backend, placement):
    """On a 1 x 1 map the output is W_O(v + LCE(v)), bit for bit."""
    layer = build(0, form=form, placement=placement, backend=backend)
    x = maps(0, 1, 1)
    v = layer.value(x)
    assert_same(layer(x), layer.output(v + layer.enhancement(v)))


@pytest.mark.parametrize("form", FORMS)
def test_a_single_pixel_under_a_sigmoid_keeps_its_weight(form):
    """sigma(s) v in one pass, sigma(s)^2 v in two, with s = q . k / sqrt(d) of the pixel itself."""
    layer = build(0, (4, 1), form=form, weights="sigmoid", enhancement=0)
    x = maps(0, 1, 1, 4)
    s = (layer.query(x) * layer.key(x)).sum(-1, keepdim=True) / 2
    weight = torch.sigmoid(s) ** (2 if form == "decomposed" else 1)
    equal(layer(x), layer.output(weight * layer.value(x)))


@given(forms, placements, st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2]), seeds())
def test_without_rotation_and_convolution_a_flipped_map_has_a_flipped_output(
    form, placement, height, width, axis, seed
):
    layer = build(seed, form=form, placement=placement, theta_shift=False, enhancement=0)
    x = maps(seed, height, width)
    equal(layer(x.flip(axis)), layer(x).flip(axis))


@given(placements, sides, sides, seeds())
def test_a_transposed_map_needs_the_order_of_the_passes_swapped(placement, height, width, seed):
    """Full attention is equivariant to transposition; the decomposed one turns into that of the other order."""
    options = {"placement": placement, "theta_shift": False, "enhancement": 0}
    x = maps(seed, height, width)
    full = build(seed, form="full", **options)
    equal(full(x.transpose(1, 2)), full(x).transpose(1, 2))
    first, second = (build(seed, order=order, **options) for order in ("width-first", "height-first"))
    equal(first(x.transpose(1, 2)), second(x).transpose(1, 2))


@pytest.mark.parametrize("seed", range(3))
def test_what_breaks_the_symmetries(seed):
    """The theta shift and a convolution that is not symmetric break both; so does the order of passes transposition."""
    x = maps(seed, 4, 4)
    for form in FORMS:
        for options in ({"enhancement": 0}, {"theta_shift": False}):
            layer = build(seed, form=form, **options)
            assert apart(layer(x.flip(1)), layer(x).flip(1)) > 1e-3
            assert apart(layer(x.flip(2)), layer(x).flip(2)) > 1e-3
            assert apart(layer(x.transpose(1, 2)), layer(x).transpose(1, 2)) > 1e-3
    layer = build(seed, theta_shift=False, enhancement=0)
    assert apart(layer(x.transpose(1, 2)), layer(x).transpose(1, 2)) > 1e-3


@given(st.booleans(), st.booleans(), st.integers(1, 6), seeds())
def test_both_forms_agree_on_a_single_line_and_without_content(upright, line, length, seed):
    """On a map of one row or column, and on any map where the queries are zero, so that only decay is left."""
    full = build(seed, form="full")
    decomposed = build(seed, form="decomposed")
    decomposed.load_state_dict(full.state_dict())
    height, width = ((length, 1) if upright else (1, length)) if line else (length, 3)
    if not line:
        for layer in (full, decomposed):
            nn.init.zeros_(layer.query.weight)
            nn.init.zeros_(layer.query.bias)
    x = maps(seed, height, width)
    equal(decomposed(x), full(x))


@pytest.mark.parametrize("seed", range(3))
def test_the_forms_differ_in_general(seed):
    full, decomposed = build(seed, form="full"), build(seed, form="decomposed")
    decomposed.load_state_dict(full.state_dict())
    assert apart(full(maps(seed, 4, 5)), decomposed(maps(seed, 4, 5))) > 1e-3


@given(forms, sides, sides, st.sampled_from(["logits", "weights-renormalised"]), seeds())
def test_the_code_is_the_printed_decay_renormalised(form, height, width, placement, seed):
    """softmax(S + log D) = rownorm(softmax(S) . D), in each pass (issue 21 of the code)."""
    code, other = build(seed, form=form), build(seed, form=form, placement=placement)
    other.load_state_dict(code.state_dict())
    x = maps(seed, height, width)
    equal(other(x), code(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_without_renormalisation_it_is_another_layer(form, seed):
    """Eq. 5 and 6 as printed: rows sum to less than 1, and attended values shrink."""
    code, printed = (build(seed, form=form, placement=p, enhancement=0) for p in ("logits", "weights"))
    printed.load_state_dict(code.state_dict())
    for layer in (code, printed):
        nn.init.zeros_(layer.value.weight)
        nn.init.ones_(layer.value.bias)
        nn.init.eye_(layer.output.weight)
        nn.init.zeros_(layer.output.bias)
    x = maps(seed, 4, 5)
    equal(code(x), torch.ones_like(x))
    sums = printed(x)
    assert ((sums > 0) & (sums < 1)).all()
    assert sums.mean() < 0.9


@given(forms, sides, sides, seeds())
def test_gamma_towards_one_is_plain_attention(form, height, width, seed):
    """With a = 60 gamma is 1 up to rounding: softmax attention, over the map or along its axes."""
    layer = build(seed, form=form, initial=60.0, enhancement=0)
    x = maps(seed, height, width)
    q, k, v = (layer._split(part(x)) for part in (layer.query, layer.key, layer.value))
    q, k = layer.theta_shift.on_map(q), layer.theta_shift.on_map(k)
    if form == "decomposed":
        y = attend_decomposed(q, k, v)
    else:
        y = attend(*(part.flatten(2, 3) for part in (q, k, v))).unflatten(2, (height, width))
    equal(layer(x), layer.output(y.permute(0, 2, 3, 1, 4).flatten(3)))


@given(forms, placements, sides, sides, seeds())
def test_gamma_towards_zero_leaves_each_pixel_to_itself(form, placement, height, width, seed):
    """With a = 1e-15 a step of distance costs a factor of 1e15: the output is W_O(v + LCE(v)), but for the printed
    placement, which leaves of v the weight that the softmax gave to the pixel itself."""
    layer = build(seed, form=form, initial=1e-15, span=0.0, placement=placement)
    x = maps(seed, height, width)
    v = layer.value(x)
    kept = layer.output(v + layer.enhancement(v))
    # Neighbours have logits that are larger by up to 2 |q . k| / sqrt(d).
    content = (layer.query(x).norm(dim=-1).max() * layer.key(x).norm(dim=-1).max()).item()
    leak = 64 * height * width * 1e-15 * math.exp(min(content, 60.0)) * (1 + v.abs().max().item())
    if placement != "weights":
        assert apart(layer(x), kept) <= leak + 1e-12
    elif height * width > 1:
        assert apart(layer(x), kept) > 1e-6


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


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.detach().clone().requires_grad_()
    out = layer(x)
    direction = make_tensor(tuple(out.shape), "normal", 11, F64).to(out.dtype)
    names = ["input", *dict(layer.named_parameters())]
    return out.detach(), dict(zip(names, torch.autograd.grad(out, [x, *layer.parameters()], direction), strict=True))


@settings(max_examples=60)
@given(
    forms,
    st.sampled_from([F64, torch.float32]),
    st.integers(1, 7),
    st.integers(1, 7),
    placements,
    st.sampled_from(["softmax", "sigmoid", "sigmoid-normalised"]),
    seeds(),
)
def test_the_fast_layer_equals_its_specification(form, dtype, height, width, placement, weights, seed):
    """Output and gradients of input and parameters, odd sizes included."""
    layer = build(seed, dtype=dtype, form=form, placement=placement, weights=weights)
    x = maps(seed, height, width, dtype=dtype)
    exact, exact_grads = gradients(specification(layer), x.double())
    low, low_grads = gradients(set_backend(copy.deepcopy(layer), "dense"), x)
    out, grads = gradients(layer, x)
    slack = 32.0 if dtype == F64 else 4.0
    assert_within(out, exact, low, magnitude=slack * exact.abs().max().item())
    scale = slack * max(grad.abs().max().item() for grad in exact_grads.values())
    for name, grad in grads.items():
        assert_within(grad, exact_grads[name], low_grads[name], what=f"gradient of {name}", magnitude=scale)


@given(forms, st.integers(1, 7), st.integers(1, 7), placements, seeds())
def test_bfloat16_stays_within_its_budget(form, height, width, placement, seed):
    layer = build(seed, dtype=torch.bfloat16, form=form, placement=placement)
    x = maps(seed, height, width, dtype=torch.bfloat16)
    with torch.no_grad():
        exact = specification(layer)(x.double())
        low, out = set_backend(copy.deepcopy(layer), "dense")(x), layer(x)
    assert out.dtype == torch.bfloat16
    assert_within(out, exact, low, magnitude=2 * exact.abs().max().item())


@given(forms, sides, sides, st.sampled_from(["channels-first", "width-first", "every other"]), seeds())
def test_how_a_map_lies_in_memory_does_not_matter(form, height, width, layout, seed):
    x = maps(seed, height, width)
    other = {
        "channels-first": lambda: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "width-first": lambda: x.transpose(1, 2).contiguous().transpose(1, 2),
        "every other": lambda: x.repeat_interleave(2, -1)[..., ::2],
    }[layout]()
    layer = build(seed, form=form)
    equal(layer(other), layer(x))


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
