"""The ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from biases.report import text
from biases.report.charts.base import Figure, figure, names_axis, number_axis


def verdicts(counts: Mapping[str, Mapping[str, int]], statuses: Sequence[Mapping[str, Any]]) -> Figure:
    """Statements of each paper by verdict, stacked.

    Args:
        counts: paper -> verdict -> how many.
        statuses: ``name``, ``words``, ``style`` (a colour of the style sheet) and ``pattern`` of each, in order.
    """
    names = [text.label(paper, 22) for paper in counts]
    data = []
    for status in statuses:
        found = [of_paper.get(status["name"], 0) for of_paper in counts.values()]
        if any(found):
            shape = {
                "shape": status["pattern"],
                "fgcolor": "var(--surface)",
                "size": 7,
                "solidity": 0.3,
                "fillmode": "overlay",
            }
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": text.label(status["words"], 40),
                    "x": found,
                    "y": names,
                    "hovertemplate": "%{y}: %{x}",
                    "marker": {"color": f"var(--{status['style']})", "pattern": shape},
                }
            )
    x = number_axis("statements")
    shown = figure(data, 150 + 30 * len(names), x, names_axis(names), barmode="stack", bargap=0.3)
    shown["layout"]["legend"]["traceorder"] = "normal"
    return shown
