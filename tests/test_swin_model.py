"""Swin against its equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from vision_models import (
    close,
    images,
    randomise,
)

from biases.models import (
    Swin,
)


def swin_logits(state: dict[str, Tensor], x: Tensor, depths, heads, window: int, patch: int) -> Tensor:
    """Swin in float64 from its state, for maps that the window divides, with the mask of its code: nine regions."""

    def linear(name, y):
        return F.linear(y, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, y):
        return F.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attention(name, y, H, shift, M):
        B, height, width, C = y.shape
        q, k, v = (linear(f"{name}.{part}", y.roll((-shift, -shift), (1, 2))) for part in ("query", "key", "value"))
        slices = [(torch.arange(n) >= n - M).long() + (torch.arange(n) >= n - shift) for n in (height, width)]
        label = 3 * slices[0][:, None] + slices[1]
        out, at = torch.zeros_like(y), torch.arange(M * M)
        down, across = (at[:, None] // M - at // M), (at[:, None] % M - at % M)
        side = math.isqrt(state[f"{name}.relative_position"].shape[0])
        index = (down + side // 2) * side + across + side // 2
        bias = state[f"{name}.relative_position"][index].permute(2, 0, 1)
        for i in range(0, height, M):
            for j in range(0, width, M):
                rows, columns = slice(i, i + M), slice(j, j + M)
                region = label[rows, columns].flatten()
                masked = bias + torch.where(region[:, None] == region, 0.0, -math.inf)
                a, b, c = (t[:, rows, columns].reshape(B, M * M, H, -1).transpose(1, 2) for t in (q, k, v))
                weights = (a @ b.mT / math.sqrt(C // H) + masked).softmax(-1)
                out[:, rows, columns] = (weights @ c).transpose(1, 2).reshape(B, M, M, C)
        return linear(f"{name}.output", out.roll((shift, shift), (1, 2)))

    y = F.conv2d(x, state["embedding.projection.weight"], state["embedding.projection.bias"], stride=patch)
    y = norm("embedding.norm", y.permute(0, 2, 3, 1))
    for s, depth in enumerate(depths):
        M = min(window, *y.shape[1:3])
        for b in range(depth):
            name, shift = f"stages.{s}.blocks.{b}", M // 2 if b % 2 and min(y.shape[1:3]) > window else 0
            y = y + attention(f"{name}.attention", norm(f"{name}.norm1", y), heads[s], shift, M)
            hidden = F.gelu(linear(f"{name}.feed_forward.expand", norm(f"{name}.norm2", y)))
            y = y + linear(f"{name}.feed_forward.contract", hidden)
        if s + 1 < len(depths):
            four = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
            y = linear(f"stages.{s}.downsampling.reduction", norm(f"stages.{s}.downsampling.norm", four))
    return linear("head.output", norm("head.norm", y).mean((1, 2)))


def test_swin_is_what_its_equations_say():
    model = randomise(Swin(8, (2, 3), (2, 4), window=3, patch=2, classes=5, channels=2)).double()
    x = images(2, 24, 12).double()
    expected = swin_logits(model.state_dict(), x, (2, 3), (2, 4), 3, 2)
    close(model(x), expected, roundings=2000)
