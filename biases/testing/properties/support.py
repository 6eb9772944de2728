"""Promises about which tokens reach an output: causality, alignment and windows, pair by pair.

Catalogue of published faults of this kind: transformers#39408, transformers#29623, unsloth#8253, transformers#40700
(windows off by one, lost on one path, lopsided), pytorch-image-models#2438 (shifted windows on padded maps).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.masks import expected_support
from biases.testing.properties.base import magnitude, promises, rounding_of
from biases.testing.properties.interface import gradients_of
from biases.testing.properties.operands import OPERATOR, lengths, require, run
from biases.testing.subject import NotApplicable, Violation
from biases.traits import Traits

# Inputs after which weights that may be zero, as those of a ReLU, have been positive for every pair.
_COPIES = 24


def not_placed(traits: Traits) -> str | None:
    if traits.causal or traits.window is not None:
        return None
    return "every query may see every key: neither Traits.causal nor Traits.window is declared"


def not_bounded(traits: Traits) -> str | None:
    if traits.window is None:
        return "Traits.window is not declared"
    if traits.gate_sees in ("prefix", "window"):
        return f"Traits.gate_sees is {traits.gate_sees!r}, which reaches beyond the attention window"
    return None


def _sizes(traits: Traits) -> Mapping[str, Any]:
    """Lengths, or maps, that reach beyond the window on both sides, as far as that takes moderate ones."""
    window = traits.window or 6
    if traits.domain == "image":
        return {"max_length": min(max(12, (window + traits.shift) ** 2), 64), "max_batch": 1, "among": ("normal",)}
    longest = min(max(12, 2 * window + 2), 40, traits.max_length or 40)
    return {"max_length": longest, "max_batch": 1, "among": ("normal",)}


def _assert_support(influence: Tensor, expected: Tensor, tolerance: float, vanishing: bool, what: str) -> None:
    """Assert that influence (rows of outputs, columns of inputs) is where it is expected, and nowhere else.

    Args:
        influence: absolute influence, (L, S).
        expected: where there has to be some, bool, (L, S).
        tolerance: the influence that rounding explains.
        vanishing: whether influence may fall below what numbers can hold.
        what: name of the rows, for the message.
    """
    wrong = ~expected & ~(influence <= tolerance)
    kind = "may not see"
    if not wrong.any():
        if vanishing:
            return
        wrong, kind = expected & (influence <= torch.finfo(influence.dtype).eps ** 1.5), "may see, and does not"
    if wrong.any():
        at, of = (int(x) for x in wrong.nonzero()[0])
        seen = (influence[at] > tolerance).nonzero().flatten().tolist()
        should = expected[at].nonzero().flatten().tolist()
        raise Violation(
            f"{what} {at} sees {seen}, expected {should}: it {kind} {of}, whose influence is "
            f"{influence[at, of].item():.3g}\n  {int(wrong.sum())} of {wrong.numel()} pairs wrong, "
            f"shape {tuple(wrong.shape)}, rounding explains {tolerance:.3g}"
        )


def _vanishes(traits: Traits, longest: int) -> bool:
    """Whether a declared decay may leave nothing of a key that may be seen."""
    decay = traits.decay
    if decay is None:
        return False
    return decay.rates is None or (not isinstance(decay.rates, str) and longest * max(decay.rates) > 30)


@promises(
    "support",
    "A query sees exactly the keys that causality, alignment and window leave it.",
    trait="Traits.causal or Traits.window is declared",
    reason=not_placed,
    kinds=OPERATOR,
    domains=("sequence",),
    keys=True,
    choices={"sign": (1.0, -1.0)},
    drawn=None,
)
def operator_support(case: Case) -> None:
    """Key j is favoured by all queries, in example j of the batch, and is the only one with a value."""
    L, S = lengths(case)
    D = case.dim // case.heads
    expected = expected_support(case.subject.traits, L, S)
    direction = case.normal(torch.empty(1, case.heads, 1, D, dtype=case.precise, device=case.device))
    direction = direction / direction.norm(dim=-1, keepdim=True)
    direction = case.example["sign"] * direction
    which = torch.eye(S, dtype=case.precise, device=case.device)[:, None, :, None]
    # The others are not zero: a feature map might leave a query that may not see key j nothing to divide by.
    q, k = direction.expand(S, -1, L, -1).contiguous(), (0.1 + 0.9 * which) * direction
    out = run(case, case.raw(case.precise), q, k, which.expand(-1, case.heads, -1, D).contiguous())
    influence = out.abs().amax(dim=(1, 3)).T.cpu()
    # What a query without any key gives is another promise.
    has_key = expected.any(-1, keepdim=True)
    require(bool(has_key.any()), "no query has a key")
    influence = torch.where(has_key, influence, 0)
    vanishing = _vanishes(case.subject.traits, max(L, S))
    _assert_support(influence, expected, rounding_of(influence), vanishing, f"with L {L} and S {S}, query")


@promises(
    "receptive-field",
    "The tokens that reach an output are those of its window.",
    trait="Traits.window is declared, and no gate reaches beyond it",
    reason=not_bounded,
    kinds=("layer",),
    drawn=_sizes,
)
def receptive_field(case: Case) -> None:
    """Gradients of all outputs at once: each of the T copies of the input in a batch is asked for another output."""
    T, traits = case.length, case.subject.traits
    copies = max(1, min(2 if traits.normalisation == "row" else _COPIES, 4000 // T**2))
    rows = torch.arange(T, device=case.device).repeat(copies)
    single = torch.empty(copies, T, case.dim, dtype=case.precise, device=case.device)
    x = case.normal(single).repeat_interleave(T, 0).requires_grad_()
    out = case.call(case.layer(case.precise), x, grad=True)
    asked = out[torch.arange(len(x), device=case.device), rows][:, None]
    (gradient,) = gradients_of(case, asked, [x])
    if gradient is None:
        raise NotApplicable("the output does not depend on the input")
    influence = gradient.abs().amax(-1).unflatten(0, (copies, T)).amax(0).cpu()
    expected = expected_support(traits, *(case.grid or (T, T)))
    apart = influence[~torch.eye(T, dtype=torch.bool)]
    # Layers often start with a projection of zeros, which "moved" moves.
    reached = case.example["parameters"] == "moved" or magnitude(apart) > 0
    require(reached, "no token reaches the output of another, with the parameters that it starts with")
    longest = sum(case.grid) if case.grid else T
    what = f"in a map {case.grid[0]} x {case.grid[1]}, the output of pixel" if case.grid else f"of {T} tokens, output"
    vanishing = _vanishes(traits, longest) or (traits.normalisation != "row" and copies < _COPIES)
    _assert_support(influence, expected, rounding_of(influence), vanishing, what)
