"""Time, throughput and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biases.report import text
from biases.report.charts.base import Figure, colour, figure, line, names_axis, number_axis, reference_line, whiskers

SHOWN = 7
"""Series of a chart that are drawn at first; the legend switches on the others."""


def _lengths(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Rows by sequence length, and by mask where there are several, each with the name of its series."""
    masks = {row["mask"] for row in rows}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["length"] is None, r["length"] or 0, r["mask"])):
        name = f"length {text.words(row['length'])}" + (f", {row['mask']}" if len(masks) > 1 else "")
        groups.setdefault(name, []).append(row)
    return list(groups.items())


def ratios(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time over the floor's, a bar a case; rows as :func:`biases.report.bench.view` reads them."""
    names = list(dict.fromkeys(text.label(row["name"]) for row in rows))
    data = []
    for index, (name, group) in enumerate(_lengths(rows)):
        middle = [row["ratio"] for row in group]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": middle,
                "y": [text.label(row["name"]) for row in group],
                "error_x": whiskers(middle, [row["ratio_low"] for row in group], [row["ratio_high"] for row in group]),
                "customdata": [text.span(row["ratio_low"], row["ratio_high"]) for row in group],
                "hovertemplate": "%{y}<br>×%{x:.3g} %{customdata}<extra></extra>",
                "marker": {"color": colour(index)},
            }
        )
    known = [row["ratio"] for row in rows if row["ratio"]]
    logarithmic = max(known) > 20 * min(known)
    axis = number_axis("time ÷ time of the floor", type="log" if logarithmic else "linear", tickprefix="×")
    height = 110 + len(names) * (10 + 16 * len(data))
    return figure(data, height, axis, names_axis(names), shapes=[reference_line(1)], bargap=0.25)


def memory(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Peak bytes a case, with a tick where the floor's peak lies."""
    names = list(dict.fromkeys(text.label(row["name"]) for row in rows))
    data: list[dict[str, Any]] = []
    ticks: list[dict[str, Any]] = []
    # Bars stand side by side only where one name has several.
    several = len({(row["name"], row["length"], row["mask"]) for row in rows}) > len(names)
    for index, (name, group) in enumerate(_lengths(rows)):
        labels = [text.label(row["name"]) for row in group]
        floors = [row["floor_peak_bytes"] for row in group]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": [row["peak_bytes"] for row in group],
                "y": labels,
                "text": [text.size(row["peak_bytes"]) for row in group],
                "textposition": "outside",
                "cliponaxis": False,
                "customdata": [text.size(floor) for floor in floors],
                "hovertemplate": "%{y}<br>%{text}, floor %{customdata}<extra></extra>",
                "marker": {"color": colour(index)},
                "offsetgroup": str(index) if several else "0",
            }
        )
        ticks.append(
            {
                "type": "scatter",
                "orientation": "h",
                "mode": "markers",
                "name": "floor",
                "showlegend": index == 0,
                "x": floors,
                "y": labels,
                "hoverinfo": "skip",
                "offsetgroup": str(index) if several else "0",
                "marker": {"symbol": "line-ns", "size": 15, "line": {"width": 3, "color": "var(--ink)"}},
            }
        )
    known = [row["peak_bytes"] for row in rows] + [row["floor_peak_bytes"] or 0 for row in rows]
    axis = number_axis("peak memory", range=[0, 1.4 * max(known) or 1], **_byte_ticks(max(known)))
    height = 110 + len(names) * (10 + 20 * (len(data) if several else 1))
    # Markers keep to their own bar of a group only where scatter traces are grouped too.
    modes = {"scattermode": "group", "scattergap": 0.25, "bargap": 0.25}
    return figure([*data, *ticks], height, axis, names_axis(names), **modes)


def _byte_ticks(largest: float) -> dict[str, Any]:
    """Four even steps in a power-of-two unit, which plotly's decimal ticks cannot give."""
    step = 1.0
    while step * 4 < largest:
        step *= 2
    values = [step * i for i in range(5) if step * (i - 1) <= largest]
    return {"tickvals": values, "ticktext": [text.size(value) for value in values], "tickangle": 0}


def against_length(
    rows: Sequence[Mapping[str, Any]], measure: str, title: str, show: Callable[[float | None], str]
) -> Figure | None:
    """A measure against the length, a line a name, the floor dashed; ``None`` where no name has two lengths.

    Args:
        rows: as :func:`biases.report.bench.view` reads them.
        measure: key of the rows; the floor's is ``floor_`` and this.
        title: of the upright axis.
        show: a value for people.
    """
    series: dict[str, dict[int, float]] = {}
    floor: dict[int, list[float]] = {}
    for row in rows:
        if row["length"] is None:
            continue
        if row[measure]:
            series.setdefault(row["name"], {})[row["length"]] = row[measure]
        if row[f"floor_{measure}"]:
            floor.setdefault(row["length"], []).append(row[f"floor_{measure}"])
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    data: list[dict[str, Any]] = []
    if len(floor) > 1:
        lengths = sorted(floor)
        middle = [sorted(floor[n])[len(floor[n]) // 2] for n in lengths]
        trace = line("floor", 0, lengths, middle, customdata=[show(value) for value in middle])
        trace["line"] = {"color": "var(--ink)", "width": 2, "dash": "dot"}
        trace["marker"] = {"color": "var(--ink)", "size": 6, "symbol": "line-ew-open"}
        data.append(trace)
    for index, (name, points) in enumerate(series.items()):
        lengths = sorted(points)
        values = [points[n] for n in lengths]
        trace = line(text.label(name, 40), index, lengths, values, customdata=[show(value) for value in values])
        data.append(trace if index < SHOWN else {**trace, "visible": "legendonly"})
    for trace in data:
        trace["hovertemplate"] = "%{x}: %{customdata}"
    lengths = sorted({n for trace in data for n in trace["x"]})
    ticks = {"tickvals": lengths, "ticktext": [str(n) for n in lengths]} if len(lengths) < 9 else {}
    x = number_axis("length", type="log", **ticks)
    y = number_axis(title, type="log", **_ticks([v for trace in data for v in trace["y"]], show))
    return figure(data, 340 + 22 * (len(data) // 3), x, y)


def _ticks(values: Sequence[float], show: Callable[[float | None], str]) -> dict[str, Any]:
    """Ticks of a logarithmic axis in units for people: three to six even steps in the logarithm."""
    low, high = min(values), max(values)
    count = 4 if high > 1.5 * low else 1
    found = [low * (high / low) ** (i / max(count - 1, 1)) for i in range(count)]
    return {"tickvals": found, "ticktext": [show(value) for value in found]}
