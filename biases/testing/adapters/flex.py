"""FlexAttention with somebody's ``score_mod`` and ``mask_mod``.

What is checked is the eager formulation of ``flex_attention``: the arithmetic of the modifications, not the generated
kernel. It runs without Dynamo, by the switch that PyTorch has for debugging modifications, so that it can be observed
from outside. On the CPU ``flex_attention`` refuses to be differentiated; where a gradient is asked for there, the same
formulation is called directly, and autograd differentiates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from biases._checks import fail
from biases.testing.adapters.adapter import Adapter, package_of, script
from biases.traits import Decay, Traits

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Flex:
    """``flex_attention`` of these modifications: (B, H, L, D), (B, H, S, D), (B, H, S, Dv) -> (B, H, L, Dv)."""

    def __init__(self, score_mod: ScoreMod | None, mask_mod: MaskMod | None) -> None:
        self.score_mod, self.mask_mod = score_mod, mask_mod

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        block_mask = None
        if self.mask_mod is not None:
            block_mask = create_block_mask(
                self.mask_mod, q.shape[0], q.shape[1], q.shape[2], k.shape[2], device=str(q.device)
            )
        if q.device.type == "cpu" and any(x.requires_grad for x in (q, k, v)):
            return _differentiable(q, k, v, self.score_mod, block_mask)
        with _uncompiled():
            return flex_attention(q, k, v, score_mod=self.score_mod, block_mask=block_mask)


@contextmanager
def _uncompiled() -> Iterator[None]:
    from torch.nn.attention import flex_attention as module

    before = module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    try:
        yield
    finally:
        module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = before


def _differentiable(q: Tensor, k: Tensor, v: Tensor, score_mod: ScoreMod | None, block_mask: Any) -> Tensor:
    from torch._higher_order_ops.flex_attention import math_attention
    from torch.nn.attention import flex_attention as module

    block_mask = block_mask if block_mask is not None else module._create_empty_block_mask(q, k)
    score_mod = score_mod or module._identity
    return math_attention(q, k, v, score_mod, block_mask.as_tuple(), q.shape[-1] ** -0.5, {})[0]


def operator(
    score_mod: Callable[..., Any] | None = None,
    mask_mod: MaskMod | None = None,
    *,
    by_heads: bool = False,
    traits: Traits | None = None,
) -> Adapter:
    """A factory of operators out of the modifications that ``flex_attention`` takes.

    Args:
        score_mod: ``(score, b, h, q_idx, kv_idx) -> score``; with ``by_heads``, a function of the number of heads that
            returns one.
        mask_mod: ``(b, h, q_idx, kv_idx) -> bool``, True = may attend.
        by_heads: see ``score_mod``.
        traits: by default those of softmax attention.

    Raises:
        ValueError: a modification cannot be called.
    """
    for name, each in (("score_mod", score_mod), ("mask_mod", mask_mod)):
        if each is not None and not callable(each):
            fail(f"flex.operator {name}", "None or a callable", type(each).__name__)

    def make(dim: int, heads: int) -> Flex:
        return Flex(score_mod(heads) if by_heads and score_mod is not None else score_mod, mask_mod)

    keywords = {"score_mod": score_mod, "mask_mod": mask_mod, "by_heads": by_heads or None, "traits": traits}
    return Adapter(
        make,
        kind="operator",
        traits=traits or Traits(normalisation="row"),
        how_to_build=script("flex", "operator", [], keywords),
        package=package_of(score_mod, mask_mod),
    )


def mask(mask_mod: MaskMod, *, traits: Traits | None = None) -> Adapter:
    """A factory of masks ``(L, S) -> (L, S)`` bool, True = may attend, out of a ``mask_mod``."""

    def make(dim: int, heads: int) -> Callable[[int, int], Tensor]:
        def masked(length: int, keys: int) -> Tensor:
            from torch.nn.attention.flex_attention import create_mask

            return create_mask(mask_mod, None, None, length, keys, device="cpu")[0, 0]

        return masked

    return Adapter(
        make,
        kind="mask",
        traits=traits or Traits(),
        how_to_build=script("flex", "mask", [mask_mod], {"traits": traits}),
        package=package_of(mask_mod),
    )


WINDOW = 4


def causal_mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return q_idx >= kv_idx


def window_mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return (q_idx >= kv_idx) & (q_idx - kv_idx < WINDOW)


def alibi_score_mod(heads: int) -> ScoreMod:
    """The score falls by ``2^(-8 (h + 1) / heads)`` a token of distance, as in attention-gym's ``alibi``."""

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score - torch.exp2(-8.0 * (h + 1) / heads) * (q_idx - kv_idx)

    return score_mod


def softcap_score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return 20.0 * torch.tanh(score / 20.0)


_PLAIN = Traits(normalisation="row", empty_row="zero")
_CAUSAL = _PLAIN.but(causal=True, alignment="upper-left")

flex_plain = operator(traits=_PLAIN.but(position="none", equivariant_to=("permutation", "heads"))).named(
    "flex", "flex_plain"
)
flex_causal = operator(mask_mod=causal_mask_mod, traits=_CAUSAL.but(position="none", equivariant_to=("heads",))).named(
    "flex", "flex_causal"
)
flex_window = operator(
    mask_mod=window_mask_mod, traits=_CAUSAL.but(window=WINDOW, equivariant_to=("shift",), position="relative")
).named("flex", "flex_window")
flex_alibi = operator(
    alibi_score_mod,
    causal_mask_mod,
    by_heads=True,
    traits=_CAUSAL.but(decay=Decay("linear", "past", "logits"), position="relative"),
).named("flex", "flex_alibi")
flex_softcap = operator(
    softcap_score_mod, causal_mask_mod, traits=_CAUSAL.but(position="none", equivariant_to=("heads",))
).named("flex", "flex_softcap")
flex_window_mask = mask(window_mask_mod, traits=Traits(causal=True, alignment="upper-left", window=WINDOW)).named(
    "flex", "flex_window_mask"
)

SUBJECTS = {
    "torch-flex": flex_plain,
    "torch-flex-causal": flex_causal,
    "torch-flex-window": flex_window,
    "torch-flex-alibi": flex_alibi,
    "torch-flex-softcap": flex_softcap,
    "torch-flex-window-mask": flex_window_mask,
}
