"""Operators that are right, and operators with one fault in their mask, their window or their sum over the values.

A subject is a factory (dim, heads); its instances are called with q, k and v, (B, H, L, D), and a mask, True = may
attend, or added to the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.mutants.base import mutant, sound
from biases.traits import Traits

BOTH = ("boolean", "additive")
PLAIN = Traits(
    masked_values="any",
    mask=BOTH,
    normalisation="row",
    empty_row="zero",
    position="none",
    equivariant_to=("permutation", "heads"),
)
MEAN = PLAIN.but(empty_row="mean")
PLACED = PLAIN.but(position=None, equivariant_to=("heads",))
CAUSAL = PLACED.but(causal=True, alignment="upper-left")
DECODING = PLACED.but(causal=True, alignment="lower-right")
WINDOW = DECODING.but(window=3)
TWO_SIDED = PLACED.but(window=5, alignment="upper-left")
NEGATIVE = float("-inf")


@sound("operator", PLAIN, kind="operator")
class Operator:
    """Softmax attention; keys that no query may see are taken out before anything is computed with them."""

    causal = False
    lower_right = False
    window: int | None = None

    def __init__(self, dim: int, heads: int) -> None:
        self.heads = heads

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = None if mask is None else self.full(mask, q, k)
        allowed = self.allowed(q, k, mask)
        k, v = self.cleaned(k, v, allowed)
        logits = self.logits(q, k, v)
        if mask is not None and mask.is_floating_point():
            logits = logits + mask.masked_fill(mask == NEGATIVE, 0)
        return self.combined(self.weights(logits, allowed), self.values(v))

    def full(self, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask.expand(*q.shape[:3], k.shape[2])

    def allowed(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        allowed = self.rule(q.shape[2], k.shape[2], q.device).expand(*q.shape[:3], -1)
        if mask is None:
            return allowed
        return allowed & (mask if mask.dtype == torch.bool else mask != NEGATIVE)

    def rule(self, L: int, S: int, device: torch.device) -> Tensor:
        """(L, S), True = may attend."""
        back = torch.arange(L, device=device)[:, None] + self.offset(L, S) - torch.arange(S, device=device)
        if self.causal:
            return (back >= 0) & (back < (self.window or L + S))
        return back.abs() <= ((self.window - 1) // 2 if self.window else L + S)

    def offset(self, L: int, S: int) -> int:
        return S - L if self.lower_right else 0

    def cleaned(self, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        hidden = ~allowed.any(-2)[..., None]
        return k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)

    def logits(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ k.mT / q.shape[-1] ** 0.5

    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        has_key = allowed.any(-1, keepdim=True)
        return logits.masked_fill(~allowed & has_key, NEGATIVE).softmax(-1).masked_fill(~has_key, 0)

    def values(self, v: Tensor) -> Tensor:
        return v

    def combined(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ v


@sound("operator-mean", MEAN, kind="operator")
class Mean(Operator):
    """Hidden logits are the lowest finite number: a query without a key gets the mean of the values."""

    def cleaned(self, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        hidden = ~allowed.any(-2)[..., None] & allowed.any(-1).all(-1)[..., None, None]
        return k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)

    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1)


@sound("operator-causal", CAUSAL, kind="operator")
class Causal(Operator):
    """Query i stands at key i."""

    causal = True


@sound("operator-decoding", DECODING, kind="operator")
class Decoding(Causal):
    """The last query stands at the last key."""

    lower_right = True


@sound("operator-window", WINDOW, kind="operator")
class Windowed(Decoding):
    """Each query sees three keys, its own the last of them."""

    window: int | None = 3


@sound("operator-two-sided", TWO_SIDED, kind="operator")
class TwoSided(Operator):
    """Each query sees two keys to each side of its own."""

    window = 5


@mutant(
    "nan-row",
    "The softmax of a row without a key is NaN.",
    PLAIN,
    kind="operator",
    caught_by="empty-row",
    source="pytorch/pytorch#103963",
)
class NanRow(Operator):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        return logits.masked_fill(~allowed, NEGATIVE).softmax(-1)


@mutant(
    "nan-instead-of-mean",
    "-inf stands where code written for the lowest finite number expects the mean.",
    MEAN,
    kind="operator",
    caught_by="empty-row",
    source="pytorch/pytorch#103749",
)
class NanInsteadOfMean(Mean):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        return logits.masked_fill(~allowed, NEGATIVE).softmax(-1)


@mutant(
    "fallback-nan-row",
    "The path for additive masks gives NaN for a row without a key, the other one zeros.",
    PLAIN,
    kind="operator",
    caught_by="empty-row",
    source="ml-explore/mlx#2608",
)
class FallbackNanRow(Operator):
    def allowed(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        self.boolean = mask is None or mask.dtype == torch.bool
        return super().allowed(q, k, mask)

    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        if self.boolean:
            return super().weights(logits, allowed)
        return logits.masked_fill(~allowed, NEGATIVE).softmax(-1)


@mutant(
    "base-two-overflow",
    "Logits are scaled for powers of two after the mask was added, which turns a row of the lowest number into NaN.",
    PLAIN,
    kind="operator",
    caught_by="finfo-min-mask",
    source="pytorch/pytorch#109517",
)
class BaseTwoOverflow(Operator):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        return super().weights(logits * 1.4426950408889634 * 0.6931471805599453, allowed)


@mutant(
    "nan-spreads",
    "The weight of a padded token is zero, and zero times NaN is NaN.",
    PLAIN,
    kind="operator",
    caught_by="masked-nan-independence",
    source="pytorch/pytorch#101967",
)
class NanSpreads(Operator):
    def cleaned(self, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        return k, v


@mutant(
    "zeros-after-nan",
    "NaN rows are set to zero after the softmax, whose gradient they stay in.",
    PLAIN,
    kind="operator",
    caught_by="empty-row-gradient",
    source="Xilinx/brevitas#1591",
)
class ZerosAfterNan(Operator):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        hidden = torch.zeros_like(logits).masked_fill(~allowed, NEGATIVE)
        return (logits + hidden).softmax(-1).masked_fill(~allowed, 0)


@mutant(
    "nan-to-num",
    "NaN outputs of rows that a mask of pairs leaves without a key are replaced, their gradients are not.",
    PLAIN,
    kind="operator",
    caught_by="empty-row-gradient",
    source="lucidrains/nGPT-pytorch#11",
)
class NanToNum(Operator):
    def weights(self, logits: Tensor, allowed: Tensor) -> Tensor:
        return logits.masked_fill(~allowed, NEGATIVE).softmax(-1)

    def combined(self, weights: Tensor, v: Tensor) -> Tensor:
        return (weights @ v).nan_to_num()


@mutant(
    "window-and-one",
    "A window of w keys before the query's own, w + 1 in all.",
    WINDOW,
    kind="operator",
    caught_by="support",
    source="huggingface/transformers#39408",
)
class WindowAndOne(Windowed):
    window = 4


@mutant(
    "window-less-one",
    "The window of one formulation is a key shorter than that of the other.",
    WINDOW,
    kind="operator",
    caught_by="support",
    source="huggingface/transformers#29623",
)
class WindowLessOne(Windowed):
    window = 2


@mutant(
    "window-lost",
    "The window does not reach the path that takes a mask.",
    WINDOW,
    kind="operator",
    caught_by="mask-and-support",
    source="unslothai/unsloth#8253",
)
class WindowLost(Windowed):
    def allowed(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        self.window = 3 if mask is None else None
        return super().allowed(q, k, mask)


@mutant(
    "lopsided-window",
    "A two-sided window reaches w - 1 keys back and w // 2 ahead.",
    TWO_SIDED,
    kind="operator",
    caught_by="support",
    source="huggingface/transformers#40700",
)
class LopsidedWindow(TwoSided):
    def rule(self, L: int, S: int, device: torch.device) -> Tensor:
        back = torch.arange(L, device=device)[:, None] - torch.arange(S, device=device)
        return (back <= 4) & (back >= -2)


@mutant(
    "other-alignment",
    "The first query stands at the first key, where the last was promised to stand at the last.",
    DECODING,
    kind="operator",
    caught_by="alignment",
    source="pytorch/pytorch#103082, pytorch/pytorch#108108",
)
class OtherAlignment(Decoding):
    lower_right = False


@mutant(
    "offset-and-one",
    "Where L != S, queries stand one key too late.",
    DECODING,
    kind="operator",
    caught_by="support",
    source="flashinfer-ai/flashinfer#348",
)
class OffsetAndOne(Decoding):
    def offset(self, L: int, S: int) -> int:
        return S - L + (L != S)


@mutant(
    "decoding-step-behind",
    "A single query, as in a decoding step, stands one key too early.",
    WINDOW,
    kind="operator",
    caught_by="alignment",
    source="vllm-project/vllm#945",
)
class DecodingStepBehind(Windowed):
    def offset(self, L: int, S: int) -> int:
        return S - L - (L == 1 and S > 1)


@mutant(
    "mask-replaces-rule",
    "Causality is lost where a mask is given.",
    CAUSAL,
    kind="operator",
    caught_by="full-mask",
)
class MaskReplacesRule(Causal):
    def allowed(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        self.causal = mask is None
        return super().allowed(q, k, mask)
