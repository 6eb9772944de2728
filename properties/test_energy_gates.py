"""Energy gates: EGA, EGA-C, EGA-M and MQ (P1 = arXiv 2605.21842, P2 = arXiv 2605.26355).

Gates are transcribed anew here, one token at a time. Where a paper claims what its equations do not give, the test is
of the failure.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from biases import KeyGate, SelfAttention, attend, zoo
from biases.gates import ConvolutionEnergy, EnergyGate, LinearEnergy, MorletFilters, standardise
from biases.testing import assert_close_to, assert_tolerance, make_tensor
from biases.testing.strategies import seeds

EPS = torch.finfo(torch.float64).eps
DIM, HEADS = 8, 2
LENGTHS = (3, 7, 15, 31)
WINDOWED = ("ega", "ega-2", "ega-4", "ega-conv", "ega-morlet", "mq-e", "mq-ep", "mq-ef")
lengths = st.integers(2, 10)
statistics = st.sampled_from(["window", "prefix", "none"])


def normal(*shape, seed, dtype=torch.float64):
    return make_tensor(shape, seed=seed, dtype=dtype)


@torch.no_grad()
def moved(make, seed, dtype=torch.float64):
    """The module of ``make``, its parameters away from the initial values (0, 1) that hide a gate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().to(dtype)
        for parameter in module.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return module


def moved_layer(name, seed, dtype=torch.float64):
    return moved(lambda: zoo.layer(name, DIM, HEADS), seed, dtype)


def linear_gate(seed, scales=1, statistics="window"):
    return moved(lambda: EnergyGate(LinearEnergy(DIM, HEADS, scales), HEADS, scales, statistics=statistics), seed)


def z_scores(e, statistics):
    """(T,) energies -> (T,) z: P1 Eq. 4, population deviation clamped at 1e-8."""
    z = np.zeros(len(e))
    for j in range(len(e)):
        seen = e if statistics == "window" else e[: j + 1]
        z[j] = e[j] if statistics == "none" else (e[j] - seen.mean()) / max(seen.std(), 1e-8)
    return z


def mixture_of_gates(energies, gate, h):
    """``g = sum_s softmax(scale_w)_s sigmoid(alpha_s (z(e_s) - tau_s))`` of head h: (n, T) energies -> (T,)."""
    weights = np.exp(gate.scale_w[h].detach().numpy())
    return sum(
        weight
        / (1 + np.exp(-gate.alpha[h, s].item() * (z_scores(energies[s], gate.statistics) - gate.tau[h, s].item())))
        for s, weight in enumerate(weights / weights.sum())
    )


def dense_rows(logits, g):
    """``A_ij g_j / sum_k A_ik g_k`` under the causal mask, after the softmax, as P1 Eq. 4 writes it."""
    later = torch.ones(logits.shape[-2:]).triu(1).bool()
    gated = torch.softmax(logits.masked_fill(later, -torch.inf), -1) * g[..., None, :]
    return gated / gated.sum(-1, keepdim=True)


def heads_of(projection, x):
    return (x @ projection.weight.mT).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def rows(q, k, log_gate, backend="auto"):
    """The weights of ``attend`` themselves: its output for values that are the identity."""
    identity = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
    return attend(q, k, identity, key_gate=KeyGate(log_gate), causal=True, backend=backend)


def without_gate(layer):
    layer.key_gate = None
    return layer


def assert_standard(layer, x, ulps=64):
    gated = layer(x)
    assert_close_to(gated, without_gate(layer)(x), scale=gated.abs().max().item(), ulps=ulps)


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
        assert_tolerance(g[h], expected, tolerance=_z_rounding(energies, gate.alpha[h].max().item()))


def _z_rounding(energies, alpha):
    """Rounding of the gate: of the energies, divided by the smallest deviation of a prefix, times the slope."""
    T = energies.shape[1]
    deviations = [e[: j + 1].std() for e in energies for j in range(1, T)]
    return 64 * T * EPS * (1 + alpha * (1 + np.abs(energies).max() / min([1.0, *deviations])))


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
    assert_tolerance(shifted.detach(), before, tolerance=_z_rounding(energies, alpha) * (1 + abs(b)))
    (gradient,) = torch.autograd.grad((shifted * normal(*shifted.shape, seed=seed)).sum(), gate.energy.projection.bias)
    slope = alpha / 4 / min([1.0, *(e[: j + 1].std() for e in energies for j in range(1, T))])
    assert_tolerance(gradient, torch.zeros_like(gradient), tolerance=1e3 * T * EPS * slope * (1 + abs(b)))
    with torch.no_grad():
        gate.energy.projection.bias.zero_()
        gate.energy.projection.weight *= 10**log10_c
    scaled = gate.log_gate(x).exp().detach()
    assert_tolerance(scaled, before, tolerance=_z_rounding(energies, alpha) * (1 + abs(b)))


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


@given(st.integers(2, 36), statistics, seeds())
def test_the_convolutional_gate_is_its_equation(T, statistics, seed):
    """EGA-C, P1: E_l(t) = c_0^2 + c_1^2, c a causal zero-padded convolution of length l in 3, 7, 15, 31."""
    gate = moved(lambda: EnergyGate(ConvolutionEnergy(4, HEADS), HEADS, 4, statistics=statistics), seed)
    x = 0.1 * normal(1, T, 4, seed=seed)
    for h in range(HEADS):
        energies = np.zeros((4, T))
        for s, (length, convolution) in enumerate(zip(LENGTHS, gate.energy.convolutions, strict=True)):
            for t in range(T):
                past = torch.stack([x[0, t - n] if t >= n else torch.zeros_like(x[0, 0]) for n in range(length)])
                for c in (2 * h, 2 * h + 1):
                    inner = (convolution.weight[c].mT.flip(0) * past).sum() + convolution.bias[c]
                    energies[s, t] += inner.item() ** 2
        expected = torch.from_numpy(mixture_of_gates(energies, gate, h))
        tolerance = 16 * _z_rounding(energies, gate.alpha[h].max().item())
        assert_tolerance(gate.log_gate(x)[0, h].exp().detach(), expected, tolerance=tolerance)


def morlet_parts(filters, x, h):
    """Real and imaginary parts (4, T) of head h: taps n = 0..l-1 on the samples t-l+1..t, the oldest first."""
    signal = x.mean(-1).numpy()
    real, imaginary = np.zeros((2, 4, len(signal)))
    for s, length in enumerate(LENGTHS):
        sigma = max(filters.sigma[h, s].item(), 1e-3)
        omega = max(filters.omega[h, s].item(), 5 / sigma)
        for t in range(len(signal)):
            for n in range(length):
                sample = signal[t - length + 1 + n] if t - length + 1 + n >= 0 else 0.0
                envelope = math.exp(-(n**2) / (2 * sigma**2))
                real[s, t] += math.cos(omega * n) * envelope * sample
                imaginary[s, t] += math.sin(omega * n) * envelope * sample
    return real, imaginary


SCORES = {"mq-e": (False, False), "mq-ep": (True, False), "mq-ef": (False, True)}


@pytest.mark.parametrize("name", ["ega-morlet", *SCORES])
@given(T=st.integers(2, 9), statistics=statistics, seed=seeds())
def test_morlet_gates_and_scores_are_their_equations(name, T, statistics, seed):
    """EGA-M (P1) and P2 MQ: S = l_sim q.k / sqrt(d) + l_E z(E) [+ l_phi cos(phi)] [+ l_F z(|E_j - E_{j-1}|)]."""
    layer = moved_layer(f"{name}[statistics={statistics}]", seed)
    x, score = normal(1, T, DIM, seed=seed), layer.score
    gate = layer.key_gate if score is None else score.gate
    logits = heads_of(layer.query, x) @ heads_of(layer.key, x).mT / math.sqrt(DIM / HEADS)
    g, bias, factors = torch.zeros(3, 1, HEADS, T, dtype=x.dtype)
    factors += 1
    rounding = 0.0
    for h in range(HEADS):
        real, imaginary = morlet_parts(gate.energy, x[0], h)
        energies = real**2 + imaginary**2
        E = energies.mean(0)
        change = np.abs(np.diff(E, prepend=E[0]))
        g[0, h] = torch.from_numpy(mixture_of_gates(energies, gate, h))
        normalised = [*energies, E] + [change] * (name == "mq-ef")
        rounding = max(rounding, _z_rounding(np.stack(normalised), gate.alpha[h].max().item()))
        if score is None:
            continue
        term = score.l_energy[h].item() * z_scores(E, statistics)
        phase, flux = SCORES[name]
        if phase:
            term = term + score.l_phase[h].item() * np.cos(np.arctan2(imaginary, real).mean(0))
        if flux:
            term = term + score.l_flux[h].item() * z_scores(change, statistics)
        bias[0, h], factors[0, h] = torch.from_numpy(term), score.l_sim[h].item()
    y = dense_rows(factors[..., None] * logits + bias[..., None, :], g) @ heads_of(layer.value, x)
    expected = y.transpose(1, 2).flatten(2) @ layer.output.weight.mT + layer.output.bias
    size = (1 + logits.abs().max().item()) * (1 + y.abs().max().item())
    assert_tolerance(layer(x), expected, tolerance=rounding * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(T=lengths, seed=seeds())
def test_the_morlet_gate_is_constant_on_the_output_of_a_layer_norm(dtype, T, seed):
    """EGA-M sees the channel mean, which a LayerNorm makes 0 at the start: the layer is standard attention there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = zoo.layer("ega-morlet", DIM, HEADS).to(dtype)
    assert_standard(layer, F.layer_norm(normal(2, T, DIM, seed=seed, dtype=dtype), (DIM,)))


def test_the_initial_morlet_filters_are_low_pass():
    """EGA-M is not admissible: its filters have a DC share |sum| / L1 of .64 to .67 and peak on the oldest sample."""
    impulse = torch.zeros(1, 64, DIM, dtype=torch.float64)
    impulse[0, 31] = 1.0
    real, imaginary = MorletFilters(HEADS).double().parts(impulse)
    taps = torch.complex(real, imaginary)[0, :, :, 31:62]
    share = taps.sum(-1).abs() / taps.abs().sum(-1)
    assert ((share > 0.635) & (share < 0.675)).all()
    torch.testing.assert_close(taps.abs().argmax(-1), (torch.tensor(LENGTHS) - 1).expand(HEADS, -1), rtol=0, atol=0)


@given(st.integers(1, 8), seeds())
def test_scale_init_draws_queries_and_keys_at_the_level_of_their_head(head_factor, seed):
    """SCALE-INIT, P2: W_q, W_k from N(0, 0.02 (1 + level / 4)) with level = h mod 4, W_v from N(0, 0.02)."""
    heads, dim = 4 * head_factor, 32 * head_factor * 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = zoo.layer("scale-init", dim, heads)
    assert isinstance(layer, SelfAttention)
    for projection, step in ((layer.query, 0.25), (layer.key, 0.25), (layer.value, 0.0)):
        by_head = projection.weight.detach().double().view(heads, dim // heads, dim)
        for level in range(4):
            drawn = by_head[level::4]
            # The deviation of n normal draws has a relative standard error of 1 / sqrt(2 n).
            ratio = drawn.square().mean().sqrt().item() / (0.02 * (1 + step * level))
            assert abs(ratio - 1) < 6 / math.sqrt(2 * drawn.numel())


@given(seeds())
def test_scale_init_leaves_other_linear_weights_at_the_default(seed):
    """SCALE-INIT as released: embeddings N(0, 0.02), other linear weights PyTorch's U(-1, 1) / sqrt(in), biases 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scaled, plain = (zoo.model("char-gpt", attention=a, layers=1, dim=64) for a in ("scale-init", "standard"))
    for model, default in ((scaled, 1 / 8), (plain, None)):
        weights = model.blocks[0].mlp[0].weight.detach()
        standard_error = 1 / math.sqrt(2 * weights.numel())
        std = 0.02 if default is None else default / math.sqrt(3)
        assert abs(weights.std().item() / std - 1) < 6 * standard_error
        assert default is None or weights.abs().max() <= default
        assert (model.blocks[0].attention.output.bias == 0).all()
        tokens = model.embedding.weight.detach()
        assert abs(tokens.std().item() / 0.02 - 1) < 6 / math.sqrt(2 * tokens.numel())
