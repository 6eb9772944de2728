"""Manhattan attention (RMT, arXiv 2309.11523 Eq. 4-8): the layer against its formula, its symmetries and limits, and
the fast path.

Its parts and options are in ``test_manhattan_parts.py``, the decay as a term in ``test_manhattan_decay.py``, and
decomposition in general in ``test_decomposed.py``.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manhattan_layers import (
    F64,
    FORMS,
    PLACEMENTS,
    apart,
    build,
    equal,
    forms,
    maps,
    placements,
    rate,
    shapes,
    sides,
    turned,
)
from torch import Tensor, nn

from biases import attend, set_backend, specification
from biases.axial import attend_decomposed
from biases.layers import ManhattanAttention
from biases.layers.local_enhancement import LocalEnhancement
from biases.testing import assert_same, assert_within, make_tensor
from biases.testing.strategies import seeds


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
