"""Layers that take ``layer(x, keep)``, right, and with padding taken for tokens in one step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.layers import Plain
from biases.traits import Traits

PADDED = Traits(mask=("boolean",), masked_values="any", equivariant_to=("permutation",))


@sound("padded", PADDED)
class Padded(Plain):
    """Attention without a causal mask; an example of nothing but padding gives zeros, and the bias of the output."""

    causal = False

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (B, T, C), got {tuple(x.shape)}")
        if keep is None:
            keep = x.new_ones(x.shape[:2], dtype=torch.bool)
        q, k, v = self.qkv(self.centred(x, keep)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT / q.shape[-1] ** 0.5
        y = self.padded_weights(logits, keep[:, None, None, :]) @ self.kept(v, keep[:, None, :, None])
        return self.out(y.transpose(1, 2).flatten(2))

    def centred(self, x: Tensor, keep: Tensor) -> Tensor:
        return x

    def kept(self, v: Tensor, keep: Tensor) -> Tensor:
        return v.masked_fill(~keep, 0)

    def padded_weights(self, logits: Tensor, keep: Tensor) -> Tensor:
        logits = logits.masked_fill(~keep, torch.finfo(logits.dtype).min)
        return logits.softmax(-1).masked_fill(~keep, 0)


@sound("padded-centred", PADDED)
class Centred(Padded):
    """The mean over the tokens that count is taken off first."""

    def centred(self, x: Tensor, keep: Tensor) -> Tensor:
        held = x.masked_fill(~keep[..., None], 0)
        return x - held.sum(1, keepdim=True) / keep.sum(1)[:, None, None].clamp(min=1)


@mutant(
    "mean-over-padding",
    "padding counts in a mean over the tokens",
    PADDED,
    caught_by="padding-independence",
)
class MeanOverPadding(Padded):
    def centred(self, x: Tensor, keep: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


@mutant(
    "padded-values",
    "values at padding are weighted by 0 instead of left out, and 0 times NaN is NaN",
    PADDED,
    caught_by="padding-nan-independence",
    source="pytorch/pytorch#101967",
)
class PaddedValues(Padded):
    def kept(self, v: Tensor, keep: Tensor) -> Tensor:
        return v


@mutant(
    "padded-length",
    "logits are scaled by the logarithm of the length, padding included",
    PADDED,
    caught_by="padding-equals-truncation",
)
class PaddedLength(Padded):
    def padded_weights(self, logits: Tensor, keep: Tensor) -> Tensor:
        return super().padded_weights(logits * math.log(1 + logits.shape[-1]), keep)


@mutant(
    "empty-softmax",
    "where all keys are padding, the softmax of nothing but -inf is NaN",
    PADDED,
    caught_by="full-padding-finite",
    source="pytorch/pytorch#103963,pytorch/pytorch#103749",
)
class EmptySoftmax(Padded):
    def padded_weights(self, logits: Tensor, keep: Tensor) -> Tensor:
        return logits.masked_fill(~keep, float("-inf")).softmax(-1)


@mutant(
    "empty-softmax-hidden",
    "the NaN of an empty softmax is replaced after it, and is left in the gradients",
    PADDED,
    caught_by="full-padding-finite",
    source="Xilinx/brevitas#1591,lucidrains/nGPT-pytorch#11",
)
class EmptySoftmaxHidden(Padded):
    def padded_weights(self, logits: Tensor, keep: Tensor) -> Tensor:
        weights = (logits + torch.zeros_like(logits).masked_fill(~keep, float("-inf"))).softmax(-1)
        return torch.where(keep.any(-1, keepdim=True), weights, torch.zeros_like(weights))
