"""Promises about rounding: a layer in low precision stays near its float64 self.

Tolerance rule: attention-gym (``attn_gym/testing/kda.py``), see :mod:`biases.testing.compare`. An arbitrary
layer has no
reference in low precision, so the honest error is measured instead: what rounding every parameter and the
input does to the float64 result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance, error_budget
from biases.testing.properties.base import magnitude, promises
from biases.testing.strategies import MODERATE
from biases.testing.subject import CastError, Layer, NotApplicable, Raised, Violation
from biases.traits import Traits

_EPS32, _EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
_LOW = (torch.float16, torch.bfloat16, torch.float32)
# Beyond 256 positions rounded to bfloat16 are off by 1, and phases by a radian; larger tokens let the logits show it.
_LONG, _LARGER = (280, 300), 4.0


@promises(
    "float64-agreement",
    "The float32 output is the float64 output up to float32 rounding, without lower precision inside.",
    among=MODERATE,
    max_length=16,
)
def float64_agreement(case: Case) -> None:
    _, _, out = case.run(torch.float32)
    _assert_budget(out, float64_reference(case, torch.float32), 4, "float32 output")


def _short_and_long(traits: Traits) -> Mapping[str, Any]:
    if traits.domain == "image":
        return {"among": MODERATE, "max_length": 32}
    lengths = (1, 2, 5, 11, 16, 32, *_LONG)
    return {"among": MODERATE, "max_batch": 1, "max_length": 32, "choices": {"length": lengths}}


@promises(
    "bfloat16-budget",
    "The bfloat16 output is off from float64 by no more than rounding parameters and input explains.",
    drawn=_short_and_long,
)
def bfloat16_budget(case: Case) -> None:
    x = case.input(torch.bfloat16)
    if case.length > 256:
        x = _LARGER * case.normal(x)
    try:
        out = case.call(case.layer(torch.bfloat16), x)
    except (CastError, Raised) as error:
        case.run(torch.float32)
        raise NotApplicable(f"the layer runs in float32 and does not take bfloat16: {error}") from error
    _assert_budget(out, float64_reference(case, torch.bfloat16, x), 2, "bfloat16 output")


class _Float64Inside(TorchDispatchMode):
    """Turn casts to a lower floating dtype, and the eps of float64, into what makes the float64 reference.

    Notes the size of intermediate results.

    Attributes:
        scale: the largest value among results of the output's shape: where these cancel, their rounding is left.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.scale = shape, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        chosen = dict(kwargs or {})
        if chosen.get("dtype") in _LOW:
            chosen["dtype"] = torch.float64
        # torch.nn.RMSNorm without an eps takes that of the dtype it computes in, float32 at the least.
        args = tuple(_EPS32 if isinstance(each, float) and each == _EPS64 else each for each in args)
        if func is torch.ops.aten._fused_rms_norm.default and args[3] is None:
            args = (*args[:3], _EPS32)
        out = func(*args, **chosen)
        if isinstance(out, Tensor) and out.shape == self.shape and out.is_floating_point():
            self.scale = max(self.scale, magnitude(out))
        return out


@dataclass(frozen=True)
class Reference:
    """The float64 output, outputs that are honestly rounded, and the absolute error that rounding explains."""

    output: Tensor
    honest: list[Tensor]
    budget: float


def float64_reference(case: Case, dtype: torch.dtype, given: Tensor | None = None) -> Reference:
    """The reference for parameters and input rounded to ``dtype``; the input is the case's own, or the one given.

    Buffers are not rounded: a table of positions or slopes that loses its precision is a fault.
    """
    if case.precise != torch.float64:
        raise NotApplicable("the layer does not take float64, so that it has no reference")
    x = case.input(torch.float64, drawn_as=dtype) if given is None else given.double()
    output, scale = call_float64(case, rounded_layer(case, dtype), x)
    honest = []
    for draw in range(3):
        generator = case.generator(20 + draw)
        near = _spread(x, dtype, generator)
        honest.append(call_float64(case, rounded_layer(case, dtype, generator), near)[0].to(dtype))
    budget = max(error_budget(output, low) for low in honest) + 2 * torch.finfo(dtype).eps * scale
    return Reference(output, honest, budget)


def rounded_layer(case: Case, dtype: torch.dtype, generator: torch.Generator | None = None) -> Layer:
    """In float64, parameters rounded to ``dtype``; a generator spreads those that are trained by that rounding."""
    layer = case.layer(torch.float64)
    if isinstance(layer, torch.nn.Module):
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.is_floating_point():
                    rounded = parameter.to(dtype).to(torch.float64)
                    parameter.copy_(
                        _spread(rounded, dtype, generator) if generator and parameter.requires_grad else rounded
                    )
    return layer


def _spread(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    by = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return x * (1 + torch.finfo(dtype).eps * by.to(x))


def call_float64(case: Case, layer: Layer, x: Tensor) -> tuple[Tensor, float]:
    """The output of a layer in float64 with float64 inside too, and the size of intermediate results."""
    mode = _Float64Inside(x.shape)
    try:
        with mode:
            out = case.call(layer, x)
    except Violation:
        # A float32 tensor made inside the layer no longer meets its like: plain float64 is next best.
        out = case.call(layer, x)
    return out.to(torch.float64), mode.scale


def _assert_budget(out: Tensor, reference: Reference, factor: int, what: str) -> None:
    dtype = reference.honest[0].dtype
    if out.dtype != dtype:
        raise Violation(f"{what}: expected dtype {dtype}, got {out.dtype}")
    off = max(magnitude(low.double() - reference.output) for low in reference.honest)
    note = f"rounding the parameters and the input to {dtype} alone moves it by {off:.3g}"
    tolerance = factor * reference.budget
    assert_tolerance(out.double(), reference.output, tolerance=tolerance, what=what, note=note, nan_equal=True)
