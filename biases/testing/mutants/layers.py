"""Layers that are right, and layers that look ahead.

Those that mix what is independent are in :mod:`~biases.testing.mutants.mixing`, those that are wrong at their surface
in :mod:`~biases.testing.mutants.surfaces`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.multi_head import MultiHead
from biases.traits import Traits

CAUSAL = Traits(causal=True)
WINDOW = Traits(causal=True, window=3, equivariant_to=("shift",))
SET = Traits(equivariant_to=("permutation",))


@sound("plain", CAUSAL)
class Plain(MultiHead):
    """Causal multi-head attention; the faults are overrides of one step of it."""

    causal = True

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.weights(q @ k.mT / q.shape[-1] ** 0.5) @ self.value(v)
        return self.after(self.out(y.transpose(1, 2).flatten(2)))

    def mask(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()

    def weights(self, logits: Tensor) -> Tensor:
        if self.causal:
            logits = logits.masked_fill(~self.mask(logits), float("-inf"))
        return logits.softmax(-1)

    def before(self, x: Tensor) -> Tensor:
        return x

    def value(self, v: Tensor) -> Tensor:
        return v

    def after(self, y: Tensor) -> Any:
        return y


@sound("torch", CAUSAL)
class Wrapped(nn.Module):
    """torch.nn.MultiheadAttention with a causal mask."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


@sound("symmetric", SET)
class Symmetric(Plain):
    """Attention without a mask, hence of sets."""

    causal = False


@sound("centred", SET)
class Centred(Symmetric):
    """Cancels to nothing but rounding where the tokens are equal."""

    def after(self, y: Tensor) -> Tensor:
        return y - y.mean(1, keepdim=True)


@sound("unprojected", CAUSAL)
class Unprojected(nn.Module):
    """Attention without parameters."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        h = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(h, h, h, is_causal=True)
        return y.transpose(1, 2).flatten(2)


@sound("function", CAUSAL)
def function(dim: int, heads: int) -> Callable[[Tensor], Tensor]:
    """A callable that is no module: attention with equal weights."""

    def attend(x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None].to(x)

    return attend


@sound("float32-softmax", CAUSAL)
class Float32Softmax(Plain):
    """Upcasts, or downcasts, to float32 inside, as many layers do."""

    def weights(self, logits: Tensor) -> Tensor:
        masked = logits.float().masked_fill(~self.mask(logits), float("-inf"))
        return masked.softmax(-1).to(logits.dtype)


@sound("query-key-norm", CAUSAL)
class QueryKeyNorm(Plain):
    """Queries and keys are normalised by torch.nn.RMSNorm, whose eps is that of the dtype."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.qkv, self.norm = nn.Linear(dim, 3 * dim, bias=False), nn.RMSNorm(dim // heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.weights(self.norm(q) @ self.norm(k).mT / q.shape[-1] ** 0.5) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@sound("long-convolution", CAUSAL)
class LongConvolution(nn.Module):
    """A convolution by FFT in float32, then a norm, as those of Hyena (arXiv:2302.10866) and TNN."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.rates, self.value, self.out = nn.Parameter(torch.rand(dim) + 0.5), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        length = x.shape[1]
        kernel = (-self.rates[:, None] * torch.arange(length, device=x.device)).exp()
        spectra = [torch.fft.rfft(each.float(), 2 * length) for each in (self.value(x).mT, kernel)]
        y = torch.fft.irfft(spectra[0] * spectra[1], 2 * length)[..., :length].to(x.dtype)
        return self.out(nn.functional.layer_norm(y.mT, x.shape[-1:]))


@sound("windowed", WINDOW)
class Windowed(Plain):
    """Each query sees three keys."""

    def mask(self, logits: Tensor) -> Tensor:
        return super().mask(logits).triu(-2)


@mutant("peek", "Each query sees one key too far.", CAUSAL, caught_by="future-independence")
class Peek(Plain):
    def mask(self, logits: Tensor) -> Tensor:
        return torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril(1)


@mutant(
    "mask-after-softmax",
    "The mask is applied after the softmax, so that the normaliser sees the future.",
    CAUSAL,
    caught_by="prefix-consistency",
)
class MaskAfterSoftmax(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) * self.mask(logits)


@mutant("small-mask", "Masked logits get -10, which leaves them a weight.", CAUSAL, caught_by="future-independence")
class SmallMask(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return (logits - 10 * ~self.mask(logits)).softmax(-1)


@mutant(
    "window-statistics",
    "A gate of the values is normalised over the whole window, as in the published EGA.",
    CAUSAL,
    caught_by="future-gradient",
    source="HKUSTDial/flash-sparse-attention#146",
)
class WindowStatistics(Plain):
    def value(self, v: Tensor) -> Tensor:
        energy = v.square().mean(-1, keepdim=True)
        spread = energy.std(-2, keepdim=True, correction=0)
        return v * torch.sigmoid((energy - energy.mean(-2, keepdim=True)) / (spread + 1e-6))


@mutant(
    "block-summary",
    "Each token gets the mean of its block of four, later tokens of the block included.",
    CAUSAL,
    caught_by="future-gradient",
    source="karpathy/nanochat#844",
)
class BlockSummary(Plain):
    def before(self, x: Tensor) -> Tensor:
        means = [block.mean(1, keepdim=True).expand_as(block) for block in x.split(4, dim=1)]
        return x + torch.cat(means, dim=1)


@mutant(
    "spectral-filter",
    "The tokens are smoothed by a filter of their spectrum, which is a circular convolution.",
    CAUSAL,
    caught_by="prefix-consistency",
    source="karpathy/nanochat#844",
)
class SpectralFilter(Plain):
    def after(self, y: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(y, dim=1)
        kept = torch.linspace(1, 0.5, spectrum.shape[1], dtype=y.dtype, device=y.device)[:, None]
        return torch.fft.irfft(spectrum * kept, n=y.shape[1], dim=1)


@mutant(
    "zero-init-leak",
    "A summary of the window stands behind a gain that starts at zero.",
    CAUSAL,
    caught_by="future-independence",
)
class ZeroInitLeak(Plain):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gain = nn.Parameter(torch.zeros(()))

    def after(self, y: Tensor) -> Tensor:
        return y + self.gain * y.mean(1, keepdim=True)


@mutant(
    "detached-leak",
    "The input is scaled by its largest value over the window, detached, so that gradients do not show it.",
    CAUSAL,
    caught_by="future-independence",
)
class DetachedLeak(Plain):
    def before(self, x: Tensor) -> Tensor:
        return x / (1 + x.detach().abs().amax(1, keepdim=True))


@mutant(
    "counts-from-the-end",
    "Positions are counted from the end of the sequence.",
    CAUSAL,
    caught_by="prefix-consistency",
)
class CountsFromTheEnd(Plain):
    def before(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[1], device=x.device).flip(0)[:, None].to(x)


@mutant(
    "length-temperature", "The logits are divided by the length of the input.", CAUSAL, caught_by="prefix-consistency"
)
class LengthTemperature(Plain):
    def weights(self, logits: Tensor) -> Tensor:
        return super().weights(logits / logits.shape[-1])
