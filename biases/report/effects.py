"""Paired effects and interactions of a study, for its charts and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from biases.report import text

UNIT = "nats per character"


def contrast(raw: Mapping[str, Any], name: str = "contrast") -> dict[str, Any]:
    """One paired effect, for the forest plot and for the table."""
    title = text.words(raw.get("name") or name)
    low, high = text.interval(f"interval of {title!r}", raw.get("interval"))
    mean = text.finite(f"mean of {title!r}", raw.get("mean"))
    numbers = {
        key: text.number(text.finite(f"{key} of {title!r}", raw.get(key)))
        for key in ("p_sign_flip", "p_smallest", "p_holm", "effect_size")
    }
    return {
        "name": title,
        "mean": mean,
        "low": low,
        "high": high,
        "n": text.words(raw.get("n")),
        "effect": text.number(mean, signed=True, decimals=text.places(low, high)),
        "interval": text.span(low, high, signed=True),
        "p": numbers["p_sign_flip"],
        "p_smallest": numbers["p_smallest"],
        "p_holm": numbers["p_holm"],
        "effect_size": numbers["effect_size"],
        "declared": raw.get("family") is not False,
        "verdict": text.words(raw.get("verdict")),
        "reason": "" if raw.get("reason") is None else str(raw["reason"]),
        "unit": text.words(raw.get("unit") or UNIT),
    }


def _cell(name: str, raw: object) -> dict[str, float | None]:
    """A cell of the design, given as a mean or as a mapping with its mean and an interval."""
    if not isinstance(raw, Mapping):
        return {"mean": text.finite(f"cell {name!r}", raw), "low": None, "high": None}
    low, high = text.interval(f"interval of cell {name!r}", raw.get("interval") or _ends(raw))
    return {"mean": text.finite(f"mean of cell {name!r}", raw.get("mean")), "low": low, "high": high}


def _ends(raw: Mapping[str, Any]) -> list[Any] | None:
    return [raw["low"], raw["high"]] if "low" in raw and "high" in raw else None


def cell_levels(key: str, levels: tuple[list[str], list[str]]) -> tuple[str, str] | None:
    """The level of each factor that a cell's name states, or ``None``.

    A name is ``y10`` (the index of the first factor's level, then of the second's) or holds both levels, as
    in ``ega+mope``.
    """
    first, second = levels
    indices = re.fullmatch(r"y(\d)(\d)", key)
    if indices:
        i, j = int(indices[1]), int(indices[2])
        return (first[i], second[j]) if i < len(first) and j < len(second) else None
    pairs = ((a, b) for a in first for b in second)
    return next(((a, b) for a, b in pairs if re.fullmatch(rf"{re.escape(a)}\W+{re.escape(b)}", key)), None)


def grid(cells: Mapping[str, Any], factors: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Cells as {first factor's level: {second's: mean, low, high}}; empty where a name cannot be placed.

    ``cells`` is nested in that way already, or flat under the names that :func:`cell_levels` reads.
    """
    if len(factors) != 2 or not cells:
        return {}
    first, second = ([str(level) for level in values] for values in factors.values())
    placed: dict[str, dict[str, dict[str, Any]]] = {}
    for key, raw in cells.items():
        if key in first and isinstance(raw, Mapping):
            placed[key] = {str(level): _cell(f"{key}, {level}", cell) for level, cell in raw.items()}
            continue
        levels = cell_levels(str(key), (first, second))
        if levels is None:
            return {}
        placed.setdefault(levels[0], {})[levels[1]] = _cell(str(key), raw)
    return placed
