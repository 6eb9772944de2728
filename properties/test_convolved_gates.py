"""Energy gates over convolutions: EGA-C, EGA-M and MQ, and the initial values of SCALE-INIT.

P1 = arXiv 2605.21842, P2 = arXiv 2605.26355.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gates_by_hand import (
    DIM,
    HEADS,
    LENGTHS,
    assert_standard,
    dense_rows,
    heads_of,
    lengths,
    mixture_of_gates,
    moved,
    moved_layer,
    normal,
    statistics,
    z_rounding,
    z_scores,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from biases import SelfAttention, zoo
from biases.gates import ConvolutionEnergy, EnergyGate, MorletFilters
from biases.testing import assert_tolerance
from biases.testing.strategies import seeds


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
        tolerance = 16 * z_rounding(energies, gate.alpha[h].max().item())
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
        rounding = max(rounding, z_rounding(np.stack(normalised), gate.alpha[h].max().item()))
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
