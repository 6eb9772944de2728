"""Layers, models and steps of training compared with their specification."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biases.bench.passes import Finish, run_layer, training_step, whole_pass
from biases.layers.self_attention import set_backend, specification

if TYPE_CHECKING:
    from biases.bench.workloads import Setting


def compare(
    module: nn.Module,
    x: Tensor,
    finish: Finish,
    grad: Tensor | None,
    setting: Setting,
    name: str,
    *,
    step: bool = False,
) -> None:
    """Compare with the module in float64 on the reference backend, in the mode that the module is in.

    Args:
        step: compare a step of training: its loss, the gradients that it leaves, and that the weights stay.

    Raises:
        AssertionError: something is off by more than ``2 (max|low - ref64| + eps(dtype) max|ref64|)``, where ``low``
            is the module with dense attention in its dtype. Both maxima are taken over the gradients by everything:
            some are sums that cancel, and where rounding is amplified, by whom is chance.
    """
    from biases.testing.compare import assert_tolerance, assert_within, error_budget

    exact = specification(module)
    dense = set_backend(copy.deepcopy(module), "dense")
    wide = x.detach().double() if x.is_floating_point() else x
    reference = whole_pass(exact, wide, finish, None if grad is None else grad.double(), setting)()
    low = whole_pass(dense, x.detach().clone(), finish, grad, setting)()
    labels = ["the input"] if x.is_floating_point() else []
    if step:
        actual = _stepped(module, x.detach().clone(), finish, name)
        reference, low = ((out[0], *out[1 + len(labels) :]) for out in (reference, low))
        labels = []
    else:
        actual = whole_pass(module, x.detach().clone(), finish, grad, setting)()
    assert_within(actual[0], reference[0], low[0], what=f"{name}: output")
    largest = max((float(each.abs().max()) for each in reference[1:]), default=0.0)
    budgets = (error_budget(*each, magnitude=largest) for each in zip(reference[1:], low[1:], strict=True))
    budget = max(budgets, default=0.0)
    labels += [label for label, parameter in module.named_parameters() if parameter.requires_grad]
    for label, got, wanted in zip(labels[: len(actual) - 1], actual[1:], reference[1:], strict=True):
        assert_tolerance(got.double(), wanted, tolerance=budget, what=f"{name}: gradient of {label}")


def _stepped(module: nn.Module, x: Tensor, loss: Finish, name: str) -> tuple[Tensor, ...]:
    """The loss of a step of training and the gradients by the parameters.

    Raises:
        AssertionError: a weight is not what it was, as after a gradient that is not finite.
    """
    from biases.testing.compare import assert_same

    learned = {label: parameter for label, parameter in module.named_parameters() if parameter.requires_grad}
    before = {label: parameter.detach().clone() for label, parameter in learned.items()}
    (value,) = training_step(module, x, loss)()
    for label, parameter in learned.items():
        assert_same(parameter.detach(), before[label], what=f"{name}: {label} after a step at learning rate 0")
    grads = (torch.zeros_like(each) if each.grad is None else each.grad for each in learned.values())
    return (value, *grads)


def assert_finite(results: Iterable[Any], name: str, setting: Setting) -> None:
    """The results of the run that is timed, where the comparison is at a smaller size.

    Raises:
        AssertionError: one of them is not finite.
    """
    for number, each in enumerate(results):
        if not torch.isfinite(each).all():
            raise AssertionError(f"{name}: result {number} of the run at {setting.length} tokens is not finite")


def check_same_function(other: nn.Module, ours: nn.Module, x: Tensor, setting: Setting, name: str) -> None:
    """Compare another layer of the same weights with ours: outputs, and gradients by the input.

    Raises:
        AssertionError: as for a layer of our own.
    """
    from biases.testing.compare import assert_within

    wide = replace(setting, dtype="float64")
    reference = run_layer(specification(ours), x.detach().double(), wide)()
    low = run_layer(set_backend(copy.deepcopy(ours), "dense"), x.detach().clone(), setting)()
    actual = run_layer(other, x.detach().clone(), setting)()
    for label, got, wanted, rounded in zip(("output", "gradient of the input"), actual, reference, low, strict=False):
        assert_within(got, wanted, rounded, what=f"{name}: {label}")
