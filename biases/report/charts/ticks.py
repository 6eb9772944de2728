"""Ticks at round values, in units for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MOST, FEWEST = 6, 3
"""Ticks of an axis."""
MOST_ACROSS = 4
"""Those that stand side by side on a phone, beside long names."""
PADDING = 0.04
"""How far an axis reaches beyond its values, as a part of their span."""

Show = Callable[[float | None], str]


def logarithmic(values: Sequence[float], show: Show, *, binary: bool = False, most: int = MOST) -> dict[str, Any]:
    """Ticks of a logarithmic axis: 1, 2, 5, or fewer a decade where the values span many.

    Args:
        values: that the axis has to hold, above zero.
        show: a value for people.
        binary: whether the units are powers of 1024.
        most: ticks.

    Returns:
        ``tickvals`` and ``ticktext``.
    """
    low, high = min(values), max(values)
    # An axis reaches a little beyond its values.
    ends = (low * (low / high) ** PADDING, high * (high / low) ** PADDING)
    found = next(ticks for ticks in (_powers_of_two if binary else _decades)(*ends) if len(ticks) <= most)
    return _told(found, show) if len(found) >= FEWEST else linear(low, high, show, binary=binary)


def linear(low: float, high: float, show: Show, *, binary: bool = False) -> dict[str, Any]:
    """Ticks at the largest even steps of 1, 2 or 5 in the unit that give enough of them, as :func:`logarithmic`; one
    where there is a single value."""
    if high <= low:
        return _told([low], show)
    unit = 1024.0 ** math.floor(math.log(high, 1024)) if binary and high >= 1024 else 1.0
    decade = unit * 10.0 ** math.floor(math.log10((high - low) / unit))
    found: list[float] = []
    for step in (decade * m for m in (10, 5, 2, 1, 0.5, 0.2)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found = [step * i for i in range(first, last + 1)]
        if len(found) >= FEWEST:
            break
    return _told(found, show)


def joined(near: dict[str, Any], far: dict[str, Any]) -> dict[str, Any]:
    """The ticks of ``near``, and those of ``far`` that lie beyond them."""
    low, high = min(near["tickvals"]), max(near["tickvals"])
    beyond = [pair for pair in zip(far["tickvals"], far["ticktext"], strict=True) if not low <= pair[0] <= high]
    values, words = zip(*zip(near["tickvals"], near["ticktext"], strict=True), *beyond, strict=True)
    return {**near, "tickvals": list(values), "ticktext": list(words)}


def _told(values: Sequence[float], show: Show) -> dict[str, Any]:
    return {"tickvals": list(values), "ticktext": [show(value) for value in values], "tickangle": 0}


def _decades(low: float, high: float) -> Iterator[list[float]]:
    """Ever fewer powers of ten and their multiples between the ends."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for multiples in ((1, 2, 5), (1, 3)):
        yield _between(low, high, (m * 10.0**e for e in range(first, last + 1) for m in multiples))
    for apart in range(1, last - first + 2):
        yield _between(low, high, (10.0**e for e in range(first, last + 1) if e % apart == 0))


def _powers_of_two(low: float, high: float) -> Iterator[list[float]]:
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    for apart in range(1, last - first + 2):
        yield _between(low, high, (2.0**e for e in range(first, last + 1) if e % apart == 0))


def _between(low: float, high: float, values: Iterable[float]) -> list[float]:
    return [value for value in values if 0.999 * low <= value <= 1.001 * high]
