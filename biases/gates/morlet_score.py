"""MQ-E, MQ-EP, MQ-EF: Morlet energy, phase and flux of the keys added to the scores (arXiv 2605.26355).

    S_ij = l_sim q_i . k_j / sqrt(d) + l_E z(E)_j [+ l_phi cos(phi_j)] [+ l_F z(|E_j - E_{j-1}|)],

followed by the gate and renormalisation of EGA-M (:mod:`biases.gates.energy_morlet`). E and phi = atan2(im, re) come
from that gate's filters, averaged over the scales. l_sim starts at 1, the others at 0.01; all are learned for each
head. The flux of the first token, which has no predecessor, is 0 (the papers do not say).

They inherit the problems of EGA-M, and z is taken over the whole window, so they leak the future as EGA does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from biases.backends import KeyBias, KeyGate
from biases.gates.energy import energy_failures, filter_traits, standardise
from biases.gates.energy_morlet import NOTES, MorletFilters, morlet_gate
from biases.registry import register
from biases.traits import Traits


@dataclass(frozen=True)
class Score:
    """What a score module adds to attention.

    Attributes:
        query_scale: factor of q . k for each head, (H,).
        bias: bias of the keys.
        key_gate: gate on the keys.
    """

    query_scale: Tensor
    bias: KeyBias
    key_gate: KeyGate


class MorletScore(nn.Module):
    """(B, T, C) -> :class:`Score`.

    Args:
        heads: H.
        phase: have the term of the phase (MQ-EP).
        flux: have the term of the energy's change (MQ-EF).
        statistics: see :mod:`biases.gates.energy`.
    """

    def __init__(self, heads: int, *, phase: bool, flux: bool, statistics: str) -> None:
        super().__init__()
        self.gate = morlet_gate(heads, statistics)
        self.statistics = statistics
        self.l_sim = nn.Parameter(torch.ones(heads))
        self.l_energy = nn.Parameter(torch.full((heads,), 0.01))
        self.l_phase = nn.Parameter(torch.full((heads,), 0.01)) if phase else None
        self.l_flux = nn.Parameter(torch.full((heads,), 0.01)) if flux else None

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Score:
        if keep is not None:
            x = x.masked_fill(~keep[..., None], 0.0)
        mask = None if keep is None else keep[:, None, :]
        real, imaginary = cast(MorletFilters, self.gate.energy).parts(x)
        energy = (real.square() + imaginary.square()).mean(2)
        dtype = energy.dtype
        bias = self.l_energy.to(dtype)[:, None] * standardise(energy, self.statistics, mask)
        if self.l_phase is not None:
            bias = bias + self.l_phase.to(dtype)[:, None] * _phase(real, imaginary).mean(2).cos()
        if self.l_flux is not None:
            change = torch.diff(energy, dim=-1, prepend=energy[..., :1]).abs()
            if mask is not None:
                change = change * (mask & mask.roll(1, -1))
            bias = bias + self.l_flux.to(dtype)[:, None] * standardise(change, self.statistics, mask)
        return Score(self.l_sim, KeyBias(bias), self.gate(x, keep))


def _phase(real: Tensor, imaginary: Tensor) -> Tensor:
    """atan2(im, re), with value and gradient 0 at the origin, where atan2 has none."""
    origin = (real.square() + imaginary.square()) == 0
    angle = torch.atan2(imaginary.masked_fill(origin, 0.0), real.masked_fill(origin, 1.0))
    return angle.masked_fill(origin, 0.0)


def _traits(options: Mapping[str, Any]) -> Traits:
    return filter_traits(options).but(published="2605.26355 Tables 1-3")


def _layer(heads: int, phase: bool, flux: bool, statistics: str) -> Mapping[str, object]:
    return {"causal": True, "score": MorletScore(heads, phase=phase, flux=flux, statistics=statistics)}


@register(
    "mq-e",
    family="gates",
    summary="Morlet energy of the keys added to the scores, then the EGA-M gate",
    traits=_traits,
    known_failures=energy_failures,
    parameters="22 * heads",
    notes=NOTES,
)
def mq_e(dim: int, heads: int, *, statistics: str = "window") -> Mapping[str, object]:
    return _layer(heads, False, False, statistics)


@register(
    "mq-ep",
    family="gates",
    summary="Morlet energy and phase of the keys added to the scores, then the EGA-M gate",
    traits=_traits,
    known_failures=energy_failures,
    parameters="23 * heads",
    notes=NOTES,
)
def mq_ep(dim: int, heads: int, *, statistics: str = "window") -> Mapping[str, object]:
    return _layer(heads, True, False, statistics)


@register(
    "mq-ef",
    family="gates",
    summary="Morlet energy and flux of the keys added to the scores, then the EGA-M gate",
    traits=_traits,
    known_failures=energy_failures,
    parameters="23 * heads",
    notes=NOTES,
)
def mq_ef(dim: int, heads: int, *, statistics: str = "window") -> Mapping[str, object]:
    return _layer(heads, False, True, statistics)
