"""Promises of the backward pass: it is the derivative, whatever the layout of the gradient that comes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import magnitude, promises, rounding_of
from biases.testing.strategies import strided
from biases.testing.subject import Layer, NotApplicable, Violation, told
from biases.traits import Traits

# Away from kinks and from statistics of nothing: there the derivative is a matter of convention.
_SMOOTH = ("normal", "one-hot", "alternating-sign")
_STEPS = (4e-3, 2e-3, 1e-3)
_FINE_STEPS = (4e-6, 2e-6, 1e-6)
# Just above blocks, whose rest a backward pass may leave out.
_BEYOND = (17, 33, 65, 129)


def _lengths(traits: Traits) -> Mapping[str, Any]:
    choices: dict[str, Any] = {"of": ("input", "parameters")}
    if traits.domain == "sequence":
        choices["length"] = (*range(1, 9), *_BEYOND)
    return {"among": _SMOOTH, "max_length": 8, "max_batch": 2, "choices": choices}


@promises(
    "gradient-is-derivative",
    "The gradient is the derivative of the output, for the input and for the parameters.",
    drawn=_lengths,
)
def gradient_is_derivative(case: Case) -> None:
    if case.precise != torch.float64:
        raise NotApplicable("the layer does not take float64, in which derivatives are measured")
    layer, x = case.layer(torch.float64), _off_kinks(case).requires_grad_()
    moving = _moving(case, layer, x)
    weighting = case.normal(x, 2)
    terms = case.call(layer, x, grad=True) * weighting
    gradients = backward(terms, moving, torch.ones_like(terms))
    directions = [case.normal(each, 3 + k) * _scale(each) for k, each in enumerate(moving)]
    if case.example["of"] == "input" and case.length > 8:
        # Of many tokens the last would hardly count.
        directions[0][:, :-1] *= 0.1
    pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g is not None]
    claimed = sum((g * d).sum().item() for g, d in pairs)
    size = sum((g * d).square().sum().item() for g, d in pairs) ** 0.5

    def value(step: float) -> float:
        with torch.no_grad():
            for each, direction in zip(moving, directions, strict=True):
                each.add_(step * direction)
            total = (case.call(layer, x) * weighting).sum().item()
            for each, direction in zip(moving, directions, strict=True):
                each.sub_(step * direction)
        return total

    steps = _STEPS
    measured, doubt = _derivative(value, steps)
    # Layers may compute in float32 inside.
    doubt += 4 * torch.finfo(torch.float32).eps * terms.detach().norm().item() / min(steps)
    if abs(claimed - measured) > 1e-3 * size + doubt:
        # What bends within a step is seen by finer ones, unless the layer's own rounding blurs them.
        finely, blur = _derivative(value, _FINE_STEPS)
        if blur < doubt:
            steps, measured, doubt = _FINE_STEPS, finely, blur
    assert_tolerance(
        torch.tensor(claimed, dtype=torch.float64),
        torch.tensor(measured, dtype=torch.float64),
        tolerance=1e-3 * size + doubt,
        what=f"derivative along a random direction of the {case.example['of']}",
        note=f"got by autograd, expected from central differences with steps {steps}, which are sure to {doubt:.3g}",
    )


def _off_kinks(case: Case) -> Tensor:
    """The input, a little off: heads of zeros, as one-hot tokens have, are where ReLU and norms have no derivative."""
    x = case.input(torch.float64).detach()
    if case.example["regime"] != "one-hot":
        return x
    if case.subject.kind in ("operator", "encoding"):
        raise NotApplicable("heads of one-hot tokens are zeros, where there need be no derivative")
    return x + 0.05 * case.normal(x, 5)


def _moving(case: Case, layer: Layer, x: Tensor) -> list[Tensor]:
    if case.example["of"] == "input":
        return [x]
    if trained := trained_parameters(layer):
        # A clamp or a ReLU may have its kink just where parameters begin.
        with torch.no_grad():
            for k, each in enumerate(trained):
                each.add_(0.05 * _scale(each) * case.normal(each, 10_000 + k))
        return trained
    raise NotApplicable("there are no trainable parameters")


def trained_parameters(layer: Layer) -> list[Tensor]:
    """The parameters that require a gradient; none where the layer is no module."""
    parameters = layer.parameters() if isinstance(layer, torch.nn.Module) else ()
    return [each for each in parameters if each.requires_grad]


def _scale(x: Tensor) -> float:
    return magnitude(x.detach()) or 1.0


def _derivative(value: Callable[[float], float], steps: Sequence[float]) -> tuple[float, float]:
    """The derivative at 0, and how much it may be off: what steps and sides do not agree on."""
    here = value(0.0)
    central, asymmetry = [], []
    for step in steps:
        above, below = value(step), value(-step)
        central.append((above - below) / (2 * step))
        asymmetry.append(abs(above - 2 * here + below) / step)
    finer = [(4 * b - a) / 3 for a, b in pairwise(central)]
    spread = max(abs(a - b) for a in [*central, *finer] for b in [*central, *finer])
    return finer[-1], 10 * spread + 2 * asymmetry[-1]


@promises(
    "noncontiguous-gradient",
    "The backward pass depends on the values of the incoming gradient, not on its strides.",
    among=_SMOOTH,
    choices={"layout": ("transposed", "strided", "expanded")},
)
def noncontiguous_gradient(case: Case) -> None:
    layer, x = case.layer(case.precise), case.input(case.precise).detach().requires_grad_()
    out = case.call(layer, x, grad=True)
    incoming = case.normal(out, 2)
    match case.example["layout"]:
        case "expanded":
            laid_out = torch.ones_like(out[:1, :1, :1]).expand_as(out)
            incoming = laid_out.contiguous()
        case "transposed":
            laid_out = incoming.transpose(1, 2).contiguous().transpose(1, 2)
        case _:
            laid_out = strided(incoming)
    inputs = [x, *trained_parameters(layer)]
    expected = backward(out, inputs, incoming)
    again = case.call(layer, x, grad=True)
    for k, (got, want) in enumerate(zip(backward(again, inputs, laid_out), expected, strict=True)):
        if want is None or got is None:
            continue
        name = "the input" if k == 0 else f"parameter {k - 1}, of shape {tuple(want.shape)}"
        what = f"gradient for {name}, the incoming one being {case.example['layout']}"
        noise = gradient_noise(case, layer, x, incoming, want) if k == 0 else _summed(want, x)
        assert_tolerance(got, want, tolerance=rounding_of(want) + 8 * noise, what=what, nan_equal=True)


def _summed(gradient: Tensor, x: Tensor) -> float:
    """Rounding of a sum over all tokens whose terms may cancel."""
    return torch.finfo(torch.float32).eps * x.shape[0] * x.shape[1] * max(1.0, magnitude(x.detach(), gradient))


def backward(out: Tensor, inputs: list[Tensor], incoming: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients for ``inputs``, given the gradient of ``out``.

    Raises:
        NotApplicable: the output carries no gradient.
        Violation: the backward pass raised.
    """
    if not out.requires_grad:
        raise NotApplicable("the output carries no gradient")
    try:
        return torch.autograd.grad(out, inputs, incoming, allow_unused=True)
    except Exception as error:
        raise Violation(f"the backward pass raised {told(error)}") from error


def gradient_noise(case: Case, layer: Layer, x: Tensor, incoming: Tensor, gradient: Tensor) -> float:
    """How far rounding the input in float32 moves the gradient for it, which was ``gradient``."""
    eps = max(torch.finfo(torch.float32).eps, torch.finfo(x.dtype).eps)
    moved = 0.0
    for draw in range(2):
        sign = torch.rand(x.shape, generator=case.generator(30 + draw), dtype=torch.float64).round() * 2 - 1
        near = (x.detach() * (1 + eps * sign).to(x)).requires_grad_()
        (other,) = backward(case.call(layer, near, grad=True), [near], incoming)
        moved = max(moved, 0.0 if other is None else magnitude(other - gradient))
    return moved
