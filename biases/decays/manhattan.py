"""Manhattan spatial decay on a grid (RMT, arXiv 2309.11523 Eq. 4): ``D_nm = gamma^(|x_n - x_m| + |y_n - y_m|)``."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from biases._cache import kept
from biases._checks import fail, one_of, positive_int, rank
from biases.backends import DecayTerm, Geometry
from biases.backends.score_mods import carries_gradient, manhattan, on_device
from biases.backends.terms import PLACEMENTS, Form, ScoreMod, Toeplitz
from biases.decays.exponential import ExponentialDecay, rmt_log_rates
from biases.positions.relative_position import MapTerm


class ManhattanDecay(MapTerm, DecayTerm):
    """``gamma_h^(|dy| + |dx|)`` over the tokens of a height x width map in raster order (y major).

    RMT's code adds the logarithm to the logits, its Eq. 5 multiplies after the softmax and does not renormalise: the
    ``placement`` names which is meant.

    Args:
        height, width: size of the map.
        log_rates: number of heads, for :func:`rmt_log_rates`, or ``log gamma`` (H,), at most 0; may carry gradients.
        placement: ``"logits"`` (the code), ``"weights"`` (as printed) or ``"weights-renormalised"``.

    Raises:
        ValueError: sizes that are not positive, a positive log rate, unknown placement.
    """

    def __init__(self, height: int, width: int, log_rates: int | Tensor, *, placement: str = "logits") -> None:
        super().__init__(height, width)
        rates = rmt_log_rates(log_rates) if isinstance(log_rates, int) else log_rates
        rank("ManhattanDecay log_rates", rates, "H")
        if not bool(((rates <= 0) & torch.isfinite(rates)).all()):
            fail("ManhattanDecay log_rates", "log gamma, finite and at most 0", rates.tolist())
        one_of("ManhattanDecay placement", placement, PLACEMENTS)
        self.log_rates = rates
        self.placement = placement
        self.heads = rates.shape[0]

    def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        dy, dx = self.offsets(i, j)
        rates = self.log_rates.to(device=i.device, dtype=dtype)
        return (rates[:, None, None] * (dy.abs() + dx.abs()).to(dtype))[None]

    def form(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, row_free: bool) -> Form:
        rates = self.log_rates.to(device=device, dtype=dtype)[:, None]
        if 1 in (self.height, self.width):
            return Toeplitz(rates * geometry.distances(device).abs().to(dtype))
        return self.relative(rates * _distances(self.height, self.width, dtype, device))

    def score_mod(
        self, geometry: Geometry, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> ScoreMod | None:
        if carries_gradient(self.log_rates):
            return super().score_mod(geometry, device, dtype)
        return manhattan(on_device(self.log_rates, device, dtype), self.width)

    def resized(self, height: int, width: int) -> ManhattanDecay:
        """The same decay over a map of another size.

        Raises:
            ValueError: sizes that are not positive.
        """
        other = copy.copy(self)
        other.height = positive_int("ManhattanDecay height", height)
        other.width = positive_int("ManhattanDecay width", width)
        return other

    def axes(self) -> tuple[ExponentialDecay, ExponentialDecay]:
        """The decays along a column (vertical) and along a row (horizontal); their sum is the whole (Eq. 6)."""
        return (
            ExponentialDecay(self.log_rates, symmetric=True, placement=self.placement),
            ExponentialDecay(self.log_rates, symmetric=True, placement=self.placement),
        )


@kept
def _distances(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """|dy| + |dx| of every offset on a map, in raster order."""
    down, across = (torch.arange(1 - n, n, device=device).abs() for n in (height, width))
    return (down[:, None] + across).flatten().to(dtype)
