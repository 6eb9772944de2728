"""Gates on outputs (G1) and on values (SwiGLU), and the norm over heads."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from biases import zoo
from biases.gates import HeadNorm, OutputGate, ValueGate
from biases.testing import assert_close_to, assert_same, assert_within, make_tensor
from biases.testing.strategies import seeds

F64 = torch.float64
G1 = st.sampled_from(["g1", "g1-headwise"])
shapes = st.sampled_from([(8, 2), (12, 3), (16, 4), (6, 1)])
lengths = st.integers(1, 7)


def build(name: str, dim: int, heads: int, seed: int, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return zoo.layer(name, dim, heads, **options).double()


def tokens(seed: int, length: int, dim: int) -> Tensor:
    return make_tensor((2, length, dim), "normal", seed, F64)


def ungated(layer) -> torch.nn.Module:
    """The same layer without its gates."""
    dim, heads = layer.dim, layer.heads
    plain = zoo.layer("standard", dim, heads).double()
    plain.load_state_dict({key: value for key, value in layer.state_dict().items() if "gate" not in key})
    return plain


def attention_by_hand(layer, x: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention of every head, from the weights of the layer: (B, T, C)."""
    size, length = layer.dim // layer.heads, x.shape[1]
    later = torch.ones(length, length).triu(1).bool()
    parts = []
    for h in range(layer.heads):
        rows = slice(h * size, (h + 1) * size)
        scores = (x @ layer.query.weight[rows].T) @ (x @ layer.key.weight[rows].T).mT / math.sqrt(size)
        weights = scores.masked_fill(later, -torch.inf).exp()
        parts.append(weights / weights.sum(-1, keepdim=True) @ v[..., rows])
    return torch.cat(parts, -1)


def by_head(y: Tensor, heads: int) -> Tensor:
    return y.unflatten(-1, (heads, -1)).transpose(1, 2)


def equal(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    assert_close_to(actual, expected, scale=max(scale, expected.abs().max().item()), ulps=300)


@given(G1, shapes, lengths, seeds())
def test_g1_only_weakens(name, shape, length, seed):
    """0 < sigmoid(X W) < 1, so |Y'| < |Y| wherever Y is not 0 (arXiv 2505.06708 Eq. 5)."""
    layer = build(name, *shape, seed)
    x, y = tokens(seed, length, shape[0]), by_head(tokens(seed + 1, length, shape[0]), shape[1])
    gate = layer.output_gate.gate(x)
    assert ((gate > 0) & (gate < 1)).all()
    gated = layer.output_gate(y, x)
    assert (gated.abs() < y.abs()).all()
    assert (gated.sign() == y.sign()).all()


@given(G1, shapes, lengths, seeds())
def test_g1_without_weights_halves(name, shape, length, seed):
    """W = b = 0 gives sigmoid(0), exactly one half (arXiv 2505.06708 Eq. 5)."""
    layer = build(name, *shape, seed)
    for parameter in layer.output_gate.parameters():
        torch.nn.init.zeros_(parameter)
    x, y = tokens(seed, length, shape[0]), by_head(tokens(seed + 1, length, shape[0]), shape[1])
    assert_same(layer.output_gate(y, x), y / 2)
    equal(layer(x) - layer.output.bias, (ungated(layer)(x) - layer.output.bias) / 2)


@given(G1, shapes, lengths, seeds())
def test_an_open_g1_is_no_gate(name, shape, length, seed):
    """b -> +inf gives the ungated layer, bit for bit."""
    layer = build(name, *shape, seed)
    torch.nn.init.constant_(layer.output_gate.projection.bias, math.inf)
    x = tokens(seed, length, shape[0])
    assert_same(layer(x), ungated(layer)(x))


@given(G1, shapes, lengths, seeds())
def test_a_closed_g1_leaves_the_output_bias(name, shape, length, seed):
    """b -> -inf gives b_O for every token."""
    layer = build(name, *shape, seed)
    torch.nn.init.constant_(layer.output_gate.projection.bias, -math.inf)
    x = tokens(seed, length, shape[0])
    assert torch.equal(layer(x), layer.output.bias.expand_as(x))


@given(shapes, lengths, seeds())
def test_headwise_g1_keeps_the_direction_of_each_head(shape, length, seed):
    """One number a head: each head's vector is scaled, and not turned (arXiv 2505.06708 section 2, headwise)."""
    layer = build("g1-headwise", *shape, seed)
    x, y = tokens(seed, length, shape[0]), by_head(tokens(seed + 1, length, shape[0]), shape[1])
    gated = layer.output_gate(y, x)
    assert layer.output_gate.gate(x).shape == (2, shape[1], length, 1)
    equal(gated / gated.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True))


def test_elementwise_g1_turns_the_heads():
    """A number for each channel changes the direction."""
    gate = build("g1", 8, 2, 0).output_gate
    x, y = tokens(0, 4, 8), by_head(tokens(1, 4, 8), 2)
    assert torch.nn.functional.cosine_similarity(gate(y, x), y, dim=-1).min() < 0.99


@given(G1, shapes, st.integers(2, 6), seeds(), st.data())
def test_g1_sees_its_own_token_only(name, shape, length, seed, data):
    """The gate of token t is a function of x_t: its derivative by every other token is exactly 0."""
    gate = build(name, *shape, seed).output_gate
    t = data.draw(st.integers(0, length - 1), label="t")
    x = tokens(seed, length, shape[0]).requires_grad_()
    (slope,) = torch.autograd.grad(gate.gate(x)[:, :, t].sum(), x)
    others = [s for s in range(length) if s != t]
    assert torch.count_nonzero(slope[:, others]) == 0
    assert torch.count_nonzero(slope[:, t]) > 0


@given(shapes, lengths, seeds(), st.booleans())
def test_elementwise_g1_is_the_printed_formula(shape, length, seed, bias):
    """Y' = Y . sigmoid(X W) before the output projection (arXiv 2505.06708 Eq. 5)."""
    layer = build("g1", *shape, seed, bias=bias)
    x = tokens(seed, length, shape[0])
    projection = layer.output_gate.projection
    score = x @ projection.weight.T + (projection.bias if bias else 0.0)
    y = attention_by_hand(layer, x, x @ layer.value.weight.T) / (1 + torch.exp(-score))
    equal(layer(x), y @ layer.output.weight.T + layer.output.bias)


@given(shapes, lengths, seeds())
def test_headwise_g1_is_the_printed_formula(shape, length, seed):
    """Y'_h = Y_h sigmoid(X w_h), w_h in R^C for each head h (arXiv 2505.06708 Eq. 5, headwise)."""
    dim, heads = shape
    layer = build("g1-headwise", *shape, seed)
    x = tokens(seed, length, dim)
    projection = layer.output_gate.projection
    assert projection.weight.shape == (heads, dim)
    gate = 1 / (1 + torch.exp(-(x @ projection.weight.T + projection.bias)))
    y = attention_by_hand(layer, x, x @ layer.value.weight.T) * gate.repeat_interleave(dim // heads, -1)
    equal(layer(x), y @ layer.output.weight.T + layer.output.bias)


def value_to_output_maps(layer, x: Tensor, head: int) -> Tensor:
    """W_V^k (gate of query i) W_O^k: how an attended input enters the output of each query, (T, C, C)."""
    size, length = layer.dim // layer.heads, x.shape[1]
    rows = slice(head * size, (head + 1) * size)
    y = torch.zeros(layer.dim, layer.heads, length, size, dtype=x.dtype)
    y[:, head] = layer.value.weight[rows].T[:, None]
    if layer.output_gate is not None:
        y = layer.output_gate(y, x.expand(layer.dim, -1, -1))
    return (layer.output(y.transpose(1, 2).flatten(2)) - layer.output.bias).transpose(0, 1).detach()


@given(st.sampled_from([(8, 2), (12, 3), (16, 4)]), st.integers(5, 8), seeds())
def test_without_a_gate_all_queries_share_one_map_of_low_rank(shape, length, seed):
    """o_i = sum_j S_ij X_j (W_V^k W_O^k): one C x C map for all queries, of rank at most d_k (arXiv 2505.06708
    section 4.1)."""
    dim, heads = shape
    layer = build("standard", *shape, seed)
    maps = value_to_output_maps(layer, tokens(seed, length, dim)[:1], head=heads - 1)
    assert torch.linalg.matrix_rank(maps[0], rtol=1e-10) <= dim // heads
    assert torch.linalg.matrix_rank(maps.flatten(1), rtol=1e-10) == 1


@given(st.sampled_from([(8, 2), (12, 3), (16, 4)]), st.integers(5, 8), seeds())
def test_g1_gives_each_query_a_map_of_its_own(shape, length, seed):
    """Elementwise G1 puts a diagonal that depends on the query between W_V^k and W_O^k. Each map still has rank at most
    d_k, but the maps of d_k queries or more span d_k dimensions instead of 1 (arXiv 2505.06708 section 4.1)."""
    dim, heads = shape
    layer = build("g1", *shape, seed)
    maps = value_to_output_maps(layer, tokens(seed, length, dim)[:1], head=0)
    assert all(torch.linalg.matrix_rank(each, rtol=1e-10) <= dim // heads for each in maps)
    assert torch.linalg.matrix_rank(maps.flatten(1), rtol=1e-10) == dim // heads


@given(st.sampled_from([(8, 2), (12, 3)]), st.integers(5, 8), seeds())
def test_headwise_g1_only_scales_the_shared_map(shape, length, seed):
    """One number a head changes the size of the map by the query, and not the map: its span stays 1."""
    layer = build("g1-headwise", *shape, seed)
    maps = value_to_output_maps(layer, tokens(seed, length, shape[0])[:1], head=0)
    assert torch.linalg.matrix_rank(maps.flatten(1), rtol=1e-10) == 1
    assert (maps[0] - maps[1]).abs().max() > 0


@given(shapes, lengths, seeds())
def test_swiglu_values_are_the_printed_formula(shape, length, seed):
    """V~ = SiLU(X W_g) . (X W_V) takes the place of the values (arXiv 2604.06014 abstract)."""
    layer = build("swiglu-value", *shape, seed)
    x = tokens(seed, length, shape[0])
    g = x @ layer.value_gate.projection.weight.T
    v = g / (1 + torch.exp(-g)) * (x @ layer.value.weight.T)
    equal(layer.value_gate(x @ layer.value.weight.T, x), v)
    equal(layer(x), attention_by_hand(layer, x, v) @ layer.output.weight.T + layer.output.bias)


@given(shapes, lengths, seeds())
def test_swiglu_without_gate_weights_has_no_values(shape, length, seed):
    """SiLU(0) = 0: with W_g = 0 every value is 0 and the output is b_O, unlike a sigmoid gate, which halves."""
    layer = build("swiglu-value", *shape, seed)
    torch.nn.init.zeros_(layer.value_gate.projection.weight)
    x = tokens(seed, length, shape[0])
    assert torch.count_nonzero(layer.value_gate(x, x)) == 0
    assert torch.equal(layer(x), layer.output.bias.expand_as(x))


@given(st.integers(1, 8), lengths, seeds(), st.booleans())
def test_swiglu_acts_token_by_token(dim, length, seed, bias):
    """The value of token j is gated by x_j alone, so gating does not make attention see anything new."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gate = ValueGate(dim, bias=bias).double()
    x, v = tokens(seed, length, dim), tokens(seed + 1, length, dim)
    each = torch.stack([gate(v[:, [t]], x[:, [t]])[:, 0] for t in range(length)], 1)
    equal(gate(v, x), each)


@given(st.integers(1, 3), lengths, st.integers(1, 6), seeds())
def test_head_norm_gives_every_head_unit_rms(heads, length, size, seed):
    """y / sqrt(mean(y^2) + eps), over the channels of one head of one token, without parameters (torchscale)."""
    y = make_tensor((2, heads, length, size), "normal", seed, F64)
    norm = HeadNorm()
    assert not list(norm.parameters())
    out = norm(y)
    for b in range(2):
        for h in range(heads):
            for t in range(length):
                values = y[b, h, t].tolist()
                rms = math.sqrt(sum(value**2 for value in values) / size + 1e-6)
                assert out[b, h, t].tolist() == pytest.approx([value / rms for value in values], rel=1e-13)


@given(st.floats(1e-3, 1e3), seeds())
def test_head_norm_forgets_the_scale(factor, seed):
    """Multiplying a head by a positive number changes nothing where eps is 0."""
    y = make_tensor((2, 2, 3, 4), "normal", seed, F64)
    norm = HeadNorm(eps=0.0)
    equal(norm(factor * y), norm(y))


def test_head_norm_is_smooth_at_the_origin():
    """A head of zeros stays zero, with a finite gradient: 1 / sqrt(eps)."""
    y = torch.zeros(1, 1, 1, 4, dtype=F64, requires_grad=True)
    out = HeadNorm()(y)
    (slope,) = torch.autograd.grad(out.sum(), y)
    assert torch.count_nonzero(out) == 0
    assert slope.flatten().tolist() == pytest.approx([1e3] * 4)


@given(st.sampled_from([torch.float16, torch.bfloat16]), seeds())
def test_head_norm_keeps_low_precision(dtype, seed):
    """The norm is taken in float32 at least: as good as rounding its input and output, even where squares would
    overflow float16."""
    y = 1e3 * make_tensor((1, 2, 3, 8), "normal", seed, F64)
    y = y.to(dtype)
    exact = y.double() / (y.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_within(HeadNorm()(y), exact, exact.to(dtype))


@given(lengths, seeds())
def test_silu_output_gate_is_swish(length, seed):
    """The gate of retention is x sigmoid(x) of a linear map, unbounded above and slightly negative below."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gate = OutputGate(8, 2, activation="silu", bias=False).double()
    x = 5 * tokens(seed, length, 8)
    z = by_head(x @ gate.projection.weight.T, 2)
    values = gate.gate(x)
    equal(values, z / (1 + torch.exp(-z)))
    assert values.min() > -0.2785
