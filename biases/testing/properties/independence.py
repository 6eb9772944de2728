"""Promises that examples, and layers, do not influence one another."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import assert_alike, promises, rounding_of
from biases.testing.strategies import MODERATE, WIDTHS, make_tensor
from biases.testing.subject import BuildError, Violation, cast


@promises(
    "batch-independence",
    "An example's output depends neither on the other examples of the batch nor on their number.",
    min_batch=2,
    choices={"others": ("removed", "replaced")},
)
def batch_independence(case: Case) -> None:
    layer, x, out = case.run(case.precise)
    if case.example["others"] == "removed":
        got, what = case.call(layer, x[:1]), "output of example 0 alone"
    else:
        replaced = case.normal(x)
        replaced[:1] = x[:1]
        got, what = case.call(layer, replaced)[:1], "output of example 0 beside others"
    assert_alike(case, layer, x, out, (got, out[:1]), what)


@promises("batch-permutation", "Permuting the batch permutes the outputs.", min_batch=2)
def batch_permutation(case: Case) -> None:
    layer, x, out = case.run(case.precise)
    order = torch.randperm(len(x), generator=case.generator())
    if torch.equal(order, torch.arange(len(x))):
        order = order.flip(0)
    got = case.call(layer, x[order])
    assert_alike(case, layer, x, out, (got, out[order]), f"output for the batch in the order {order.tolist()}")


@promises(
    "no-hidden-state",
    "Neither other layers, built or called in between, nor earlier calls change a layer's output.",
    among=MODERATE,
)
def no_hidden_state(case: Case) -> None:
    x = case.input(case.precise)
    with case.subject.isolated():
        alone = case.call(case.layer(case.precise), x)
    _use_others(case)
    layer = case.layer(case.precise)
    out = case.call(layer, x)
    _assert_unmoved(out, alone, "output after other layers were used, against before")
    for length in (case.length, case.longer(3)):
        shape = (case.example["batch"] + 1, length, case.dim)
        case.call(layer, make_tensor(shape, seed=case.example["seed"] + 1, dtype=case.precise).to(case.device))
    _use_others(case)
    _assert_unmoved(case.call(layer, x), out, "output after calls in between, against before")


def _assert_unmoved(actual: Tensor, expected: Tensor, what: str) -> None:
    assert_tolerance(actual, expected, tolerance=rounding_of(expected), what=what, nan_equal=True)


def _use_others(case: Case) -> None:
    """Build and call the same layer with other parameters, without options, and in other widths."""
    dim, heads, options = case.dim, case.heads, dict(case.subject.options)
    others = [(dim, heads, options), *((*width, options) for width in WIDTHS[:3])]
    if options:
        others.append((dim, heads, {}))
    seed = case.example["seed"] + 1
    for width, count, chosen in others:
        # Whether those layers work is not the question here.
        with suppress(BuildError, Violation):
            raw = cast(case.subject.build(width, count, seed=seed, options=chosen), case.precise, case.device)
            layer = case.subject.seen_as_layer(raw, count)
            case.call(layer, make_tensor((2, case.length, width), seed=seed, dtype=case.precise).to(case.device))
