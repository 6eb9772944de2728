"""The benchmark section: time and memory beside the unbiased fused kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biases.report import charts, text

MEASURES = (
    "length",
    "seconds_median",
    "seconds_low",
    "seconds_high",
    "ratio",
    "ratio_low",
    "ratio_high",
    "peak_bytes",
    "floor_peak_bytes",
)


def _row(raw: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {key: text.finite(f"{key} of a benchmark", raw.get(key)) for key in MEASURES}
    if row["length"] is not None:
        row["length"] = int(row["length"])
    return {
        **row,
        "name": text.words(raw.get("name")),
        "mask": {True: "causal", False: "full", None: text.DASH}.get(raw.get("causal"), text.DASH),
        "direction": text.words(raw.get("direction")),
        "status": text.words(raw.get("status")),
        "message": "" if raw.get("message") is None else str(raw["message"]),
        "time": text.duration(row["seconds_median"]),
        "time_spread": _between(text.duration, row["seconds_low"], row["seconds_high"]),
        "ratio_text": text.ratio(row["ratio"]),
        "ratio_spread": _between(text.ratio, row["ratio_low"], row["ratio_high"]),
        "peak": text.size(row["peak_bytes"]),
        "floor_peak": text.size(row["floor_peak_bytes"]),
    }


def _between(show: Any, low: float | None, high: float | None) -> str:
    return text.DASH if low is None or high is None else f"{show(low)} to {show(high)}"


def view(bench: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows; ``figures`` holds (title, description, figure) for each direction.

    Raises:
        ValueError: a value has the wrong type.
    """
    rows = [_row(raw) for raw in text.rows(bench, "rows")]
    figures = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        group = [row for row in rows if row["direction"] == direction]
        timed = [row for row in group if row["ratio"] is not None and row["ratio"] > 0]
        weighed = [row for row in group if row["peak_bytes"] is not None]
        if timed:
            about = "Median time of each case over that of the unbiased fused kernel in the same rounds, with "
            about += "quartiles. The dotted line is equal time; shorter is faster."
            figures.append((f"Time against the floor, {direction}", about, charts.ratios(timed)))
        if weighed:
            about = "Peak memory allocated while a case ran, beyond its inputs. The upright tick is the floor's."
            figures.append((f"Peak memory, {direction}", about, charts.memory(weighed)))
    return {
        "rows": rows,
        "figures": figures,
        "config": text.facts(text.section(bench, "config")),
        "floor": text.facts(text.section(bench, "floor")),
    }


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
    refused = [row["name"] for row in shown["rows"] if row["seconds_median"] is None]
    if refused:
        sentences.append(f"Not timed, see the table: {text.listing(dict.fromkeys(refused))}.")
    return sentences
