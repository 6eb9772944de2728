"""The benchmark section: latency, throughput and memory beside the unbiased fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biases.report import text
from biases.report.charts import bench as charts

MEASURES = (
    "length",
    "seconds_median",
    "seconds_low",
    "seconds_high",
    "floor_seconds_median",
    "ratio",
    "ratio_low",
    "ratio_high",
    "peak_bytes",
    "floor_peak_bytes",
    "tokens_per_second",
    "floor_tokens_per_second",
)
AGAINST_LENGTH: tuple[tuple[str, str, str, Callable[[float | None], str]], ...] = (
    ("Latency against length", "seconds_median", "median time", text.duration),
    ("Throughput against length", "tokens_per_second", "tokens a second", text.number),
    ("Peak memory against length", "peak_bytes", "peak memory", text.size),
)


def _row(raw: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {key: text.finite(f"{key} of a benchmark", raw.get(key)) for key in MEASURES}
    if row["length"] is not None:
        row["length"] = int(row["length"])
    name, peer = text.words(raw.get("name")), raw.get("peer")
    by = raw.get("by") or ()
    return {
        **row,
        "name": name if peer is None else f"{name}, {text.words(peer)}",
        "mask": {True: "causal", False: "full", None: text.DASH}.get(raw.get("causal"), text.DASH),
        "direction": text.words(raw.get("direction")),
        "where": tuple(text.words(raw[key]) for key in ("level", "device", "dtype") if raw.get(key)),
        "shape": text.words(raw["shape"]) if raw.get("shape") else "",
        "by": ", ".join(by) if isinstance(by, list | tuple) else text.words(by),
        "status": text.words(raw.get("status")),
        "message": "" if raw.get("message") is None else str(raw["message"]),
        "time": text.duration(row["seconds_median"]),
        "time_spread": _between(text.duration, row["seconds_low"], row["seconds_high"]),
        "ratio_text": text.ratio(row["ratio"]),
        "ratio_spread": _between(text.ratio, row["ratio_low"], row["ratio_high"]),
        "rate": text.number(row["tokens_per_second"]),
        "peak": text.size(row["peak_bytes"]),
        "floor_peak": text.size(row["floor_peak_bytes"]),
    }


def _between(show: Any, low: float | None, high: float | None) -> str:
    return text.DASH if low is None or high is None else f"{show(low)} to {show(high)}"


def view(part: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one run.

    Args:
        part: ``rows`` (``name``, ``peer``, ``causal``, ``direction``, ``level``, ``device``, ``dtype``, ``shape``,
            ``by``, ``status``, ``message`` and the numbers of :data:`MEASURES`), ``config``, ``floor``, ``machine``.

    Returns:
        ``rows``, ``groups`` ((heading, [(title, description, figure)]) for each level, device, dtype, shape and
        direction), ``config``, ``floor`` and ``machine``.

    Raises:
        ValueError: a value has the wrong type.
    """
    rows = [_row(raw) for raw in text.rows(part, "rows")]
    return {
        "rows": rows,
        "groups": [(heading, figures) for heading, group in _groups(rows) if (figures := _figures(group))],
        "config": text.facts(text.section(part, "config")),
        "floor": text.facts(text.section(part, "floor")),
        "machine": text.facts(text.section(part, "machine")),
    }


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Rows that share their charts, with a heading: of one level, device, dtype and direction, and of one shape where a
    name was measured in several at one length."""
    found: list[tuple[str, list[Mapping[str, Any]]]] = []
    for where, direction in dict.fromkeys((row["where"], row["direction"]) for row in rows):
        group = [row for row in rows if (row["where"], row["direction"]) == (where, direction)]
        shapes = list(dict.fromkeys(row["shape"] for row in group))
        places = {(row["name"], row["length"], row["mask"]) for row in group}
        split = [[row for row in group if row["shape"] == shape] for shape in shapes]
        for part in [group] if len(places) == len(group) else split:
            shape = part[0]["shape"] if len({row["shape"] for row in part}) == 1 else ""
            found.append((", ".join(filter(None, (*where, shape, direction))), part))
    return found


def _figures(group: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    timed = [row for row in group if row["ratio"] is not None and row["ratio"] > 0]
    weighed = [row for row in group if row["peak_bytes"] is not None]
    figures = []
    if timed:
        about = "Median time of each case over that of the unbiased fused kernel in the same rounds, with "
        about += "quartiles. The dotted line is equal time; shorter is faster."
        figures.append(("Time against the floor", about, charts.ratios(timed)))
    for title, measure, axis, show in AGAINST_LENGTH:
        drawn = charts.against_length(group, measure, axis, show)
        if drawn:
            about = "Both axes are logarithmic. The dotted line is the floor, attention without a bias."
            if len(drawn["data"]) > charts.SHOWN + 1:
                about += " Choose a name in the legend to show or hide it."
            figures.append((title, about, drawn))
    if weighed and not any(title.startswith("Peak") for title, _, _ in figures):
        about = "Peak memory allocated while a case ran, beyond its inputs. The upright tick is the floor's."
        figures.append(("Peak memory", about, charts.memory(weighed)))
    return figures


def findings(shown: Mapping[str, Any]) -> list[str]:
    """Sentences for the overview."""
    timed = [row for row in shown["rows"] if row["ratio"] is not None]
    sentences = []
    if timed:
        ends = [min(timed, key=lambda r: r["ratio"]), max(timed, key=lambda r: r["ratio"])]
        low, high = (
            f"{r['name']} at {r['ratio_text']} ({r['direction']}, length {text.words(r['length'])})" for r in ends
        )
        many = f"; the most costly is {high}" if ends[0] is not ends[1] else ""
        sentences.append(f"Against the unbiased fused kernel the cheapest case is {low}{many}.")
    refused = [row["name"] for row in shown["rows"] if row["seconds_median"] is None and row["ratio"] is None]
    if refused:
        sentences.append(f"Not timed, see the table: {text.listing(dict.fromkeys(refused))}.")
    return sentences
