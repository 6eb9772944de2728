"""Operators with one fault in how they take a mask, or in their sum over the values."""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant
from biases.testing.mutants.operators import NEGATIVE, PLAIN, Mean, Operator


@mutant(
    "additive-as-boolean",
    "An additive mask is cast to bool, so that 0 hides and -inf shows.",
    PLAIN,
    kind="operator",
    caught_by="mask-forms-agree",
)
class AdditiveAsBoolean(Operator):
    def full(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return super().full(mask.bool(), q, k)


@mutant(
    "boolean-as-additive",
    "A boolean mask is added to the logits, as 1 and 0.",
    PLAIN,
    kind="operator",
    caught_by="masked-key-independence",
)
class BooleanAsAdditive(Operator):
    def full(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return super().full(mask.to(q.dtype), q, k)


@mutant(
    "mask-order",
    "A mask is repeated for the heads in one order, and taken apart in the other.",
    PLAIN,
    kind="operator",
    caught_by="mask-broadcast",
)
class MaskOrder(Operator):
    def full(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if mask.ndim < 4 or mask.shape[1] > 1:
            return super().full(mask, q, k)
        batch, heads = q.shape[:2]
        alike = mask.expand(batch, -1, -1, -1).repeat(heads, 1, 1, 1)
        return super().full(alike.reshape(batch, heads, *mask.shape[2:]), q, k)


@mutant(
    "writes-mask",
    "Rows without a key are given one, in the mask of the caller.",
    PLAIN,
    kind="operator",
    caught_by="mask-unchanged",
)
class WritesMask(Operator):
    def full(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if mask.dtype == torch.bool:
            mask |= ~mask.any(-1, keepdim=True)
        return super().full(mask, q, k)


@mutant(
    "padding-and-one",
    "The last key that counts is hidden, the first that does not is seen.",
    PLAIN,
    kind="operator",
    caught_by="masked-key-independence",
)
class PaddingAndOne(Operator):
    def full(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return super().full(mask.roll(1, -1), q, k)


@mutant(
    "norm-of-nothing",
    "Keys are divided by a root that has no gradient at the zeros that masked keys are set to.",
    PLAIN,
    kind="operator",
    caught_by="masked-gradient",
)
class NormOfNothing(Operator):
    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().logits(q, k / (k.square().sum(-1, keepdim=True).sqrt() + 1e-6), v)


@mutant(
    "straight-through",
    "The mean of all values is added without its value, so that its gradient reaches masked ones.",
    PLAIN,
    kind="operator",
    caught_by="masked-gradient",
)
class StraightThrough(Operator):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        finite = v.nan_to_num(0, 0, 0)
        return super().__call__(q, k, v, mask) + (finite - finite.detach()).mean(2, keepdim=True)


@mutant(
    "zeros-instead-of-mean",
    "A row without a key gives zeros, where the mean was promised.",
    PLAIN.but(empty_row="mean"),
    kind="operator",
    caught_by="empty-row",
)
class ZerosInsteadOfMean(Mean):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        return super().weights(logits, allowed).masked_fill(~allowed, 0)


@mutant(
    "softmax-plus-one",
    "One is added to the sum that the weights are divided by.",
    PLAIN,
    kind="operator",
    caught_by="weights-sum-to-one",
)
class SoftmaxPlusOne(Operator):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        nothing = torch.zeros_like(logits[..., :1])
        hidden = logits.masked_fill(~allowed, NEGATIVE)
        return torch.cat([hidden, nothing], dim=-1).softmax(-1)[..., :-1]


@mutant(
    "wrong-axis",
    "The weights of a key sum to one over the queries.",
    PLAIN,
    kind="operator",
    caught_by="weights-sum-to-one",
)
class WrongAxis(Operator):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        return super().weights(logits.mT, allowed.mT).mT


@mutant(
    "negative-weights",
    "Half of the mean of the values is taken off, and the rest made up for: some weights are negative.",
    PLAIN,
    kind="operator",
    caught_by="value-hull",
)
class NegativeWeights(Operator):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        even = super().weights(torch.zeros_like(logits), allowed)
        return 1.5 * super().weights(logits, allowed) - 0.5 * even


@mutant(
    "value-temperature",
    "The logits are divided by the size of the values.",
    PLAIN,
    kind="operator",
    caught_by="value-linearity",
)
class ValueTemperature(Operator):
    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().logits(q, k, v) / (1 + v.square().mean((-1, -2), keepdim=True))


@mutant(
    "heads-share-values",
    "A quarter of the mean over the heads is mixed into the values.",
    PLAIN,
    kind="operator",
    caught_by="head-independence",
)
class HeadsShareValues(Operator):
    def values(self, v: Tensor) -> Tensor:
        return 0.75 * v + 0.25 * v.mean(1, keepdim=True)


@mutant(
    "heads-share-logits",
    "The mean over the heads is taken off the logits.",
    PLAIN,
    kind="operator",
    caught_by="head-independence",
)
class HeadsShareLogits(Operator):
    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = super().logits(q, k, v)
        return logits - logits.mean(1, keepdim=True)


@mutant(
    "heads-differ",
    "Each head has a temperature of its own.",
    PLAIN,
    kind="operator",
    caught_by="head-permutation",
)
class HeadsDiffer(Operator):
    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().logits(q, k, v) / torch.arange(1, q.shape[1] + 1, device=q.device)[:, None, None].to(q)


@mutant(
    "first-keys-favoured",
    "The logit falls with the number of the key.",
    PLAIN,
    kind="operator",
    caught_by="permuted-keys",
)
class FirstKeysFavoured(Operator):
    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().logits(q, k, v) - 0.1 * torch.arange(k.shape[2], device=k.device).to(k)


@mutant(
    "scaled-by-values",
    "The logits are divided by the root of the width of the values, not of the keys.",
    PLAIN,
    kind="operator",
    caught_by="cross-lengths",
)
class ScaledByValues(Operator):
    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ k.mT / v.shape[-1] ** 0.5
