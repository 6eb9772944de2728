"""MoPE in training: gradients under the clamps, weight decay, and the variant without a clamp.

P1 = arXiv 2605.21842, P2 = arXiv 2605.26355, P3 = arXiv 2606.01258.
"""

from __future__ import annotations

import cmath
import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from morlet_pairs import EPS, clamped, logs, module, omegas, sigmas

from biases import CharGPT, zoo
from biases.positions import MorletPosition
from biases.testing import make_tensor
from biases.testing.strategies import seeds


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
