"""Layers of maps that are right, and those that mistake a map's sides, strides or size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.multi_head import MultiHead
from biases.traits import Traits

MAP = Traits(domain="image", normalisation="row", equivariant_to=("flip", "transpose"))
WINDOWS = Traits(domain="image", normalisation="row", window=3)


@sound("manhattan-map", MAP)
class ManhattanMap(MultiHead):
    """Attention over a map, (B, H, W, C), whose logits fall with the Manhattan distance."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        tokens = self.tokens(x)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT / q.shape[-1] ** 0.5
        y = self.biased(logits, height, width).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2)).unflatten(1, (height, width))

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def biased(self, logits: Tensor, height: int, width: int) -> Tensor:
        down, across = self.distances(height, width, logits.device)
        return logits - 0.5 * (down + across).to(logits)

    def distances(self, height: int, width: int, device: Any) -> tuple[Tensor, Tensor]:
        y, x = places(height, width, device)
        return (y[:, None] - y).abs(), (x[:, None] - x).abs()


def places(height: int, width: int, device: Any) -> tuple[Tensor, Tensor]:
    """Row and column of each token: two (H W,)."""
    index = torch.arange(height * width, device=device)
    return index // width, index % width


@sound("window-map", WINDOWS)
class WindowMap(ManhattanMap):
    """Attention within windows of 3 by 3, those at the end being cut off by the map's."""

    def biased(self, logits: Tensor, height: int, width: int) -> Tensor:
        y, x = places(height, width, logits.device)
        window = (y // 3) * width + x // 3
        return logits.masked_fill(window[:, None] != window, -torch.inf)


@mutant(
    "map-sides-swapped",
    "tokens are numbered as if height and width were in each other's place",
    MAP,
    caught_by="flip-equivariance",
)
class SidesSwapped(ManhattanMap):
    def distances(self, height: int, width: int, device: Any) -> tuple[Tensor, Tensor]:
        return super().distances(width, height, device)


@mutant("map-looks-across", "distance across counts twice", MAP, caught_by="transpose-equivariance")
class LooksAcross(ManhattanMap):
    def distances(self, height: int, width: int, device: Any) -> tuple[Tensor, Tensor]:
        down, across = super().distances(height, width, device)
        return down, 2 * across


@mutant(
    "map-strides-ignored",
    "the memory of a map is read as if its channels came last, without a gap",
    MAP,
    caught_by="map-layout",
)
class StridesIgnored(ManhattanMap):
    def tokens(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        size = height * width * channels
        return x.as_strided((batch, height * width, channels), (size, channels, 1))


@mutant(
    "map-padding-of-the-other-side",
    "rows count as padding from the map's width on, so that rows further down see nothing",
    WINDOWS,
    caught_by="map-sizes",
)
class PaddingOfTheOtherSide(WindowMap):
    def biased(self, logits: Tensor, height: int, width: int) -> Tensor:
        y, _ = places(height, width, logits.device)
        return super().biased(logits, height, width).masked_fill(y >= width, -torch.inf)
