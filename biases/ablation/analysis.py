"""What the results of a study say: arms, contrasts with their verdicts, what is missing, and what ran it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from biases.ablation.arms import summarise_arm
from biases.ablation.comparisons import contrast_rows, exploratory_row
from biases.ablation.contrasts import METRICS, Contrast, check_metric, first_metric, seeds_for_verdicts
from biases.ablation.results import STATUSES, Result, check_one_data, paired_values

if TYPE_CHECKING:
    from biases.ablation.study import Study

SCHEMA = 1


def analyse(
    study: Study, results: Sequence[Result], *, metric: str | None = None, redeclared: Sequence[str] = ()
) -> dict[str, Any]:
    """Analyse the results of a study, however many of its cells there are.

    A contrast uses the seeds that all of its arms finished. Those of the family get a verdict by
    :func:`biases.stats.family`, whose size is the declared one; the others get their interval and no test.

    Args:
        study: as declared.
        results: of its folder; those of other cells are counted and not used.
        metric: of all contrasts, instead of theirs. Those that declare it stay; of the other sets of arms there is one
            exploratory contrast each.
        redeclared: files of the studies, of other contrasts or statistics, that the results were begun under.

    Returns:
        Plain JSON values, the same for the same results: ``schema``, ``study``, ``size``, ``question``, ``notes``,
        ``kind``, ``statistics``, ``family`` (``size``, ``seeds_needed``, ``redeclared``), ``contrasts`` (see
        :func:`~biases.ablation.comparisons.contrast_rows`), ``config`` (what all arms share), ``arms`` (name ->
        ``model``, what is its own, ``statuses``, and :func:`~biases.ablation.arms.summarise_arm`), ``failed``,
        ``missing``, ``left_out``, ``other_results``, ``provenance`` (see :func:`provenance`).

    Raises:
        ValueError: a metric that there is not, or cells of different data.
    """
    cells = study.grid.cells()
    wanted = {cell.id for cell in cells}
    own = [result for result in results if result["id"] in wanted]
    check_one_data(own, what=f"results of {study.folder}")
    found = {result["id"] for result in own}
    if metric is not None:
        check_metric("metric", metric, METRICS[study.kind])
    contrasts = [each.resolved(study.statistics) for each in (*study.family, *study.exploratory)]
    runs, statistics = _runs(own), study.statistics
    rows = contrast_rows(contrasts, runs, study.grid.seeds, statistics, family_size=len(study.family))
    if metric is not None:
        rows = [row for row in rows if row["metric"] == metric]
        told = [row["arms"] for row in rows]
        for contrast in contrasts:
            if contrast.arms not in told:
                told.append(contrast.arms)
                other = replace(
                    contrast, name=_arms_alone(contrast), metric=metric, margin=None, unit=None, larger_is_better=None
                )
                rows.append(exploratory_row(other, runs, study.grid.seeds, confidence=statistics.confidence))
    return {
        "schema": SCHEMA,
        "study": study.name,
        "size": study.size,
        "question": study.question,
        "notes": list(study.notes),
        "kind": study.kind,
        "statistics": asdict(statistics),
        "family": {
            "size": len(study.family),
            "seeds_needed": seeds_for_verdicts(statistics, len(study.family)) if study.family else None,
            "redeclared": list(redeclared),
        },
        "contrasts": rows,
        **_described(
            {cell.arm: cell.config for cell in cells},
            own,
            study.grid.seeds,
            (metric or statistics.metric, *(row["metric"] for row in rows)),
            study.kind,
            statistics.confidence,
        ),
        "missing": [{"arm": cell.arm, "seed": cell.seed, "id": cell.id} for cell in cells if cell.id not in found],
        "left_out": [asdict(each) for each in study.left_out],
        "other_results": len(results) - len(own),
    }


def _arms_alone(contrast: Contrast) -> str:
    if contrast.is_interaction:
        return "({y11} - {y10}) - ({y01} - {y00})".format(**contrast.arms)
    return "{a} - {b}".format(**contrast.arms)


def compare_arms(results: Sequence[Result], a: str, b: str, metric: str, *, confidence: float = 0.95) -> dict[str, Any]:
    """Two arms of a folder of results that no study declared: exploratory, and otherwise as :func:`analyse` has it.

    Raises:
        ValueError: a metric that there is not, no results of an arm, several cells of one arm and seed, pairs that
            differ in more than their arm, cells of different data.
    """
    contrast = Contrast(name=f"{a} - {b}", a=a, b=b, metric=metric)
    kind = next((kind for kind in METRICS if any(first_metric(kind) in each["metrics"] for each in results)), "text")
    check_metric("metric", metric, METRICS[kind])
    paired_values(results, a, b, first_metric(kind))
    own = [result for result in results if result["arm"] in (a, b)]
    check_one_data(own, what=f"results of {a} and {b}")
    seeds = sorted({result["seed"] for result in own})
    configs = {result["arm"]: result["config"] for result in own}
    return {
        "schema": SCHEMA,
        "study": None,
        "size": None,
        "question": None,
        "notes": [],
        "kind": kind,
        "statistics": {"metric": metric, "confidence": confidence},
        "family": {"size": 0, "seeds_needed": None, "redeclared": []},
        "contrasts": [exploratory_row(contrast, _runs(own), seeds, confidence=confidence)],
        **_described(configs, own, seeds, (metric,), kind, confidence),
        "missing": [],
        "left_out": [],
        "other_results": 0,
    }


def _runs(results: Iterable[Result]) -> dict[tuple[str, int], Result]:
    """By arm and seed; a cell that finished rather than one that did not."""
    return {(each["arm"], each["seed"]): each for each in sorted(results, key=lambda each: each["status"] == "ok")}


def _described(
    configs: Mapping[str, Mapping[str, Any]],
    results: Sequence[Result],
    seeds: Sequence[int],
    metrics: Sequence[str],
    kind: str,
    confidence: float,
) -> dict[str, Any]:
    """The arms and what is common to them.

    Args:
        configs: of one cell an arm.
        metrics: of the contrasts, the main one first, which beside the usual ones are summarised.
    """
    models = {arm: config["model"] for arm, config in configs.items()}
    first = next(iter(configs.values()))
    shared = {key: value for key, value in next(iter(models.values())).items() if _same(key, models.values())}
    rest = {key: value for key, value in first.items() if key not in ("arm", "seed", "model")}
    series = "validation" if kind == "text" else f"test_{'loss' if metrics[0].endswith('loss') else 'accuracy'}"
    arms = {}
    for arm, model in models.items():
        cells = [result for result in results if result["arm"] == arm]
        counts = Counter(cell["status"] for cell in cells)
        counts["missing"] = len(seeds) - len({cell["seed"] for cell in cells})
        finished = [cell for cell in cells if cell["status"] == "ok"]
        arms[arm] = {
            "model": {key: value for key, value in model.items() if key not in shared},
            "statuses": {status: counts[status] for status in (*STATUSES, "missing")},
            **summarise_arm(
                finished, metrics=dict.fromkeys((*METRICS[kind], *metrics)), series=series, confidence=confidence
            ),
        }
    return {
        "config": {**rest, "model": shared, "seeds": list(seeds)},
        "arms": arms,
        "failed": _failed(results),
        "provenance": provenance(results),
    }


def _same(key: str, models: Iterable[Mapping[str, Any]]) -> bool:
    absent = object()
    values = [model.get(key, absent) for model in models]
    return all(value == values[0] for value in values)


def _failed(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Cells that did not finish, with the last line of what was raised."""
    return [
        {
            **{name: result[name] for name in ("arm", "seed", "id", "status")},
            "error": (result.get("error") or "").strip().rpartition("\n")[2],
        }
        for result in results
        if result["status"] != "ok"
    ]


def provenance(results: Sequence[Result]) -> dict[str, Any]:
    """What ran the cells.

    Returns:
        ``cells``, their number; ``git``, ``code``, ``devices`` and ``data`` (``NAME SHA-256``): value -> number of
        cells; ``versions``: package -> value -> number of cells; ``seconds`` in all; ``started``, the first and the
        last.
    """
    versions = [result.get("versions", {}) for result in results]
    packages = sorted({name for each in versions for name in each})
    started = sorted(result["started"] for result in results if result.get("started"))
    counted = {name: _counts(each.get(name) for each in versions) for name in packages}
    return {
        "cells": len(results),
        "git": _counts(result.get("git") for result in results),
        "code": counted.pop("code", {}),
        "versions": counted,
        "devices": _counts(result.get("device_name") for result in results),
        "data": _counts(" ".join(str(result["data"].get(key)) for key in ("name", "sha256")) for result in results),
        "seconds": sum(result.get("seconds", 0.0) for result in results),
        "started": [started[0], started[-1]] if started else None,
    }


def _counts(values: Iterable[Any]) -> dict[str, int]:
    return dict(sorted(Counter("unknown" if value is None else str(value) for value in values).items()))
