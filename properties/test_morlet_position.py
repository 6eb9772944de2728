"""MoPE (P1 = arXiv 2605.21842, P2 = arXiv 2605.26355, P3 = arXiv 2606.01258): its identities, and where they fail."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from morlet_pairs import BAND, EPS, clamped, encoded, logs, module, omegas, pairs, sigmas

from biases.decays import ALiBi
from biases.positions import MorletPosition
from biases.testing import assert_close_to, assert_tolerance, make_tensor
from biases.testing.strategies import seeds


def equation(b, omega, sigma):
    """P3 Eq. 9-10: z(b) = exp(i omega b) exp(-b^2 / (2 sigma^2))."""
    return cmath.exp(1j * omega * b) * math.exp(-(b**2) / (2 * sigma**2))


@given(logs, st.integers(1, 40))
@example(drawn=[(2.0, 3.0), (2.0, 0.0), (0.0, -20.0)], T=5)
def test_the_encoding_is_its_equation_after_the_clamps(drawn, T):
    """P2 Eq. 6-7, P3 Alg. 1, and the denominator 2 sigma^2 + 1e-8: cos at even, sin at odd channels."""
    got = module(drawn).encoding(T)
    for i, (log_omega, log_sigma) in enumerate(drawn):
        omega, sigma = clamped(log_omega, log_sigma)
        for b in range(T):
            z = cmath.exp(1j * omega * b) * math.exp(-(b**2) / (2 * sigma**2 + 1e-8))
            # Phase and exponent are rounded relatively, and the envelope damps both.
            rounding = 64 * EPS * (1 + omega * b)
            assert abs(got[b, 2 * i].item() - z.real) <= rounding
            assert abs(got[b, 2 * i + 1].item() - z.imag) <= rounding


@given(pairs.map(lambda n: 2 * n), st.integers(1, 12), seeds())
def test_the_encoding_is_added_to_the_embeddings(dim, T, seed):
    """P2 section 2.3: an absolute encoding, added once, the same for every sequence of the batch."""
    x, position = make_tensor((3, T, dim), seed=seed, dtype=torch.float64), MorletPosition(dim).double()
    torch.testing.assert_close(position(x), x + position.encoding(T), rtol=0, atol=0)


@given(omegas, sigmas, st.integers(1, 5))
def test_the_encoding_starts_at_one_and_decays(omega, sigma, i):
    """Invariant 9: PE(0) = (1, 0, 1, 0, ...); |z(b)| = exp(-b^2 / 2 sigma^2) falls in b and rises with sigma."""
    T = max(2, math.ceil(6 * sigma))
    z = encoded(range(T), [omega] * i, [sigma] * i)
    torch.testing.assert_close(z[0], torch.ones(i, dtype=torch.complex128), rtol=0, atol=0)
    assert (z.abs().diff(dim=0) < 0).all()
    wider = encoded(range(T), [omega] * i, [sigma * 1.01] * i)
    assert (wider.abs()[1:] > z.abs()[1:]).all()
    expected = torch.tensor([math.exp(-((b / sigma) ** 2)) for b in range(T)], dtype=torch.float64)
    assert_close_to(z[:, 0].abs().square(), expected, scale=1.0, ulps=64)


@given(logs)
def test_the_squared_norm_is_the_sum_of_the_envelopes(drawn):
    """Invariant 9: |PE(b)|^2 = sum_i exp(-b^2 / sigma_i^2), which is C / 2 at position 0."""
    position = module(drawn, constraint="none")
    squared = position.encoding(20).square().sum(-1)
    sigma2 = [math.exp(2 * log_sigma) + 0.5e-8 for _, log_sigma in drawn]
    expected = torch.tensor([sum(math.exp(-b * b / s) for s in sigma2) for b in range(20)], dtype=torch.float64)
    assert squared[0] == len(drawn)
    assert_close_to(squared, expected, scale=float(len(drawn)), ulps=128)


@given(omegas, st.floats(1, 1e6), st.integers(0, 200), st.integers(0, 50))
@example(omega=1.0, sigma=1e6, b=200, tau=50)
def test_wide_envelopes_give_the_sinusoidal_encoding_and_a_translation_invariant_kernel(omega, sigma, b, tau):
    """Invariant 10, P3 Prop. 1-2, P2 Eq. 8: error at most b^2 / 2 sigma^2; C(b, tau) -> cos(omega tau), without b."""
    z = encoded([b, b + tau], omega, sigma)[:, 0]
    rounding = 16 * EPS * (1 + omega * (b + tau))
    limit = complex(math.cos(omega * b), math.sin(omega * b))
    assert abs(z[0].item() - limit) <= b**2 / (2 * sigma**2) + rounding
    kernel = (z[0].conj() * z[1]).real.item()
    assert abs(kernel - math.cos(omega * tau)) <= (b**2 + (b + tau) ** 2) / (2 * sigma**2) + 2 * rounding


@given(omegas, sigmas, st.integers(-60, 60), st.integers(-20, 20))
def test_the_kernel_of_two_positions(omega, sigma, b, tau):
    """Invariant 11, P3 Eq. 15, 18, 30-31: C(b, tau) = cos(omega tau) exp(-(2 b^2 + 2 b tau + tau^2) / 2 sigma^2)."""
    z = encoded([b, b + tau], omega, sigma)[:, 0]
    expected = math.cos(omega * tau) * math.exp(-(2 * b * b + 2 * b * tau + tau * tau) / (2 * sigma**2))
    assert abs((z[0].conj() * z[1]).real.item() - expected) <= 32 * EPS * (1 + omega * (abs(b) + abs(tau)))


def averaged_kernel(sigma, tau, first=None):
    """sum_b C(b, tau) / (sum_b C(b, 0) cos(0)) of the envelope (omega = 0) over all integers, or over b >= first."""
    reach = math.ceil(12 * sigma) + abs(tau)
    b = torch.arange(-reach if first is None else first, reach + 1, dtype=torch.float64)
    z = [encoded(b + shift, 0.0, sigma)[:, 0].real for shift in (0, tau)]
    return (z[0] * z[1]).sum().item() / z[0].square().sum().item()


@given(st.floats(1.5, 8.0), st.integers(-12, 12), omegas)
def test_the_averaged_kernel_holds_over_all_integers(sigma, tau, omega):
    """Invariant 11, P3 Lemma 1 Eq. 17, P2 Eq. 9: summed over Z, C ~ cos(omega tau) exp(-tau^2 / 4 sigma^2).

    By Poisson summation, a half-integer centre (odd tau) differs by a factor 1 - 4 exp(-(pi sigma)^2), no more.
    """
    reach = math.ceil(12 * sigma) + abs(tau)
    b = torch.arange(-reach, reach + 1, dtype=torch.float64)
    z, shifted = encoded(b, omega, sigma)[:, 0], encoded(b + tau, omega, sigma)[:, 0]
    kernel = (z.conj() * shifted).real.sum().item() / z.abs().square().sum().item()
    formula = math.exp(-(tau**2) / (4 * sigma**2))
    bound = 5 * math.exp(-((math.pi * sigma) ** 2)) + 64 * EPS * (1 + omega * reach)
    assert abs(kernel - math.cos(omega * tau) * formula) <= bound


@pytest.mark.parametrize(("tau", "formula", "one_sided"), [(4, 0.821, 0.464), (8, 0.453, 0.108)])
def test_the_averaged_kernel_fails_for_the_positions_that_occur(tau, formula, one_sided):
    """Invariant 11, negative: at sigma = 4.4977 the sum over b >= 0 is far below P3 Eq. 17 (.464 for .821)."""
    half_a_digit = 5e-4
    assert abs(averaged_kernel(4.4977, tau) - formula) <= half_a_digit
    assert abs(averaged_kernel(4.4977, tau, first=0) - one_sided) <= half_a_digit


@given(st.floats(1.5, 8.0), st.integers(1, 12))
def test_the_one_sided_kernel_decays_faster_than_the_formula(sigma, tau):
    """Invariant 11, negative, at every width: positions b >= 0 make MoPE forget faster than P3 Eq. 17 says."""
    assert averaged_kernel(sigma, tau, first=0) < 0.95 * math.exp(-(tau**2) / (4 * sigma**2))


@given(st.floats(1.5, 8.0), st.integers(2, 12))
def test_equation_33_contradicts_equation_17(sigma, tau):
    """P3 Eq. 33 prints exp(-tau^2 / 2 sigma^2), the square of Eq. 17; the sum over Z agrees with Eq. 17 only."""
    kernel, seventeen = averaged_kernel(sigma, tau), math.exp(-(tau**2) / (4 * sigma**2))
    bound = 5 * math.exp(-((math.pi * sigma) ** 2)) + 64 * EPS
    assert abs(kernel - seventeen) <= bound
    assert abs(kernel - seventeen**2) > 2 * bound + 1e-12


@given(logs)
@example(drawn=[(-50.0, -50.0), (50.0, 50.0)])
def test_the_effective_product_never_falls_below_the_boundary(drawn):
    """Invariant 12, P3 Alg. 1: omega sigma >= 5 for any parameters; the order of the clamps is that of the code."""
    omega, sigma = module(drawn).effective()
    assert (omega * sigma >= 5 * (1 - 4 * EPS)).all()
    expected = torch.tensor([clamped(*d) for d in drawn], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([omega, sigma], 1), expected, rtol=64 * EPS, atol=0)


@pytest.mark.parametrize(
    ("omega", "sigma", "effective"),
    [(7.0, 10.0, BAND), (7.0, 1.0, 5.0), (1.0, 1.6, 3.125), (1.0, 1e-5, 5e3), (2.0, 4.0, 2.0)],
)
def test_the_boundary_wins_over_the_frequency_limit(omega, sigma, effective):
    """Order of the clamps: 0.95 pi first, 5 / sigma after it, so that omega may exceed 0.95 pi and pi itself."""
    got, _ = module([(math.log(omega), math.log(sigma))]).effective()
    assert abs(got.item() - effective) <= 16 * EPS * effective


@given(st.sampled_from([4, 16, 64, 256]))
def test_the_initial_values_are_published_and_lie_on_the_boundary(dim):
    """Invariant 12, P2 Eq. 12-13: omega from 1.0 to 3.110 rad/token, log-spaced, sigma from 5.0 to 1.608, product 5."""
    position = MorletPosition(dim).double()
    omega, sigma = position.log_omega.exp().detach(), position.log_sigma.exp().detach()
    index = torch.arange(dim // 2, dtype=torch.float64)
    # The parameters are float32 logarithms of at most ln 5.
    tolerance = 4 * torch.finfo(torch.float32).eps
    log_spaced = (0.99 * math.pi) ** (index / (dim / 2 - 1))
    torch.testing.assert_close(omega, log_spaced, rtol=tolerance, atol=0)
    torch.testing.assert_close(omega * sigma, torch.full_like(omega, 5.0), rtol=tolerance, atol=0)
    ends = [omega[0], omega[-1], sigma[0], sigma[-1]]
    assert [round(v.item(), 3) for v in ends] == [1.0, 3.11, 5.0, 1.608]


@given(omegas, sigmas, st.integers(0, 40))
def test_the_phase_is_omega_b(omega, sigma, b):
    """Invariant 12, P3 Eq. 21-25: atan2(sin, cos) = omega b modulo 2 pi."""
    b = min(b, int(6 * sigma))
    phase = encoded([b], omega, sigma)[0, 0].angle().item()
    assert abs(math.remainder(phase - omega * b, 2 * math.pi)) <= 8 * EPS * (1 + omega * b)


@given(st.floats(math.pi, 2 * math.pi), sigmas, st.integers(0, 30))
@example(omega=3.346, sigma=1.494, b=3)
def test_frequencies_above_pi_alias(omega, sigma, b):
    """At integer positions omega in (pi, 2 pi), as learned (3.346), is 2 pi - omega (2.937) with the sine negated."""
    z, alias = encoded([b], omega, sigma)[0, 0].item(), encoded([b], 2 * math.pi - omega, sigma)[0, 0].item()
    assert abs(z - alias.conjugate()) <= 16 * EPS * (1 + omega * b)


@given(st.floats(0.5, 20.0), st.floats(5.0, 20.0))
def test_the_uncertainty_product_is_one_half(sigma, product):
    """Invariant 13: std of |z|^2 in b (sigma / sqrt 2) times std of |z^|^2 in omega (1 / sqrt 2 sigma) is 1/2.

    P3 Eq. 11-12 give sigma and 1 / (2 sigma), with the same product. Continuous and two-sided: b on a fine grid.
    """
    step = sigma / 32
    b = step * torch.arange(-320, 320, dtype=torch.float64)
    z = encoded(b, product / sigma, sigma)[:, 0].numpy()
    frequency = 2 * math.pi * np.fft.fftfreq(len(z), step)

    def deviation(at, density):
        p = density / density.sum()
        return math.sqrt((p * (at - (p * at).sum()) ** 2).sum())

    # At the ends of the grid, 10 sigma, |z|^2 is e^-100: what remains is the rounding of the transform, eps in |z^|
    # at frequencies up to 100 / sigma.
    spread, bandwidth = deviation(b.numpy(), np.abs(z) ** 2), deviation(frequency, np.abs(np.fft.fft(z)) ** 2)
    assert abs(spread * math.sqrt(2) / sigma - 1) < 1e-10
    assert abs(bandwidth * math.sqrt(2) * sigma - 1) < 1e-10
    assert abs(spread * bandwidth - 0.5) < 1e-10


@pytest.mark.parametrize(
    ("b", "norm", "digit"),
    [
        (0, 11.3, 0.1),
        (1, 10.5, 0.1),
        (2, 8.61, 0.01),
        (4, 4.87, 0.01),
        (6, 2.50, 0.01),
        (8, 1.15, 0.01),
        (10, 0.47, 0.01),
        (12, 0.168, 1e-3),
        (15, 0.028, 1e-3),
        (20, 7e-4, 1e-4),
    ],
)
def test_the_published_encoding_vanishes_after_some_fifteen_tokens(b, norm, digit):
    """Norm of PE(b) at the initial values, C = 256, beside embeddings of norm .32: close to no encoding at all."""
    assert abs(MorletPosition(256).encoding(21)[b].norm().item() - norm) <= digit / 2


@given(st.floats(0.5, 40.0), st.integers(0, 40), st.integers(1, 8))
def test_alibi_is_not_morlet_at_omega_zero(sigma, b, heads):
    """P2 says "ALiBi is MoPE at omega = 0". ALiBi's bias is linear in tau and free of b; log C is neither."""
    b = min(b, int(4 * sigma))
    z = encoded([b, b + 1, b + 2], 0.0, sigma)[:, 0].real
    # Second difference in tau, and the difference between query positions b and b + 1.
    bend, drift = (z[0] * z[2] / z[1] ** 2).log().item(), (z[2] / z[0]).log().item()
    rounding = 64 * EPS * (1 + ((b + 2) / sigma) ** 2)
    assert abs(bend + 1 / sigma**2) <= rounding
    assert abs(drift + 2 * (b + 1) / sigma**2) <= rounding
    bias = ALiBi(heads).dense(43, 43)[0]
    steps = bias[:, 0, 0] - 2 * bias[:, b + 1, b] + bias[:, b + 2, b]
    assert_close_to(steps, torch.zeros_like(steps), scale=1.0, ulps=4)
    torch.testing.assert_close(bias[:, b + 1, b], bias[:, b + 2, b + 1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(dim=pairs.map(lambda n: 2 * n), T=st.integers(1, 60))
def test_a_module_in_half_precision_rounds_its_parameters_only(dtype, dim, T):
    """Positions and angles are computed in float32 whatever the parameters are stored in."""
    position = MorletPosition(dim).to(dtype)
    exact = MorletPosition(dim).double()
    exact.load_state_dict(position.state_dict())
    omega, sigma = exact.effective()
    # Float32 rounding of the angle and of the exponent; where the envelope has not vanished both are small.
    reach = min(T, math.ceil(6 * sigma.max().item()))
    bound = 16 * torch.finfo(torch.float32).eps * (1 + omega.max().item() * reach + (reach / sigma.min().item()) ** 2)
    assert_tolerance(position.encoding(T).double(), exact.encoding(T), tolerance=bound)


@pytest.mark.parametrize("dim", [0, 1, 7, -2, 2.0])
def test_odd_widths_are_refused(dim):
    """Pairs of channels need an even width; the message states expected and got."""
    with pytest.raises(ValueError, match=r"expected .* got"):
        MorletPosition(dim)
