"""The frame that RMT, Swin and Gated-SwinRMT share: embedding, stages of residual blocks, head."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from biases._checks import divides, fail, one_of, positive_int, rank
from biases.models._optimiser import parameter_groups
from biases.models.vision_parts import ConditionalPosition, DropPath, LayerScale, drop_rate, listed

STD = 0.02


@dataclass(frozen=True)
class StageSize:
    """What differs from stage to stage of an RMT-like backbone.

    Attributes:
        dim: C.
        depth: number of blocks.
        heads: H, dividing C.
        ratio: width of the feed-forward over C.
        span: b - a of the decay rates, see :func:`~biases.decays.exponential.rmt_log_rates`.
        layer_scale: scale both branches of its blocks by learned factors that start at 1e-6.

    Raises:
        ValueError: sizes that are not positive, heads not dividing dim, a ratio that leaves no feed-forward, a negative
            span.
    """

    dim: int
    depth: int
    heads: int
    ratio: float = 4.0
    span: float = 6.0
    layer_scale: bool = False

    def __post_init__(self) -> None:
        divides("StageSize", self.dim, self.heads)
        positive_int("StageSize depth", self.depth)
        number = isinstance(self.ratio, int | float) and 0 < self.ratio < math.inf
        if not (number and int(self.ratio * self.dim) >= 1):
            fail("StageSize ratio", f"a positive number of at least 1 / {self.dim}", repr(self.ratio))
        if isinstance(self.span, bool) or not isinstance(self.span, int | float) or not 0 <= self.span < math.inf:
            fail("StageSize span", "a finite number of at least 0", repr(self.span))

    @property
    def hidden(self) -> int:
        """Width of the feed-forward, rounded down."""
        return int(self.ratio * self.dim)


class Block(nn.Module):
    """``x + s1 attention(LN(x))``, then ``x + s2 feed_forward(LN(x))``: maps (B, H, W, C) -> the same.

    Args:
        dim: C.
        attention: module from maps to maps.
        feed_forward: module from maps to maps.
        position: add a conditional position encoding first (RMT).
        layer_scale: learned factors s1 and s2; 1 otherwise.
        drop_path: rate of stochastic depth of both branches.
        eps: of the layer normalisations.
        block_input: also hand the un-normalised input of the first normalisation to the attention, by the name
            ``block_input``.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feed_forward: nn.Module,
        *,
        position: bool = False,
        layer_scale: bool = False,
        drop_path: float = 0.0,
        eps: float = 1e-5,
        block_input: bool = False,
    ) -> None:
        super().__init__()
        self.position = ConditionalPosition(dim) if position else nn.Identity()
        self.norm1, self.attention = nn.LayerNorm(dim, eps=eps), attention
        self.norm2, self.feed_forward = nn.LayerNorm(dim, eps=eps), feed_forward
        self.scale1: nn.Module = LayerScale(dim) if layer_scale else nn.Identity()
        self.scale2: nn.Module = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.block_input = block_input

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        given = {"block_input": x} if self.block_input else {}
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), **given)))
        return x + self.drop_path(self.scale2(self.feed_forward(self.norm2(x))))


class Stage(nn.Module):
    """Blocks at one resolution, then a downsampling (none in the last stage): maps -> maps."""

    def __init__(self, blocks: Sequence[nn.Module], downsampling: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsampling = nn.Identity() if downsampling is None else downsampling

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsampling(x)


class Backbone(nn.Module):
    """Logits of classes: images (B, channels, H, W) -> (B, classes), in float32, float64, bfloat16 or float16.

    Images need not be square, nor their sides multiples of anything; a side must hold one patch at least. They have the
    dtype of the parameters, but under autocast, which casts them itself.

    Args:
        channels: of the images.
        embedding: module from images to maps, with a ``stride``.
        stages: modules from maps to maps, each but the last halving the sides.
        head: module from maps to logits.
    """

    def __init__(self, channels: int, embedding: nn.Module, stages: Sequence[Stage], head: nn.Module) -> None:
        super().__init__()
        self.channels = channels
        self.embedding, self.stages, self.head = embedding, nn.ModuleList(stages), head
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        what = f"{type(self).__name__} images"
        rank(what, images, "B channels H W")
        if images.shape[1] != self.channels:
            fail(what, f"{self.channels} channels, (B, {self.channels}, H, W)", tuple(images.shape))
        dtype = next(self.parameters()).dtype
        if images.dtype != dtype and not torch.is_autocast_enabled(images.device.type):
            fail(f"{what} dtype", f"{dtype}, that of the parameters", images.dtype)
        self.map_sizes(*images.shape[2:])
        x = self.embedding(images)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the maps of each stage for images of height x width.

        Raises:
            ValueError: images smaller than a patch of the embedding.
        """
        stride = int(self.embedding.stride)  # type: ignore[arg-type]
        if min(height, width) < stride:
            fail(f"{type(self).__name__} images", f"sides of at least {stride} pixels", f"{height} x {width}")
        sides = [(-(-height // stride), -(-width // stride))]
        for _ in range(len(self.stages) - 1):
            sides.append((-(-sides[-1][0] // 2), -(-sides[-1][1] // 2)))
        return sides

    def initial_std(self, name: str) -> float | None:
        """Standard deviation of the normal distribution that parameter ``name`` starts from; ``None`` for those that
        start from a constant.

        Weights of linear maps start from N(0, 0.02), as in RMT's and Swin's code (which truncates at +-2, a hundred
        standard deviations). That code leaves convolutions as PyTorch starts them, weights and biases uniform in
        ``+-1 / sqrt(fan_in)``; a normal of the same variance, ``1 / (3 fan_in)``, is ours.
        """
        owner_name, _, leaf = name.rpartition(".")
        owner = self.get_submodule(owner_name)
        if isinstance(owner, nn.Conv2d):
            return 1.0 / math.sqrt(3 * owner.weight[0].numel())
        return STD if leaf == "weight" and isinstance(owner, nn.Linear) else None

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: biases, normalisations and other parameters of one axis are not decayed, nor what a
        module exempts (``no_weight_decay``)."""
        return parameter_groups(self, weight_decay, decay_vectors=False)

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            std = self.initial_std(name)
            if std is not None:
                parameter.normal_(std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def drop_path_rates(highest: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth, stage by stage: from 0 at the first block linearly to ``highest`` at the last.

    Raises:
        ValueError: a rate outside [0, 1).
    """
    end, last = drop_rate("drop path rate", highest), max(sum(depths) - 1, 1)
    rates = iter(end * block / last for block in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def stage_sizes(what: str, stages: Sequence[StageSize]) -> tuple[StageSize, ...]:
    """Check for the sizes of at least one stage.

    Raises:
        ValueError: no sequence, an empty one, something else than sizes in it.
    """
    sizes = listed(what, stages, "a sequence of StageSize")
    if not sizes:
        fail(what, "at least one", 0)
    for size in sizes:
        if not isinstance(size, StageSize):
            fail(what, "a StageSize each", repr(size))
    return sizes


def build_stages(
    sizes: Sequence[StageSize],
    highest_drop_path: float,
    block: Callable[[int, int, float], Block],
    downsampling: Callable[[int, int], nn.Module],
) -> list[Stage]:
    """The stages of a backbone.

    Args:
        sizes: of the stages.
        highest_drop_path: see :func:`drop_path_rates`.
        block: makes a block from the number of its stage, its own number in the stage and its drop path rate.
        downsampling: makes what stands between two stages from their widths.

    Raises:
        ValueError: a rate outside [0, 1).
    """
    stages = []
    for stage, rates in enumerate(drop_path_rates(highest_drop_path, [size.depth for size in sizes])):
        blocks = [block(stage, number, rate) for number, rate in enumerate(rates)]
        last = stage + 1 == len(sizes)
        stages.append(Stage(blocks, None if last else downsampling(sizes[stage].dim, sizes[stage + 1].dim)))
    return stages


def build_attention(
    layer: Callable[..., nn.Module],
    dim: int,
    heads: int,
    defaults: Mapping[str, Any],
    options: Mapping[str, Any] | None,
) -> nn.Module:
    """``layer(dim, heads, ...)`` with ``defaults``, some of them replaced by ``options``.

    Raises:
        ValueError: an option that the layer does not have, options that are no mapping.
    """
    if not isinstance(options, Mapping | None):
        fail("attention options", "a mapping from names to values, or None", repr(options))
    accepted = [p.name for p in inspect.signature(layer).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options or {}:
        one_of(f"attention option of {getattr(layer, '__name__', layer)}", option, accepted)
    return layer(dim, heads, **{**defaults, **(options or {})})
