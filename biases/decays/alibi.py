"""ALiBi: attention with linear biases (Press, Smith, Lewis, ICLR 2022, arXiv 2108.12409).

The bias ``-m_h (i - j)`` is added to the logits of head ``h``. Under a softmax ``m_h j`` alone gives the same weights,
as ``-m_h i`` is constant along a row; under a sigmoid it does not, so this object always means the true difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biases._checks import fail, one_of, positive_int
from biases.backends import LinearTerm
from biases.registry import register
from biases.traits import Decay, Traits

RULES = ("press", "geometric", "halving")
ODD = ("error", "zero")


def alibi_slopes(heads: int, rule: str = "press", *, balanced: bool = False, odd: str = "error") -> Tensor:
    """The slopes of every head, (H,), float64.

    Args:
        heads: number of heads, any positive integer.
        rule: ``"press"``: ``2^(-8 k / n)``, k = 1..n, where n is a power of two; otherwise the slopes of the largest
            power of two p below, then every second one of 2 p (the authors' code, commit 4b92f28). ``"geometric"``:
            ``2^(-8 k / n)`` for every n (differs from the authors' by up to 0.69 at n = 12). ``"halving"``: ``2^-k``
            (SWAT, arXiv 2502.18845 Eq. 4).
        balanced: half of the heads get the slopes of n / 2 heads, the other half the same with the opposite sign, so
            that they look far back (SWAT Eq. 4).
        odd: what balancing does with an odd number of heads: ``"error"``, or ``"zero"``, where the last head has slope
            0 and the others are balanced (ours; no paper says).

    Raises:
        ValueError: ``heads`` is not positive, or is odd with ``balanced`` and ``odd="error"``; unknown rule or ``odd``.
    """
    positive_int("alibi_slopes heads", heads)
    one_of("alibi_slopes rule", rule, RULES)
    one_of("alibi_slopes odd", odd, ODD)
    if balanced:
        if heads % 2 and odd == "error":
            fail("alibi_slopes heads", "an even number to balance the signs (or odd='zero')", heads)
        half = alibi_slopes(heads // 2, rule) if heads > 1 else torch.empty(0, dtype=torch.float64, device="cpu")
        return torch.cat([half, -half, half.new_zeros(heads % 2)])
    if rule == "halving":
        return 2.0 ** -torch.arange(1, heads + 1, dtype=torch.float64, device="cpu")
    if rule == "geometric" or heads & (heads - 1) == 0:
        return 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64, device="cpu") / heads)
    power = 2 ** int(math.log2(heads))
    extra = alibi_slopes(2 * power)[::2][: heads - power]
    return torch.cat([alibi_slopes(power), extra])


class ALiBi(LinearTerm):
    """The bias ``-m (i - j)``, or ``-m |i - j|`` if symmetric (for bidirectional attention).

    Args:
        slopes: number of heads, for :func:`alibi_slopes` with ``rule``, ``balanced`` and ``odd``, or slopes (H,) of
            one's own.
        symmetric: absolute distance.
        rule, balanced, odd: see :func:`alibi_slopes`.
        allow_negative: accept negative slopes (which favour distant keys); implied by ``balanced``.

    Raises:
        ValueError: a negative slope without ``allow_negative``; what :func:`alibi_slopes` refuses.
    """

    def __init__(
        self,
        slopes: int | Tensor,
        *,
        symmetric: bool = False,
        rule: str = "press",
        balanced: bool = False,
        odd: str = "error",
        allow_negative: bool = False,
    ) -> None:
        values = alibi_slopes(slopes, rule, balanced=balanced, odd=odd) if isinstance(slopes, int) else slopes
        super().__init__(values, symmetric=symmetric)
        if not (balanced or allow_negative) and bool((values < 0).any()):
            fail("ALiBi slopes", "non-negative numbers (or allow_negative=True)", values.tolist())


@register(
    "alibi",
    family="decays",
    summary="linear bias of the distance, causal",
    traits=Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        decay=Decay("linear", "past", "logits"),
        position="relative",
        memory="linear",
        fast_path="key-bias (m j) while m S stays small, else a Toeplitz view",
        published="2108.12409",
    ),
    parameters="0",
)
def alibi(dim: int, heads: int, *, rule: str = "press") -> dict[str, object]:
    return {"causal": True, "bias": ALiBi(heads, rule=rule)}


@register(
    "alibi-symmetric",
    family="decays",
    summary="linear bias of the absolute distance, bidirectional",
    traits=Traits(
        causal=False,
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        decay=Decay("linear", "absolute", "logits"),
        position="relative",
        equivariant_to=("flip",),
        memory="linear",
        fast_path="Toeplitz view",
        published="2108.12409, bidirectional form of its code's issue 5",
    ),
    parameters="0",
)
def alibi_symmetric(dim: int, heads: int, *, rule: str = "press") -> dict[str, object]:
    return {"causal": False, "bias": ALiBi(heads, symmetric=True, rule=rule)}
