"""The figures, as plain plotly dictionaries.

Colours are written ``var(--name)``, with an optional opacity after a space, and are resolved from the style
sheet in the browser, so that one figure serves the light and the dark theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biases.report import text

SERIES = 7
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot")

Figure = dict[str, Any]


def _colour(index: int, opacity: float | None = None) -> str:
    name = f"var(--series-{index % SERIES + 1})"
    return name if opacity is None else f"{name} {opacity}"


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "fixedrange": True,
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--line)",
        "linecolor": "var(--line)",
        **more,
    }


def _figure(data: list[dict[str, Any]], height: int, x: dict[str, Any], y: dict[str, Any], **more: Any) -> Figure:
    layout = {
        "height": height,
        "margin": {"l": 8, "r": 16, "t": 16, "b": 40},
        "font": {"color": "var(--ink)", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--ink)"},
            "align": "left",
        },
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        "showlegend": sum(trace.get("showlegend", True) for trace in data) > 1,
        "dragmode": False,
        "xaxis": x,
        "yaxis": y,
        **more,
    }
    return {"data": data, "layout": layout}


def _names_axis(names: Sequence[str]) -> dict[str, Any]:
    order = {"categoryorder": "array", "categoryarray": list(names), "autorange": "reversed"}
    return _axis("", type="category", ticklabelstandoff=6, **order)


def _reference_line(at: float) -> dict[str, Any]:
    line = {"color": "var(--muted)", "width": 1.5, "dash": "dot"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line}


def _whiskers(middle: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None]) -> Any:
    """Asymmetric error bars from absolute ends; none where an end is missing."""

    def reach(ends: Sequence[float | None], sign: int) -> list[float]:
        pairs = zip(ends, middle, strict=True)
        return [0.0 if e is None or m is None else max(0.0, sign * (e - m)) for e, m in pairs]

    return {
        "type": "data",
        "symmetric": False,
        "array": reach(high, 1),
        "arrayminus": reach(low, -1),
        "color": "var(--ink)",
        "thickness": 1.5,
        "width": 3,
    }


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
                "error_x": _whiskers(middle, [row["ratio_low"] for row in group], [row["ratio_high"] for row in group]),
                "customdata": [text.span(row["ratio_low"], row["ratio_high"]) for row in group],
                "hovertemplate": "%{y}<br>×%{x:.3g} %{customdata}<extra></extra>",
                "marker": {"color": _colour(index)},
            }
        )
    known = [row["ratio"] for row in rows if row["ratio"]]
    logarithmic = max(known) > 20 * min(known)
    axis = _axis("time ÷ time of the floor", type="log" if logarithmic else "linear", tickprefix="×")
    height = 110 + len(names) * (10 + 16 * len(data))
    return _figure(data, height, axis, _names_axis(names), shapes=[_reference_line(1)], bargap=0.25)


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
                "marker": {"color": _colour(index)},
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
    axis = _axis("peak memory beyond the inputs", range=[0, 1.25 * max(known) or 1], **_byte_ticks(max(known)))
    height = 110 + len(names) * (10 + 20 * (len(data) if several else 1))
    # Markers keep to their own bar of a group only where scatter traces are grouped too.
    modes = {"scattermode": "group", "scattergap": 0.25, "bargap": 0.25}
    return _figure([*data, *ticks], height, axis, _names_axis(names), **modes)


def _byte_ticks(largest: float) -> dict[str, Any]:
    """Four even steps in a power-of-two unit, which plotly's decimal ticks cannot give."""
    step = 1.0
    while step * 4 < largest:
        step *= 2
    values = [step * i for i in range(5) if step * (i - 1) <= largest]
    return {"tickvals": values, "ticktext": [text.size(value) for value in values], "tickangle": 0}


def curves(arms: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Validation loss over steps, the mean over seeds with its band; an arm is steps, mean, low, high."""
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
                    "fillcolor": _colour(index, 0.16),
                    "line": {"width": 0, "color": _colour(index)},
                    "hoverinfo": "skip",
                    "showlegend": False,
                    "legendgroup": name,
                }
            )
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "legendgroup": name,
                "x": steps,
                "y": curve["mean"],
                "line": {"color": _colour(index), "width": 2, "dash": DASHES[index // SERIES % len(DASHES)]},
                "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 6, "color": _colour(index)},
                "hovertemplate": "step %{x}: %{y:.4f}",
            }
        )
    return _figure(data, 400, _axis("step"), _axis("validation loss, nats per character"), hovermode="closest")


def forest(contrasts: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    """Paired effects with their intervals; rows as :func:`biases.report.ablation.contrast` reads them."""
    names = [f"{text.label(row['name'], 24)}<br>n = {row['n']}" for row in contrasts]
    means = [row["mean"] for row in contrasts]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": means,
        "y": names,
        "error_x": {
            **_whiskers(means, [row["low"] for row in contrasts], [row["high"] for row in contrasts]),
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
        "marker": {"color": "var(--series-1)", "size": 10, "symbol": "square"},
    }
    axis = _axis(f"mean paired difference<br>{text.label(unit, 60)}", zeroline=False, nticks=6, tickangle=0)
    height = 100 + 52 * len(names)
    return _figure([trace], height, axis, _names_axis(names), shapes=[_reference_line(0)])


def interaction(grid: Mapping[str, Mapping[str, Mapping[str, Any]]], outer: str, inner: str) -> Figure:
    """Cell means, a line for each level of ``outer`` over those of ``inner``; parallel: no interaction."""
    data = []
    for index, (level, cells) in enumerate(grid.items()):
        means = [cell["mean"] for cell in cells.values()]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": text.label(level, 40),
                "x": [text.label(name) for name in cells],
                "y": means,
                "error_y": {
                    **_whiskers(means, [c["low"] for c in cells.values()], [c["high"] for c in cells.values()]),
                    "color": _colour(index),
                },
                "line": {"color": _colour(index), "width": 2, "dash": DASHES[index % len(DASHES)]},
                "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 10, "color": _colour(index)},
                "hovertemplate": "%{x}: %{y:.4f}",
            }
        )
    x = _axis(text.label(inner, 40), type="category")
    y = _axis("validation loss, nats per character")
    legend = {
        "title": {"text": text.label(outer, 40) + "  "},
        "orientation": "h",
        "x": 0,
        "y": 1,
        "yanchor": "bottom",
    }
    return _figure(data, 360, x, y, legend=legend)
