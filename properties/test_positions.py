"""Rotary, theta shift, sinusoidal and learned positions, and mixing over lags of the keys (CONV-L).

Rotations are checked against complex arithmetic: pair t at position p is multiplied by exp(i p theta_t)
(arXiv 2104.09864 Eq. 34).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from biases import zoo
from biases.layers import KeyLag
from biases.positions import LearnedPosition, Rotary, SinusoidalPosition, ThetaShift, sinusoidal
from biases.testing import assert_close_to, assert_tolerance, assert_within, make_tensor
from biases.testing.strategies import seeds

EPS = torch.finfo(torch.float64).eps
head_dims = st.sampled_from([2, 4, 6, 8, 16])
lengths = st.integers(1, 8)
pairings = st.sampled_from(["interleaved", "half"])
bases = st.sampled_from([100.0, 10000.0, 500000.0])
offsets = st.integers(0, 100_000)
low_precision = st.sampled_from([torch.float16, torch.bfloat16])


def normal(*shape, seed, dtype=torch.float64):
    return make_tensor(shape, seed=seed, dtype=dtype)


def turned(x, frequencies, pairing, start=0):
    """Each pair, as a complex number, times exp(i p theta_t): (B, H, T, D), in float64."""
    D = x.shape[-1]
    first = slice(0, None, 2) if pairing == "interleaved" else slice(0, D // 2)
    second = slice(1, None, 2) if pairing == "interleaved" else slice(D // 2, None)
    z = torch.complex(x[..., first].double(), x[..., second].double())
    for p in range(x.shape[-2]):
        for t, theta in enumerate(frequencies):
            angle = (start + p) * theta
            z[..., p, t] *= complex(math.cos(angle), math.sin(angle))
    y = torch.empty(x.shape, dtype=torch.float64)
    y[..., first], y[..., second] = z.real, z.imag
    return y


def rotary_frequencies(D, base):
    """theta_t = base^(-2 t / D)."""
    return [base ** (-2 * t / D) for t in range(D // 2)]


@given(head_dims, lengths, pairings, bases, offsets, seeds())
@example(D=2, T=1, pairing="interleaved", base=10000.0, start=0, seed=0)
def test_rotary_multiplies_pairs_by_complex_phases(D, T, pairing, base, start, seed):
    """arXiv 2104.09864 Eq. 34 for both pairings: channels (2 t, 2 t + 1), or (t, t + D / 2)."""
    x = normal(2, 3, T, D, seed=seed)
    expected = turned(x, rotary_frequencies(D, base), pairing, start)
    # An angle of size a carries a eps of rounding.
    tolerance = 16 * EPS * (1 + start + T) * x.abs().max().item()
    assert_tolerance(Rotary(D, base=base, pairing=pairing)(x, start), expected, tolerance=tolerance)


@given(head_dims, lengths, pairings, offsets, seeds())
def test_rotation_preserves_the_norm_of_every_pair(D, T, pairing, start, seed):
    """A rotation is orthogonal: |R_p x| = |x|."""
    x = normal(1, 2, T, D, seed=seed)
    norm = x.norm(dim=-1)
    assert_close_to(Rotary(D, pairing=pairing)(x, start).norm(dim=-1), norm, scale=norm.max().item(), ulps=16)


@given(head_dims, pairings, st.integers(0, 50), st.integers(0, 50), offsets, seeds())
def test_rotary_scores_depend_on_the_distance_only(D, pairing, i, j, shift, seed):
    """arXiv 2104.09864 Eq. 11 and 16: <R_i q, R_j k> = <R_{i + s} q, R_{j + s} k>, at large offsets as well."""
    rotary = Rotary(D, pairing=pairing)
    q, k = normal(1, 1, 1, D, seed=seed), normal(1, 1, 1, D, seed=seed + 1)
    here = (rotary(q, i) * rotary(k, j)).sum()
    there = (rotary(q, i + shift) * rotary(k, j + shift)).sum()
    scale = (q.norm() * k.norm()).item()
    assert_tolerance(there, here, tolerance=16 * EPS * (1 + shift + i + j) * scale)


@given(head_dims, low_precision, pairings, st.integers(0, 50), offsets, seeds())
@example(D=16, dtype=torch.bfloat16, pairing="half", distance=1, shift=100_000, seed=0)
def test_relative_scores_survive_half_precision_at_large_offsets(D, dtype, pairing, distance, shift, seed):
    """Positions are not rounded to the dtype of the inputs: the score moves by the rounding of two vectors, no more.

    Each rotated vector is off by at most eps / 2 of its norm, on both sides and at both offsets: 2 eps |q| |k|.
    """
    rotary = Rotary(D, pairing=pairing)
    q, k = normal(1, 1, 1, D, seed=seed, dtype=dtype), normal(1, 1, 1, D, seed=seed + 1, dtype=dtype)

    def score(at):
        return (rotary(q, at + distance).double() * rotary(k, at).double()).sum()

    scale = (q.double().norm() * k.double().norm()).item()
    allowed = 2 * torch.finfo(dtype).eps + 32 * torch.finfo(torch.float32).eps
    assert_tolerance(score(shift), score(0), tolerance=allowed * (1 + torch.finfo(dtype).eps) * scale + 1e-6)


@given(st.sampled_from([4, 6, 8, 16]), st.integers(2, 8), seeds())
def test_the_two_pairings_differ_by_a_permutation_of_channels(D, T, seed):
    """A state trained under one pairing is wrong under the other; reordering the channels converts it."""
    x = normal(1, 1, T, D, seed=seed)
    interleaved, half = Rotary(D), Rotary(D, pairing="half")
    assert (interleaved(x) - half(x)).abs().max() > 1e-3
    order = torch.cat([torch.arange(0, D, 2), torch.arange(1, D, 2)])
    torch.testing.assert_close(half(x[..., order]), interleaved(x)[..., order], rtol=0, atol=0)


@given(lengths, seeds())
def test_a_single_pair_has_one_pairing(T, seed):
    """At D = 2 both pairings are the same, the boundary of the test above."""
    x = normal(1, 1, T, 2, seed=seed)
    torch.testing.assert_close(Rotary(2)(x), Rotary(2, pairing="half")(x), rtol=0, atol=0)


@given(st.sampled_from([4, 6, 8, 16]), lengths, offsets, seeds())
def test_theta_shift_includes_the_end_point(D, T, start, seed):
    """RMT (arXiv 2309.11523 Eq. 1): angles 1 / 10000^linspace(0, 1, D / 2), down to 1e-4; rotary stops above it."""
    shift = ThetaShift(D)
    frequencies = [10000 ** (-t / (D // 2 - 1)) for t in range(D // 2)]
    assert abs(shift.frequencies()[-1].item() / 1e-4 - 1) <= 8 * EPS
    assert Rotary(D).frequencies()[-1] > 1.5e-4
    x = normal(1, 2, T, D, seed=seed)
    tolerance = 16 * EPS * (1 + start + T) * x.abs().max().item()
    assert_tolerance(shift(x, start), turned(x, frequencies, "interleaved", start), tolerance=tolerance)


@given(st.sampled_from([Rotary, ThetaShift]), head_dims, low_precision, st.integers(0, 5000), seeds())
@example(kind=Rotary, D=16, dtype=torch.bfloat16, start=257, seed=0)
def test_casting_a_module_does_not_round_its_angles(kind, D, dtype, start, seed):
    """After .half() or .to(bfloat16), the encoding is off by no more than the rounding of its input and output."""
    x, cast = normal(1, 2, 4, D, seed=seed), kind(D).to(dtype)
    assert all(b.dtype == dtype for b in cast.state_dict().values())
    exact, low = kind(D)(x, start), cast(x.to(dtype), start)
    assert low.dtype == dtype
    torch.testing.assert_close(cast(x.float(), start), kind(D)(x.float(), start), rtol=0, atol=0)
    error = (low.double() - exact).norm(dim=-1)
    # eps / 2 at the input and eps / 2 at the output, relative to the vector, which the rotation does not lengthen.
    allowed = (1.01 * torch.finfo(dtype).eps + 1e-6) * x.norm(dim=-1) + 1e-7
    assert (error <= allowed).all()


@given(st.sampled_from([Rotary, ThetaShift]), pairings, st.permutations([10000.0, 100.0, 37.0]), seeds())
@example(kind=Rotary, pairing="half", order=[10000.0, 100.0, 37.0], seed=0)
def test_instances_share_no_state(kind, pairing, order, seed):
    """Base 100 after base 10000 uses base 100: no cache is shared between instances (equinox's once was)."""
    D, T = 8, 5
    for turn, base in enumerate(order):
        x = normal(1, 1, T, D, seed=seed, dtype=(torch.float32, torch.float64, torch.float64)[turn])
        if kind is Rotary:
            got, theta = Rotary(D, base=base, pairing=pairing)(x), rotary_frequencies(D, base)
        else:
            got, theta = ThetaShift(D, base=base)(x), [base ** (-t / (D // 2 - 1)) for t in range(D // 2)]
        expected = turned(x, theta, pairing if kind is Rotary else "interleaved")
        assert_close_to(got, expected.to(x.dtype), scale=x.abs().max().item(), ulps=16 * T)


@given(st.sampled_from([(8, 2), (12, 3)]), lengths, pairings, seeds())
def test_a_rotary_layer_rotates_queries_and_keys_and_not_values(sizes, T, pairing, seed):
    """arXiv 2104.09864 Eq. 16: softmax(<R_i q_i, R_j k_j> / sqrt d) V, causal."""
    dim, heads = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = zoo.layer("standard", dim, heads).double()
    layer.rotary = zoo.position("rotary", dim, context=T, heads=heads, pairing=pairing)["rotary"]
    x, theta = 3 * normal(2, T, dim, seed=seed), rotary_frequencies(dim // heads, 10000.0)
    q, k, v = (p(x).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (layer.query, layer.key, layer.value))
    logits = turned(q.detach(), theta, pairing) @ turned(k.detach(), theta, pairing).mT / math.sqrt(dim / heads)
    weights = torch.softmax(logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf), -1)
    expected = layer.output((weights @ v).transpose(1, 2).flatten(2))
    assert_close_to(layer(x), expected, scale=(1 + logits.abs().max().item()) * 4, ulps=64)


def sines(T, C, base=10000.0):
    """arXiv 1706.03762 section 3.5: PE(p, 2 t) = sin(p / base^(2 t / C)), PE(p, 2 t + 1) = cos(...)."""
    rows = [[(math.sin, math.cos)[c % 2](p / base ** (2 * (c // 2) / C)) for c in range(C)] for p in range(T)]
    return torch.tensor(rows, dtype=torch.float64)


@given(st.integers(1, 60), st.sampled_from([2, 4, 10, 16]), bases)
@example(T=600, C=4, base=10000.0)
def test_the_sinusoidal_encoding_is_its_formula(T, C, base):
    """arXiv 1706.03762 section 3.5: sin at even, cos at odd channels; every row has squared norm C / 2."""
    got = sinusoidal(T, C, base=base)
    assert_close_to(got, sines(T, C, base), scale=float(T), ulps=8)
    assert_close_to(got.square().sum(-1), torch.full((T,), C / 2, dtype=torch.float64), scale=C / 2, ulps=16)


@given(st.floats(0, 4), st.integers(1, 20), st.sampled_from([2, 8, 16]), seeds())
@example(amplitude=0.0, T=3, C=2, seed=0)
@example(amplitude=0.02 * 2**0.5, T=20, C=16, seed=0)
def test_the_amplitude_scales_the_sinusoidal_encoding(amplitude, T, C, seed):
    """x + a PE, whose rms is a / sqrt 2: .71 in the papers, .02 at amplitude .02 sqrt 2, as the embeddings'."""
    x = normal(2, T, C, seed=seed)
    added = SinusoidalPosition(C, amplitude=amplitude)(x) - x
    expected = (amplitude * sinusoidal(T, C)).expand(2, -1, -1)
    assert_close_to(added, expected, scale=4 + x.abs().max().item(), ulps=4)
    rms = added.square().mean().sqrt().item()
    assert abs(rms - amplitude / math.sqrt(2)) <= 16 * EPS * (4 + x.abs().max().item())


@given(low_precision, st.integers(1, 600), seeds())
@example(dtype=torch.bfloat16, T=600, seed=0)
def test_half_precision_does_not_round_sinusoidal_angles(dtype, T, seed):
    """.to(bfloat16): positions beyond 256 keep their own encoding, rounded once and added once."""
    x = normal(1, T, 8, seed=seed, dtype=dtype)
    reference, low = x.double() + sines(T, 8), x + sines(T, 8).to(dtype)
    assert_within(SinusoidalPosition(8).to(dtype)(x), reference, low)


@given(st.integers(1, 10), st.integers(1, 10), seeds())
def test_learned_positions_are_a_row_for_each_position_and_refuse_longer_sequences(T, context, seed):
    """x + W[:T]; beyond the context there is no encoding to add, which is an error that names both lengths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learned = LearnedPosition(4, context)
    x = normal(2, T, 4, seed=seed, dtype=torch.float32)
    if context < T:
        with pytest.raises(ValueError, match=rf"expected at most {context} tokens, got {T}"):
            learned(x)
    else:
        torch.testing.assert_close(learned(x), x + learned.weight[:T], rtol=0, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rotary(7),
        lambda: Rotary(8, base=0.0),
        lambda: Rotary(8, base=math.nan),
        lambda: Rotary(8, pairing="quarter"),
        lambda: Rotary(8)(torch.zeros(1, 1, 2, 6)),
        lambda: Rotary(8)(torch.zeros(1, 2, 8)),
        lambda: ThetaShift(3),
        lambda: sinusoidal(4, 5),
        lambda: SinusoidalPosition(8, amplitude=-1.0),
        lambda: LearnedPosition(8, 0),
        lambda: zoo.position("rotery", 8, context=4, heads=1),
        lambda: zoo.position("rotary", 8, context=4, heads=1, bass=3),
    ],
)
def test_bad_input_is_refused(make):
    """Odd widths, impossible options and unknown names raise ValueError stating expected and got."""
    with pytest.raises(ValueError, match=r"expected .*got"):
        make()


def lag_logits(q, k, weights, shift):
    """P2 App. B Alg. 1: the sum over tau = -L..L of w_tau times the shifted q k^T / sqrt d, (H, T, T)."""
    H, T, D = q.shape
    lags = weights.shape[1] // 2
    S = torch.zeros(H, T, T, dtype=q.dtype)
    for index, tau in enumerate(range(-lags, lags + 1)):
        for j in range(T):
            if 0 <= j - tau < T:
                source = j - tau if shift == "keys" else j
                S[:, :, j] += weights[:, index, None] * (q @ k[:, source, :, None]).squeeze(-1) / math.sqrt(D)
    return S


def lag_layer(name, shift, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = zoo.layer(name, 8, 2, shift=shift).double()
        layer.key_mixing.logits.data.normal_()
    return layer


@pytest.mark.parametrize("name", ["conv-lag-4", "conv-lag-8"])
@given(shift=st.sampled_from(["keys", "released"]), T=st.integers(1, 20), seed=seeds())
def test_lag_attention_is_its_equation(name, shift, T, seed):
    """P2 (arXiv 2605.26355) App. B Alg. 1 as written (keys), and as the released code has it (the block unmoved)."""
    layer, x = lag_layer(name, shift, seed), normal(1, T, 8, seed=seed)
    q, k, v = (p(x)[0].unflatten(-1, (2, -1)).transpose(0, 1) for p in (layer.query, layer.key, layer.value))
    logits = lag_logits(q, k, torch.softmax(layer.key_mixing.logits, -1), shift).detach()
    weights = torch.softmax(logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf), -1)
    expected = layer.output((weights @ v).transpose(0, 1).flatten(1))
    assert_close_to(layer(x)[0], expected, scale=4 * (1 + logits.abs().max().item()), ulps=64)


@given(st.integers(1, 5), st.integers(1, 16), seeds())
def test_the_released_lags_scale_the_borders_and_nothing_else(lags, T, seed):
    """Released CONV-L: interior keys are the baseline's, those within L of a border shrink; no weight learns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixing = KeyLag(2, lags, shift="released").double()
    k = normal(1, 2, T, 4, seed=seed).requires_grad_()
    mixed = mixing(k)
    j = np.arange(T)
    interior = torch.from_numpy((j >= lags) & (j < T - lags))
    assert_close_to(mixed[:, :, interior], k[:, :, interior], scale=k.abs().max().item(), ulps=2 * lags + 2)
    ratio = (mixed.norm(dim=-1) / k.norm(dim=-1))[:, :, ~interior]
    assert (ratio < 1 - 1e-3).all()
    mixed.sum().backward()
    assert mixing.logits.grad is None


@pytest.mark.parametrize(("name", "lags"), [("conv-lag-4", 4), ("conv-lag-8", 8)])
@given(T=st.integers(3, 24), data=st.data(), seed=seeds())
def test_lag_attention_leaks_exactly_l_tokens(name, lags, T, data, seed):
    """P2 App. B, negative: S_ij holds k_{j + L}, so an output sees L later tokens; one more it does not see."""
    at = data.draw(st.integers(2, T - 1), label="at")
    layer, x = lag_layer(name, "keys", seed), 3 * normal(1, T, 8, seed=seed)
    y = x.clone()
    y[:, at] += 3 * normal(1, 8, seed=seed + 1)[0]
    change = (layer(y) - layer(x))[0].abs().amax(-1)
    assert (change[: max(at - lags, 0)] == 0).all()
    # Row 0 has one key, whose weight is 1 whatever its logit.
    assert (change[max(at - lags, 1) : at] > 1e-9).all()


@given(st.integers(3, 16), seeds())
def test_released_lags_do_not_leak(T, seed):
    """The released shift at a fixed length scales keys by position only: earlier outputs stay the same."""
    layer, x = lag_layer("conv-lag-4", "released", seed), normal(1, T, 8, seed=seed)
    y = x.clone()
    y[:, -1] += 3.0
    assert_close_to(layer(y)[:, :-1], layer(x)[:, :-1], scale=4.0, ulps=16)


@given(st.integers(3, 16), seeds())
def test_released_lags_depend_on_the_length(T, seed):
    """Negative: the right border moves with the length, so a prefix does not give a prefix of the outputs."""
    layer, x = lag_layer("conv-lag-4", "released", seed), normal(1, T, 8, seed=seed)
    assert (layer(x[:, :-1]) - layer(x)[:, :-1]).abs().max() > 1e-9
