"""Energy gates: EGA and what holds of every one of them (P1 = arXiv 2605.21842, P2 = arXiv 2605.26355).

Where a paper claims what its equations do not give, the test is of the failure.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gates_by_hand import (
    DIM,
    EPS,
    HEADS,
    assert_standard,
    dense_rows,
    lengths,
    mixture_of_gates,
    moved,
    moved_layer,
    normal,
    statistics,
    z_rounding,
    z_scores,
)
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from biases import KeyGate, attend, zoo
from biases.gates import ConvolutionEnergy, EnergyGate, LinearEnergy, standardise
from biases.testing import assert_close_to, assert_tolerance
from biases.testing.strategies import seeds

WINDOWED = ("ega", "ega-2", "ega-4", "ega-conv", "ega-morlet", "mq-e", "mq-ep", "mq-ef")


def linear_gate(seed, scales=1, statistics="window"):
    return moved(lambda: EnergyGate(LinearEnergy(DIM, HEADS, scales), HEADS, scales, statistics=statistics), seed)


def rows(q, k, log_gate, backend="auto"):
    """The weights of ``attend`` themselves: its output for values that are the identity."""
    identity = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
    return attend(q, k, identity, key_gate=KeyGate(log_gate), causal=True, backend=backend)


@given(lengths, statistics, st.sampled_from([1, 2, 4]), seeds())
def test_the_gate_is_in_the_unit_interval_and_gated_rows_are_causal_distributions(T, statistics, scales, seed):
    """Invariant 1, P1 Eq. 4: 0 < g < 1, A >= 0, rows sum to 1, A_ij = 0 for j > i."""
    log = linear_gate(seed, scales, statistics).log_gate(normal(2, T, DIM, seed=seed))
    assert (log < 0).all()
    assert log.isfinite().all()
    A = rows(normal(2, HEADS, T, 4, seed=seed + 1), normal(2, HEADS, T, 4, seed=seed + 2), log)
    assert (A >= 0).all()
    assert (A.triu(1) == 0).all()
    assert_close_to(A.sum(-1), torch.ones_like(A[..., 0]), scale=1.0, ulps=8 * T)


@given(lengths, st.sampled_from(["auto", "dense", "reference"]), st.floats(0.1, 100.0), seeds())
@example(T=10, backend="auto", spread=100.0, seed=0)
def test_gating_and_renormalising_is_a_key_bias_of_log_g(T, backend, spread, seed):
    """Invariant 2: A' = softmax(S + log g), an additive bias of the key alone, equals P1 Eq. 4."""
    q, k = normal(1, HEADS, T, 4, seed=seed), normal(1, HEADS, T, 4, seed=seed + 1)
    log = F.logsigmoid(spread * normal(1, HEADS, T, seed=seed + 2))
    logits = q @ k.mT / 2
    later = torch.ones(T, T).triu(1).bool()
    biased = torch.softmax((logits + log[..., None, :]).masked_fill(later, -torch.inf), -1)
    # A logit of magnitude m carries m eps of rounding into the exponential.
    magnitude = 1 + logits.abs().max().item() + log.abs().max().item()
    for expected in (biased, dense_rows(logits, log.exp())):
        assert_close_to(rows(q, k, log, backend), expected, scale=magnitude, ulps=32)


@given(lengths, statistics, st.sampled_from([1, 2, 4]), seeds())
@example(T=2, statistics="prefix", scales=1, seed=0)
def test_the_gate_is_the_softmax_mixture_of_its_scales(T, statistics, scales, seed):
    """P1 Eq. 4 and the multi-scale EGA-n: g = sum_s softmax(scale_w)_s sigmoid(alpha_s (z(e^(s)) - tau_s))."""
    gate, x = linear_gate(seed, scales, statistics), normal(1, T, DIM, seed=seed)
    weight, b = gate.energy.projection.weight, gate.energy.projection.bias
    g = gate.log_gate(x).exp()[0].detach()
    for h in range(HEADS):
        channels = slice(h * scales, (h + 1) * scales)
        energies = (weight[channels] @ x[0].mT + b[channels, None]).detach().numpy()
        expected = torch.from_numpy(mixture_of_gates(energies, gate, h))
        assert_tolerance(g[h], expected, tolerance=z_rounding(energies, gate.alpha[h].max().item()))


@given(lengths, st.sampled_from(["window", "prefix"]), st.floats(-3, 3), st.floats(-50, 50), seeds())
def test_the_normalised_gate_ignores_the_length_of_w_and_b(T, statistics, log10_c, b, seed):
    """Invariant 3: g is invariant to w -> c w (c > 0) and to b; b has zero gradient."""
    gate, x = linear_gate(seed, 1, statistics), normal(1, T, DIM, seed=seed)
    before = gate.log_gate(x).exp().detach()
    energies = gate.energy(x)[0, :, 0].detach().numpy()
    alpha = gate.alpha.max().item()
    with torch.no_grad():
        gate.energy.projection.bias += b
    shifted = gate.log_gate(x).exp()
    assert_tolerance(shifted.detach(), before, tolerance=z_rounding(energies, alpha) * (1 + abs(b)))
    (gradient,) = torch.autograd.grad((shifted * normal(*shifted.shape, seed=seed)).sum(), gate.energy.projection.bias)
    slope = alpha / 4 / min([1.0, *(e[: j + 1].std() for e in energies for j in range(1, T))])
    assert_tolerance(gradient, torch.zeros_like(gradient), tolerance=1e3 * T * EPS * slope * (1 + abs(b)))
    with torch.no_grad():
        gate.energy.projection.bias.zero_()
        gate.energy.projection.weight *= 10**log10_c
    scaled = gate.log_gate(x).exp().detach()
    assert_tolerance(scaled, before, tolerance=z_rounding(energies, alpha) * (1 + abs(b)))


@given(lengths, seeds())
def test_the_unnormalised_gate_depends_on_b(T, seed):
    """Negative companion of invariant 3: without the z-norm, b moves every gate."""
    gate, x = linear_gate(seed, 1, "none"), normal(1, T, DIM, seed=seed)
    before = gate.log_gate(x)
    with torch.no_grad():
        gate.energy.projection.bias += 1.0
    assert (gate.log_gate(x) > before).all()


@given(lengths, seeds())
def test_negating_w_flips_the_ranking(T, seed):
    """Invariant 3: w -> -w sends z to -z, so that the most salient token becomes the least."""
    gate, x = linear_gate(seed), normal(1, T, DIM, seed=seed)
    before = gate.log_gate(x)
    with torch.no_grad():
        gate.energy.projection.weight.neg_()
    torch.testing.assert_close(gate.log_gate(x).argsort(-1), before.argsort(-1).flip(-1), rtol=0, atol=0)


@given(lengths, statistics, st.sampled_from(["alpha", "w", "equal tokens", "tau"]), seeds())
@example(T=5, statistics="prefix", why="equal tokens", seed=0)
def test_a_constant_gate_is_standard_attention(T, statistics, why, seed):
    """Invariants 4, 6: alpha = 0 (g = 1/2), w = 0, equal tokens and tau -> -inf give standard attention."""
    layer, x = moved_layer(f"ega[statistics={statistics}]", seed), normal(2, T, DIM, seed=seed)
    gate = layer.key_gate
    with torch.no_grad():
        if why == "alpha":
            gate.alpha.zero_()
            assert_close_to(gate.log_gate(x).exp(), torch.full((2, HEADS, T), 0.5, dtype=x.dtype), scale=1.0, ulps=2)
        elif why == "w":
            gate.energy.projection.weight.zero_()
        elif why == "tau":
            gate.tau.fill_(-1e3)
        else:
            x = x[:, :1].expand(-1, T, -1)
    assert_standard(layer, x)


@given(lengths, st.sampled_from(["window", "none"]), seeds())
def test_the_gate_rises_with_the_energy_and_falls_with_tau(T, statistics, seed):
    """Invariant 5, alpha > 0: g is strictly increasing in e_j and strictly decreasing in tau."""
    gate, x = linear_gate(seed, 1, statistics), normal(1, T, DIM, seed=seed)
    e, g = gate.energy(x)[0, :, 0], gate.log_gate(x)[0]
    assert (g.gather(1, e.argsort(1)).diff(dim=1) > 0).all()
    with torch.no_grad():
        gate.tau += 0.25
    assert (gate.log_gate(x)[0] < g).all()


@given(lengths, st.integers(0, 9), seeds())
def test_the_gate_is_one_half_exactly_where_z_is_tau(T, token, seed):
    """Invariant 5: g_j = 1/2 iff z_j = tau."""
    gate, x = linear_gate(seed), normal(1, T, DIM, seed=seed)
    token %= T
    for h, e in enumerate(gate.energy(x)[0, :, 0].detach().numpy()):
        z = z_scores(e, "window")
        with torch.no_grad():
            gate.tau[h] = float(z[token])
        distance = (gate.log_gate(x)[0, h].exp() - 0.5).abs()
        assert distance[token] < 1e3 * T * EPS * (1 + np.abs(e).max() / e.std())
        assert (distance[torch.from_numpy(np.abs(z - z[token]) > 1e-6)] > 1e-8).all()


@given(lengths, st.floats(-3, 3), seeds())
def test_the_window_has_mean_zero_and_variance_one(T, log10_scale, seed):
    """Invariant 5: over the window mean(z) = 0 and var(z) = 1, population statistics."""
    e = 10**log10_scale * normal(3, T, seed=seed)
    z = standardise(e, "window")
    zero = torch.zeros(3, dtype=e.dtype)
    amplification = (e.abs().amax(-1) / e.std(-1, correction=0)).max().item()
    assert_close_to(z.mean(-1), zero, scale=1 + amplification, ulps=8 * T)
    assert_close_to(z.square().mean(-1), zero + 1, scale=1 + amplification, ulps=8 * T)


@given(lengths, st.floats(-200, 200), seeds())
@example(T=2, tau=1e3, seed=0)
def test_the_first_row_attends_to_itself_under_any_gate(T, tau, seed):
    """Invariant 6: A'_00 = 1, even for a gate of e^-2000, where the eps of 1e-8 would have emptied the row."""
    gate = linear_gate(seed)
    with torch.no_grad():
        gate.tau.fill_(tau)
    log = gate.log_gate(normal(1, T, DIM, seed=seed))
    A = rows(normal(1, HEADS, T, 4, seed=seed), normal(1, HEADS, T, 4, seed=seed + 1), log)
    assert_close_to(A[:, :, 0, 0], torch.ones(1, HEADS, dtype=A.dtype), scale=1.0, ulps=4)


def change_of_earlier_outputs(layer, T, seed, dtype):
    """Largest change of outputs 0..T-2 when the last token is perturbed, and the largest output."""
    x = normal(1, T, DIM, seed=seed, dtype=dtype)
    y = x.clone()
    y[:, -1] += 3.0 * normal(1, DIM, seed=seed + 1, dtype=dtype)[0]
    before, after = layer(x)[:, :-1], layer(y)[:, :-1]
    return (after - before).abs().max().item(), before.abs().max().item()


@pytest.mark.parametrize("name", WINDOWED)
@given(T=st.integers(3, 12), seed=seeds())
def test_the_published_gate_leaks_the_future(name, T, seed):
    """Invariant 7, negative: P1 section 3.2 says "strictly causal", but the z-norm over the window is not."""
    change, _ = change_of_earlier_outputs(moved_layer(name, seed), T, seed, torch.float64)
    assert change > 1e-8


@pytest.mark.parametrize("name", ["ega-prefix", "ega-token", *WINDOWED])
@given(choice=st.sampled_from(["prefix", "none"]), T=st.integers(2, 12), seed=seeds())
def test_prefix_and_token_gates_do_not_leak(name, choice, T, seed):
    """Invariant 7: statistics over the prefix of the key, or none, leave earlier outputs as they were."""
    name = f"{name}[statistics={choice}]" if name in WINDOWED else name
    change, scale = change_of_earlier_outputs(moved_layer(name, seed, torch.float32), T, seed, torch.float32)
    assert change <= 1e-6 * max(1.0, scale)


@given(st.sampled_from([3, 7, 15]), st.data(), seeds())
def test_reflect_padding_is_not_causal(length, data, seed):
    """P1 section 3.2 pads in reflect mode, which copies later samples before position 0. Zero padding is causal."""
    later = data.draw(st.integers(1, length - 1), label="later")
    x, taps = normal(1, 1, 40, seed=seed), normal(1, 1, length, seed=seed + 1)
    y = x.clone()
    y[..., later] += 1.0

    def first(signal, **padding):
        return F.conv1d(F.pad(signal, (length - 1, 0), **padding), taps)[0, 0, :later]

    torch.testing.assert_close(first(y), first(x), rtol=0, atol=0)
    expected = taps[0, 0, length - 1 - later]
    assert_tolerance((first(y, mode="reflect") - first(x, mode="reflect"))[0], expected, tolerance=64 * EPS * length)
    energy = moved(lambda: ConvolutionEnergy(1, 1, (length,)), seed)
    earlier = [energy(signal.mT)[..., :later] for signal in (x, y)]
    torch.testing.assert_close(earlier[1], earlier[0], rtol=0, atol=EPS * earlier[0].max().item())


COUNTS = (
    ("standard", "learned", 4_816_640),
    ("ega", "learned", 4_816_640 + 12_432),
    ("ega[mixing=True]", "learned", 4_816_640 + 12_480),
    ("ega-2", "learned", 4_816_640 + 24_960),
    ("ega-4", "learned", 4_816_640 + 49_920),
    ("ega-conv", "learned", 4_816_640 + 1_377_216),
    ("ega-morlet", "learned", 4_816_640 + 960),
    ("ega", "mope", 4_763_792),
)


@pytest.mark.parametrize(("attention", "position", "count"), COUNTS)
def test_models_have_the_published_number_of_parameters(attention, position, count):
    """Invariant 8: P1 Tables 1 and 3, P2 section 4.1."""
    model = zoo.model("char-gpt", attention=attention, position=position)
    assert sum(p.numel() for p in model.parameters()) == count


@given(st.sampled_from(WINDOWED), statistics, seeds())
def test_a_single_token_passes_through(name, statistics, seed):
    """Invariant 8: at T = 1 the gate is sigmoid(-alpha tau) or constant in effect: the output is that of no gate."""
    layer, x = moved_layer(f"{name}[statistics={statistics}]", seed), normal(2, 1, DIM, seed=seed)
    y = layer(x)
    value = x @ layer.value.weight.mT @ layer.output.weight.mT + layer.output.bias
    assert_close_to(y, value, scale=value.abs().max().item() + 1, ulps=64)
