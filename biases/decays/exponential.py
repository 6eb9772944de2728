"""Exponential decay in one dimension: the weight falls by a constant ratio ``gamma`` per token."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from biases._checks import fail, one_of, positive_int, rank
from biases.backends import DecayTerm, Geometry, LinearTerm
from biases.backends.score_mods import past_only
from biases.backends.terms import PLACEMENTS, ScoreMod


def retnet_log_rates(heads: int) -> Tensor:
    """``log gamma_h`` with ``gamma_h = 1 - 2^(-5 - h)``, h = 0..H-1 (torchscale): (H,), float64, negative."""
    positive_int("retnet_log_rates heads", heads)
    return torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64, device="cpu"))))


def rmt_log_rates(heads: int, initial: float = 2.0, span: float = 4.0) -> Tensor:
    """``log gamma_h`` with ``gamma_h = 1 - 2^(-a - (b - a) h / H)`` (RMT, arXiv 2309.11523 Eq. 8): (H,), float64,
    negative.

    Args:
        heads: number of heads H.
        initial: a, positive. With a = 2, gamma_0 = 0.75.
        span: b - a, the code's ``heads_range``, at least 0; 0 gives all heads the same rate.

    Raises:
        ValueError: numbers outside their range, or no numbers.
    """
    positive_int("rmt_log_rates heads", heads)
    if not _number(initial) or not 0 < initial < math.inf:
        fail("rmt_log_rates initial", "a positive finite number", repr(initial))
    if not _number(span) or not 0 <= span < math.inf:
        fail("rmt_log_rates span", "a finite number of at least 0", repr(span))
    exponent = initial + span * torch.arange(heads, dtype=torch.float64, device="cpu") / heads
    return torch.log1p(-(2.0**-exponent))


def _number(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool)


def log_of_rates(what: str, gamma: Tensor) -> Tensor:
    """``log gamma``, (H,), checked to lie in (0, 1]."""
    rank(what, gamma, "H")
    if not bool(((gamma > 0) & (gamma <= 1)).all()):
        fail(what, "rates in (0, 1]", gamma.tolist())
    return torch.log(gamma)


class ExponentialDecay(LinearTerm, DecayTerm):
    """``gamma_h^(i - j)`` for keys at or before the query and 0 after it, or ``gamma_h^|i - j|`` if symmetric.

    Args:
        log_rates: ``log gamma`` of each head, (H,), at most 0; may carry gradients.
        symmetric: absolute distance (arXiv 2309.11523 Eq. 3).
        placement: see :class:`~biases.backends.DecayTerm`.

    Raises:
        ValueError: a positive log rate, unknown placement.
    """

    _sign = -1.0

    def __init__(self, log_rates: Tensor, *, symmetric: bool = False, placement: str = "logits") -> None:
        rank("ExponentialDecay log_rates", log_rates, "H")
        if not bool((log_rates <= 0).all()):
            fail("ExponentialDecay log_rates", "log gamma, at most 0", log_rates.tolist())
        one_of("ExponentialDecay placement", placement, PLACEMENTS)
        super().__init__(-log_rates, symmetric=symmetric)
        self._slopes = log_rates
        self.placement = placement

    @property
    def slopes(self) -> Tensor:
        """``-log gamma``, (H,)."""
        return -self._slopes

    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        log = super().by_distance(distance, dtype)
        # gamma^-n would overflow long before a causal mask could undo it.
        return log if self.symmetric else log.masked_fill(distance < 0, -torch.inf)

    def affine(self, geometry: Geometry) -> bool:
        return geometry.causal

    def score_mod(
        self, geometry: Geometry, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> ScoreMod | None:
        added = super().score_mod(geometry, device, dtype)
        return added if self.symmetric or geometry.causal or added is None else past_only(added, geometry)

    @classmethod
    def from_rates(cls, gamma: Tensor, *, symmetric: bool = False, placement: str = "logits") -> ExponentialDecay:
        """From the rates ``gamma`` in (0, 1], (H,)."""
        return cls(log_of_rates("ExponentialDecay gamma", gamma), symmetric=symmetric, placement=placement)
