"""EGA-C: the energy is that of causal convolutions (arXiv 2605.21842; details from the released code).

For each head and each length l in 3, 7, 15, 31: a convolution C -> 2, padded with zeros on the left, energy
``c_0^2 + c_1^2``; normalised, gated and mixed as :mod:`biases.gates.energy`.

The paper illustrates causality by padding of length 2 L in *reflect* mode. Reflection copies later samples in front of
position 0, so that padding is itself not causal; the released code pads with zeros, as does this module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases.gates.energy import EnergyGate, energy_failures, filter_traits
from biases.registry import register

LENGTHS = (3, 7, 15, 31)


class ConvolutionEnergy(nn.Module):
    """(B, T, C) -> (B, H, 4, T)."""

    def __init__(self, dim: int, heads: int, lengths: tuple[int, ...] = LENGTHS) -> None:
        super().__init__()
        self.heads, self.lengths = heads, lengths
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, 2 * heads, length) for length in lengths)

    def forward(self, x: Tensor) -> Tensor:
        signal = x.mT
        energies = [
            convolution(F.pad(signal, (length - 1, 0))).unflatten(1, (self.heads, 2)).square().sum(2)
            for convolution, length in zip(self.convolutions, self.lengths, strict=True)
        ]
        return torch.stack(energies, 2)


@register(
    "ega-conv",
    family="gates",
    summary="EGA-C: gate from the energy of causal convolutions over 3 to 31 tokens (leaks by its normalisation)",
    traits=filter_traits,
    known_failures=energy_failures,
    parameters="heads * (112 * dim + 20)",
)
def ega_conv(dim: int, heads: int, *, statistics: str = "window") -> Mapping[str, object]:
    gate = EnergyGate(ConvolutionEnergy(dim, heads), heads, len(LENGTHS), statistics=statistics)
    return {"causal": True, "key_gate": gate}
