"""Parameters of MoPE drawn and clamped, and its encoding as complex numbers."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from biases.positions import MorletPosition, morlet_encoding

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
