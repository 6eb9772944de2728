"""EGA: energy-gated attention (arXiv 2605.21842 Eq. 4 and Alg. 1; arXiv 2605.26355 Eq. 2-5).

For each head, from the block's normalised input x:

    e_j = w . x_j + b,   z_j = (e_j - mu) / sigma,   g_j = sigmoid(alpha (z_j - tau)),
    A'_ij = A_ij g_j / sum_k A_ik g_k.

**Published EGA is not causal.** mu and sigma are taken over the whole window, so that every output sees all later
tokens, in training and in the reported validation loss, although the papers call it strictly causal. ``statistics``
names the
choice: ``"window"`` (published), ``"prefix"`` (over the tokens up to the key, causal) or ``"none"`` (z = e, causal).

Conventions of the released code that the papers leave open: population standard deviation clamped at 1e-8 instead of
"+ epsilon"; z = 0 for a single token; tau = 0 and alpha = 2 at the start. Multi-scale EGA-n mixes n gates by
``softmax(scale_w)``. The additive epsilon of the renormalisation is taken in the limit 0 (see
:class:`~biases.backends.KeyGate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import fail, one_of, positive_int, rank
from biases.backends import KeyGate
from biases.registry import register
from biases.traits import Traits

STATISTICS = ("window", "prefix", "none")
SMALLEST_DEVIATION = 1e-8
LEAK = (
    "the gate is normalised by mean and deviation over the whole window, so outputs depend on later tokens, "
    'contrary to arXiv 2605.21842 section 3.2 ("strictly causal")'
)
PUBLISHED = "2605.21842 Eq. 4, Alg. 1; 2605.26355 Eq. 2-5"


def standardise(e: Tensor, statistics: str, keep: Tensor | None = None) -> Tensor:
    """``(e - mean) / deviation`` along the last axis.

    Args:
        e: (..., T).
        statistics: ``"window"``: over all tokens; ``"prefix"``: token j over tokens 0..j; ``"none"``: ``e`` itself.
        keep: boolean, broadcastable to ``e``; tokens that are padding take no part.

    Returns:
        (..., T), zero where the deviation is below 1e-8 only if the token stands at the mean.
    """
    one_of("EGA statistics", statistics, STATISTICS)
    if statistics == "none":
        return e
    ones = torch.ones_like(e) if keep is None else keep.to(e.dtype).expand_as(e)
    if statistics == "window":
        # About the first token, equal energies give deviations of exactly zero, not rounding divided by the clamp.
        shifted = e - e[..., :1]
        count = ones.sum(-1, keepdim=True).clamp(min=1.0)
        centred = shifted - (shifted * ones).sum(-1, keepdim=True) / count
        variance = (centred.square() * ones).sum(-1, keepdim=True) / count
    else:
        centred, variance = _prefix_moments(e, ones)
    # Clamping the variance instead of the deviation keeps the gradient of a constant energy finite.
    return centred / variance.clamp(min=SMALLEST_DEVIATION**2).sqrt()


def _prefix_moments(e: Tensor, ones: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation of each token from the mean of its prefix, and the variance of its prefix.

    Running sums are taken in float64 about the first token, which every prefix contains: that is as causal as it is
    accurate.
    """
    shifted = (e - e[..., :1]).double() * ones
    count = ones.double().cumsum(-1).clamp(min=1.0)
    mean = shifted.cumsum(-1) / count
    variance = (shifted.square().cumsum(-1) / count - mean.square()).clamp(min=0.0)
    return (shifted - mean).to(e.dtype), variance.to(e.dtype)


def gate_specification(e: Tensor, tau: Tensor, alpha: Tensor, statistics: str) -> Tensor:
    """The gate straight from the equation: e (B, H, T), tau and alpha (H,) -> g (B, H, T)."""
    z = torch.zeros_like(e)
    for j in range(e.shape[-1]):
        seen = e if statistics == "window" else e[..., : j + 1]
        mean = seen.mean(-1)
        deviation = ((seen - mean[..., None]) ** 2).mean(-1).sqrt().clamp(min=SMALLEST_DEVIATION)
        z[..., j] = e[..., j] if statistics == "none" else (e[..., j] - mean) / deviation
    return torch.sigmoid(alpha[:, None] * (z - tau[:, None]))


class LinearEnergy(nn.Module):
    """``e = W x + b``: (B, T, C) -> (B, H, n, T), n energies for each head."""

    def __init__(self, dim: int, heads: int, scales: int = 1) -> None:
        super().__init__()
        self.heads, self.scales = heads, scales
        self.projection = nn.Linear(dim, heads * scales)
        nn.init.normal_(self.projection.weight, std=0.02)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).mT.unflatten(1, (self.heads, self.scales))


class EnergyGate(nn.Module):
    """The gate of EGA and its relatives: (B, T, C) -> :class:`~biases.backends.KeyGate` with log gate (B, H, T).

    Args:
        energy: module from (B, T, C) to energies (B, H, n, T), e.g. :class:`LinearEnergy`.
        heads: H.
        scales: n.
        statistics: ``"window"`` (published), ``"prefix"`` or ``"none"``.
        mixing: have weights of the scales, ``scale_w``; needed for n > 1. With n = 1 the weight has no effect, but the
            count of 12,480 parameters in arXiv 2605.21842 includes it.

    Raises:
        ValueError: unknown statistics, several scales without mixing.
    """

    def __init__(
        self, energy: nn.Module, heads: int, scales: int, *, statistics: str = "window", mixing: bool = True
    ) -> None:
        super().__init__()
        one_of("EGA statistics", statistics, STATISTICS)
        if scales > 1 and not mixing:
            fail("EnergyGate mixing", f"True for {scales} scales", False)
        self.energy = energy
        self.heads, self.scales, self.statistics = positive_int("heads", heads), scales, statistics
        self.tau = nn.Parameter(torch.zeros(heads, scales))
        self.alpha = nn.Parameter(torch.full((heads, scales), 2.0))
        self.scale_w = nn.Parameter(torch.full((heads, scales), 1.0 / scales)) if mixing else None

    def log_gate(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """``log g``, (B, H, T), in at least float32; ``keep`` (B, T), True for tokens that are not padding."""
        rank("EnergyGate x", x, "B T C")
        if keep is not None:
            x = x.masked_fill(~keep[..., None], 0.0)
        energy = self.energy(x)
        energy = energy.to(torch.promote_types(energy.dtype, torch.float32))
        z = standardise(energy, self.statistics, None if keep is None else keep[:, None, None, :])
        logits = self.alpha[..., None].to(z.dtype) * (z - self.tau[..., None].to(z.dtype))
        if self.scale_w is None:
            return F.logsigmoid(logits).squeeze(2)
        mixture = torch.log_softmax(self.scale_w.to(z.dtype), -1)[..., None]
        return torch.logsumexp(mixture + F.logsigmoid(logits), 2)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> KeyGate:
        return KeyGate(self.log_gate(x, keep))

    def learned(self) -> dict[str, Tensor]:
        """Threshold and steepness of every gate, (H, n) each."""
        return {"tau": self.tau, "alpha": self.alpha}

    def extra_repr(self) -> str:
        return f"heads={self.heads}, scales={self.scales}, statistics={self.statistics!r}"


def energy_traits(options: Mapping[str, Any]) -> Traits:
    """Traits of the gates of this family, by ``statistics``; causal, as the papers claim."""
    one_of("EGA statistics", options["statistics"], STATISTICS)
    sight = {"window": "window", "prefix": "prefix", "none": "token"}[options["statistics"]]
    return Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        gate_range=(0.0, 1.0),
        gate_sees=sight,
        position="none",
        memory="linear",
        fast_path="key-bias (log gate)",
        published=PUBLISHED,
    )


def filter_traits(options: Mapping[str, Any]) -> Traits:
    """The same for gates whose energy is that of a filter over the tokens before: none sees its token alone."""
    traits = energy_traits(options)
    return traits.but(gate_sees="prefix") if traits.gate_sees == "token" else traits


def energy_failures(options: Mapping[str, Any]) -> Mapping[str, str]:
    """Known failures of the gates of this family, by ``statistics``."""
    if options["statistics"] != "window":
        return {}
    return dict.fromkeys(("future-independence", "future-gradient", "prefix-consistency"), LEAK)


def _linear(dim: int, heads: int, scales: int, statistics: str, mixing: bool) -> dict[str, object]:
    gate = EnergyGate(LinearEnergy(dim, heads, scales), heads, scales, statistics=statistics, mixing=mixing)
    return {"causal": True, "key_gate": gate}


@register(
    "ega",
    family="gates",
    summary="energy gate on the keys, normalised over the whole window (published; leaks the future)",
    traits=energy_traits,
    known_failures=energy_failures,
    parameters="heads * (dim + 3), and heads more with mixing",
    notes=("Called strictly causal by its papers; it is not.",),
)
def ega(dim: int, heads: int, *, statistics: str = "window", mixing: bool = False) -> dict[str, object]:
    return _linear(dim, heads, 1, statistics, mixing)


@register(
    "ega-prefix",
    family="gates",
    summary="energy gate on the keys, normalised over the prefix of each key (causal)",
    traits=energy_traits,
    known_failures=energy_failures,
    parameters="heads * (dim + 3)",
)
def ega_prefix(dim: int, heads: int, *, statistics: str = "prefix", mixing: bool = False) -> dict[str, object]:
    return _linear(dim, heads, 1, statistics, mixing)


@register(
    "ega-token",
    family="gates",
    summary="energy gate on the keys without normalisation (causal)",
    traits=energy_traits,
    known_failures=energy_failures,
    parameters="heads * (dim + 3)",
)
def ega_token(dim: int, heads: int, *, statistics: str = "none", mixing: bool = False) -> dict[str, object]:
    return _linear(dim, heads, 1, statistics, mixing)


@register(
    "ega-2",
    family="gates",
    summary="two energy gates a head, mixed (published; leaks the future)",
    traits=energy_traits,
    known_failures=energy_failures,
    parameters="2 * heads * (dim + 4)",
)
def ega_2(dim: int, heads: int, *, statistics: str = "window") -> dict[str, object]:
    return _linear(dim, heads, 2, statistics, True)


@register(
    "ega-4",
    family="gates",
    summary="four energy gates a head, mixed (published; leaks the future)",
    traits=energy_traits,
    known_failures=energy_failures,
    parameters="4 * heads * (dim + 4)",
)
def ega_4(dim: int, heads: int, *, statistics: str = "window") -> dict[str, object]:
    return _linear(dim, heads, 4, statistics, True)
