"""EGA-DB2 and EGA-DB4: the energy is that of fixed Daubechies wavelets. **Reconstructed.**

arXiv 2605.21842 reports results (Table 3) but prints no equation, and no code is public. It says that the filters are
fixed db2 and db4 and that the detail coefficients of each decomposition level are the energy. Ours, not the paper's:

* the signal is the channel mean of the normalised input, as in EGA-M;
* the transform is undecimated (a trous) and causal, padded with zeros on the left, so that every token has a
  coefficient at every level, of which there are four;
* the energy of a level is the square of its detail coefficient; normalised, gated and mixed as
  :mod:`biases.gates.energy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import positive_int
from biases.gates.energy import EnergyGate, energy_failures, filter_traits
from biases.registry import register
from biases.traits import Traits

LEVELS = 4


@lru_cache
def daubechies(moments: int) -> tuple[float, ...]:
    """The scaling filter of Daubechies' wavelet with that many vanishing moments: 2 * moments taps of norm 1.

    By spectral factorisation: the half-band polynomial ``P(y) = sum_k C(N - 1 + k, k) y^k``, ``y = (2 - z - 1/z) / 4``,
    of whose roots in z those inside the unit circle are kept, times ``(1 + z)^N``.
    """
    positive_int("daubechies moments", moments)
    polynomial = np.array([1.0])
    half_band = [math.comb(moments - 1 + k, k) for k in range(moments)]
    for y in np.roots(half_band[::-1]):
        pair = np.roots([1.0, 4.0 * y - 2.0, 1.0])
        polynomial = np.convolve(polynomial, [1.0, -pair[np.argmin(np.abs(pair))]])
    for _ in range(moments):
        polynomial = np.convolve(polynomial, [1.0, 1.0])
    taps = np.real(polynomial)
    return tuple(float(t) for t in taps * math.sqrt(2.0) / taps.sum())


class DaubechiesEnergy(nn.Module):
    """Squared detail coefficients of the channel mean: (B, T, C) -> (B, H, levels, T), the same for every head."""

    def __init__(self, heads: int, moments: int, levels: int = LEVELS) -> None:
        super().__init__()
        self.heads, self.levels = heads, levels
        low = torch.tensor(daubechies(moments), dtype=torch.float64)
        signs = 1.0 - 2.0 * (torch.arange(len(low)) % 2)
        # Divided by sqrt 2, the undecimated transform keeps the scale of its input from level to level.
        self.low, self.high = low / math.sqrt(2.0), signs * low.flip(0) / math.sqrt(2.0)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        approximation = x.to(dtype).mean(-1)[:, None]
        low, high = (taps.to(x.device, dtype).flip(0)[None, None] for taps in (self.low, self.high))
        energies = []
        for level in range(self.levels):
            step = 2**level
            padded = F.pad(approximation, (step * (low.shape[-1] - 1), 0))
            energies.append(F.conv1d(padded, high, dilation=step).square())
            approximation = F.conv1d(padded, low, dilation=step)
        return torch.stack(energies, 2).expand(-1, self.heads, -1, -1)


def _traits(options: Mapping[str, Any]) -> Traits:
    return filter_traits(options).but(published="2605.21842 Table 3 (no equation; reconstructed)")


def _gate(heads: int, moments: int, statistics: str) -> Mapping[str, object]:
    gate = EnergyGate(DaubechiesEnergy(heads, moments), heads, LEVELS, statistics=statistics)
    return {"causal": True, "key_gate": gate}


@register(
    "ega-db2",
    family="gates",
    summary="EGA-DB2 (reconstructed): gate from the energy of Daubechies-2 detail coefficients",
    traits=_traits,
    known_failures=energy_failures,
    parameters="12 * heads",
    notes=("Reconstructed: the paper prints no equation and no code is public.",),
)
def ega_db2(dim: int, heads: int, *, statistics: str = "window") -> Mapping[str, object]:
    return _gate(heads, 2, statistics)


@register(
    "ega-db4",
    family="gates",
    summary="EGA-DB4 (reconstructed): gate from the energy of Daubechies-4 detail coefficients",
    traits=_traits,
    known_failures=energy_failures,
    parameters="12 * heads",
    notes=("Reconstructed: the paper prints no equation and no code is public.",),
)
def ega_db4(dim: int, heads: int, *, statistics: str = "window") -> Mapping[str, object]:
    return _gate(heads, 4, statistics)
