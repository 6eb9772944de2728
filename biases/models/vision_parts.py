"""Parts of image backbones: embeddings, downsampling, feed-forwards, residual scaling and heads.

All maps between them are channels last, (B, H, W, C), of any H, W >= 1. Convolutions of stride 2 pad by 1 and Swin's
patches and 2 x 2 neighbourhoods pad below and on the right, so that a side of n becomes ``ceil(n / 2)`` (or
``ceil(n / patch)``): no size is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases._checks import even, fail, feature_map, positive_int

LAYER_SCALE = 1e-6


def drop_rate(what: str, rate: object) -> float:
    """Check for a probability in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        fail(what, "a probability in [0, 1)", repr(rate))
    return float(rate)


def listed(what: str, given: Sequence[Any], expected: str) -> tuple[Any, ...]:
    """Check for a tuple or list of anything."""
    if not isinstance(given, tuple | list):
        fail(what, expected, repr(given))
    return tuple(given)


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


class ConvolutionalStem(nn.Module):
    """RMT's stem (arXiv 2309.11523; the code has four convolutions, the paper says five): images (B, channels, H, W) ->
    maps (B, H', W', C).

    Convolutions 3 x 3 to C/2, C/2, C and C, each followed by batch normalisation, all but the last by GELU.

    Args:
        channels: of the images.
        dim: C, even.
        strides: of the first and the third convolution; (2, 2) in RMT, which makes maps of a quarter.

    Raises:
        ValueError: an odd ``dim``, strides that are not two positive integers.
    """

    def __init__(self, channels: int, dim: int, strides: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        positive_int("ConvolutionalStem channels", channels)
        half = even("ConvolutionalStem dim", dim) // 2
        both = listed("ConvolutionalStem strides", strides, "two integers")
        if len(both) != 2:
            fail("ConvolutionalStem strides", "two integers", both)
        first, third = (positive_int("ConvolutionalStem stride", stride) for stride in both)
        self.stride = first * third
        self.layers = nn.Sequential()
        for into, out, stride in ((channels, half, first), (half, half, 1), (half, dim, third), (dim, dim, 1)):
            if len(self.layers):
                self.layers.append(nn.GELU())
            self.layers.append(nn.Conv2d(into, out, 3, stride, 1))
            self.layers.append(nn.BatchNorm2d(out))

    def forward(self, images: Tensor) -> Tensor:
        return channels_last(self.layers(images))


class PatchEmbedding(nn.Module):
    """Swin's embedding (arXiv 2103.14030 section 3.1): a linear map of each patch, then layer normalisation.

    Images (B, channels, H, W) -> maps (B, ceil(H / patch), ceil(W / patch), C).

    Args:
        channels: of the images.
        dim: C.
        patch: side of a patch; 4 in Swin.
    """

    def __init__(self, channels: int, dim: int, patch: int = 4) -> None:
        super().__init__()
        positive_int("PatchEmbedding channels", channels)
        positive_int("PatchEmbedding dim", dim)
        self.stride = positive_int("PatchEmbedding patch", patch)
        self.projection = nn.Conv2d(channels, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        below, right = (-side % self.stride for side in images.shape[2:])
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        return self.norm(channels_last(self.projection(images)))


class Downsampling(nn.Module):
    """RMT's: convolution 3 x 3 of stride 2 and batch normalisation, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, out, 3, 2, 1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(self.norm(self.convolution(channels_first(x))))


class PatchMerging(nn.Module):
    """Swin's downsampling (arXiv 2103.14030 section 3.1): 2 x 2 neighbours concatenated, layer normalisation, linear
    map without bias; (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C').

    The order of the concatenation is that of Swin's code: upper left, lower left, upper right, lower right.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        below, right = x.shape[1] % 2, x.shape[2] % 2
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        neighbours = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(neighbours.flatten(3)))


class ConditionalPosition(nn.Module):
    """Conditional position encoding as in RMT: ``x + DWConv_3x3(x)``, (B, H, W, C) -> the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + channels_last(self.convolution(channels_first(x)))


class ConvolutionalFeedForward(nn.Module):
    """RMT's feed-forward: ``u = GELU(expand(x))``, then ``contract(u + DWConv_3x3(u))``; (B, H, W, C) -> the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.convolution = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.expand(x))
        return self.contract(hidden + channels_last(self.convolution(channels_first(hidden))))


class FeedForward(nn.Module):
    """Swin's feed-forward: ``contract(GELU(expand(x)))``; (B, H, W, C) -> the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel (CaiT, arXiv 2103.17239 Eq. 9), 1e-6 at first; its shape is that of RMT's
    code, (1, 1, 1, C)."""

    def __init__(self, dim: int, initial: float = LAYER_SCALE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1, 1, dim), initial))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, each example's branch is dropped with probability ``rate`` and
    divided by ``1 - rate`` otherwise; the identity in evaluation.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = drop_rate("DropPath rate", rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class ProjectedHead(nn.Module):
    """RMT's classifier: linear map to ``projection`` channels, batch normalisation, SiLU, mean over the map, linear
    map; (B, H, W, C) -> (B, classes)."""

    def __init__(self, dim: int, projection: int, classes: int) -> None:
        super().__init__()
        positive_int("ProjectedHead projection", projection)
        self.dim = dim
        self.projection = nn.Linear(dim, projection)
        self.norm = nn.BatchNorm2d(projection)
        self.output = nn.Linear(projection, positive_int("ProjectedHead classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.norm(channels_first(self.projection(feature_map("ProjectedHead x", x, self.dim))))
        return self.output(F.silu(projected).mean((2, 3)))


class PooledHead(nn.Module):
    """Swin's classifier: layer normalisation, mean over the map, linear map; (B, H, W, C) -> (B, classes)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, positive_int("PooledHead classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(feature_map("PooledHead x", x, self.dim)).mean((1, 2)))
