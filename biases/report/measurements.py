"""From the files of the benchmarks to the rows that their section shows."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from biases.report import sources, text


def of_bench(document: Mapping[str, Any]) -> dict[str, Any]:
    """What ``biases bench --json`` prints."""
    rows = []
    for raw in document["rows"]:
        rows.append(
            {
                **_setting(raw),
                **_times(raw.get("samples"), raw.get("floor"), raw.get("ratio")),
                **{key: raw.get(key) for key in ("peak_bytes", "floor_peak_bytes", "extra_bytes", "floor_extra_bytes")},
                **{key: raw.get(key) for key in ("name", "level", "peer", "causal", "status", "message")},
                "tokens_per_second": raw.get("tokens_per_second"),
                "by": raw.get("formulations"),
            }
        )
    remarks = _remarks(document)
    if document.get("complete") is False:
        remarks.append(f"This benchmark was stopped before its end{_left(document.get('configuration') or {}, rows)}.")
    return _part(document, _rates(rows), document.get("configuration"), remarks)


def _left(configuration: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """How much of what was planned was measured, and which names miss something."""
    names, settings = configuration.get("names") or [], configuration.get("settings") or [{}]
    done = Counter(name for name, *_ in {(row["name"], row["length"], row["direction"]) for row in rows})
    left = [str(name) for name in names if done[name] < len(settings)]
    if not left:
        return ""
    return f": {done.total()} of {len(names) * len(settings)} workloads were measured, missing of {text.listing(left)}"


def of_pieces(document: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios to the floor as the checkout's table has them: ``pieces``, each a subject at one setting."""
    rows = []
    for piece in document["pieces"].values():
        # Names are written for a page in Markdown.
        name = str(piece.get("subject")).replace("`", "")
        # Only a name tells the mask, and only that of some subjects does.
        causal = True if "causal" in re.findall(r"\w+", name) else None
        seconds = piece.get("seconds") or {}
        rows.append(
            {
                **_setting(piece),
                **_times(_summary(seconds.get("ours")), _summary(seconds.get("floor")), piece.get("ratio")),
                "name": name,
                "causal": causal,
                "level": piece.get("table"),
                "status": piece.get("status"),
                "message": piece.get("message"),
                **{key: piece.get(key) for key in ("extra_bytes", "floor_extra_bytes")},
                "by": piece.get("formulations"),
            }
        )
        if piece.get("plain_ratio"):
            plain = _times(_summary(seconds.get("plain")), _summary(seconds.get("floor")), piece["plain_ratio"])
            rows.append({**_setting(piece), **plain, "name": f"{name}, plain formulas", "status": "ok"})
            rows[-1] |= {"level": piece.get("table"), "causal": causal}
    remarks = _remarks(document)
    left = [str(name) for name in document.get("asked") or () if name not in document["pieces"]]
    if left:
        count = f"{len(left)} of {len(document['asked'])}"
        remarks.append(f"This benchmark is not whole: {count} pieces are missing, {text.listing(left)}.")
    return _part(document, _rates(rows), document.get("made_by"), remarks)


def of_backends(document: Mapping[str, Any]) -> dict[str, Any]:
    """Subjects by every backend on a GPU: ``cells``, each a subject at one setting."""
    rows = []
    for cell in document["cells"].values():
        floor = cell.get("floor") or {}
        for backend, found in (cell.get("backends") or {}).items():
            timed = {"median": found.get("seconds")}
            rows.append(
                {
                    **_setting(cell),
                    **_times(timed, {"median": floor.get("seconds")}, found.get("ratio")),
                    "name": cell.get("subject"),
                    "peer": backend,
                    "level": "operator",
                    "status": found.get("status"),
                    "message": found.get("message"),
                    "peak_bytes": found.get("peak_bytes"),
                    "floor_peak_bytes": floor.get("peak_bytes"),
                }
            )
    return _part(document, _rates(rows), document.get("made_by"), _remarks(document))


def _part(
    document: Mapping[str, Any],
    rows: list[dict[str, Any]],
    configuration: Mapping[str, Any] | None,
    remarks: list[str],
) -> dict[str, Any]:
    machine = dict(document.get("machine") or {})
    return {"rows": rows, "config": dict(configuration or {}), "machine": machine, "remarks": remarks}


def _remarks(document: Mapping[str, Any]) -> list[str]:
    """A warning where the file has another form than the one that is read."""
    return [remark for remark in [sources.foreign_schema(document)] if remark]


def _setting(raw: Mapping[str, Any]) -> dict[str, Any]:
    setting = raw.get("setting") or {}
    known = [(key, setting.get(key)) for key in ("batch", "heads", "head_dim") if setting.get(key) is not None]
    return {
        **{key: setting.get(key) for key in ("batch", "length", "direction", "device", "dtype")},
        "shape": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in known),
    }


def _times(
    ours: Mapping[str, Any] | None, floor: Mapping[str, Any] | None, ratio: Mapping[str, Any] | None
) -> dict[str, Any]:
    ours, floor, ratio = ours or {}, floor or {}, ratio or {}
    return {
        "seconds_median": ours.get("median"),
        "seconds_low": ours.get("low"),
        "seconds_high": ours.get("high"),
        "floor_seconds_median": floor.get("median"),
        "floor_seconds_low": floor.get("low"),
        "floor_seconds_high": floor.get("high"),
        "ratio": ratio.get("value"),
        "ratio_low": ratio.get("low"),
        "ratio_high": ratio.get("high"),
    }


def _summary(seconds: Sequence[float] | None) -> dict[str, Any]:
    """Median and quartiles of times."""
    if not seconds:
        return {}
    if len(seconds) == 1:
        return {"median": seconds[0]}
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def _rates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens a second, of the floor too, where the rows have their time alone."""
    for row in rows:
        tokens = (row["batch"] or 0) * (row["length"] or 0)
        for prefix in ("", "floor_"):
            seconds = row.get(f"{prefix}seconds_median")
            if tokens and seconds and row.get(f"{prefix}tokens_per_second") is None:
                row[f"{prefix}tokens_per_second"] = tokens / seconds
    return rows
