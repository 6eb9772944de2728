"""Comparators: how far apart two tensors are, and how far apart rounding allows them to be.

The rule for low precision is that of attention-gym (``attn_gym/testing/kda.py``): the reference is computed
in float64, and an implementation may be off by twice what an honest computation in its own precision is off
by.

Every comparator raises :class:`AssertionError` with what was compared, got against expected, the index of the
worst element, shapes and dtypes. A value that is not finite on one side only is always a failure; infinities
of one sign on both sides are equal; NaN on both sides is equal only where ``nan_equal=True``.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from biases._checks import fail

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def error_budget(reference64: Tensor, low: Tensor, *, magnitude: float = 0.0) -> float:
    """How far a result in ``low``'s precision may lie from the float64 reference.

    ``2 (max|low - reference64| + eps(low.dtype) max(max|reference64|, magnitude))``, over the elements finite in
    both.

    Args:
        reference64: the specification, in float64; any shape.
        low: an honest computation in the precision under test; same shape.
        magnitude: size of the terms that the result is a sum of, where they may cancel: a gradient that is exactly
            zero because its terms cancel is only zero up to their rounding.

    Returns:
        An absolute error, in the unit of the output.

    Raises:
        ValueError: ``reference64`` is not float64, ``low`` is not floating, or the shapes differ.
    """
    _check_reference(reference64, low)
    finite = reference64.isfinite() & low.isfinite()
    if not finite.any():
        return 0.0
    reference = reference64[finite]
    error = (low[finite].double() - reference).abs().max().item()
    return 2 * (error + torch.finfo(low.dtype).eps * max(reference.abs().max().item(), magnitude))


def assert_within(
    actual: Tensor,
    reference64: Tensor,
    low: Tensor,
    *,
    what: str = "output",
    magnitude: float = 0.0,
    nan_equal: bool = False,
) -> None:
    """Assert that ``actual`` is as close to the float64 reference as :func:`error_budget` asks.

    Args:
        actual: the result under test; same shape and dtype as ``low``.
        reference64: the specification, in float64; same shape.
        low: an honest computation in the dtype of ``actual``; same shape.
        what: name of the compared thing, for the message.
        magnitude: see :func:`error_budget`.
        nan_equal: whether NaN on both sides counts as equal.

    Raises:
        AssertionError: shape or dtype differ, or the error is over the budget.
        ValueError: ``reference64`` is not float64, or does not match ``low``.
    """
    budget = error_budget(reference64, low, magnitude=magnitude)
    _check_form(actual, low, what)
    finite = reference64.isfinite() & low.isfinite()
    honest = (low[finite].double() - reference64[finite]).abs().max().item() if finite.any() else 0.0
    note = f"the same precision computed honestly is off by {honest:.3g}"
    assert_tolerance(actual.double(), reference64, tolerance=budget, what=what, note=note, nan_equal=nan_equal)


def assert_same(actual: Tensor, expected: Tensor, what: str = "output") -> None:
    """Assert that two tensors have the same shape, dtype and bits (0.0 and -0.0 differ, a NaN equals itself).

    Raises:
        AssertionError: they differ.
    """
    _check_form(actual, expected, what)
    different = _bits(actual) != _bits(expected)
    if different.any():
        _raise_worst(actual, expected, different, f"{what}: expected the same bits", "")


def assert_close_to(
    actual: Tensor,
    expected: Tensor,
    *,
    scale: float,
    what: str = "output",
    ulps: float = 16,
    nan_equal: bool = False,
) -> None:
    """Assert equality up to the rounding of values of magnitude ``scale``.

    Args:
        actual: the result under test.
        expected: same shape and dtype.
        scale: magnitude of the largest intermediate value that is rounded.
        what: name of the compared thing, for the message.
        ulps: how many roundings at that magnitude are allowed.
        nan_equal: whether NaN on both sides counts as equal.

    Raises:
        AssertionError: shape or dtype differ, or an error is over ``ulps * eps(dtype) * scale``.
        ValueError: the dtype is not floating: use :func:`assert_same`.
    """
    if not actual.is_floating_point():
        fail(f"{what} dtype", "a floating dtype (assert_same compares others)", actual.dtype)
    tolerance = ulps * torch.finfo(actual.dtype).eps * scale
    note = f"{ulps:g} roundings at magnitude {scale:.3g}"
    assert_tolerance(actual, expected, tolerance=tolerance, what=what, note=note, nan_equal=nan_equal)


def assert_tolerance(
    actual: Tensor,
    expected: Tensor,
    *,
    tolerance: float,
    what: str = "output",
    note: str = "",
    nan_equal: bool = False,
) -> None:
    """Assert that no element is off by more than ``tolerance``, an absolute error.

    Raises:
        AssertionError: shape or dtype differ, a value is finite on one side only, or an error is over the
            tolerance.
        ValueError: the tolerance is negative or not finite.
    """
    if not 0 <= tolerance < float("inf"):
        fail(f"{what} tolerance", "a finite number of at least 0", tolerance)
    _check_form(actual, expected, what)
    equal = actual == expected
    if nan_equal:
        equal = equal | (actual.isnan() & expected.isnan())
    # One-sided infinities and NaN compare as False here and so count as wrong.
    close = (actual.double() - expected.double()).abs() <= tolerance
    wrong = ~(equal | close)
    if wrong.any():
        headline = f"{what}: expected an error of at most {tolerance:.3g}"
        _raise_worst(actual, expected, wrong, headline, note)


def _check_reference(reference64: Tensor, low: Tensor) -> None:
    if reference64.dtype != torch.float64:
        fail("reference dtype", torch.float64, reference64.dtype)
    if not low.is_floating_point():
        fail("low-precision dtype", "a floating dtype", low.dtype)
    if low.shape != reference64.shape:
        fail("low-precision shape", tuple(reference64.shape), tuple(low.shape))


def _check_form(actual: Tensor, expected: Tensor, what: str) -> None:
    for name, got, wanted in (
        ("shape", tuple(actual.shape), tuple(expected.shape)),
        ("dtype", actual.dtype, expected.dtype),
    ):
        if got != wanted:
            raise AssertionError(f"{what}: expected {name} {wanted}, got {got}")


def _bits(x: Tensor) -> Tensor:
    return x.detach().view(_BITS[x.element_size()]) if x.is_floating_point() else x


def _raise_worst(actual: Tensor, expected: Tensor, wrong: Tensor, headline: str, note: str) -> NoReturn:
    got, want = actual.detach().double(), expected.detach().double()
    error = torch.where(wrong, (got - want).abs(), torch.full_like(got, -1.0))
    # A NaN or a one-sided infinity is worse than any number.
    rank = torch.where(wrong & ~error.isfinite(), torch.full_like(error, float("inf")), error)
    flat = int(rank.flatten().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), wrong.shape)) if wrong.ndim else ()
    size = error[index].item()
    lines = [
        f"{headline}, got {size:.3g} at index {index}",
        f"  got {got[index].item():.9g}, expected {want[index].item():.9g}",
        f"  {int(wrong.sum())} of {wrong.numel()} elements wrong, shape {tuple(wrong.shape)}, {actual.dtype}",
    ]
    raise AssertionError("\n".join([*lines, f"  {note}"] if note else lines))
