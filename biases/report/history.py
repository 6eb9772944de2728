"""The history of the benchmarks: values over commits, with the steps that were detected."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from biases._checks import fail
from biases.report import text
from biases.report.charts import history as charts

MOST_LINES = 14
"""Lines of one chart; the table has them all."""


def _series(raw: Mapping[str, Any], count: int) -> dict[str, Any]:
    name = f"{text.words(raw.get('benchmark'))}({text.words(raw.get('params'))})"
    values = text.numbers(f"values of {name}", raw.get("values") or [], count)
    known = [value for value in values if value is not None]
    steps = []
    for step in text.rows(raw, "steps"):
        at, ratio = step.get("at"), text.finite(f"ratio of a step of {name}", step.get("ratio"))
        if not isinstance(at, int) or not 0 <= at < count or ratio is None:
            fail(f"step of {name}", f"at below {count} and a ratio", dict(step))
        steps.append({"at": at, "ratio": ratio})
    return {
        "benchmark": text.words(raw.get("benchmark")),
        "params": text.words(raw.get("params")),
        "unit": text.words(raw.get("unit")),
        "values": values,
        "steps": steps,
        "measured": len(known),
        "first": _value(known[0], raw.get("unit")) if known else text.DASH,
        "last": _value(known[-1], raw.get("unit")) if known else text.DASH,
        "change": text.ratio(known[-1] / known[0]) if known and known[0] else text.DASH,
    }


def _value(value: float, unit: object) -> str:
    if unit == "seconds":
        return text.duration(value)
    return text.size(value) if unit == "bytes" else f"{text.number(value)} {text.words(unit)}"


def view(part: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one machine.

    Args:
        part: ``machine``; ``commits`` (``hash``, ``date`` in milliseconds), the oldest first; ``series``
            (``benchmark``, ``params``, ``unit``, ``values``, ``steps``).

    Returns:
        ``machine``, ``commits``, ``series``, and ``charts``: (benchmark, whether a step was found, figure) where there
        are at least two commits, those with steps first.

    Raises:
        ValueError: a value has the wrong type.
    """
    commits = []
    for raw in text.rows(part, "commits"):
        date = text.finite("date of a commit", raw.get("date"))
        day = text.DASH if date is None else datetime.fromtimestamp(date / 1000, UTC).date().isoformat()
        commits.append((text.words(raw.get("hash")), day))
    series = [_series(raw, len(commits)) for raw in text.rows(part, "series")]
    for each in series:
        each["stepped"] = ", ".join(f"{text.ratio(s['ratio'])} at {commits[s['at']][0]}" for s in each["steps"])
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in series:
        if each["measured"] > 1 and any(each["values"]):
            groups.setdefault(each["benchmark"], []).append(each)
    drawn = []
    for name, group in groups.items():
        shown = sorted(group, key=_largest_step, reverse=True)[:MOST_LINES]
        figure = charts.over_commits(shown, [text.label(commit) for commit, _ in commits], group[0]["unit"])
        left_out = len(group) - len(shown)
        drawn.append((name, any(each["steps"] for each in group), left_out, figure))
    drawn.sort(key=lambda found: not found[1])
    return {"machine": text.words(part.get("machine")), "commits": commits, "series": series, "charts": drawn}


def _largest_step(series: Mapping[str, Any]) -> float:
    return max((abs(step["ratio"] - 1) for step in series["steps"]), default=-1.0)


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview."""
    if not shown["series"]:
        return []
    stepped = [each for each in shown["series"] if each["steps"]]
    what = (
        f"{text.plural(len(shown['series']), 'series', 'series')} over {text.plural(len(shown['commits']), 'commit')}"
    )
    if len(shown["commits"]) < 2:
        return [f"History on {shown['machine']}: {what}; steps need several commits."]
    named = text.listing(f"{each['benchmark']} ({each['params']}) {each['stepped']}" for each in stepped)
    return [f"History on {shown['machine']}: {what}, {f'steps in {named}' if stepped else 'no steps'}."]
