"""Promises that the way of running a layer does not change what it computes.

Autocast, vectorisation over a further axis, compilation and export.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties import precision
from biases.testing.properties.base import assert_alike, magnitude, promises, rounding_of
from biases.testing.properties.gradients import backward, gradient_noise
from biases.testing.properties.interface import assert_finite
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer, NotApplicable, Raised, cast, told
from biases.traits import Traits

_SOME = ("normal", "one-hot", "alternating-sign")
_FEW: dict[str, Any] = {"among": _SOME, "max_length": 8, "max_batch": 2}


def _long(traits: Traits) -> dict[str, Any]:
    fitting = [length for length in (8, 128) if length <= (traits.max_length or length)]
    sizes = {"length": fitting or [1]} if traits.domain == "sequence" else {}
    return {"among": _SOME, "max_batch": 1, "choices": sizes}


@promises(
    "autocast-agreement",
    "Under autocast to bfloat16, the output is off from float64 by no more than that rounding explains.",
    drawn=_long,
)
def autocast_agreement(case: Case) -> None:
    reference = precision.float64_reference(case, torch.bfloat16)
    layer = cast(precision.rounded_layer(case, torch.bfloat16), torch.float32)
    x = case.input(torch.float32, drawn_as=torch.bfloat16)
    with torch.autocast(case.device.type, torch.bfloat16):
        try:
            out = case.call(layer, x)
        except Raised as error:
            raise NotApplicable(f"the layer does not run under autocast: {error}") from error
    assert_finite(out, "output under autocast")
    off = max(magnitude(low.double() - reference.output) for low in reference.honest)
    assert_tolerance(
        out.double(),
        reference.output,
        tolerance=2 * reference.budget,
        what="output under autocast",
        note=f"rounding the parameters and the input to bfloat16 alone moves it by {off:.3g}",
    )


@promises(
    "vmap-agreement",
    "torch.func.vmap over stacked inputs gives what a loop over them gives.",
    among=MODERATE,
    max_batch=2,
    choices={"axis": (0, 1)},
)
def vmap_agreement(case: Case) -> None:
    layer, x, out = case.run(case.precise)
    others = [x, case.normal(x, 2), case.normal(x, 3)]
    expected = [out, *(case.call(layer, each) for each in others[1:])]
    axis = case.example["axis"]
    with torch.no_grad(), _quiet():
        try:
            got = torch.func.vmap(layer, in_dims=axis)(torch.stack(others, axis))
        except Exception as error:
            raise NotApplicable(f"the layer does not run under vmap: {told(error)}") from error
    for k, (each, want) in enumerate(zip(others, expected, strict=True)):
        assert_alike(case, layer, each, want, (got[k], want), f"output {k} under vmap along axis {axis}")


@promises(
    "compile-agreement",
    "torch.compile changes neither the output nor the gradient for the input.",
    slow=True,
    **_FEW,
    choices={"shapes": ("static", "dynamic")},
)
def compile_agreement(case: Case) -> None:
    dynamic = case.example["shapes"] == "dynamic"
    layer, fresh = case.layer(case.precise), case.layer(case.precise)
    inputs = [case.input(case.precise)]
    if dynamic:
        inputs.append(case.normal(inputs[0].new_empty(case.shape[0], case.longer(3), case.dim)))
    torch._dynamo.reset()
    try:
        with _quiet():
            compiled = torch.compile(fresh, dynamic=dynamic)
            for x in inputs:
                _assert_compiled(case, layer, compiled, x)
    finally:
        torch._dynamo.reset()


def _assert_compiled(case: Case, layer: Layer, compiled: Layer, x: Tensor) -> None:
    with_grad = x.detach().requires_grad_()
    expected = case.call(layer, with_grad, grad=True)
    x_compiled = x.detach().requires_grad_()
    try:
        out = case.call(compiled, x_compiled, grad=True)
    except Raised as error:
        raise NotApplicable(f"the layer cannot be compiled here: {error}") from error
    eager = expected.detach()
    assert_alike(case, layer, x, eager, (out.detach(), eager), f"output of the compiled layer, {x.shape[1]} tokens")
    incoming = case.normal(expected, 2)
    (want,), (got,) = backward(expected, [with_grad], incoming), backward(out, [x_compiled], incoming)
    if want is None or got is None:
        return
    tolerance = rounding_of(want) + 8 * gradient_noise(case, layer, x, incoming, want)
    assert_tolerance(got, want, tolerance=tolerance, what="gradient of the compiled layer", nan_equal=True)


@promises(
    "export-agreement",
    "What torch.export makes of the layer computes the same.",
    slow=True,
    **_FEW,
)
def export_agreement(case: Case) -> None:
    layer, x = case.module(case.precise), case.input(case.precise)
    out = case.call(layer, x)
    with torch.no_grad(), _quiet():
        try:
            exported = torch.export.export(layer, (x,)).module()
        except Exception as error:
            raise NotApplicable(f"the layer cannot be exported: {told(error)}") from error
    for k, each in enumerate((x, case.normal(x, 2))):
        expected = out if k == 0 else case.call(layer, each)
        what = "output of the exported layer for the input that it was " + ("exported with", "not exported with")[k]
        assert_alike(case, layer, each, expected, (case.call(exported, each), expected), what)


@contextmanager
def _quiet() -> Iterator[None]:
    """What is slow or deprecated is said to those who run it, not to those who check it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
