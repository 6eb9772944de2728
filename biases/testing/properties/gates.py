"""Promises of gates, callables x (B, T, C) -> (B, T, ...): their range, what they see, and their behaviour at extremes.

Catalogue of published faults of this kind: flash-sparse-attention#146, fla#461, fla#649.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_same, assert_tolerance
from biases.testing.properties.base import magnitude, promises, rounding_of
from biases.testing.properties.interface import assert_finite
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer, NotApplicable, Violation
from biases.traits import Traits

GATE = ("gate",)
IS_GATE = "the subject is a gate"


def sight(traits: Traits) -> str | None:
    """``"token"`` or ``"prefix"``: what a gate may see; ``None``: everything. A causal one sees its prefix at most."""
    if traits.gate_sees == "token":
        return "token"
    return "prefix" if traits.causal or traits.gate_sees == "prefix" else None


def sees_all(traits: Traits) -> str | None:
    if sight(traits) is not None:
        return None
    return "Traits.gate_sees is neither 'token' nor 'prefix', and Traits.causal is False"


def gate_of(case: Case, gate: Layer, x: Tensor, *, grad: bool = False) -> Tensor:
    """The gate of each token.

    Raises:
        Violation: it raised, or returned something else than a floating tensor (B, T, ...).
    """
    out = case.invoke(gate, x, grad=grad)
    if not isinstance(out, Tensor):
        raise Violation(f"the gate returned {type(out).__name__}, expected a tensor (B, T, ...)")
    if out.shape[:2] != x.shape[:2]:
        raise Violation(f"gate: expected shape ({x.shape[0]}, {x.shape[1]}, ...), got {tuple(out.shape)}")
    if not out.is_floating_point():
        raise Violation(f"gate: expected dtype {x.dtype}, got {out.dtype}")
    return out


def _noise(case: Case, gate: Layer, x: Tensor, out: Tensor) -> float:
    """How far rounding the input in float32 moves the gate."""
    sign = torch.rand(x.shape, generator=case.generator(10), dtype=torch.float64).round() * 2 - 1
    nearby = gate_of(case, gate, x * (1 + torch.finfo(torch.float32).eps * sign).to(x))
    return magnitude(nearby - out)


@promises(
    "gate-shape",
    "The gate is a floating tensor with its first axes those of the tokens, (B, T, ...).",
    trait=IS_GATE,
    kinds=GATE,
)
def gate_shape(case: Case) -> None:
    gate_of(case, case.raw(case.single), case.input(case.single))


@promises("gate-input-unchanged", "The gate does not write to its input.", trait=IS_GATE, kinds=GATE)
def gate_input_unchanged(case: Case) -> None:
    gate, x = case.raw(case.single), case.input(case.single)
    before = x.clone()
    gate_of(case, gate, x)
    assert_same(x, before, "input after the call")


@promises(
    "gate-finite",
    "A finite input gives a finite gate with finite gradients; a bounded gate does so on large inputs too.",
    trait=IS_GATE,
    kinds=GATE,
    among=MODERATE,
)
def gate_finite(case: Case) -> None:
    traits = case.subject.traits
    # An exponential, whose range is not bounded, may overflow on large inputs.
    bounded = traits.gate_range is not None and all(math.isfinite(end) for end in traits.gate_range)
    for regime in dict.fromkeys((case.example["regime"], "zeros", "equal-tokens", *(["large"] if bounded else []))):
        _assert_gate_finite(replace(case, example={**case.example, "regime": regime}), f"on the regime {regime!r}")


def _assert_gate_finite(case: Case, where: str) -> None:
    gate, x = case.raw(case.single), case.input(case.single).detach().requires_grad_()
    out = gate_of(case, gate, x, grad=True)
    assert_finite(out.detach(), f"gate {where}")
    if out.requires_grad:
        (gradient,) = torch.autograd.grad(out.sum(), x, allow_unused=True)
        if gradient is not None:
            assert_finite(gradient, f"gradient of the gate for the input {where}")


def no_range(traits: Traits) -> str | None:
    return None if traits.gate_range is not None else "Traits.gate_range is not set"


@promises(
    "gate-range",
    "The gate lies in its range; the ends are reached by rounding only.",
    trait="Traits.gate_range is set",
    reason=no_range,
    kinds=GATE,
)
def gate_range(case: Case) -> None:
    traits = case.subject.traits
    assert traits.gate_range is not None
    low, high = traits.gate_range
    out = gate_of(case, case.raw(case.precise), case.input(case.precise))
    ends = [abs(end) for end in (low, high) if math.isfinite(end)]
    tolerance = 8 * max(torch.finfo(out.dtype).eps, torch.finfo(torch.float32).eps) * max(ends, default=0.0)
    values = out.detach().double()
    wrong = ~((values >= low - tolerance) & (values <= high + tolerance))
    if wrong.any():
        place = tuple(int(i) for i in wrong.nonzero()[0])
        raise Violation(
            f"gate at index {place}: expected a number between {low:g} and {high:g}, got {values[place].item():.9g}; "
            f"{int(wrong.sum())} of {wrong.numel()} elements wrong, shape {tuple(out.shape)}"
        )


@promises(
    "gate-sight",
    "Changing tokens that the gate of a token does not see does not change it.",
    trait="Traits.gate_sees is 'token' or 'prefix', or Traits.causal is True",
    reason=sees_all,
    kinds=GATE,
    domains=("sequence",),
    min_length=2,
    cut=True,
    choices={"change": ("small", "large")},
)
def gate_sight(case: Case) -> None:
    gate, x = case.raw(case.precise), case.input(case.precise)
    out = gate_of(case, gate, x)
    t, draw = case.example["position"], case.normal(x)
    near = x + 0.1 * (magnitude(x) or 1.0) * draw if case.example["change"] == "small" else 1e4 * draw
    kept = _kept(case, t)
    changed = torch.where(kept[None, :, None].to(x.device), x, near)
    after = gate_of(case, gate, changed)
    assert_tolerance(
        after[:, t],
        out[:, t],
        tolerance=max(rounding_of(out), rounding_of(after)) + 8 * _noise(case, gate, x, out),
        what=f"gate of token {t} after changing {_others(case, t)}",
        nan_equal=True,
    )


@promises(
    "gate-sight-gradient",
    "The gradient of the gate of a token is zero for the tokens that it does not see.",
    trait="Traits.gate_sees is 'token' or 'prefix', or Traits.causal is True",
    reason=sees_all,
    kinds=GATE,
    domains=("sequence",),
    min_length=2,
    cut=True,
)
def gate_sight_gradient(case: Case) -> None:
    gate, x = case.raw(case.precise), case.input(case.precise).detach().requires_grad_()
    t = case.example["position"]
    out = gate_of(case, gate, x, grad=True)[:, t]
    if not out.requires_grad:
        raise NotApplicable("the gate has no gradient")
    weight = case.normal(out.detach(), purpose=2)
    (gradient,) = torch.autograd.grad((out * weight).sum(), x, allow_unused=True)
    if gradient is None:
        return
    kept = _kept(case, t)
    unseen = gradient[:, ~kept]
    assert_tolerance(
        unseen,
        torch.zeros_like(unseen),
        tolerance=rounding_of(gradient[:, kept]),
        what=f"gradient of the gate of token {t} for {_others(case, t)}",
    )


def _kept(case: Case, t: int) -> Tensor:
    """Which tokens the gate of token ``t`` sees, (T,)."""
    tokens = torch.arange(case.length)
    return tokens == t if sight(case.subject.traits) == "token" else tokens <= t


def _others(case: Case, t: int) -> str:
    if sight(case.subject.traits) == "token":
        return f"the other tokens of 0..{case.length - 1}"
    return f"the tokens {t + 1}..{case.length - 1}"


@promises(
    "gate-batch-independence",
    "The gates of an example depend neither on the other examples of the batch nor on their number.",
    trait=IS_GATE,
    kinds=GATE,
    min_batch=2,
    choices={"others": ("removed", "replaced")},
)
def gate_batch_independence(case: Case) -> None:
    gate, x = case.raw(case.precise), case.input(case.precise)
    out = gate_of(case, gate, x)
    if case.example["others"] == "removed":
        got, what = gate_of(case, gate, x[:1]), "gate of example 0 alone"
    else:
        replaced = torch.cat([x[:1], case.normal(x)[1:]])
        got, what = gate_of(case, gate, replaced)[:1], "gate of example 0 beside others"
    tolerance = rounding_of(out) + 8 * _noise(case, gate, x, out)
    assert_tolerance(got, out[:1], tolerance=tolerance, what=what, nan_equal=True)


def not_monotone(traits: Traits) -> str | None:
    return None if traits.gate_monotone_in == "norm" else "Traits.gate_monotone_in is not 'norm'"


@promises(
    "gate-monotonicity",
    "A token scaled up, all else equal, never has a smaller gate.",
    trait="Traits.gate_monotone_in is 'norm'",
    reason=not_monotone,
    kinds=GATE,
    choices={"factor": (2.0, 1.1, 10.0)},
)
def gate_monotonicity(case: Case) -> None:
    # Parameters that start at zero may be moved to either side of it, and with them the direction of the gate.
    as_made = replace(case, example={**case.example, "parameters": "initial"})
    gate, x = as_made.raw(case.precise), case.input(case.precise)
    out = gate_of(case, gate, x)
    t, factor = case.example["seed"] % case.length, case.example["factor"]
    scaled = x.clone()
    scaled[:, t] *= factor
    after = gate_of(case, gate, scaled)
    fall = (out[:, t] - after[:, t]).clamp(min=0.0)
    assert_tolerance(
        fall,
        torch.zeros_like(fall),
        tolerance=max(rounding_of(out), rounding_of(after)) + 8 * _noise(case, gate, x, out),
        what=f"fall of the gate of token {t} as the token is multiplied by {factor:g}",
    )
