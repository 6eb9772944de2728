"""Which images a training sees, in what order, and how they are varied; all of it drawn on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def batches(count: int, batch: int, order: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices: one random permutation of ``range(count)`` after another, cut into equal pieces.

    A batch that reaches over the end of a permutation goes on in the next one, so every batch is whole.
    """
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat((waiting, torch.randperm(count, generator=order)))
        yield waiting[:batch]
        waiting = waiting[batch:]


def shifted(images: Tensor, limit: int, draw: torch.Generator) -> Tensor:
    """Move each image by its own offset, uniform in [-limit, limit]², and fill with zeros: (N, channels, H, W)."""
    if limit == 0:
        return images
    count, channels, height, width = images.shape
    offset = torch.randint(0, 2 * limit + 1, (count, 2), generator=draw)
    padded = F.pad(images, (limit, limit, limit, limit))
    rows = (offset[:, 0, None] + torch.arange(height))[:, None, :, None]
    columns = (offset[:, 1, None] + torch.arange(width))[:, None, None, :]
    image = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[None, :, None, None]
    return padded[image, channel, rows, columns]


def flipped(images: Tensor, draw: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2: (N, channels, H, W)."""
    chosen = torch.randint(0, 2, (len(images), 1, 1, 1), generator=draw).bool()
    return torch.where(chosen, images.flip(-1), images)
