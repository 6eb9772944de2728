"""The contrasts of a study on its results: over which seeds, with which verdict, at what power."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from biases.ablation.arms import value_of
from biases.ablation.contrasts import FEWEST_SEEDS, Contrast, Statistics, seeds_for_verdicts
from biases.ablation.results import Result
from biases.stats import Inference, Judged, family, interaction, paired, paired_power, required_seeds

EXPLORATORY = "exploratory"
UNTESTED = ("p_sign_flip", "p_t", "p_equivalence", "p_smallest", "p_holm", "p_holm_smallest", "p_equivalence_holm")
UNPLANNED: dict[str, Any] = {"required_seeds": None, "power": None}
PLANNABLE = 1e-6
"""Margin in standard deviations below which the seeds needed are beyond counting."""
PLANNED_FROM = 5
"""Seeds below which the observed standard deviation says too little to plan with."""

Runs = Mapping[tuple[str, int], Result]


def contrast_rows(
    contrasts: Sequence[Contrast],
    runs: Runs,
    seeds: Sequence[int],
    statistics: Statistics,
    *,
    family_size: int,
) -> list[dict[str, Any]]:
    """One row a contrast, in their order.

    Args:
        contrasts: resolved; the family first.
        runs: (arm, seed) -> result, of whatever status.
        seeds: the declared ones.
        statistics: of the study.
        family_size: how many of the contrasts belong to the family.

    Returns:
        Plain JSON values: ``name``, ``metric``, ``arms`` (``a`` and ``b`` or the four corners, -> arm), ``family``
        (whether it belongs to it), ``seeds`` (those that all its arms finished), ``dropped`` (of the others, ``seed``,
        ``why``, and whether it was ``lost`` to a cell that failed or diverged), ``mixed`` (seeds whose arms were run by
        different code, versions or devices), the values of :meth:`biases.stats.Judged.as_dict`, ``required_seeds``
        (``None`` without a margin or a spread, or below five seeds) and ``power``. A contrast outside the family has
        the verdict ``"exploratory"`` and no p-value. Where seeds were lost, the ``reason`` of a verdict says so.

        ``power`` is the chance that the t test finds a difference of the margin with the seeds there are, and
        ``required_seeds`` the fewest with which it is the study's, and a verdict is not refused; both take the
        observed standard deviation for the true one and, in a family of m, test at (1 - confidence) / m, which Holm's
        correction asks of its smallest p.
    """
    least = statistics.minimum_seeds
    measured = {each.name: _measure(each, runs, seeds, statistics.confidence, least) for each in contrasts}
    inferences = {name: inference for name, (inference, _) in measured.items() if inference is not None}
    declared = [contrast.name for contrast in contrasts[:family_size]]
    judged = family({name: inferences[name] for name in declared if name in inferences}, size=family_size)
    rows = []
    for contrast in contrasts:
        inference, used = measured[contrast.name]
        m = family_size if contrast.name in declared else None
        values = judged[contrast.name].as_dict() if contrast.name in judged else _unjudged(contrast, inference, m)
        if m is not None and any(each["lost"] for each in used["dropped"]):
            lost = [str(each["seed"]) for each in used["dropped"] if each["lost"]]
            values["reason"] += f"; of the survivors only: an arm failed or diverged under seeds {' '.join(lost)}"
        rows.append(_head(contrast, m) | used | values | _plan(inference, contrast.margin, statistics, m))
    return rows


def exploratory_row(contrast: Contrast, runs: Runs, seeds: Sequence[int], *, confidence: float) -> dict[str, Any]:
    """The row of :func:`contrast_rows` for a contrast that no study declared."""
    inference, used = _measure(contrast, runs, seeds, confidence, FEWEST_SEEDS)
    return _head(contrast, None) | used | _unjudged(contrast, inference, None) | UNPLANNED


def _head(contrast: Contrast, family_size: int | None) -> dict[str, Any]:
    belongs = family_size is not None
    return {"name": contrast.name, "metric": contrast.metric, "arms": contrast.arms, "family": belongs}


def _measure(
    contrast: Contrast, runs: Runs, seeds: Sequence[int], confidence: float, minimum_seeds: int
) -> tuple[Inference | None, dict[str, Any]]:
    """The inference, ``None`` without a seed, and which seeds it is of."""
    metric = contrast.metric
    assert metric is not None
    complete: list[int] = []
    dropped: list[dict[str, Any]] = []
    for seed in seeds:
        why = _unusable(contrast.arms.values(), metric, seed, runs)
        if why:
            statuses = {runs[arm, seed]["status"] for arm in contrast.arms.values() if (arm, seed) in runs}
            dropped.append({"seed": seed, "why": why, "lost": bool(statuses - {"ok"})})
        else:
            complete.append(seed)
    groups = [[runs[arm, seed] for arm in contrast.arms.values()] for seed in complete]
    mixed = sum(len({_made_by(result) for result in group}) > 1 for group in groups)
    used = {"seeds": complete, "dropped": dropped, "mixed": mixed}
    if not complete:
        return None, used
    values: dict[str, Any] = {
        key: [value_of(runs[arm, seed], metric) for seed in complete] for key, arm in contrast.arms.items()
    }
    options: dict[str, Any] = {
        "margin": contrast.margin,
        "confidence": confidence,
        "minimum_seeds": minimum_seeds,
        "larger_is_better": bool(contrast.larger_is_better),
        "unit": contrast.unit or "",
    }
    return (interaction if contrast.is_interaction else paired)(**values, **options), used


def _unusable(arms: Collection[str], metric: str, seed: int, runs: Runs) -> str | None:
    """Why the arms of a seed cannot be compared, if they cannot."""
    faults = []
    for arm in arms:
        result = runs.get((arm, seed))
        if result is None:
            faults.append(f"{arm} missing")
        elif result["status"] != "ok":
            faults.append(f"{arm} {result['status']}")
        elif value_of(result, metric) is None:
            faults.append(f"{arm} without {metric}")
    return ", ".join(faults) or None


def _made_by(result: Result) -> tuple[Any, ...]:
    return (tuple(sorted(result.get("versions", {}).items())), result.get("device_name"))


def _unjudged(contrast: Contrast, inference: Inference | None, family_size: int | None) -> dict[str, Any]:
    """Values of a contrast outside the family (of size ``None``), or of a member without a single seed."""
    values: dict[str, Any] = {f.name: None for f in (*fields(Inference), *fields(Judged)) if f.name != "inference"}
    if inference is None:
        values |= {"n": 0, "differences": [], "margin": contrast.margin}
        values |= {"verdict": "refused", "reason": "no seed that all its arms finished"}
    else:
        values |= inference.as_dict()
    values |= {"unit": contrast.unit, "larger_is_better": contrast.larger_is_better, "family_size": family_size}
    if family_size is None:
        outside = "outside the declared family: no test"
        values |= dict.fromkeys(UNTESTED) | {"verdict": EXPLORATORY, "reason": outside}
    return values


def _plan(
    inference: Inference | None, margin: float | None, statistics: Statistics, family_size: int | None
) -> dict[str, Any]:
    if inference is None or not inference.sd or margin is None or margin / inference.sd < PLANNABLE:
        return UNPLANNED
    if inference.n < PLANNED_FROM:
        return UNPLANNED
    confidence = 1 - (1 - statistics.confidence) / (family_size or 1)
    required = required_seeds(margin, inference.sd, statistics.power, confidence)
    if family_size is not None:
        required = max(required, seeds_for_verdicts(statistics, family_size))
    power = paired_power(inference.n, margin, inference.sd, confidence=confidence)
    return {"required_seeds": required, "power": power}
