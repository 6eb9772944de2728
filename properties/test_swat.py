"""SWAT (arXiv 2502.18845): sigmoid weights with and without row sums, balanced slopes, and the layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from windowed_weights import BACKENDS, F64, SIGMOIDS, any_backend, lengths, qkv, seen_by_hand, weights_of, windows

from biases import ALiBi, ExponentialDecay, KeyBias, LowRankBias, attend, specification, zoo
from biases.attention import pair_weights
from biases.decays import alibi_slopes
from biases.layers.swat import swat_bias
from biases.testing import assert_close_to, make_tensor
from biases.testing.strategies import seeds


@given(any_backend, lengths, windows, seeds())
def test_normalised_rows_sum_to_one_and_keep_the_ratios(backend, length, window, seed):
    """sigmoid-normalised is sigmoid divided by the sum of its row."""
    q, k, _ = qkv(seed, length)
    options = {"causal": True, "window": window, "backend": backend, "bias": ALiBi(2, balanced=True)}
    plain = weights_of(length, length, q, k, weights="sigmoid", **options)
    normalised = weights_of(length, length, q, k, weights="sigmoid-normalised", **options)
    assert_close_to(normalised.sum(-1), torch.ones_like(normalised[..., 0]), scale=1.0)
    assert_close_to(normalised, plain / plain.sum(-1, keepdim=True), scale=1.0)


@given(any_backend, lengths, windows, seeds(), st.floats(-3, 3))
def test_constant_values_give_the_row_sum(backend, length, window, seed, value):
    """Weights that are not normalised carry their sum into the output, at most that of the window; normalised ones keep
    the constant."""
    q, k, v = qkv(seed, length)
    options = {"causal": True, "window": window, "backend": backend}
    constant = torch.full_like(v, value)
    sums = pair_weights(q, k, weights="sigmoid", causal=True, window=window).sum(-1, keepdim=True)
    keys = seen_by_hand(length, length, window).sum(-1, keepdim=True)
    assert ((sums > 0) & (sums < keys)).all()
    assert_close_to(attend(q, k, constant, weights="sigmoid", **options), value * sums.expand_as(v), scale=3.0 * window)
    assert_close_to(attend(q, k, constant, weights="sigmoid-normalised", **options), constant, scale=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [-200.0, -2e3])
def test_normalised_sigmoids_keep_their_limit_where_all_underflow(backend, level, dtype):
    """Far below 0 a sigmoid is an exponential, so the normalised weights become those of a softmax."""
    q, k, v = qkv(3, 7, dtype=dtype)
    shut = KeyBias(torch.full((1, 1, 7), level, dtype=dtype))
    out = attend(q, k, v, weights="sigmoid-normalised", bias=shut, backend=backend)
    # Logits near ``level`` are rounded at its size.
    assert_close_to(out, attend(q, k, v), scale=abs(level))
    if level < -1e3:
        assert torch.count_nonzero(attend(q, k, v, weights="sigmoid", bias=shut, backend=backend)) == 0


@given(any_backend, lengths, windows, seeds())
def test_placements_of_a_decay_mean_what_they_say(backend, length, window, seed):
    """Inside the sigmoid; on the normalised weights; on them and normalised once more."""
    q, k, _ = qkv(seed, length)
    log_rates = torch.log(torch.tensor([0.5, 0.9], dtype=F64))
    seen = seen_by_hand(length, length, window)
    position = torch.arange(length)
    log = log_rates[:, None, None] * (position[:, None] - position).clamp(min=0)
    logits = q @ k.mT / 2.0

    def rows(x: Tensor) -> Tensor:
        return x / x.sum(-1, keepdim=True)

    plain = rows(torch.sigmoid(logits) * seen)
    expected = {
        "logits": rows(torch.sigmoid(logits + log) * seen),
        "weights": plain * log.exp(),
        "weights-renormalised": rows(plain * log.exp()),
    }
    for placement, wanted in expected.items():
        options = {"decay": ExponentialDecay(log_rates, placement=placement), "weights": "sigmoid-normalised"}
        found = weights_of(length, length, q, k, causal=True, window=window, backend=backend, **options)
        assert_close_to(found, wanted, scale=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_renormalised_decay_and_underflowing_sigmoids_make_up_for_each_other(backend):
    """The far key has a logit of 0 and a decay of e^-1200, the near one a logit of -1000 and no decay: near wins."""
    q = torch.ones(1, 1, 1, 1, dtype=F64)
    k = torch.tensor([0.0, -1000.0], dtype=F64).view(1, 1, 2, 1)
    v = torch.tensor([1.0, 2.0], dtype=F64).view(1, 1, 2, 1)
    decay = ExponentialDecay(torch.tensor([-1200.0], dtype=F64), placement="weights-renormalised")
    options = {"weights": "sigmoid-normalised", "decay": decay, "causal": True, "alignment": "lower-right"}
    assert attend(q, k, v, backend=backend, **options).item() == 2.0


@pytest.mark.parametrize("weights", SIGMOIDS)
@given(st.integers(2, 9), seeds())
def test_a_row_constant_matters_to_a_sigmoid(weights, length, seed):
    """Under a softmax ALiBi may be replaced by m j; under a sigmoid, normalised or not, the difference is real."""
    q, k, _ = qkv(seed, length)
    slopes = alibi_slopes(2, "halving")
    difference = ALiBi(slopes)
    key_only = KeyBias((slopes[:, None] * torch.arange(length))[None])
    true, shortcut = (pair_weights(q, k, weights=weights, causal=True, bias=b) for b in (difference, key_only))
    assert (true - shortcut).abs().max() > 1e-3
    # The two are one function once the constant of each row is put back.
    rows = LowRankBias(slopes[:, None, None] * torch.arange(length)[:, None], -torch.ones(2, length, 1, dtype=F64))
    back = pair_weights(q, k, weights=weights, causal=True, bias=(key_only, rows))
    assert_close_to(back, true, scale=length)
    soft, soft_shortcut = (pair_weights(q, k, causal=True, bias=b) for b in (difference, key_only))
    assert_close_to(soft_shortcut, soft, scale=length)


# Slopes.


@given(st.integers(1, 33), st.sampled_from(["press", "geometric", "halving"]))
def test_balanced_slopes_are_opposite_pairs(heads, rule):
    """Half positive, half negative, sum 0 (arXiv 2502.18845 Eq. 4); the head left over by an odd number has none."""
    slopes = alibi_slopes(heads, rule, balanced=True, odd="zero")
    half = heads // 2
    assert slopes.shape == (heads,)
    assert slopes.dtype == F64
    assert torch.equal(slopes[:half], -slopes[half : 2 * half])
    assert bool((slopes[:half] > 0).all())
    assert slopes[2 * half :].tolist() == [0.0] * (heads % 2)
    assert math.fsum(slopes.tolist()) == 0.0
    if half:
        assert torch.equal(slopes[:half], alibi_slopes(half, rule))


@given(st.integers(1, 12))
def test_swat_bias_is_equation_4(heads):
    """s_k (m - n) with s_k = -2^-k on one half of the heads and 2^-k on the other."""
    half = heads // 2
    falls = [-(2.0**-k) for k in range(1, half + 1)]
    expected = [*falls, *(-s for s in falls), *[0.0] * (heads % 2)]
    assert swat_bias(heads).dense(2, 2)[0, :, 1, 0].tolist() == expected
    negative = [-(2.0**-k) for k in range(1, heads + 1)]
    assert swat_bias(heads, "negative").dense(2, 2)[0, :, 1, 0].tolist() == negative
    assert swat_bias(heads, "positive").dense(2, 2)[0, :, 1, 0].tolist() == [-s for s in negative]


@pytest.mark.parametrize("heads", [1, 3, 7])
def test_odd_numbers_of_heads_are_an_error_unless_allowed(heads):
    for build in (
        lambda: alibi_slopes(heads, balanced=True),
        lambda: ALiBi(heads, balanced=True),
        lambda: swat_bias(heads, odd_heads="error"),
    ):
        with pytest.raises(ValueError, match=f"expected an even number to balance the signs.*got {heads}"):
            build()
    assert ALiBi(heads, balanced=True, odd="zero").slopes[-1] == 0.0
    with pytest.raises(ValueError, match="alibi_slopes odd: expected one of 'error', 'zero', got 'none'"):
        alibi_slopes(heads, balanced=True, odd="none")


@given(st.integers(1, 8), st.integers(2, 20), windows, seeds())
def test_weights_are_monotone_in_distance_with_the_sign_of_the_slope(heads, length, window, seed):
    """Equal keys: the odds of a weight change by exp(s) a token, upwards into the past where s > 0."""
    q, k, _ = qkv(seed, length, heads=heads)
    k = k[:, :, :1].expand_as(k)
    bias = swat_bias(heads)
    weights = pair_weights(q, k, weights="sigmoid", causal=True, window=window, bias=bias)[:, :, -1]
    seen = weights[..., max(0, length - window) :]
    change, slopes = seen.diff(dim=-1), bias.slopes.view(1, heads, 1)
    level = (slopes == 0).expand_as(change)
    assert bool((change[level].abs() <= 4 * torch.finfo(F64).eps).all())
    assert torch.equal(change[~level].sign(), slopes.expand_as(change)[~level].sign())
    odds = torch.log(seen) - torch.log1p(-seen)
    # Near 1 a weight has lost the digits of its odds.
    known = seen[..., 1:].clamp(min=seen[..., :-1]) < 0.99
    steps = torch.where(known, odds.diff(dim=-1), slopes.expand_as(change))
    assert_close_to(steps, slopes.expand_as(change), scale=1e3)


# The layer.

OPTIONS = [
    {},
    {"normalise": True},
    {"slopes": "negative"},
    {"slopes": "positive", "rotary": False},
    {"rule": "press", "normalise": True},
    {"window": None},
]


def build(dim: int, heads: int, seed: int, **options: Any) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return zoo.layer("swat", dim, heads, **options).double()


def by_hand(layer: torch.nn.Module, x: Tensor, window: int, slopes: list[float], rotary: bool, normalise: bool):
    """Eq. 5 of arXiv 2502.18845 as printed, by loops over queries and keys; x (T, C)."""
    size, rows = layer.dim // layer.heads, []
    frequency = [10000.0 ** (-2 * t / size) for t in range(size // 2)]

    def turned(vector: Tensor, position: int) -> Tensor:
        pairs = torch.view_as_complex(vector.view(-1, 2).contiguous())
        angles = torch.tensor([position * f if rotary else 0.0 for f in frequency], dtype=F64)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()

    q, k, v = (projection(x).unflatten(-1, (layer.heads, size)) for projection in (layer.query, layer.key, layer.value))
    for m in range(len(x)):
        heads = []
        for h, s in enumerate(slopes):
            keys = range(max(0, m - window + 1), m + 1)
            logits = [turned(q[m, h], m) @ turned(k[n, h], n) / math.sqrt(size) + s * (m - n) for n in keys]
            weights = [1 / (1 + torch.exp(-logit)) for logit in logits]
            total = sum(weights) if normalise else 1.0
            heads.append(sum(w / total * v[n, h] for w, n in zip(weights, keys, strict=True)))
        rows.append(torch.cat(heads))
    return layer.output(torch.stack(rows))


@settings(max_examples=15)
@given(st.integers(1, 7), st.integers(1, 8), st.booleans(), st.booleans(), seeds())
def test_the_layer_is_the_printed_formula(length, window, rotary, normalise, seed):
    layer = build(12, 3, seed, window=window, rotary=rotary, normalise=normalise)
    x = make_tensor((1, length, 12), seed=seed, dtype=F64)
    expected = by_hand(layer, x[0], window, [-0.5, 0.5, 0.0], rotary, normalise)
    for module in (layer, specification(layer)):
        assert_close_to(module(x)[0], expected, scale=8.0 * max(1.0, expected.abs().max().item()))


@given(st.integers(1, 4), st.integers(1, 3), seeds())
def test_layers_see_one_window_after_another(window, depth, seed):
    """The receptive field of l layers is 1 + (w - 1) l (arXiv 2502.18845 section 3)."""
    stack = torch.nn.Sequential(*(build(8, 2, seed + n, window=window) for n in range(depth)))
    length = 12
    x = make_tensor((1, length, 8), seed=seed, dtype=F64).requires_grad_()
    (slope,) = torch.autograd.grad(stack(x)[:, -1].square().sum(), x)
    reached = (slope[0] != 0).any(-1)
    assert reached.sum().item() == min(length, 1 + (window - 1) * depth)
    assert reached.tolist() == sorted(reached.tolist())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_traits_follow_the_options(options):
    name = f"swat[{', '.join(f'{key}={value}' for key, value in options.items())}]"
    variant = zoo.get(name)
    traits, layer = variant.traits, zoo.layer(name, 12, 3)
    assert traits.window == layer.window == {**{"window": 128}, **options}["window"]
    assert (traits.normalisation == "row") == (layer.weights == "sigmoid-normalised")
    assert (traits.decay is None) == bool((layer.bias[0].slopes <= 0).any())
    assert sum(p.numel() for p in layer.parameters()) == sum(
        p.numel() for p in zoo.layer("standard", 12, 3).parameters()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slopes": "both"}, "SWAT slopes: expected one of 'balanced', 'negative', 'positive', got 'both'"),
        ({"rule": "doubling"}, "rule: expected one of"),
        ({"odd_heads": "error"}, "expected an even number to balance the signs"),
        ({"window": 0}, "SelfAttention window: expected an integer of at least 1, got 0"),
        ({"normalise": "sometimes"}, "SWAT normalise: expected one of True, False"),
        ({"rotary": "half"}, "SWAT rotary: expected one of True, False"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.layer("swat", 12, 3, **options)
