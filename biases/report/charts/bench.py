"""Time, throughput and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biases.report import text
from biases.report.charts import ticks
from biases.report.charts.base import Figure, colour, figure, line, names_axis, number_axis, reference_line, whiskers

SHOWN = 7
"""Series of a chart that are drawn at first; the legend switches on the others."""
LOGARITHMIC = 20
"""Ratios that differ by more than this factor stand on a logarithmic axis."""
VISIBLE = ((None,), (None, "legendonly"))
"""What ``visible`` is of the traces that are drawn at first, and of all."""
GROUPED = {"scattermode": "group", "scattergap": 0.25, "bargap": 0.25}

Rows = Sequence[Mapping[str, Any]]
Floors = dict[str, dict[int, float]]


def _by_length(rows: Rows) -> list[tuple[str, Rows]]:
    """Rows by sequence length, each with the name of its series."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["length"] is None, r["length"] or 0)):
        groups.setdefault(f"length {text.words(row['length'])}", []).append(row)
    return list(groups.items())


def _several(rows: Rows) -> bool:
    """Whether one name has several lengths, which then stand side by side."""
    return len({(row["series"], row["length"]) for row in rows}) > len({row["series"] for row in rows})


def _names(rows: Rows) -> list[str]:
    return [text.label(row["series"]) for row in rows]


def ratios(rows: Rows) -> Figure:
    """Time over the floor's, a dot with quartiles a case; rows as :func:`biases.report.bench.view` reads them."""
    names, several = list(dict.fromkeys(_names(rows))), _several(rows)
    data = []
    for index, (name, group) in enumerate(_by_length(rows)):
        middle, low, high = ([row[key] for row in group] for key in ("ratio", "ratio_low", "ratio_high"))
        data.append(
            {
                "type": "scatter",
                "orientation": "h",
                "mode": "markers",
                "name": name,
                "x": middle,
                "y": _names(group),
                "error_x": whiskers(middle, low, high),
                "customdata": [text.span(*ends) for ends in zip(low, high, strict=True)],
                "hovertemplate": "%{y}<br>×%{x:.3g} %{customdata}<extra></extra>",
                "marker": {"color": colour(index), "size": 8},
                "offsetgroup": str(index) if several else "0",
            }
        )
    ends = [row[key] for row in rows for key in ("ratio", "ratio_low", "ratio_high") if row[key] and row[key] > 0]
    if max(ends) > LOGARITHMIC * min(ends):
        across = ticks.logarithmic([*ends, 1.0], text.ratio, most=ticks.MOST_ACROSS)
        axis = number_axis("time ÷ time of the floor", type="log", **across)
    else:
        axis = number_axis("time ÷ time of the floor", rangemode="tozero", tickprefix="×", nticks=ticks.MOST)
    height = 110 + len(names) * (18 + 14 * (len(data) if several else 1))
    return figure(data, height, axis, names_axis(names), shapes=[reference_line(1)], **GROUPED)


def memory(rows: Rows, measure: str) -> Figure:
    """Bytes a case, a tick where the floor's lie, and the number beyond both.

    Args:
        rows: as :func:`biases.report.bench.view` reads them.
        measure: key of the rows; the floor's is ``floor_`` and this.
    """
    names, several = list(dict.fromkeys(_names(rows))), _several(rows)
    data: list[dict[str, Any]] = []
    for index, (name, group) in enumerate(_by_length(rows)):
        own, floors = ([row[key] for row in group] for key in (measure, f"floor_{measure}"))
        common = {"y": _names(group), "orientation": "h", "offsetgroup": str(index) if several else "0"}
        bar = {
            "type": "bar",
            "name": name,
            "x": own,
            "customdata": [[text.size(value) for value in pair] for pair in zip(own, floors, strict=True)],
            "hovertemplate": "%{y}<br>%{customdata[0]}, floor %{customdata[1]}<extra></extra>",
            "marker": {"color": colour(index)},
        }
        tick = {
            "type": "scatter",
            "mode": "markers",
            "name": "floor",
            "showlegend": index == 0,
            "x": floors,
            "hoverinfo": "skip",
            "marker": {"symbol": "line-ns", "size": 15, "line": {"width": 3, "color": "var(--ink)"}},
        }
        told = {
            "type": "scatter",
            "mode": "text",
            "showlegend": False,
            "x": [max(value, floor or 0) for value, floor in zip(own, floors, strict=True)],
            # The spaces keep the number off the floor's tick.
            "text": [f"\u2002{text.size(value)}" for value in own],
            "textposition": "middle right",
            "hoverinfo": "skip",
            "cliponaxis": False,
        }
        data += [{**each, **common} for each in (bar, tick, told)]
    largest = max(max(row[measure], row[f"floor_{measure}"] or 0) for row in rows)
    axis = number_axis("memory", range=[0, 1.4 * largest or 1], **ticks.linear(0, largest, text.size, binary=True))
    height = 110 + len(names) * (10 + 20 * (len(_by_length(rows)) if several else 1))
    return figure(sorted(data, key=lambda trace: trace["type"]), height, axis, names_axis(names), **GROUPED)


def floors(rows: Rows, measure: str) -> tuple[Floors, bool]:
    """The floors that can be drawn: of all rows where they agree at every length, else of every mask where those of
    the mask do. They agree where the quartiles of all overlap, and where numbers without quartiles are equal.

    Args:
        rows: as :func:`biases.report.bench.view` reads them.
        measure: key of the rows; the floor's is ``floor_`` and this.

    Returns:
        Name -> (length -> median), and whether every row that has a floor is held by one of them.
    """
    known = [row for row in rows if row["length"] is not None and row[f"floor_{measure}"]]
    masks = {row["mask"] for row in known}
    together = _agreed(known, measure)
    if together or text.DASH in masks:
        return ({"floor": together} if together else {}), bool(together)
    parts = {mask: _agreed([row for row in known if row["mask"] == mask], measure) for mask in sorted(masks)}
    return {f"floor, {mask}": part for mask, part in parts.items() if part}, all(parts.values())


def _agreed(rows: Rows, measure: str) -> dict[int, float]:
    """Length -> median of floors that agree; empty where some do not."""
    found: dict[int, float] = {}
    for length in sorted({row["length"] for row in rows}):
        group = [row for row in rows if row["length"] == length]
        spans = [row[f"floor_{measure}_span"] for row in group]
        if max(low for low, _ in spans) > min(high for _, high in spans):
            return {}
        found[length] = statistics.median(row[f"floor_{measure}"] for row in group)
    return found


def against_length(
    rows: Rows,
    measure: str,
    title: str,
    show: Callable[[float | None], str],
    *,
    floor: Floors | None = None,
    level: float | None = None,
    binary: bool = False,
) -> Figure | None:
    """A measure against the length, a line a series; ``None`` where no series has two lengths.

    Args:
        rows: as :func:`biases.report.bench.view` reads them.
        measure: key of the rows.
        title: of the upright axis.
        show: a value for people.
        floor: lines to draw beside them, as :func:`floors` finds them.
        level: where a dotted line lies flat.
        binary: whether the units are powers of 1024.
    """
    series: Floors = {}
    for row in rows:
        if row["length"] is not None and row[measure] and row[measure] > 0:
            series.setdefault(row["series"], {})[row["length"]] = row[measure]
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    data = [_floor_line(name, points, show) for name, points in (floor or {}).items() if len(points) > 1]
    for index, (name, points) in enumerate(series.items()):
        trace = _points(line(text.label(name, 40), index, sorted(points), []), points, show)
        data.append(trace if index < SHOWN else {**trace, "visible": "legendonly"})
    lengths = sorted({n for trace in data for n in trace["x"]})
    x_ticks = {"tickvals": lengths, "ticktext": [str(n) for n in lengths]} if len(lengths) < 9 else {}
    x = number_axis("length", type="log", **x_ticks)
    lines = [[v for trace in data if trace.get("visible") in visible for v in trace["y"]] for visible in VISIBLE]
    near, far = (ticks.logarithmic([*each, *filter(None, [level])], show, binary=binary) for each in lines)
    y = number_axis(title, type="log", **ticks.joined(near, far))
    shapes = [] if level is None else [reference_line(level, flat=True)]
    return figure(data, 340 + 22 * (len(data) // 3), x, y, shapes=shapes)


def _points(trace: dict[str, Any], points: Mapping[int, float], show: Callable[[float | None], str]) -> dict[str, Any]:
    values = [points[length] for length in sorted(points)]
    told = {"customdata": [show(value) for value in values], "hovertemplate": "%{x}: %{customdata}"}
    return {**trace, "y": values, **told}


def _floor_line(name: str, points: Mapping[int, float], show: Callable[[float | None], str]) -> dict[str, Any]:
    trace = _points(line(text.label(name, 40), 0, sorted(points), []), points, show)
    trace["line"] = {"color": "var(--ink)", "width": 2, "dash": "dash" if name.endswith("causal") else "dot"}
    trace["marker"] = {"color": "var(--ink)", "size": 6, "symbol": "line-ew-open"}
    return trace
