"""Theta shift: the rotation that RMT's code applies (arXiv 2309.11523 Eq. 1; qhfan/RMT, commit 32ea214).

The equations of its attention over maps (Eq. 5-6) do not show it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from biases._checks import rank
from biases.positions.rotary import Rotary


class ThetaShift(Rotary):
    """Rotary with the end point included: the angles are ``1 / base^linspace(0, 1, D / 2)``, interleaved pairs.

    The position is the raster index, so that along a column of a map of width W the relative angle is ``W (y - y')
    theta``: it depends on the width.
    """

    def __init__(self, head_dim: int, *, base: float = 10000.0) -> None:
        super().__init__(head_dim, base=base, pairing="interleaved")

    def frequencies(self) -> Tensor:
        return self.base ** -torch.linspace(0.0, 1.0, self.head_dim // 2, dtype=torch.float64)

    def on_map(self, x: Tensor) -> Tensor:
        """Rotate the pixel at row y and column x of a map of width W by its raster index ``y W + x``.

        Args:
            x: (B, heads, H, W, D), a floating dtype.

        Returns:
            Shape and dtype of ``x``.

        Raises:
            ValueError: another number of axes, or another D.
        """
        rank("ThetaShift map", x, "B heads H W D")
        return self(x.flatten(2, 3)).unflatten(2, x.shape[2:4])
