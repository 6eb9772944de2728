"""What the tests of the image backbones share: names, counts, small models with everything at work."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from biases import zoo
from biases.models.backbone import Backbone, Block

COUNTS = {
    "rmt-t": 14_334_216,
    "rmt-s": 26_967_240,
    "rmt-b": 54_154_896,
    "rmt-l": 95_464_864,
    "swin-t": 28_288_354,
    "swin-s": 49_606_258,
    "swin-b": 87_768_224,
}
GATED = ["gated-swinrmt-retention", "gated-swinrmt-swat"]
NAMES = [*COUNTS, "rmt-digits", "swin-digits", *GATED]
DIGITS = ["rmt-digits", "swin-digits", *(f"{name}[size=digits]" for name in GATED)]
SMALL = [*DIGITS, *(f"{name}[size=test]" for name in GATED)]
SIDES = [(8, 8), (7, 9), (5, 3), (1, 1), (2, 11)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@functools.cache
def on_meta(name: str, **options) -> Backbone:
    """The model without memory for its parameters; shared by tests, which only look at it."""
    with torch.device("meta"):
        return zoo.model(name, **options)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Values that keep every part at work: fresh models have logits near 0, statistics of 0 and 1, scales of 1e-6."""
    draw = generator(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=draw)
        if name.endswith("running_var"):
            value.copy_(1.0 + 0.5 * noise.tanh())
        elif value.ndim > 1 and len(value) > 1:
            value.copy_(noise / math.sqrt(value[0].numel()))
        else:
            value.copy_(value.clamp(0.5) + 0.2 * noise if name.endswith("weight") else 0.2 * noise)
    return model.eval()


def small(name: str, seed: int = 0, **options) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise(zoo.model(name, **options), seed)


def images(channels: int, height: int, width: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=generator(seed))


def blocks(model: Backbone) -> list[list[Block]]:
    return [list(stage.blocks) for stage in model.stages]


def close(found: Tensor, expected: Tensor, roundings: float) -> None:
    """Within so many roundings of ``found``'s dtype, relative to the largest number."""
    error = (found.double() - expected.double()).abs().max().item()
    assert error <= roundings * torch.finfo(found.dtype).eps * expected.abs().max().item()
