"""Correction of p-values for the size of the family that they belong to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from biases._checks import fail
from biases.stats._inputs import number

K = TypeVar("K", bound=Hashable)


@overload
def holm(p: Mapping[K, float]) -> dict[K, float]: ...
@overload
def holm(p: tuple[float, ...]) -> tuple[float, ...]: ...
@overload
def holm(p: NDArray[Any]) -> NDArray[np.float64]: ...
@overload
def holm(p: list[float]) -> list[float]: ...
@overload
def holm(p: Sequence[float]) -> Sequence[float]: ...
def holm(p: Any) -> Any:
    """Holm's step-down adjustment, which bounds the chance of any false claim in the family.

    The i-th smallest of m p-values becomes max over j <= i of min(1, (m - j + 1) p_(j)) (Holm 1979,
    Scandinavian Journal of Statistics 6:65). Valid under any dependence. The family must be fixed before the
    run.

    Args:
        p: raw p-values in [0, 1]: a mapping from name to p, a sequence, or an array of shape ``(m,)``.

    Returns:
        The adjusted p-values in the same order: dict for a mapping, tuple for a tuple, array for an array,
        otherwise list.

    Raises:
        ValueError: ``p`` is none of these, or a value is missing (a refused comparison has none) or not in
            [0, 1].
    """
    if isinstance(p, Mapping):
        return dict(zip(p, _adjusted(list(p.values()), [f"p of {name!r}" for name in p]), strict=True))
    is_array = isinstance(p, np.ndarray) and p.ndim == 1
    if not is_array and (isinstance(p, (str, bytes)) or not isinstance(p, Sequence)):
        fail("p", "a mapping, a sequence or a one-dimensional array of p-values", type(p).__name__)
    adjusted = _adjusted(list(p), [f"p at position {i}" for i in range(len(p))])
    if is_array:
        return np.array(adjusted, dtype=np.float64)
    return tuple(adjusted) if isinstance(p, tuple) else adjusted


def _adjusted(raw: list[Any], names: list[str]) -> list[float]:
    values = []
    for name, value in zip(names, raw, strict=True):
        checked = number(name, value)
        if not 0 <= checked <= 1:
            fail(name, "a number in [0, 1]", value)
        values.append(checked)
    adjusted, running = [0.0] * len(values), 0.0
    for step, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        running = max(running, min(1.0, (len(values) - step) * values[i]))
        adjusted[i] = running
    return adjusted
