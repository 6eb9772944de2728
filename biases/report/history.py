"""The history of the benchmarks: values over commits, with the steps that were detected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from biases._checks import fail
from biases.report import text
from biases.report.asv_history import FEWEST_VALUES, LASTING_VALUES, LEAST_OF_TIMES
from biases.report.charts import history as charts

MOST_LINES = 14
"""Lines of one chart; the table has them all."""
MOST_TOLD = 3
"""Series with steps that the overview names."""
METHODS = {"time": "time of", "timeraw": "time of", "mem": "size of", "peakmem": "peak memory of", "track": ""}
"""What asv measures of a method whose name begins so."""
Commits = Sequence[tuple[str, str]]


def _series(raw: Mapping[str, Any], commits: Commits) -> dict[str, Any]:
    name = f"{text.words(raw.get('benchmark'))}({text.words(raw.get('params'))})"
    values = text.numbers(f"values of {name}", raw.get("values") or [], len(commits))
    known = [value for value in values if value is not None]
    unit = text.words(raw.get("unit"))
    steps = [_step(step, name, unit, commits) for step in text.rows(raw, "steps")]
    return {
        "benchmark": text.words(raw.get("benchmark")),
        "title": _title(text.words(raw.get("benchmark"))),
        "params": text.words(raw.get("params")),
        "unit": unit,
        "values": values,
        "steps": steps,
        "stepped": ", ".join(step["told"] for step in steps),
        "measured": len(known),
        "first": _value(known[0], unit) if known else text.DASH,
        "last": _value(known[-1], unit) if known else text.DASH,
        "change": text.ratio(known[-1] / known[0]) if known and known[0] else text.DASH,
    }


def _step(raw: Mapping[str, Any], name: str, unit: str, commits: Commits) -> dict[str, Any]:
    at, found = raw.get("at"), {}
    for key in ("before", "after", "ratio"):
        found[key] = text.finite(f"{key} of a step of {name}", raw.get(key))
    known = found["before"] == 0 if found["ratio"] is None else found["ratio"] >= 0
    if not isinstance(at, int) or not 0 <= at < len(commits) or not known:
        fail(f"step of {name}", f"at below {len(commits)} and a ratio, or before 0", dict(raw))
    size = math.inf if not found["ratio"] else abs(math.log(found["ratio"]))
    words = _change(found["ratio"], found["after"], unit)
    return {"at": at, "size": size, "words": words, "told": f"{words} from {' of '.join(commits[at])} on"}


def _change(ratio: float | None, after: float | None, unit: str) -> str:
    """A step in words, in per cent of the level before."""
    if ratio is None:
        return f"{_value(after or 0.0, unit)} instead of none"
    more, fewer = ("slower", "faster") if unit == "seconds" else (f"more {unit}", f"fewer {unit}")
    return f"{text.count(100 * abs(ratio - 1))} % {more if ratio > 1 else fewer}"


def _title(benchmark: str) -> str:
    """What a benchmark of asv measures, in words: its name is ``module.Class.kind_what`` or ``module.kind_what``."""
    *where, method = benchmark.split(".")
    kind, _, what = method.partition("_")
    if kind not in METHODS or not what or not where:
        return benchmark
    words = f"{METHODS[kind]} {what.replace('_', ' ')}".strip()
    return f"{where[0]}: {words}" + (f" ({'.'.join(where[1:])})" if where[1:] else "")


def _value(value: float, unit: str) -> str:
    if unit == "seconds":
        return text.duration(value)
    return text.size(value) if unit == "bytes" else f"{text.count(value)} {unit}"


def view(part: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one machine.

    Args:
        part: ``machine``; ``commits`` (``hash``, ``date`` in milliseconds), the oldest first; ``series``
            (``benchmark``, ``params``, ``unit``, ``values``, ``steps``).

    Returns:
        ``machine``; ``commits``; ``series``; ``groups``, the series of each benchmark: its ``title``, ``name``,
        ``series``, ``stepped`` (whether one has a step), ``figure`` (``None`` where no series has two values) and
        ``about`` of the figure, those with the largest steps first.

    Raises:
        ValueError: a value has the wrong type.
    """
    commits = []
    for raw in text.rows(part, "commits"):
        date = text.finite("date of a commit", raw.get("date"))
        day = text.DASH if date is None else datetime.fromtimestamp(date / 1000, UTC).date().isoformat()
        commits.append((text.words(raw.get("hash")), day))
    series = [_series(raw, commits) for raw in text.rows(part, "series")]
    named: dict[str, list[dict[str, Any]]] = {}
    for each in series:
        named.setdefault(each["benchmark"], []).append(each)
    groups = [_group(name, group, commits) for name, group in named.items()]
    groups.sort(key=lambda group: max(map(_largest_step, group["series"])), reverse=True)
    return {"machine": text.words(part.get("machine")), "commits": commits, "series": series, "groups": groups}


def _group(name: str, group: Sequence[Mapping[str, Any]], commits: Commits) -> dict[str, Any]:
    drawn = sorted((s for s in group if s["measured"] > 1 and any(s["values"])), key=_largest_step, reverse=True)
    figure = None
    if drawn:
        labels = [text.label(commit) for commit, _ in commits]
        figure = charts.over_commits(drawn[:MOST_LINES], labels, group[0]["unit"])
    about = "Values over the first of each, the commits from the oldest. "
    if any(each["measured"] >= FEWEST_VALUES for each in drawn):
        about += "A diamond marks a step: asv's detection finds a new level there, which lasts "
        about += f"{LASTING_VALUES} commits or more"
        if group[0]["unit"] == "seconds":
            about += f" and is at least {100 * LEAST_OF_TIMES - 100:.0f} % off. Between noisy values it can miss one"
        about += "."
    else:
        about += f"Steps are looked for from {FEWEST_VALUES} values on: in fewer, asv's detection finds them in noise."
    if len(drawn) > MOST_LINES:
        about += f" {len(drawn) - MOST_LINES} more are in the table."
    return {
        "name": name,
        "title": group[0]["title"],
        "series": group,
        "stepped": any(each["steps"] for each in group),
        "figure": figure,
        "about": about,
    }


def _largest_step(series: Mapping[str, Any]) -> float:
    return max((step["size"] for step in series["steps"]), default=-1.0)


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview: the largest steps first."""
    series = shown["series"]
    if not series:
        return []
    commits = text.plural(len(shown["commits"]), "commit")
    what = f"History on {shown['machine']}: {text.plural(len(series), 'series', 'series')} over {commits}"
    if max(each["measured"] for each in series) < FEWEST_VALUES:
        return [f"{what}; steps are looked for from {FEWEST_VALUES} values on."]
    stepped = sorted((each for each in series if each["steps"]), key=_largest_step, reverse=True)
    if not stepped:
        return [f"{what}, without a step."]
    told = [f"{each['title']}, {each['params']}: {each['stepped']}." for each in stepped[:MOST_TOLD]]
    most = f"; the {len(told)} largest follow, the table has all" if len(stepped) > len(told) else ""
    return [f"{what}, {len(stepped)} with steps{most}.", *told]
