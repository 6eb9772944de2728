"""MoPE (P1 = arXiv 2605.21842, P2 = arXiv 2605.26355, P3 = arXiv 2606.01258): its identities, and where they fail."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from biases import CharGPT, zoo
from biases.decays import ALiBi
from biases.positions import MorletPosition, morlet_encoding
from biases.testing import assert_close_to, assert_tolerance, make_tensor
from biases.testing.strategies import seeds

EPS = torch.finfo(torch.float64).eps
BAND = 0.95 * math.pi
pairs = st.integers(1, 6)
omegas = st.floats(0.05, 6.0)
sigmas = st.floats(0.5, 40.0)
logs = st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 6)), min_size=1, max_size=6)


def encoded(positions, omega, sigma):
    """The product's encoding in float64, as complex numbers z_i(b): (T, C / 2)."""
    as_tensor = [torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (positions, omega, sigma)]
    return torch.view_as_complex(morlet_encoding(*as_tensor).unflatten(1, (-1, 2)))


def equation(b, omega, sigma):
    """P3 Eq. 9-10: z(b) = exp(i omega b) exp(-b^2 / (2 sigma^2))."""
    return cmath.exp(1j * omega * b) * math.exp(-(b**2) / (2 * sigma**2))


def module(drawn, dtype=torch.float64, **options):
    """A MorletPosition whose log_omega and log_sigma are those drawn."""
    position = MorletPosition(2 * len(drawn), **options).to(dtype)
    with torch.no_grad():
        position.log_omega.copy_(torch.tensor([d[0] for d in drawn], dtype=torch.float64))
        position.log_sigma.copy_(torch.tensor([d[1] for d in drawn], dtype=torch.float64))
    return position


def clamped(log_omega, log_sigma):
    """The order of the released code: omega <= 0.95 pi, sigma >= 1e-3, then omega := 5 / sigma below the boundary."""
    omega, sigma = min(math.exp(log_omega), BAND), max(math.exp(log_sigma), 1e-3)
    return (5 / sigma if omega * sigma < 5 else omega), sigma


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


@given(logs, st.integers(3, 12), seeds())
@example(drawn=[(0.0, 1.0)], T=5, seed=0)
def test_log_omega_gets_no_gradient_where_a_clamp_acts(drawn, T, seed):
    """Invariant 14: zero gradient of log omega under the clamp, where log sigma moves phase and envelope both."""
    position = module(drawn)
    weight = make_tensor((T, 2 * len(drawn)), seed=seed, dtype=torch.float64)
    (position.encoding(T) * weight).sum().backward()
    for i, (log_omega, log_sigma) in enumerate(drawn):
        omega, sigma = clamped(log_omega, log_sigma)
        held = omega != math.exp(log_omega)
        d_omega, d_sigma = 0.0, 0.0
        for b in range(T):
            z = cmath.exp(1j * omega * b) * math.exp(-(b**2) / (2 * sigma**2 + 1e-8))
            a = complex(weight[b, 2 * i].item(), -weight[b, 2 * i + 1].item())
            turning, widening = (
                (a * 1j * omega * b * z).real,
                (a * z).real * 4 * (b * sigma / (2 * sigma**2 + 1e-8)) ** 2,
            )
            d_omega += 0.0 if held else turning
            d_sigma += widening - (turning if omega == 5 / sigma else 0.0)
        rounding = 256 * EPS * T * (1 + omega * T + (T / sigma) ** 2) * (1 + omega * T)
        assert abs(position.log_omega.grad[i].item() - d_omega) <= (0.0 if held else rounding)
        assert abs(position.log_sigma.grad[i].item() - d_sigma) <= rounding


def learning_rates(peak=3e-4, warm_up=300, last=5000):
    """P1 section 4.1: linear warm-up, cosine to 0; 5001 updates, of which the first is of size 0."""
    return [
        peak * (t / warm_up if t < warm_up else 0.5 * (1 + math.cos(math.pi * (t - warm_up) / (last - warm_up))))
        for t in range(last + 1)
    ]


def test_weight_decay_alone_pushes_every_pair_onto_the_boundary():
    """P3's "all 128 pairs converge to the boundary": 5001 AdamW updates without any gradient take 5 to 4.451."""
    position = MorletPosition(256)
    optimiser = torch.optim.AdamW(position.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    for parameter in position.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rates = learning_rates()
    assert abs(sum(rates) - 0.750) < 5e-4
    for rate in rates:
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
    product = (position.log_omega + position.log_sigma).exp()
    # 5001 float32 roundings of logarithms of at most ln 5.
    assert ((product - 4.451).abs() < 1e-3).all()
    omega, sigma = position.effective()
    torch.testing.assert_close(omega * sigma, torch.full_like(omega, 5.0), rtol=1e-6, atol=0)
    assert (omega > position.log_omega.exp()).all()
    table = {0: 4.4511, 8: 4.1655, 16: 3.8982, 32: 3.4141, 64: 2.6186, 96: 2.0085, 127: 1.5534}
    for pair, decayed in table.items():
        assert abs(sigma[pair].item() - decayed) < 1e-3


@given(product=st.floats(1.0, 40.0), width=st.integers(1, 8))
def test_the_product_at_the_start_is_the_one_asked_for(product, width):
    """omega sigma = product without a clamp; with it, never below the bound."""
    free = zoo.position("mope", 2 * width, context=8, heads=1, constraint="none", product=product)["embedding"]
    learned = free.double().learned()
    expected = torch.full((width,), product, dtype=torch.float64)
    # The logarithms are stored as float32: an error of up to half an ulp of ln 40 in each.
    torch.testing.assert_close(learned["omega"] * learned["sigma"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(learned["unclamped_product"], expected, rtol=1e-6, atol=0)
    clamped = zoo.position("mope", 2 * width, context=8, heads=1, product=product)["embedding"].double().learned()
    assert (clamped["omega"] * clamped["sigma"] >= 5 * (1 - 1e-12)).all()


def test_the_authors_decay_the_logarithms_and_the_free_variant_does_not():
    """P2: weight decay 0.1 on every parameter, log omega and log sigma included; the control exempts them."""
    for name, exempt in (("mope", 0), ("mope[weight_decay=False]", 16), ("mope-free[learned_centre=True]", 24)):
        groups = CharGPT(layers=1, heads=2, dim=16, context=8, position=name).parameter_groups(0.1)
        kept = sum(p.numel() for group in groups for p in group["params"] if group["weight_decay"] == 0.0)
        assert kept == exempt


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


@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.float64]),
)
@example(drawn=[(-100.0, -100.0), (8.0, 40.0)], dtype=torch.float32)
def test_free_morlet_stays_finite(drawn, dtype):
    """Without clamps, encoding (in [-1, 1]) and gradients stay finite, even for widths that underflow."""
    position = module(drawn, dtype, constraint="none", learned_centre=True)
    encoding = position.encoding(64)
    assert encoding.isfinite().all()
    assert encoding.abs().max() <= 1
    encoding.sum().backward()
    assert all(p.grad.isfinite().all() for p in position.parameters())


@given(st.sampled_from([8, 64, 256]), st.sampled_from([2, 16, 64]))
def test_the_free_initialisation_reaches_across_the_context(context, dim):
    """The control starts off the boundary (omega sigma >= 2 pi > 5) and is not zero at the end of the context."""
    position = zoo.position("mope-free", dim, context=context, heads=1)["embedding"]
    omega, sigma = position.effective()
    assert (omega * sigma > 6.28).all()
    assert (position.encoding(context)[-1].norm() / math.sqrt(dim / 2) > math.exp(-0.5)).all()


@given(omegas, sigmas, st.integers(0, 60))
def test_a_learned_centre_moves_the_envelope(omega, sigma, centre):
    """P3 Eq. 29: envelope exp(-(b - b_0)^2 / 2 sigma^2), phase unmoved."""
    position = module([(math.log(omega), math.log(sigma))], constraint="none", learned_centre=True)
    with torch.no_grad():
        position.centre.fill_(float(centre))
    z = torch.view_as_complex(position.encoding(61).unflatten(1, (-1, 2)))[:, 0]
    for b in (0, centre, 60):
        expected = cmath.exp(1j * omega * b) * math.exp(-((b - centre) ** 2) / (2 * sigma**2 + 1e-8))
        assert abs(z[b].item() - expected) <= 64 * EPS * (1 + omega * b)


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
