"""Trainings: learning curves, paired effects, interactions, losses on prefixes and on whole windows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from biases.report import text
from biases.report.charts.base import (
    DASHES,
    Figure,
    colour,
    figure,
    line,
    names_axis,
    number_axis,
    reference_line,
    whiskers,
)

EARLY = 1 / 3
"""Share of the steps whose values are so far from the later ones that beside them all arms look alike."""
FEWEST_POINTS = 2
TICKS = 4
"""Most of an axis of differences: their labels stand side by side on a phone too."""
ROUND = (1, 2, 5)
MARKER = 7
"""Pixels of a mark; the ends of an interval reach beyond it, so that it never hides a narrow one."""
UPRIGHT = 38
"""Characters of a line of an upright axis's title."""


def curves(arms: Mapping[str, Mapping[str, Any]], measure: str) -> Figure:
    """A measure over steps, the mean over seeds with its band; an arm is steps, mean, low, high."""
    data: list[dict[str, Any]] = []
    for index, (arm, curve) in enumerate(arms.items()):
        steps, name = curve["steps"], text.label(arm, 40)
        banded = [
            (s, low, high)
            for s, low, high in zip(steps, curve["low"], curve["high"], strict=True)
            if low is not None and high is not None
        ]
        if banded:
            xs, lows, highs = zip(*banded, strict=True)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [*xs, *reversed(xs)],
                    "y": [*highs, *reversed(lows)],
                    "fill": "toself",
                    "fillcolor": colour(index, 0.16),
                    "line": {"width": 0, "color": colour(index)},
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": name,
                }
            )
        told = {"legendgroup": name, "hovertemplate": "step %{x}: %{y:.4f}"}
        data.append(line(name, index, steps, curve["mean"], **told))
    height = 360 + 20 * (len(arms) // 3)
    x, y = _window(arms.values())
    upright = number_axis(text.label(measure, UPRIGHT), **y)
    return figure(data, height, number_axis("step", **x), upright, hovermode="closest")


def first_shown(curves: Iterable[Mapping[str, Any]]) -> float | None:
    """The step at which the axes begin, after the first :data:`EARLY` of the steps; ``None`` where all are shown."""
    firsts, starts = [], []
    for curve in curves:
        steps = [step for step, mean in zip(curve["steps"], curve["mean"], strict=True) if None not in (step, mean)]
        if steps:
            late = [step for step in steps if step >= EARLY * max(steps)]
            firsts.append(min(steps))
            starts.append(min(late) if len(late) >= FEWEST_POINTS else min(steps))
    return min(starts) if starts and min(starts) > min(firsts) else None


def _window(curves: Collection[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ranges of both axes from :func:`first_shown` on; none where everything is shown."""
    start = first_shown(curves)
    if start is None:
        return {}, {}
    steps: list[float] = []
    late: list[float] = []
    for curve in curves:
        for step, *values in zip(curve["steps"], curve["mean"], curve["low"], curve["high"], strict=True):
            if step is not None and step >= start:
                steps.append(step)
                late += [value for value in values if value is not None]
    return _padded(steps, 0.03), _padded(late, 0.06)


def _padded(values: Sequence[float], share: float) -> dict[str, Any]:
    """A range around values; none where they are all one."""
    low, high = min(values), max(values)
    room = share * (high - low)
    return {"range": [low - room, high + room]} if room else {}


def forest(contrasts: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    """Paired effects with their intervals and verdicts; rows as :func:`biases.report.effects.contrast` reads them.

    Those outside the declared family are open squares; the margin of each is a band behind it.
    """
    told = (f"n = {row['n']}, {row['verdict']}" for row in contrasts)
    names = [
        f"{text.label(row['name'], 24)}<br>{text.label(last, 26)}" for row, last in zip(contrasts, told, strict=True)
    ]
    means = [row["mean"] for row in contrasts]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": means,
        "y": names,
        "error_x": {
            **whiskers(means, [row["low"] for row in contrasts], [row["high"] for row in contrasts]),
            "color": "var(--series-1)",
            "thickness": 2,
            "width": MARKER,
        },
        "customdata": [
            f"{text.number(row['mean'], signed=True)} {text.span(row['low'], row['high'], signed=True)}"
            f"<br>{text.label(row['verdict'])}"
            for row in contrasts
        ],
        "hovertemplate": "%{y}<br>%{customdata}<extra></extra>",
        "marker": {
            "color": "var(--series-1)",
            "size": MARKER,
            "symbol": ["square" if row["declared"] else "square-open" for row in contrasts],
        },
    }
    bands = [_band(row["margin"], index) for index, row in enumerate(contrasts) if row["margin"] is not None]
    ends = [value for row in contrasts for value in (row["mean"], row["low"], row["high"]) if value is not None]
    ends += [end for band in bands for end in (band["x0"], band["x1"])]
    title = f"mean paired difference<br>{text.label(unit, 60)}"
    x = number_axis(title, zeroline=False, **_ticked([0.0, *ends]))
    lines = sum(2 + name.count("<br>") for name in names)
    return figure([trace], 100 + 22 * lines, x, names_axis(names), shapes=[*bands, reference_line(0)])


def _band(margin: float, row: int) -> dict[str, Any]:
    """What counts as no difference, behind a row."""
    place = {"x0": -margin, "x1": margin, "y0": row - 0.36, "y1": row + 0.36}
    look = {"layer": "below", "fillcolor": "var(--muted) 0.18", "line": {"width": 0}}
    return {"type": "rect", "xref": "x", "yref": "y", **place, **look}


def _ticked(values: Iterable[float]) -> dict[str, Any]:
    """Range and ticks of an axis that holds the values: three ticks or :data:`TICKS`, at round values."""
    ends = list(values)
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low)
    if not room:
        return {"tickangle": 0}
    low, high = low - room, high + room
    decade = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    steps = (decade * 10**power * each for power in range(3) for each in ROUND)
    step = next(each for each in steps if math.floor(high / each) - math.ceil(low / each) < TICKS)
    first, last = math.ceil(low / step), math.floor(high / step)
    while last - first < 2:
        if high - last * step > first * step - low:
            last += 1
        else:
            first -= 1
    return {"range": [min(low, first * step), max(high, last * step)], "tick0": 0, "dtick": step, "tickangle": 0}


def interaction(grid: Mapping[str, Mapping[str, Mapping[str, Any]]], outer: str, inner: str, *, measure: str) -> Figure:
    """Cell means with their intervals, a line for each level of ``outer`` over those of ``inner``."""
    data = []
    for index, (level, cells) in enumerate(grid.items()):
        means = [cell["mean"] for cell in cells.values()]
        ends = whiskers(means, [c["low"] for c in cells.values()], [c["high"] for c in cells.values()])
        trace = line(text.label(level, 40), index, [text.label(name) for name in cells], means)
        trace |= {"error_y": {**ends, "color": colour(index)}, "hovertemplate": "%{x}: %{y:.4f}"}
        trace["line"]["dash"] = DASHES[index % len(DASHES)]
        trace["marker"]["size"] = 10
        data.append(trace)
    x = number_axis(text.label(inner, 40), type="category")
    legend = {
        "title": {"text": text.label(outer, 40) + "  "},
        "orientation": "h",
        "x": 0,
        "y": 1,
        "yanchor": "bottom",
    }
    every = [cell for cells in grid.values() for cell in cells.values()]
    ends = [value for cell in every for value in (cell["mean"], cell["low"], cell["high"]) if value is not None]
    y = number_axis(text.label(measure, UPRIGHT), **_padded(ends, 0.06))
    # Side by side, as whiskers on one another cannot be told apart.
    return figure(data, 360, x, y, legend=legend, scattermode="group", scattergap=0.95)


def leaks(arms: Sequence[Mapping[str, Any]], measure: str) -> Figure:
    """Loss on prefixes beside that on whole windows at the same positions, an arm a row.

    Args:
        arms: ``name``, ``truncated_mean`` and ``leak_mean``, both known.
        measure: title of the axis.
    """
    names = [text.label(arm["name"], 24) for arm in arms]
    whole = [arm["truncated_mean"] - arm["leak_mean"] for arm in arms]
    prefix = [arm["truncated_mean"] for arm in arms]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [x for pair in zip(whole, prefix, strict=True) for x in (*pair, None)],
            "y": [name for name in names for _ in range(3)],
            "line": {"color": "var(--muted)", "width": 2},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    # Where both lie in one place the square stands in the ring.
    ring = {"symbol": "circle-open", "size": 17, "line": {"width": 3}}
    marks = (("whole windows", whole, ring), ("prefixes alone", prefix, {"symbol": "square", "size": 8}))
    for index, (name, values, mark) in enumerate(marks):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": values,
                "y": names,
                "marker": {**mark, "color": colour(3 * index)},
                "cliponaxis": False,
                "hovertemplate": f"%{{y}}<br>{name}: %{{x:.4f}}<extra></extra>",
            }
        )
    x = number_axis(text.label(measure, 24), **_ticked([*whole, *prefix]))
    return figure(data, 136 + 34 * len(arms), x, names_axis(names))
