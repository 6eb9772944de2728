"""EGA-M: the energy is that of parametric Morlet wavelets (arXiv 2605.21842; details from the released code).

The signal is the mean over channels of the block's normalised input; for each head and each length l in 3, 7, 15, 31 it
is filtered by ``cos`` and ``sin(omega n) exp(-n^2 / (2 sigma^2))``, n = 0..l-1, padded with zeros on the left; the
energy is re^2 + im^2. omega starts at pi / l, sigma at 5 / omega.

Known problems, kept as published because the published result speaks of them:

* the channel mean of a LayerNorm's output is exactly 0 at the start: the energy is 0, the gate constant, the layer
  standard attention;
* sigma exceeds the length and omega (l - 1) < pi: a half-cosine low-pass, not an admissible wavelet;
* the peak of the envelope, n = 0, lies on the *oldest* sample.

So "fixed bases are suboptimal" is not established by its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases.gates.energy import EnergyGate, energy_failures, filter_traits
from biases.gates.energy_conv import LENGTHS
from biases.registry import register

ADMISSIBILITY = 5.0
SMALLEST_SIGMA = 1e-3
NOTES = (
    "The channel mean of a LayerNorm's output is 0 at the start, so the gate begins constant.",
    "The filters are low-pass, not admissible, and peak on the oldest sample.",
)


class MorletFilters(nn.Module):
    """Real and imaginary part of the filtered channel mean: (B, T, C) -> two of (B, H, n, T)."""

    def __init__(self, heads: int, lengths: tuple[int, ...] = LENGTHS) -> None:
        super().__init__()
        self.heads, self.lengths = heads, lengths
        omega = torch.tensor([math.pi / length for length in lengths])
        self.omega = nn.Parameter(omega.repeat(heads, 1))
        self.sigma = nn.Parameter((ADMISSIBILITY / omega).repeat(heads, 1))

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part, in at least float32 (as released), whatever autocast says."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        signal = x.to(dtype).mean(-1)[:, None]
        sigma = self.sigma.to(dtype).clamp(min=SMALLEST_SIGMA)
        omega = torch.maximum(self.omega.to(dtype), ADMISSIBILITY / sigma)
        real, imaginary = [], []
        for scale, length in enumerate(self.lengths):
            n = torch.arange(length, device=x.device, dtype=dtype)
            envelope = torch.exp(-(n**2) / (2 * sigma[:, scale, None] ** 2))
            phase = omega[:, scale, None] * n
            padded = F.pad(signal, (length - 1, 0))
            real.append(F.conv1d(padded, (phase.cos() * envelope)[:, None]))
            imaginary.append(F.conv1d(padded, (phase.sin() * envelope)[:, None]))
        return torch.stack(real, 2), torch.stack(imaginary, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Energies, (B, H, n, T)."""
        real, imaginary = self.parts(x)
        return real.square() + imaginary.square()


def morlet_gate(heads: int, statistics: str) -> EnergyGate:
    """The gate of EGA-M: 20 parameters a head."""
    return EnergyGate(MorletFilters(heads), heads, len(LENGTHS), statistics=statistics)


@register(
    "ega-morlet",
    family="gates",
    summary="EGA-M: gate from the energy of parametric Morlet filters (leaks by its normalisation)",
    traits=filter_traits,
    known_failures=energy_failures,
    parameters="20 * heads",
    notes=NOTES,
)
def ega_morlet(dim: int, heads: int, *, statistics: str = "window") -> Mapping[str, object]:
    return {"causal": True, "key_gate": morlet_gate(heads, statistics)}
