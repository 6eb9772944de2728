"""What all figures share.

Colours are written ``var(--name)``, with an optional opacity after a space, and are resolved from the style sheet in
the browser, so that one figure serves the light and the dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SERIES = 7
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot")

Figure = dict[str, Any]


def colour(index: int, opacity: float | None = None) -> str:
    """The colour of series ``index``; the palette repeats."""
    name = f"var(--series-{index % SERIES + 1})"
    return name if opacity is None else f"{name} {opacity}"


def number_axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis of numbers."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "fixedrange": True,
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--line)",
        "linecolor": "var(--line)",
        **more,
    }


def names_axis(names: Sequence[str]) -> dict[str, Any]:
    """An axis of names, from top to bottom in their order."""
    order = {"categoryorder": "array", "categoryarray": list(names), "autorange": "reversed"}
    return number_axis("", type="category", ticklabelstandoff=6, **order)


def figure(data: list[dict[str, Any]], height: int, x: dict[str, Any], y: dict[str, Any], **more: Any) -> Figure:
    """Traces and layout; the legend is shown where there is more than one trace to name."""
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


def reference_line(at: float, *, flat: bool = False) -> dict[str, Any]:
    """A dotted line across the chart, upright or flat."""
    line = {"color": "var(--muted)", "width": 1.5, "dash": "dot"}
    own, other = ("y", "x") if flat else ("x", "y")
    place = {f"{own}ref": own, f"{other}ref": "paper", f"{own}0": at, f"{own}1": at, f"{other}0": 0, f"{other}1": 1}
    return {"type": "line", **place, "line": line}


def whiskers(middle: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None]) -> Any:
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


def line(name: str, index: int, x: Sequence[Any], y: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """A line with markers, told apart by colour, symbol and dash."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour(index), "width": 2, "dash": DASHES[index // SERIES % len(DASHES)]},
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7, "color": colour(index)},
        **more,
    }
