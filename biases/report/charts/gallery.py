"""What a bias looks like: maps, profiles, gates, encodings, kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biases.report.charts.base import Figure, figure, line, number_axis

HEIGHT = 250
SCALE = "Viridis"
DECADES = 5


def heatmap(
    values: Sequence[Sequence[float | None]],
    x: str,
    y: str,
    *,
    symmetric: bool = False,
    logarithmic: bool = False,
    mark: tuple[int, int] | None = None,
) -> Figure:
    """A map of numbers, rows from top to bottom; ``None`` stays blank.

    Args:
        values: rows.
        x, y: titles of the axes.
        symmetric: the colours are centred on zero.
        logarithmic: the values are decadic logarithms of shares.
        mark: (row, column) of a cell to be marked.
    """
    bar = {"thickness": 9, "outlinewidth": 0, "len": 1.0, "tickfont": {"color": "var(--ink)", "size": 10}}
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": values,
        "colorscale": SCALE,
        "hovertemplate": f"{y} %{{y}}, {x} %{{x}}: %{{z:.3g}}<extra></extra>",
        "colorbar": bar,
        "hoverongaps": False,
    }
    known = [value for row in values for value in row if value is not None]
    if symmetric:
        reach = max((abs(value) for value in known), default=1.0) or 1.0
        trace |= {"colorscale": "RdBu", "zmin": -reach, "zmax": reach}
    if logarithmic:
        ticks = list(range(-DECADES, 1))
        shown = ["1" if tick == 0 else f"10<sup>{tick}</sup>".replace("-", "−") for tick in ticks]
        trace |= {"zmin": -DECADES, "zmax": 0, "colorbar": {**bar, "tickvals": ticks, "ticktext": shown}}
        trace["hovertemplate"] = f"{y} %{{y}}, {x} %{{x}}: 10<sup>%{{z:.2f}}</sup><extra></extra>"
    data = [trace]
    if mark is not None:
        star = {"symbol": "star", "size": 11, "color": "var(--failed)", "line": {"width": 1, "color": "var(--surface)"}}
        place = {"x": [mark[1]], "y": [mark[0]], "hoverinfo": "skip", "showlegend": False}
        data.append({"type": "scatter", "mode": "markers", "marker": star, **place})
    plain = {"showgrid": False, "zeroline": False}
    square = {"scaleanchor": "x", "constrain": "domain"} if len(values) == len(values[0]) else {}
    across = number_axis(x, **plain, constrain="domain")
    down = number_axis(y, autorange="reversed", **plain, **square)
    return figure(data, HEIGHT + 30, across, down, margin={"l": 8, "r": 4, "t": 8, "b": 36}, showlegend=False)


def lines(
    series: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]],
    x: str,
    y: str,
    *,
    logarithmic: bool = False,
) -> Figure:
    """Named lines of (x, y)."""
    data = []
    for index, (name, (across, up)) in enumerate(series.items()):
        trace = line(name, index, across, up, hovertemplate="%{x:.3g}: %{y:.3g}")
        trace["marker"]["size"] = 4
        data.append(trace)
    more: dict[str, Any] = {"type": "log", "exponentformat": "power", "dtick": 1} if logarithmic else {}
    return figure(data, HEIGHT + 30, number_axis(x), number_axis(y, **more))
