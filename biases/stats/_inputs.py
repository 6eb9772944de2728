"""Validation of numbers and of per-seed values, and the one place where scipy is imported."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biases._checks import fail

Values = Sequence[float] | NDArray[Any]

# Beyond this size the bounds of an interval could overflow, and JSON has no infinity.
LARGEST = 1e150


def scipy_module(name: str) -> ModuleType:
    """Import ``scipy.<name>``.

    Raises:
        ImportError: scipy is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError as error:
        raise ImportError("biases.stats needs scipy: pip install 'attention-biases[ablate]'") from error


def number(what: str, value: object) -> float:
    """Check for a finite real number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        fail(what, "a finite number", repr(value))
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        fail(what, "a finite number", repr(value))
    return result


def positive(what: str, value: object) -> float:
    """Check for a finite number above 0."""
    result = number(what, value)
    if result <= 0:
        fail(what, "a number above 0", repr(value))
    return result


def fraction(what: str, value: object) -> float:
    """Check for a number strictly between 0 and 1."""
    result = number(what, value)
    if not 0 < result < 1:
        fail(what, "a number strictly between 0 and 1", repr(value))
    return result


def integer(what: str, value: object, least: int) -> int:
    """Check for an integer of at least ``least``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        fail(what, f"an integer of at least {least}", repr(value))
    return int(value)


def seed_values(what: str, values: object) -> NDArray[np.float64]:
    """Check for one finite real number a seed; return shape ``(n,)``."""
    expected = "a one-dimensional sequence of real numbers, one a seed"
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what}: expected {expected}, got {type(values).__name__} ({error})") from error
    if array.ndim != 1:
        fail(what, expected, f"{type(values).__name__} of shape {array.shape}")
    if not array.size:
        fail(what, "at least one seed", "none")
    if array.dtype.kind not in "iuf":
        fail(what, expected, f"elements of type {array.dtype}")
    result = array.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(result) <= LARGEST))
    if bad.size:
        fail(what, f"finite numbers of size at most {LARGEST:g}", f"{result[bad[0]]} at position {bad[0]}")
    return result


def same_seeds(arms: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Check every arm with :func:`seed_values`, and that all have the same number of seeds."""
    checked = {name: seed_values(name, values) for name, values in arms.items()}
    lengths = {name: array.size for name, array in checked.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        fail("seeds of the arms", "as many values in every arm, in the same seed order", got)
    return checked
