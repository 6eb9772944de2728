"""Layers with a backward pass of their own, right and wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.layers import CAUSAL, Plain


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Any) -> Any:
        weights = logits.softmax(-1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weights,) = ctx.saved_tensors
        (gradient,) = gradients
        return weights * (gradient - (weights * gradient).sum(-1, keepdim=True))


class _SoftmaxWithoutSum(_Softmax):
    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.saved_tensors[0] * gradients[0]


@sound("own-softmax", CAUSAL)
class OwnSoftmax(Plain):
    """The derivative of the softmax is written out."""

    function: Any = _Softmax

    def weights(self, logits: Tensor) -> Tensor:
        return self.function.apply(logits.masked_fill(~self.mask(logits), float("-inf")))


@mutant(
    "softmax-backward",
    "the backward pass of the softmax leaves out the sum over the row",
    CAUSAL,
    caught_by="gradient-is-derivative",
)
class SoftmaxBackward(OwnSoftmax):
    function = _SoftmaxWithoutSum


@mutant(
    "detached-scale",
    "the gradient for a factor is lost on the way",
    CAUSAL,
    caught_by="gradient-is-derivative",
)
class DetachedScale(Plain):
    def value(self, v: Tensor) -> Tensor:
        return v * v.detach().sigmoid()


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return 2 * gradients[0]


class _DoubledByLayout(_Doubled):
    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        # As a kernel that is given a pointer, and takes the strides to be those of a contiguous tensor.
        strides = torch.empty(gradient.shape, device="meta").stride()
        return 2 * gradient.as_strided(gradient.shape, strides)


@sound("own-output", CAUSAL)
class OwnOutput(Plain):
    """The last step has a backward pass of its own."""

    function: Any = _Doubled

    def after(self, y: Tensor) -> Any:
        return self.function.apply(y)


@mutant(
    "gradient-by-layout",
    "the backward pass reads the incoming gradient as if it were contiguous",
    CAUSAL,
    caught_by="noncontiguous-gradient",
    source="Dao-AILab/flash-attention#355",
)
class GradientByLayout(OwnOutput):
    function = _DoubledByLayout
