"""Promises of positional encodings about rounding: phases keep float32 where inputs, modules and matmuls have less.

A phase of 4095 radians that is rounded to bfloat16 is off by up to 8. Catalogue of published faults of this kind:
transformers PR#29285 (autocast), #25681 (buffers cast), #48428 (TF32), modded-nanogpt#39 (tables in bfloat16),
sglang-jax#1473 (frequencies rounded), candle#3520 (positions rounded).
"""

from __future__ import annotations

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import magnitude, promises
from biases.testing.properties.encodings import (
    ENCODING,
    RELATIVE,
    SEQUENCE,
    encode,
    encode_far,
    lengths,
    not_relative,
    product_size,
    products,
    reach,
    rounding,
    tokens,
)
from biases.testing.properties.interface import assert_finite
from biases.testing.strategies import MODERATE
from biases.testing.subject import CastError, NotApplicable, Raised

_FAR = (4095, 301, 1023)


def _positions(case: Case) -> Tensor:
    """T positions in the upper half up to the one drawn, which is the last of them."""
    last = reach(case, case.example["last"])
    positions = last - torch.randint(last // 2 + 1, (case.length,), generator=case.generator(3))
    positions[-1] = last
    return positions.to(case.device)


def _reference(case: Case, x: Tensor, positions: Tensor, rounded_to: torch.dtype | None = None) -> Tensor:
    """The subject's own encoding in float64, or in float32 where that is all it takes.

    Args:
        rounded_to: dtype that its parameters are rounded to first; its buffers are not.
    """
    try:
        return _encoded(case, torch.float64, x, positions, rounded_to)
    except (CastError, Raised):
        return _encoded(case, torch.float32, x, positions, rounded_to)


def _encoded(case: Case, dtype: torch.dtype, x: Tensor, positions: Tensor, rounded_to: torch.dtype | None) -> Tensor:
    layer = case.raw(dtype)
    if rounded_to is not None and isinstance(layer, torch.nn.Module):
        with torch.no_grad():
            for each in layer.parameters():
                each.copy_(each.to(rounded_to))
    return encode_far(case, layer, x.to(dtype), positions).double()


def _assert_near(out: Tensor, reference: Tensor, x: Tensor, positions: Tensor, dtype: torch.dtype, what: str) -> None:
    last = int(positions.max())
    size = max(magnitude(reference), magnitude(x))
    note = f"allowed: 8 roundings in {dtype} and 8 of a phase of {last} radians in float32, of {size:.3g}"
    tolerance = rounding(dtype, last) * size
    where = f"{what} at positions {positions.tolist()}"
    assert_tolerance(out.double(), reference, tolerance=tolerance, what=where, note=note)


@promises(
    "position-budget",
    "The encoding of a float32 or bfloat16 token at a large position is off by the rounding of the token only.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(1, 6, among=MODERATE, choices={"last": _FAR}),
)
def position_budget(case: Case) -> None:
    positions = _positions(case)
    for dtype in (torch.float32, torch.bfloat16):
        x = tokens(case, dtype)
        reference = _reference(case, x, positions)
        try:
            out = encode(case, case.raw(torch.float32), x, positions)
        except Raised:
            # Built in float32, it need not take another dtype.
            if dtype == torch.float32:
                raise
            continue
        _assert_near(out, reference, x, positions, dtype, f"encoding of a {dtype} input")


@promises(
    "dtype-cast-keeps-positions",
    "Casting the module to a lower precision rounds tokens and parameters, and not the positions.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(1, 6, among=MODERATE, choices={"dtype": ("bfloat16", "float16"), "last": _FAR}),
)
def dtype_cast_keeps_positions(case: Case) -> None:
    dtype = getattr(torch, case.example["dtype"])
    if not isinstance(case.raw(torch.float32), torch.nn.Module):
        raise NotApplicable("the encoding is not a torch.nn.Module")
    x, positions = tokens(case, dtype), _positions(case)
    reference = _reference(case, x, positions, dtype)
    try:
        out = encode(case, case.raw(dtype), x, positions)
    except (CastError, Raised) as error:
        raise NotApplicable(f"it does not take {dtype}: {error}") from error
    _assert_near(out, reference, x, positions, dtype, f"encoding by the module cast to {dtype}")


@promises(
    "autocast-keeps-positions",
    "Under autocast to bfloat16 an encoding is off by the rounding of the tokens only.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(1, 6, among=MODERATE, choices={"dtype": ("float32", "bfloat16"), "last": _FAR}),
)
def autocast_keeps_positions(case: Case) -> None:
    dtype = getattr(torch, case.example["dtype"])
    x, positions = tokens(case, dtype), _positions(case)
    reference = _reference(case, x, positions)
    layer = case.raw(torch.float32)
    try:
        with torch.autocast(case.device.type, dtype=torch.bfloat16):
            out = encode(case, layer, x, positions)
    except Raised as error:
        raise NotApplicable(f"it does not take {dtype} under autocast: {error}") from error
    _assert_near(out, reference, x, positions, torch.bfloat16, "encoding under autocast")


@promises(
    "matmul-precision-agreement",
    "Lower precision of float32 matmuls (TF32) rounds tokens at most, and not the positions.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(1, 6, among=MODERATE, choices={"last": _FAR, "precision": ("high", "medium")}),
)
def matmul_precision_agreement(case: Case) -> None:
    x, positions = tokens(case, torch.float32), _positions(case)
    layer, before = case.raw(torch.float32), torch.get_float32_matmul_precision()
    chosen = case.example["precision"]
    try:
        torch.set_float32_matmul_precision("highest")
        reference = encode_far(case, layer, x, positions).double()
        torch.set_float32_matmul_precision(chosen)
        # A new one, so that no table of the first is met.
        out = encode(case, case.raw(torch.float32), x, positions)
    finally:
        torch.set_float32_matmul_precision(before)
    # A rotation may be a matmul itself: at "medium" its tokens are bfloat16.
    what = f"encoding with set_float32_matmul_precision({chosen!r}), against 'highest'"
    _assert_near(out, reference, x, positions, torch.bfloat16, what)


@promises(
    "relative-shift-at-large-positions",
    "Products of float32 or bfloat16 queries and keys depend on their distance only, also at large positions.",
    trait=RELATIVE,
    reason=not_relative,
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, among=MODERATE, choices={"dtype": ("bfloat16", "float32"), "shift": (4095, 1000, 50_000)}),
)
def relative_shift_at_large_positions(case: Case) -> None:
    dtype, shift = getattr(torch, case.example["dtype"]), reach(case, case.example["shift"]) - case.length
    if shift < 1:
        raise NotApplicable(f"Traits.max_length is {case.subject.traits.max_length}, which leaves no room for a shift")
    layer = case.raw(torch.float32)
    q, k = tokens(case, dtype), tokens(case, dtype, 1)
    try:
        here, there = (products(case, layer, q, k, start) for start in (0, shift))
    except Raised as error:
        if dtype == torch.float32:
            raise
        raise NotApplicable(f"built in float32 it does not take {dtype}: {error}") from error
    tolerance = rounding(dtype, shift + case.length) * product_size(q, k)
    what = f"products of {dtype} queries and keys at positions {shift}..{shift + case.length - 1}, against 0.."
    note = "an encoding whose base changes with the length, as that of dynamic NTK, declares where by Traits.max_length"
    assert_tolerance(there, here, tolerance=tolerance, what=what, note=note)


@promises(
    "extrapolates-finite",
    "Positions far beyond the usual have finite encodings, or are refused.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(1, 6, choices={"last": (131_071, 20_000), "dtype": ("float32", "bfloat16")}),
)
def extrapolates_finite(case: Case) -> None:
    x, positions = tokens(case, getattr(torch, case.example["dtype"])), _positions(case)
    out = encode_far(case, case.raw(torch.float32), x, positions)
    assert_finite(out, f"encoding of positions {positions.tolist()}")
