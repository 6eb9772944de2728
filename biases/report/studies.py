"""From the folder or the analysis of a study to what its section shows. Statistics are those of ``biases stats``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biases.report.effects import UNIT, interval_words

CORNERS = ("y00", "y10", "y01", "y11")
LOSSES = {"full": "validation loss on whole windows", "truncated": "validation loss on prefixes alone"}


def read_folder(folder: Path) -> dict[str, Any]:
    """The analysis of a run's folder. Cells that cannot be read are among its ``failed``.

    Raises:
        ValueError: no study in the folder, or one that cannot be read; cells of different data.
    """
    from biases._checks import fail
    from biases.ablation.analysis import analyse
    from biases.ablation.results import Result, cells_directory, read_result
    from biases.ablation.study import load_study
    from biases.ablation.study_folder import STUDY_FILE, redeclared

    spec = folder / STUDY_FILE
    if not spec.is_file():
        fail(str(folder), f"{STUDY_FILE} beside its cells", f"no {STUDY_FILE}")
    study = load_study(spec)
    results: list[Result] = []
    broken: list[dict[str, Any]] = []
    for path in sorted(cells_directory(folder).glob("[!.]*.json")):
        try:
            results.append(read_result(path))
        except (ValueError, OSError) as error:
            broken.append({"arm": None, "seed": None, "id": path.stem, "status": "unreadable", "error": str(error)})
    results.sort(key=lambda result: (result["arm"], result["seed"], result["id"]))
    analysis = analyse(study, results, redeclared=redeclared(study, folder))
    return {**analysis, "failed": [*analysis["failed"], *broken]}


def part_of(analysis: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`biases.report.ablation.view` takes, of what ``biases stats DIR --json`` prints."""
    statistics = analysis["statistics"]
    metric, unit = statistics["metric"], statistics.get("unit")
    text = analysis["kind"] == "text"
    main = "full" if text else metric
    # The unit that a study declares is that of its contrasts' metric.
    measure = f"validation loss, {UNIT}" if text else ", ".join(filter(None, (metric.replace("_", " "), unit)))
    arms = {name: _arm(arm, main) for name, arm in analysis["arms"].items()}
    series = next((arm["curve"]["series"] for arm in analysis["arms"].values() if arm["curve"]), "")
    level = statistics["confidence"]
    contrasts = [{"unit": unit, **_without_none(row), "interval": row["interval"]} for row in analysis["contrasts"]]
    study = f"{analysis['study']} ({analysis['size']})" if analysis["study"] else None
    return {
        "study": study,
        "title": study or "Two arms, not of a study",
        "question": analysis["question"],
        "notes": [*analysis["notes"], *_redeclared(analysis)],
        "measure": measure,
        "curve_measure": measure if text or series == metric else series.replace("_", " "),
        "confidence": level,
        "band": f"{interval_words(level)} of the mean over seeds, of each step by itself",
        "arms": arms,
        "contrasts": contrasts,
        "interaction": [
            _interaction(row, analysis["arms"], level)
            for row in analysis["contrasts"]
            if set(row["arms"]) == set(CORNERS)
        ],
        "config": analysis["config"],
        "provenance": analysis["provenance"],
        **{key: analysis[key] for key in ("failed", "missing", "left_out")},
    }


def finished(part: Mapping[str, Any]) -> int:
    """Cells of a study that finished: those that it counts, or else those that have a value."""
    return sum(
        arm["statuses"].get("ok", 0)
        if arm.get("statuses")
        else sum(value is not None for value in (arm.get("full") or {}).values())
        for arm in part["arms"].values()
    )


def _redeclared(analysis: Mapping[str, Any]) -> list[str]:
    files = analysis["family"]["redeclared"]
    told = "what is declared after results were seen confirms nothing"
    return [f"Declared otherwise when the folder was begun ({', '.join(files)}): {told}."] if files else []


def _without_none(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def _arm(arm: Mapping[str, Any], main: str) -> dict[str, Any]:
    metrics, leak = arm["metrics"], arm["leak"] or {}
    return {
        "curve": arm["curve"] or {},
        "statuses": arm["statuses"],
        "full": metrics.get(main, {}).get("values", {}),
        "truncated": metrics.get("truncated", {}).get("values", {}),
        "leak_mean": leak.get("mean"),
        "leak_interval": leak.get("interval"),
    }


def _interaction(row: Mapping[str, Any], arms: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """The four corners over the seeds of their contrast, as cells of a design named by what their models differ in."""
    corners = row["arms"]
    first = _factor(arms, corners["y00"], corners["y10"])
    second = _factor(arms, corners["y00"], corners["y01"])
    if first[0] == second[0]:
        first, second = (f"{first[0]} (first)", first[1]), (f"{second[0]} (second)", second[1])
    cells: dict[str, dict[str, Any]] = {}
    for corner, arm in corners.items():
        i, j = int(corner[1]), int(corner[2])
        cells.setdefault(first[1][i], {})[second[1][j]] = _over(row, arms[arm], confidence)
    measure = ", ".join(filter(None, (LOSSES.get(row["metric"], row["metric"].replace("_", " ")), row["unit"])))
    factors = dict([first, second])
    return {"name": row["name"], "listed": True, "factors": factors, "cells": cells, "measure": measure}


def _over(row: Mapping[str, Any], arm: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """Mean and interval of an arm over the seeds of a contrast, which may be fewer than the arm has."""
    from biases.ablation.arms import over_seeds

    found = arm["leak"] if row["metric"] == "leak" else arm["metrics"].get(row["metric"])
    values = found["values"] if found else {}
    used = {seed: values[str(seed)] for seed in row["seeds"] if str(seed) in values}
    return {key: over_seeds(used, confidence)[key] for key in ("mean", "interval")} if used else {}


def _factor(arms: Mapping[str, Any], low: str, high: str) -> tuple[str, list[str]]:
    """Name and two levels of the factor by which two arms differ: where that is one option, it and its values."""
    a, b = (dict(_leaves(arms[name]["model"])) for name in (low, high))
    paths = [path for path in {**a, **b} if _level(a, path) != _level(b, path)]
    if len(paths) != 1:
        return "arm", [low, high]
    return paths[0][-1].replace("_", " "), [_level(each, paths[0]) for each in (a, b)]


def _leaves(model: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names from the root, value) of every value of nested options that is not itself one of options."""
    for key, value in model.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _level(leaves: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> str:
    """A value in words; an option that an arm does not set has its default."""
    if path not in leaves:
        return "default"
    value = leaves[path]
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
