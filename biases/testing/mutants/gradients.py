"""Layers with a backward pass of their own, right and wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from biases.testing.mutants.base import mutant, sound
from biases.testing.mutants.layers import CAUSAL, Plain
from biases.traits import Traits


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


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        ctx.save_for_backward(q, k, v)
        return _attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        again = [each.detach().requires_grad_() for each in ctx.saved_tensors]
        with torch.enable_grad():
            out = _attention(*again)
        return torch.autograd.grad(out, again, gradients[0])


class _AttentionWithoutRest(_Attention):
    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v = _Attention.backward(ctx, *gradients)
        length = k.shape[2]
        kept = torch.arange(length, device=k.device) < max(length // 16 * 16, min(length, 16))
        return q, k * kept[:, None], v * kept[:, None]


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@sound("recomputed", CAUSAL)
class Recomputed(Plain):
    """The backward pass computes the attention again."""

    function: Any = _Attention

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.function.apply(q, k, v).transpose(1, 2).flatten(2))


@mutant(
    "rest-without-gradient",
    "the backward pass goes over the keys in blocks of 16, and leaves out the rest",
    CAUSAL,
    caught_by="gradient-is-derivative",
)
class RestWithoutGradient(Recomputed):
    function = _AttentionWithoutRest


@sound("relu-attention", Traits(), kind="operator")
def relu_attention(dim: int, heads: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Has kinks wherever a logit is zero."""
    return lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).relu() / k.shape[2] @ v


@sound("cosine-attention", Traits(normalisation="row"), kind="operator")
def cosine_attention(dim: int, heads: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Has no derivative where a query or a key is zero."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = 10 * nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).mT
        return logits.softmax(-1) @ v

    return attend


@sound("delta-rule", CAUSAL, kind="operator")
def delta_rule(dim: int, heads: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What the memory answers to a key is replaced by the value (arXiv:2406.06484 Eq. 1), keys of unit norm."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = nn.functional.normalize(k, dim=-1)
        state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
        outs = []
        for at in range(q.shape[2]):
            key = k[:, :, at : at + 1]
            state = state + key.mT @ (v[:, :, at : at + 1] - key @ state)
            outs.append(q[:, :, at : at + 1] @ state)
        return torch.cat(outs, 2)

    return attend
