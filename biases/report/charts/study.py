"""Trainings: learning curves, paired effects, interactions, losses on prefixes and on whole windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    y = number_axis(text.label(measure, UPRIGHT), **_late(arms.values()))
    return figure(data, height, number_axis("step"), y, hovermode="closest")


def _late(curves: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A range without the values of the first :data:`EARLY` of the steps, beside which all arms would look alike."""
    late = []
    for curve in curves:
        after = EARLY * max(curve["steps"], default=0)
        for step, *values in zip(curve["steps"], curve["mean"], curve["low"], curve["high"], strict=True):
            late += [value for value in values if value is not None and step >= after]
    if not late or max(late) == min(late):
        return {}
    margin = 0.06 * (max(late) - min(late))
    return {"range": [min(late) - margin, max(late) + margin]}


def forest(contrasts: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    """Paired effects with their intervals; rows as :func:`biases.report.effects.contrast` reads them.

    Those outside the declared family are open squares.
    """
    names = [f"{text.label(row['name'], 24)}<br>n = {row['n']}" for row in contrasts]
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
            "width": 5,
        },
        "customdata": [
            f"{text.number(row['mean'], signed=True)} {text.span(row['low'], row['high'], signed=True)}"
            f"<br>{text.label(row['verdict'])}"
            for row in contrasts
        ],
        "hovertemplate": "%{y}<br>%{customdata}<extra></extra>",
        "marker": {
            "color": "var(--series-1)",
            "size": 10,
            "symbol": ["square" if row["declared"] else "square-open" for row in contrasts],
        },
    }
    x = number_axis(f"mean paired difference<br>{text.label(unit, 60)}", zeroline=False, nticks=6, tickangle=0)
    lines = sum(2 + name.count("<br>") for name in names)
    return figure([trace], 100 + 22 * lines, x, names_axis(names), shapes=[reference_line(0)])


def interaction(grid: Mapping[str, Mapping[str, Mapping[str, Any]]], outer: str, inner: str, *, measure: str) -> Figure:
    """Cell means, a line for each level of ``outer`` over those of ``inner``; parallel: no interaction."""
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
    return figure(data, 360, x, number_axis(text.label(measure, UPRIGHT)), legend=legend)


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
                "hovertemplate": f"%{{y}}<br>{name}: %{{x:.4f}}<extra></extra>",
            }
        )
    return figure(data, 120 + 34 * len(arms), number_axis(text.label(measure, 60)), names_axis(names))
