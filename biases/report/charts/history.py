"""Benchmarks over commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biases.report import text
from biases.report.charts.base import Figure, figure, line, number_axis
from biases.report.charts.bench import SHOWN


def over_commits(series: Sequence[Mapping[str, Any]], commits: Sequence[str], unit: str) -> Figure:
    """Values over their first one, a line a set of parameters; detected steps are marked.

    Args:
        series: ``params``, ``values`` (a commit each, ``None`` where not measured), ``steps``
            (``at``, index of the commit at which a new level begins, and ``words`` for what is new).
        commits: short hashes, the oldest first.
        unit: of the values, for the hover.
    """
    data: list[dict[str, Any]] = []
    order = list(commits)
    for index, each in enumerate(series):
        first = next(value for value in each["values"] if value)
        ratios = [None if value is None else value / first for value in each["values"]]
        told = [f"{text.number(value)} {text.label(unit)}" for value in each["values"]]
        trace = line(text.label(each["params"], 50), index, order, ratios, customdata=told, connectgaps=True)
        trace |= {"hovertemplate": "%{x}: ×%{y:.3g}, %{customdata}", "legendgroup": str(index)}
        shown: dict[str, Any] = {} if index < SHOWN else {"visible": "legendonly"}
        data.append({**trace, **shown})
        if each["steps"]:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [order[step["at"]] for step in each["steps"]],
                    "y": [ratios[step["at"]] for step in each["steps"]],
                    "customdata": [text.label(step["words"]) for step in each["steps"]],
                    "hovertemplate": "step here: %{customdata}<extra></extra>",
                    "marker": {"symbol": "diamond-open", "size": 16, "color": "var(--ink)", "line": {"width": 3}},
                    "showlegend": False,
                    "legendgroup": str(index),
                    **shown,
                }
            )
    x = number_axis("commit", type="category", categoryorder="array", categoryarray=order)
    return figure(data, 340 + 22 * (len(series) // 2), x, number_axis("÷ first value", tickprefix="×"))
