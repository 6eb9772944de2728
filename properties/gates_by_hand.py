"""Energy gates (P1 = arXiv 2605.21842) transcribed anew, one token at a time, and gates whose parameters have moved."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from biases import zoo
from biases.testing import assert_close_to, make_tensor

EPS = torch.finfo(torch.float64).eps
DIM, HEADS = 8, 2
LENGTHS = (3, 7, 15, 31)
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


def without_gate(layer):
    layer.key_gate = None
    return layer


def assert_standard(layer, x, ulps=64):
    gated = layer(x)
    assert_close_to(gated, without_gate(layer)(x), scale=gated.abs().max().item(), ulps=ulps)


def z_rounding(energies, alpha):
    """Rounding of the gate: of the energies, divided by the smallest deviation of a prefix, times the slope."""
    T = energies.shape[1]
    deviations = [e[: j + 1].std() for e in energies for j in range(1, T)]
    return 64 * T * EPS * (1 + alpha * (1 + np.abs(energies).max() / min([1.0, *deviations])))
