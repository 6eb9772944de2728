"""The ablation section: learning curves, paired effects, the interaction, and what a leak is worth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from biases._checks import fail
from biases.report import charts, text

UNIT = "nats per character"
LEAK = 1e-4
"""Nats per character; the truncated loss of a causal model differs from its full one by less, by rounding only."""


def contrast(raw: Mapping[str, Any], name: str = "contrast") -> dict[str, Any]:
    """One paired effect, for the forest plot and for the table."""
    title = text.words(raw.get("name") or name)
    low, high = text.interval(f"interval of {title!r}", raw.get("interval"))
    mean = text.finite(f"mean of {title!r}", raw.get("mean"))
    p = text.number(text.finite(f"p_sign_flip of {title!r}", raw.get("p_sign_flip")))
    smallest = text.number(text.finite(f"p_smallest of {title!r}", raw.get("p_smallest")))
    return {
        "name": title,
        "mean": mean,
        "low": low,
        "high": high,
        "n": text.words(raw.get("n")),
        "effect": text.number(mean, signed=True, decimals=text.places(low, high)),
        "interval": text.span(low, high, signed=True),
        "p": p,
        "p_smallest": smallest,
        "verdict": text.words(raw.get("verdict")),
        "reason": "" if raw.get("reason") is None else str(raw["reason"]),
        "unit": text.words(raw.get("unit") or UNIT),
    }


def _curve(arm: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    steps = text.numbers(f"curve steps of {arm!r}", raw.get("steps") or [])
    none = [None] * len(steps)
    return {
        "steps": steps,
        **{
            key: text.numbers(f"curve {key} of {arm!r}", none if raw.get(key) is None else raw[key], len(steps))
            for key in ("mean", "low", "high")
        },
    }


def _arm(name: str, raw: object) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        fail(f"arm {name!r}", "a mapping", type(raw).__name__)
    losses: dict[str, dict[str, float | None]] = {}
    for kind in ("full", "truncated"):
        values = text.section(raw, kind)
        losses[kind] = {str(s): text.finite(f"{kind} loss of {name!r}", v) for s, v in values.items()}
    low, high = text.interval(f"leak_interval of {name!r}", raw.get("leak_interval"))
    return {
        "name": name,
        "curve": _curve(name, text.section(raw, "curve")),
        "full": text.number(_mean(losses["full"])),
        "truncated": text.number(_mean(losses["truncated"])),
        "leak": text.number(text.finite(f"leak_mean of {name!r}", raw.get("leak_mean")), signed=True),
        "leak_interval": text.span(low, high, signed=True),
        "leak_low": low,
        "n": len([v for v in losses["full"].values() if v is not None]),
        "seeds": [
            (seed, text.number(losses["full"].get(seed)), text.number(losses["truncated"].get(seed)))
            for seed in text.seeds(losses["full"] | losses["truncated"])
        ],
    }


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


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


def _interaction(
    ablation: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, list[tuple[str, str, str]], Any]:
    """The contrast, its cells for a table, and its figure; ``None`` for what is missing."""
    raw = text.section(ablation, "interaction")
    if not raw:
        return None, [], None
    factors = text.section(ablation, "factors")
    placed = grid(text.section(raw, "cells") or text.section(raw, "cell_means"), factors)
    cells = [
        (level, other, text.number(cell["mean"])) for level, inner in placed.items() for other, cell in inner.items()
    ]
    known = any(cell["mean"] is not None for inner in placed.values() for cell in inner.values())
    figure = charts.interaction(placed, *factors) if known else None
    return contrast(raw, "interaction"), cells, figure


def view(ablation: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows.

    Raises:
        ValueError: a value has the wrong type, or a curve's lists differ in length.
    """
    arms = [_arm(str(name), raw) for name, raw in text.section(ablation, "arms").items()]
    contrasts = [contrast(raw) for raw in text.rows(ablation, "contrasts")]
    drawn = {a["name"]: a["curve"] for a in arms if any(v is not None for v in a["curve"]["mean"])}
    interaction, cells, interaction_figure = _interaction(ablation)
    effects = [row for row in [*contrasts, *([interaction] if interaction else [])] if row["mean"] is not None]
    return {
        "arms": arms,
        "contrasts": [*contrasts, *([interaction] if interaction else [])],
        "cells": cells,
        "factors": [str(factor) for factor in text.section(ablation, "factors")],
        "curves": charts.curves(drawn) if drawn else None,
        "forest": charts.forest(effects, effects[0]["unit"]) if effects else None,
        "interaction": interaction_figure,
        "config": text.facts(text.section(ablation, "config")),
    }


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview: the effects as they were judged, and any leak."""
    sentences = [
        f"{row['name']}: {row['effect']} {row['unit']} {row['interval']} over {row['n']} seeds, {row['verdict']}."
        for row in shown["contrasts"]
    ]
    leaks = [f"{a['name']} ({a['leak']})" for a in shown["arms"] if a["leak_low"] is not None and a["leak_low"] > LEAK]
    if leaks:
        sentences.append(
            f"Worse when given only the past: the full-window loss used the future: {text.listing(leaks)}."
        )
    return sentences
