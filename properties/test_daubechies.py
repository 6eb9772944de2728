"""Daubechies filters and the energies made from them (EGA-DB2 and EGA-DB4 of arXiv 2605.21842 Table 3, reconstructed).

The gate is ours where the paper is silent; the filters are those of Daubechies, Comm. Pure Appl. Math. 41 (1988) 909.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from biases import zoo
from biases.gates import DaubechiesEnergy, daubechies
from biases.testing import assert_close_to, assert_tolerance, make_tensor
from biases.testing.strategies import seeds

EPS = torch.finfo(torch.float64).eps
NAMES = ("ega-db2", "ega-db4")
DB4 = (
    0.2303778133,
    0.7148465706,
    0.6308807679,
    -0.0279837694,
    -0.1870348117,
    0.0308413818,
    0.0328830117,
    -0.0105974018,
)
moments = st.sampled_from([1, 2, 3, 4, 5])


def filter_rounding(N):
    """Error of the taps: P(y) of degree N - 1 has roots whose condition grows by about 4 with each degree."""
    return 64 * EPS * 4**N


def wavelet(taps):
    """The conjugate mirror filter g_k = (-1)^k h_{2N - 1 - k}."""
    return [(-1) ** k * h for k, h in enumerate(reversed(taps))]


def cascade(signal, taps, levels):
    """A trous transform, zeros before the signal: the details of each level, and the last approximation."""
    low, high = (np.array(f) / math.sqrt(2) for f in (taps, wavelet(taps)))
    approximation, details, T = np.asarray(signal), [], len(signal)
    for level in range(levels):
        delays = [k * 2**level for k in range(len(low))]
        past = np.stack([np.concatenate([np.zeros(delay), approximation])[:T] for delay in delays])
        details.append(high @ past)
        approximation = low @ past
    return details, approximation


def energies(signal, N, levels):
    """The product's energies of a signal (T,): (levels, T)."""
    return DaubechiesEnergy(1, N, levels)(torch.as_tensor(signal, dtype=torch.float64)[None, :, None])[0, 0]


@given(moments)
def test_the_filter_is_orthonormal_to_its_even_shifts(N):
    """sum_k h_k h_{k + 2m} = delta_m, and sum_k h_k = sqrt 2: 2 N taps."""
    taps = np.array(daubechies(N))
    assert len(taps) == 2 * N
    for m in range(N):
        inner = (taps[2 * m :] * taps[: 2 * N - 2 * m]).sum()
        assert abs(inner - (m == 0)) <= filter_rounding(N)
    assert abs(taps.sum() - math.sqrt(2)) <= 8 * EPS


@given(moments)
def test_the_wavelet_has_exactly_n_vanishing_moments(N):
    """sum_k k^p g_k = 0 for p < N, and not for p = N."""
    high = wavelet(daubechies(N))
    for p in range(N):
        moment = sum((k / (2 * N)) ** p * g for k, g in enumerate(high))
        assert abs(moment) <= filter_rounding(N)
    assert abs(sum((k / (2 * N)) ** N * g for k, g in enumerate(high))) > 1e-4


def test_two_moments_give_the_closed_form():
    """db2 = (1 + sqrt 3, 3 + sqrt 3, 3 - sqrt 3, 1 - sqrt 3) / (4 sqrt 2)."""
    r = math.sqrt(3)
    expected = torch.tensor([1 + r, 3 + r, 3 - r, 1 - r], dtype=torch.float64) / (4 * math.sqrt(2))
    assert_tolerance(torch.tensor(daubechies(2), dtype=torch.float64), expected, tolerance=filter_rounding(2))


def test_four_moments_give_the_tabulated_filter():
    """db4 to the ten digits of Daubechies' table."""
    expected = torch.tensor(DB4, dtype=torch.float64)
    assert_tolerance(torch.tensor(daubechies(4), dtype=torch.float64), expected, tolerance=0.51e-10)


def test_one_moment_gives_haar():
    """db1 is the Haar filter (1, 1) / sqrt 2."""
    expected = torch.full((2,), 1 / math.sqrt(2), dtype=torch.float64)
    assert_close_to(torch.tensor(daubechies(1), dtype=torch.float64), expected, scale=1.0, ulps=2)


@given(moments, st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), seeds())
@example(N=4, levels=4, T=1, heads=2, seed=0)
def test_energies_are_squared_details_of_the_channel_mean(N, levels, T, heads, seed):
    """The undecimated cascade d = g * a, a <- h * a (both over sqrt 2), dilated by 2^level; the same for every head."""
    x = make_tensor((2, T, 3), seed=seed, dtype=torch.float64)
    got = DaubechiesEnergy(heads, N, levels)(x)
    assert got.shape == (2, heads, levels, T)
    for batch in range(2):
        details, _ = cascade(x[batch].mean(-1).numpy(), daubechies(N), levels)
        expected = torch.from_numpy(np.stack(details) ** 2).expand(heads, -1, -1)
        assert_close_to(got[batch], expected, scale=x.abs().max().item() ** 2, ulps=256)


@given(moments, st.integers(1, 3), st.integers(1, 12), seeds())
def test_the_transform_keeps_the_energy_of_the_signal(N, levels, T, seed):
    """Parseval, |G|^2 + |H|^2 = 1 by the factor 1 / sqrt 2: details and approximation share the signal's energy."""
    tail = (2 * N - 1) * (2**levels - 1)
    signal = np.concatenate([make_tensor((1, T), seed=seed, dtype=torch.float64)[0].numpy(), np.zeros(tail)])
    _, approximation = cascade(signal, daubechies(N), levels)
    total = energies(signal, N, levels).sum().item() + (approximation**2).sum()
    assert abs(total - (signal**2).sum()) <= 8 * levels * filter_rounding(N) * (signal**2).sum()


@given(moments, st.integers(1, 3), st.data(), seeds())
def test_polynomials_have_no_detail_away_from_the_border(N, levels, data, seed):
    """N vanishing moments: a polynomial of degree below N has zero detail at every level, once the zeros are past."""
    degree = data.draw(st.integers(0, N - 1), label="degree")
    border = (2 * N - 1) * (2**levels - 1)
    t = np.linspace(-1, 1, border + 20)
    coefficients = make_tensor((1, degree + 1), seed=seed, dtype=torch.float64)[0].numpy()
    inside = energies(np.polynomial.Polynomial(coefficients)(t), N, levels)[:, border:]
    size = np.abs(coefficients).sum() * 2 ** (levels / 2)
    assert inside.max().item() <= (16 * filter_rounding(N) * size) ** 2


@given(moments, st.integers(1, 3))
def test_a_polynomial_of_degree_n_has_detail(N, levels):
    """Negative companion: t^N is seen, and by the same amount everywhere away from the border."""
    border = (2 * N - 1) * (2**levels - 1)
    t = np.arange(border + 20) / (border + 20)
    inside = energies(t**N, N, levels)[:, border:].sqrt()
    assert inside.min().item() > 16 * filter_rounding(N)
    assert_tolerance(inside, inside[:, :1].expand_as(inside), tolerance=16 * filter_rounding(N))


@given(moments, st.integers(0, 20), st.floats(0.1, 3), seeds())
def test_the_transform_is_causal(N, at, change, seed):
    """Zero padding on the left alone: energies before a changed sample are the same bits, and level 0 there differs."""
    before = make_tensor((1, 30), seed=seed, dtype=torch.float64)[0]
    after = before.clone()
    after[at] += change
    old, new = energies(before, N, 4), energies(after, N, 4)
    torch.testing.assert_close(new[:, :at], old[:, :at], rtol=0, atol=0)
    window = slice(at, at + 2 * N)
    assert not torch.equal(new[0, window], old[0, window])


@pytest.mark.parametrize("name", NAMES)
@given(T=st.integers(3, 12), statistics=st.sampled_from(["window", "prefix", "none"]), seed=seeds())
def test_only_the_windowed_gate_leaks_the_future(name, T, statistics, seed):
    """arXiv 2605.21842 Eq. 4 with this energy: the z-norm over the window leaks, over the prefix or without it not."""
    dtype = torch.float64 if statistics == "window" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = zoo.layer(f"{name}[statistics={statistics}]", 8, 2).to(dtype)
    x = make_tensor((1, T, 8), seed=seed, dtype=dtype)
    y = x.clone()
    y[:, -1] += 3 * make_tensor((1, 8), seed=seed + 1, dtype=dtype)[0]
    change = (layer(y) - layer(x))[:, :-1].abs().max().item()
    assert change > 1e-8 if statistics == "window" else change <= 1e-6


@pytest.mark.parametrize("name", NAMES)
@given(T=st.integers(1, 10), seed=seeds())
def test_the_gate_is_constant_on_the_output_of_a_layer_norm(name, T, seed):
    """The channel mean of a LayerNorm's output is 0 at the start, as for EGA-M: the layer is standard attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = zoo.layer(name, 8, 2).double()
    x = F.layer_norm(make_tensor((2, T, 8), seed=seed, dtype=torch.float64), (8,))
    gated = layer(x)
    layer.key_gate = None
    assert_close_to(gated, layer(x), scale=1.0, ulps=64)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_the_number_of_moments_is_checked(count):
    """A filter needs a positive whole number of vanishing moments."""
    with pytest.raises(ValueError, match=r"expected .* got"):
        daubechies(count)
