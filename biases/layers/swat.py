"""SWAT: sliding-window attention with sigmoid weights (arXiv 2502.18845 Eq. 2-5).

    Attn_m = sum over n = m - w + 1 .. m of  sigmoid((R_m q_m) . (R_n k_n) / sqrt(d) + s (m - n)) v_n

with the rotation R and the slopes ``s_k`` of ALiBi in both directions, k = 1..h / 2 each: ``-2^-k`` favours recent
tokens, ``+2^-k`` the history. Weights are not normalised. All of this is the paper's. Ours are the choices that it
leaves open, each a named option: the slope 0 of an odd head, ``2^-k`` with k = 1..h where all heads favour one side,
and 128 for the window, a length of its Table 3.

A pair outside the window, in the future or under padding weighs exactly 0. A large negative logit would not do: unlike
softmax weights, sigmoid(-100) = 4e-44 is not relative to anything, and is not 0 in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biases._checks import one_of
from biases.decays import ALiBi
from biases.decays.alibi import alibi_slopes
from biases.positions import Rotary
from biases.registry import register
from biases.traits import Decay, Traits

SLOPES = ("balanced", "negative", "positive")


def swat_bias(heads: int, slopes: str = "balanced", *, rule: str = "halving", odd_heads: str = "zero") -> ALiBi:
    """The bias ``s (m - n)`` of SWAT (arXiv 2502.18845 Eq. 3-4).

    Args:
        heads: H.
        slopes: ``"balanced"``, half of the heads with s < 0 and half with s > 0 (the paper's "-+"); ``"negative"``,
            s < 0 throughout, which is a decay ("-"); ``"positive"`` ("+").
        rule: see :func:`~biases.decays.alibi.alibi_slopes`; ``"halving"`` is Eq. 4.
        odd_heads: what balancing does with an odd number of heads, ``"zero"`` or ``"error"``.

    Raises:
        ValueError: unknown slopes, rule or ``odd_heads``; an odd number of heads to balance with ``"error"``.
    """
    one_of("SWAT slopes", slopes, SLOPES)
    if slopes == "balanced":
        return ALiBi(heads, rule=rule, balanced=True, odd=odd_heads)
    # ALiBi's slope is the fall of the logit a token, -s.
    fall = alibi_slopes(heads, rule, odd=odd_heads)
    return ALiBi(fall if slopes == "negative" else -fall, allow_negative=True)


def _traits(options: Mapping[str, Any]) -> Traits:
    one_of("SWAT slopes", options["slopes"], SLOPES)
    return Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        window=options["window"],
        normalisation="row" if options["normalise"] else "none",
        empty_row="zero",
        decay=Decay("linear", "past", "logits") if options["slopes"] == "negative" else None,
        position="relative",
        equivariant_to=("shift",),
        memory="linear",
        fast_path="tiles of queries, each with the keys in its reach",
        published="2502.18845 Eq. 2-5",
    )


@register(
    "swat",
    family="layers",
    summary="sigmoid weights in a sliding window, ALiBi in both directions, rotated",
    traits=_traits,
    parameters="0",
    notes=(
        "The code that its authors released uses softmax weights and slopes of one sign; "
        "the word sigmoid is not in that layer.",
        "Its text says that slopes of both signs outperform those of one; "
        "its Table 3 shows the reverse (2.6492 and 2.7275 against 2.6200, lower is better).",
        "Its section 4.2 calls positive slopes forward-looking where Eq. 4 calls negative ones so.",
    ),
)
def swat(
    dim: int,
    heads: int,
    *,
    window: int | None = 128,
    normalise: bool = False,
    slopes: str = "balanced",
    rotary: bool = True,
    odd_heads: str = "zero",
    rule: str = "halving",
) -> dict[str, object]:
    for option, value in (("normalise", normalise), ("rotary", rotary)):
        one_of(f"SWAT {option}", value, (True, False))
    return {
        "causal": True,
        "window": window,
        "weights": "sigmoid-normalised" if normalise else "sigmoid",
        "bias": swat_bias(heads, slopes, rule=rule, odd_heads=odd_heads),
        "rotary": Rotary(dim // heads) if rotary else None,
    }
