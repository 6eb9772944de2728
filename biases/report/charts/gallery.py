"""What a bias looks like: maps, profiles, gates, encodings, kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biases.report.charts.base import Figure, figure, line, number_axis

HEIGHT = 250
DECADES = 5
SEQUENTIAL = (
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#fde725",
)
DIVERGING = ("#2166ac", "#67a9cf", "#bdbdbd", "#ef8a62", "#b2182b")
"""From low to high; the middle is as far from a white ground as from a dark one."""

BAR: dict[str, Any] = {
    "thickness": 9,
    "outlinewidth": 0,
    "len": 1.0,
    "tickfont": {"color": "var(--ink)", "size": 10},
}


def scale(colours: Sequence[str]) -> list[tuple[float, str]]:
    """Stops at equal distances."""
    return [(index / (len(colours) - 1), colour) for index, colour in enumerate(colours)]


def shade(at: float, colours: Sequence[str]) -> tuple[int, int, int]:
    """Red, green and blue in [0, 255] at a share ``at`` of the way along :func:`scale`."""
    place = at * (len(colours) - 1)
    index = min(int(place), len(colours) - 2)
    ends = [[int(each[start : start + 2], 16) for start in (1, 3, 5)] for each in colours[index : index + 2]]
    red, green, blue = (round(low + (high - low) * (place - index)) for low, high in zip(*ends, strict=True))
    return red, green, blue


def heatmap(
    values: Sequence[Sequence[float | None]],
    x: str,
    y: str,
    *,
    symmetric: bool = False,
    logarithmic: bool = False,
    shares: bool = False,
    mark: tuple[int, int] | None = None,
) -> Figure:
    """A map of numbers, rows from top to bottom; ``None`` stays blank.

    Args:
        values: rows.
        x, y: titles of the axes.
        symmetric: the colours are centred on zero.
        logarithmic: the values are decadic logarithms of shares.
        shares: the values are in [0, 1], and the colours go from one end to the other.
        mark: (row, column) of a cell to be marked.
    """
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": values,
        "colorscale": scale(SEQUENTIAL),
        "hovertemplate": f"{y} %{{y}}, {x} %{{x}}: %{{z:.3g}}<extra></extra>",
        "colorbar": BAR,
        "hoverongaps": False,
    }
    known = [value for row in values for value in row if value is not None]
    if symmetric:
        reach = max((abs(value) for value in known), default=1.0) or 1.0
        trace |= {"colorscale": scale(DIVERGING), "zmin": -reach, "zmax": reach}
    if shares:
        trace |= {"zmin": 0, "zmax": 1}
    if logarithmic:
        ticks = list(range(-DECADES, 1))
        shown = ["1" if tick == 0 else f"10<sup>{tick}</sup>".replace("-", "−") for tick in ticks]
        trace |= {"zmin": -DECADES, "zmax": 0, "colorbar": {**BAR, "tickvals": ticks, "ticktext": shown}}
        trace["hovertemplate"] = f"{y} %{{y}}, {x} %{{x}}: 10<sup>%{{z:.2f}}</sup><extra></extra>"
    return _map(trace, x, y, mark)


def regions(values: Sequence[Sequence[float | None]]) -> Figure:
    """A map of the numbers of regions, from 0, a colour each; ``None`` stays blank."""
    count = 1 + int(max((value for row in values for value in row if value is not None), default=0))
    shades = ["#{:02x}{:02x}{:02x}".format(*shade((at + 0.5) / count, SEQUENTIAL)) for at in range(count)]
    steps = [(edge / count, each) for at, each in enumerate(shades) for edge in (at, at + 1)]
    ticks = {"tickvals": list(range(count)), "ticktext": [str(at + 1) for at in range(count)]}
    named = [[None if value is None else int(value) + 1 for value in row] for row in values]
    trace = {
        "type": "heatmap",
        "z": values,
        "text": named,
        "colorscale": steps,
        "zmin": -0.5,
        "zmax": count - 0.5,
        "hovertemplate": "row %{y}, column %{x}: region %{text}<extra></extra>",
        "colorbar": {**BAR, **ticks, "title": {"text": "region", "side": "right", "font": BAR["tickfont"]}},
        "hoverongaps": False,
    }
    return _map(trace, "column", "row")


def _map(trace: dict[str, Any], x: str, y: str, mark: tuple[int, int] | None = None) -> Figure:
    """The figure of a heatmap, square where it has as many rows as columns."""
    data, values = [trace], trace["z"]
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
