"""From the files of the benchmarks to the rows that their section shows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def of_bench(document: Mapping[str, Any]) -> dict[str, Any]:
    """What ``biases bench --json`` prints."""
    rows = []
    for raw in document["rows"]:
        rows.append(
            {
                **_setting(raw),
                **_times(raw.get("samples"), raw.get("floor"), raw.get("ratio")),
                **{key: raw.get(key) for key in ("peak_bytes", "floor_peak_bytes", "tokens_per_second")},
                **{key: raw.get(key) for key in ("name", "level", "peer", "status", "message")},
                "by": raw.get("formulations"),
            }
        )
    return _part(document, _rates(rows), document.get("configuration"))


def of_pieces(document: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios to the floor as the checkout's table has them: ``pieces``, each a subject at one setting."""
    rows = []
    for piece in document["pieces"].values():
        # Names are written for a page in Markdown.
        name = str(piece.get("subject")).replace("`", "")
        seconds = piece.get("seconds") or {}
        rows.append(
            {
                **_setting(piece),
                **_times(_summary(seconds.get("ours")), _summary(seconds.get("floor")), piece.get("ratio")),
                "name": name,
                "level": piece.get("table"),
                "status": piece.get("status"),
                "message": piece.get("message"),
                "peak_bytes": piece.get("extra_bytes"),
                "floor_peak_bytes": piece.get("floor_extra_bytes"),
                "by": piece.get("formulations"),
            }
        )
        if piece.get("plain_ratio"):
            plain = _times(_summary(seconds.get("plain")), _summary(seconds.get("floor")), piece["plain_ratio"])
            rows.append({**_setting(piece), **plain, "name": f"{name}, plain formulas", "status": "ok"})
            rows[-1] |= {"level": piece.get("table")}
    return _part(document, _rates(rows), document.get("made_by"))


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
    return _part(document, _rates(rows), document.get("made_by"))


def _part(
    document: Mapping[str, Any], rows: list[dict[str, Any]], configuration: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {"rows": rows, "config": dict(configuration or {}), "machine": dict(document.get("machine") or {})}


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
