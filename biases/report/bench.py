"""The benchmark section: latency, throughput and memory beside the unbiased fused kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases.report import text
from biases.report.charts import bench as charts

MEASURES = (
    "length",
    "seconds_median",
    "seconds_low",
    "seconds_high",
    "floor_seconds_median",
    "floor_seconds_low",
    "floor_seconds_high",
    "ratio",
    "ratio_low",
    "ratio_high",
    "peak_bytes",
    "floor_peak_bytes",
    "extra_bytes",
    "floor_extra_bytes",
    "tokens_per_second",
    "floor_tokens_per_second",
)
LEVELS = {"operator": "operators", "layer": "layers", "model": "models", "training": "training steps"}
MEMORIES = {
    "peak_bytes": (
        "Peak memory",
        "The most bytes that a run held beyond what there was before it, its results included.",
    ),
    "extra_bytes": (
        "Peak memory without results",
        "The most bytes that a run held beyond what there was before it and beyond its results.",
    ),
}
Show = Callable[[float | None], str]


def _row(raw: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {key: text.finite(f"{key} of a benchmark", raw.get(key)) for key in MEASURES}
    for key, value in row.items():
        if value is not None and value < 0:
            fail(f"{key} of a benchmark", "0 or more", value)
    if row["length"] is not None:
        row["length"] = int(row["length"])
    name, peer = text.words(raw.get("name")), raw.get("peer")
    by = raw.get("by") or ()
    return {
        **row,
        **{f"{key}_span": _span(row, key) for key in MEASURES if key.startswith("floor_")},
        "name": name if peer is None else f"{name}, {text.words(peer)}",
        "mask": text.DASH if raw.get("causal") is None else "causal" if raw["causal"] else "full",
        "direction": text.words(raw.get("direction")),
        "level": text.words(raw.get("level") or ""),
        "device": text.words(raw.get("device") or config.get("device")),
        "dtype": text.words(raw.get("dtype") or config.get("dtype")),
        "shape": text.words(raw["shape"]) if raw.get("shape") else "",
        "by": ", ".join(by) if isinstance(by, list | tuple) else text.words(by),
        "status": text.words(raw.get("status")),
        "message": "" if raw.get("message") is None else str(raw["message"]),
        "time": text.duration(row["seconds_median"]),
        "time_spread": _between(text.duration, row["seconds_low"], row["seconds_high"]),
        "ratio_text": text.ratio(row["ratio"]),
        "ratio_spread": _between(text.ratio, row["ratio_low"], row["ratio_high"]),
        "rate": text.count(row["tokens_per_second"]),
        "memories": {key: (text.size(row[key]), text.size(row[f"floor_{key}"])) for key in MEMORIES},
    }


def _span(row: Mapping[str, Any], measure: str) -> tuple[float, float] | None:
    """The quartiles of a floor; its one value twice where it has none."""
    middle, seconds = row[measure], row["floor_seconds_median"]
    low, high = row["floor_seconds_low"], row["floor_seconds_high"]
    if middle is None:
        return None
    if measure.endswith("_bytes") or not (low and high and seconds):
        return middle, middle
    return (low, high) if measure == "floor_seconds_median" else (middle * seconds / high, middle * seconds / low)


def _between(show: Show, low: float | None, high: float | None) -> str:
    return text.DASH if low is None or high is None else f"{show(low)} to {show(high)}"


def view(part: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one run.

    Args:
        part: ``rows`` (``name``, ``peer``, ``causal``, ``direction``, ``level``, ``device``, ``dtype``, ``shape``,
            ``by``, ``status``, ``message`` and the numbers of :data:`MEASURES`), ``config`` (whose ``device`` and
            ``dtype`` are those of rows that name none), ``floor``, ``machine``, ``remarks`` (what a reader must know
            of the whole), ``file``.

    Returns:
        ``heading``; ``rows``; ``groups``, each with a ``heading`` (of its level, device, dtype, shape and direction),
        ``rows`` and ``charts``, rows of (title, description, figure); ``columns``, those of the table that have
        something in them; ``memory_notes``, what their memories are; ``remarks``, ``config``, ``floor`` and
        ``machine``.

    Raises:
        ValueError: a value has the wrong type, or a measure is negative.
    """
    config = text.section(part, "config")
    rows = [_row(raw, config) for raw in text.rows(part, "rows")]
    memories = [key for key in MEMORIES if any(row[key] is not None for row in rows)]
    return {
        "heading": _heading(rows, part.get("file")),
        "rows": rows,
        "groups": [{"heading": heading, "rows": group, "charts": _charts(group)} for heading, group in _groups(rows)],
        "columns": {
            "status": any(row["status"] != "ok" for row in rows),
            "mask": any(row["mask"] != text.DASH for row in rows),
            "rate": any(row["tokens_per_second"] is not None for row in rows),
            "memories": [(key, MEMORIES[key][0]) for key in memories],
        },
        "memory_notes": [
            f"{MEMORIES[key][0]}: {MEMORIES[key][1][0].lower()}{MEMORIES[key][1][1:]}" for key in memories
        ],
        "remarks": [text.words(remark) for remark in part.get("remarks") or ()],
        "config": text.facts(config),
        "floor": text.facts(text.section(part, "floor")),
        "machine": text.facts(text.section(part, "machine")),
    }


def _heading(rows: Sequence[Mapping[str, Any]], file: object) -> str:
    """What was measured, on which devices, in which dtypes."""

    def all_of(key: str) -> list[str]:
        return [found for found in dict.fromkeys(row[key] for row in rows) if found != text.DASH]

    what = text.listing(LEVELS.get(level, level) for level in all_of("level")) or "measurements"
    setting = text.listing(all_of("device") + all_of("dtype"))
    name = f" ({Path(str(file)).name})" if file else ""
    return f"{what[0].upper()}{what[1:]}{f' on {setting}' if setting else ''}{name}"


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows that share their charts, with a heading: of one level, device, dtype and direction, and of one shape where a
    name was measured in several at one length. Every row has the name of its ``series``."""

    def setting(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[key] for key in ("level", "device", "dtype", "direction"))

    found: list[tuple[str, list[dict[str, Any]]]] = []
    for shared in dict.fromkeys(map(setting, rows)):
        group = [row for row in rows if setting(row) == shared]
        shapes = list(dict.fromkeys(row["shape"] for row in group))
        places = {(row["name"], row["length"], row["mask"]) for row in group}
        split = [[row for row in group if row["shape"] == shape] for shape in shapes]
        for part in [group] if len(places) == len(group) else split:
            shape = part[0]["shape"] if len({row["shape"] for row in part}) == 1 else ""
            where = [each for each in shared[:-1] if each != text.DASH]
            heading = ", ".join(filter(None, (*where, shape, shared[-1])))
            found.append((heading, [row | {"shape": "" if shape else row["shape"]} for row in _in_series(part)]))
    return found


def _in_series(group: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their ``series``: the name, with the mask where it has several, and a number where it was measured
    more than once at one length."""
    masks = {name: {row["mask"] for row in group if row["name"] == name} for name in {row["name"] for row in group}}
    seen: Counter[tuple[str, Any]] = Counter()
    rows = []
    for row in group:
        series = row["name"] + (f", {row['mask']}" if len(masks[row["name"]]) > 1 else "")
        seen[series, row["length"]] += 1
        again = seen[series, row["length"]]
        rows.append({**row, "series": series if again == 1 else f"{series} ({again})"})
    return rows


def _charts(group: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, str, Any]]]:
    """Rows of charts of like heights, each chart with its title and what it shows."""
    timed = [row for row in group if row["ratio"]]
    measure = next((key for key in MEMORIES if any(row[key] is not None for row in group)), None)
    by_case, over_lengths, weighed = [], _over_lengths(group, measure), []
    if timed:
        about = "Median time of each case over that of its own floor, attention without a bias timed in the same "
        about += "rounds, with quartiles. The dotted line is equal time; further left is faster."
        by_case.append(("Time against the floor", about, charts.ratios(timed)))
    if measure and not any(title.startswith(MEMORIES[measure][0]) for title, _, _ in over_lengths):
        title, about = MEMORIES[measure]
        rows = [row for row in group if row[measure] is not None]
        weighed.append((title, f"{about} The upright tick is the floor's.", charts.memory(rows, measure)))
    return [figures for figures in (by_case, over_lengths, weighed) if figures]


def _over_lengths(group: Sequence[Mapping[str, Any]], measure: str | None) -> list[tuple[str, str, Any]]:
    drawn: list[tuple[str, str, Any]] = []
    ratio = charts.against_length(group, "ratio", "time ÷ time of the floor", text.ratio, level=1.0)
    if ratio:
        about = "How far each case is from its own floor. The dotted line is equal time; lower is faster."
        drawn.append(("Ratio to the floor against length", about, ratio))
    listed: list[tuple[str, str, str, Show]] = [
        ("Latency", "seconds_median", "median time", text.duration),
        ("Throughput", "tokens_per_second", "tokens a second", text.count),
    ]
    if measure:
        listed.append((MEMORIES[measure][0], measure, "memory", text.size))
    for what, key, axis, show in listed:
        floors, covered = charts.floors(group, key)
        figure = charts.against_length(group, key, axis, show, floor=floors, binary=key == measure)
        if figure:
            about = MEMORIES[key][1] if key in MEMORIES else ""
            drawn.append((f"{what} against length", f"{about} {_about(floors, covered)}".strip(), figure))
    hidden = any(trace.get("visible") == "legendonly" for *_, figure in drawn for trace in figure["data"])
    after = " Choose a name in the legend to show or hide it." if hidden else ""
    return [(title, f"Both axes are logarithmic. {about}{after}", each) for title, about, each in drawn]


def _about(floors: charts.Floors, covered: bool) -> str:
    """What the lines of the floors are, or why there are none."""
    differ = "differs by subject beyond its quartiles, so that no line stands for it: how far each is from its own "
    differ += "floor is in the ratio against length."
    names = [name.removeprefix("floor, ") for name in floors]
    if not floors:
        return "" if covered else f"The floor, attention without a bias, {differ}"
    if names == ["floor"]:
        return "The dotted line is the floor, attention without a bias."
    lines = f"The line without a colour is the floor of the {names[0]} cases, attention without a bias."
    if len(names) > 1:
        lines = "The lines without a colour are the floors, attention without a bias, one for each mask."
    return lines if covered else f"{lines} That of the others {differ}"


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
    return sentences + shown["remarks"]
