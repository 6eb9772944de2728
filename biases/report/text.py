"""Reading plain values out of results, and printing them for people.

Files hold bytes, seconds and nats per character; the friendlier units appear on the page only.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from biases._checks import fail

DASH = "–"
MOST_PLACES = 7
CUT_MARK = "\n… cut, {} characters left out of this page"
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


def section(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping under ``name``; empty where it is missing or ``None``.

    Raises:
        ValueError: it is something else than a mapping.
    """
    value = results.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        fail(f"results {name!r}", "a mapping", type(value).__name__)
    return value


def parts(results: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The sources of a section: none, one mapping, or a list of them.

    Raises:
        ValueError: it is something else.
    """
    value = results.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return rows(results, name)
    return [found] if (found := section(results, name)) else []


def rows(parent: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The list of mappings under ``name``; empty where it is missing or ``None``.

    Raises:
        ValueError: it is something else than a list of mappings.
    """
    value = parent.get(name)
    if value is None:
        return []
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        fail(f"results {name!r}", "a list of mappings", type(value).__name__)
    for item in value:
        if not isinstance(item, Mapping):
            fail(f"an entry of {name!r}", "a mapping", type(item).__name__)
    return list(value)


def finite(what: str, value: object) -> float | None:
    """``value`` as a float; ``None`` where it is missing or not finite.

    Raises:
        ValueError: it is not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        fail(what, "a number or None", repr(value))
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        fail(what, "a number of at most 1.8e308", f"a whole number of {int(value).bit_length()} bits")


def numbers(what: str, values: object, count: int | None = None) -> list[float | None]:
    """A list of numbers, with ``None`` for what is not finite.

    Raises:
        ValueError: not a list of numbers, or not ``count`` of them.
    """
    if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
        fail(what, "a list of numbers", type(values).__name__)
    if count is not None and len(values) != count:
        fail(what, f"{count} numbers", len(values))
    return [finite(what, value) for value in values]


def interval(what: str, value: object) -> tuple[float | None, float | None]:
    """The two ends of an interval; ``(None, None)`` where it was refused or is missing."""
    if value is None:
        return None, None
    low, high = numbers(what, value, 2)
    return low, high


def words(value: object) -> str:
    """Any JSON-ready value as text; a missing one is a dash."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def cut(value: object, limit: int) -> str:
    """Text of at most ``limit`` characters, saying how much is missing."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}={item!r}" for name, item in value.items())
    whole = "" if value is None else value if isinstance(value, str) else words(value)
    return whole if len(whole) <= limit else whole[:limit] + CUT_MARK.format(len(whole) - limit)


def places(low: float | None, high: float | None) -> int | None:
    """Decimals at which the width of an interval shows three digits; ``None`` without a width, or where they would be
    more than :data:`MOST_PLACES`."""
    if low is None or high is None or not high > low:
        return None
    found = max(0, 2 - math.floor(math.log10(high - low)))
    return found if found <= MOST_PLACES else None


def number(value: float | None, *, signed: bool = False, decimals: int | None = None) -> str:
    """Four significant digits or so many decimals, a true minus sign; a dash for ``None``."""
    if value is None:
        return DASH
    if decimals is not None:
        return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
    digits = f"{value:+.4g}" if signed and value else f"{value:.4g}"
    return digits.replace("-", "−")


def span(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """An interval in brackets; a dash where an end is missing."""
    if low is None or high is None:
        return DASH
    decimals = places(low, high)
    return f"[{number(low, signed=signed, decimals=decimals)}, {number(high, signed=signed, decimals=decimals)}]"


def ratio(value: float | None) -> str:
    """A ratio to the floor, as ``×1.23``."""
    return DASH if value is None else f"×{_short(value)}"


def _short(value: float) -> str:
    """Three significant digits, and all of those before the point."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1023.5:
            return f"{_short(value)} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1024
    return f"{_short(value)} TiB"


def count(value: float | None) -> str:
    """A large number with ``k``, ``M``, ``G`` or ``T`` for its thousands; a dash for ``None``."""
    if value is None:
        return DASH
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{_short(value)}{unit}"
        value /= 1000
    return f"{_short(value)}T"


def duration(value: float | None) -> str:
    """Seconds in the unit that reads best."""
    if value is None:
        return DASH
    for limit, factor, unit in ((999.5e-6, 1e6, "µs"), (999.5e-3, 1e3, "ms")):
        if abs(value) < limit and value:
            return f"{_short(value * factor)} {unit}"
    return f"{_short(value)} s"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def listing(items: Iterable[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    names = list(items)
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as flat (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs += facts(value, f"{name}.")
        else:
            pairs.append((name, words(value)))
    return pairs


def seeds(values: Iterable[str]) -> list[str]:
    """Seeds, as the keys of JSON, in numeric order; what is no number comes last."""

    def order(seed: str) -> tuple[int, int, str]:
        return (0, int(seed), "") if seed.isdecimal() else (1, 0, seed)

    return sorted(values, key=order)


def label(value: object, width: int = 22) -> str:
    """A name for a chart: inert (plotly reads tags in text) and broken into lines at spaces."""
    lines = textwrap.wrap(str(value), width, break_long_words=False, break_on_hyphens=False) or [""]
    return "<br>".join(escape(line, quote=False) for line in lines)


def arxiv(paper: str) -> str:
    """The address of the first paper that is named by its arXiv identifier; empty where none is."""
    found = ARXIV.search(paper)
    return f"https://arxiv.org/abs/{found[0]}" if found else ""
