"""What the finished cells of one arm say together: metrics, leak, curve and learned values, over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from biases.ablation.contrasts import LEARNED
from biases.ablation.results import Result
from biases.stats import mean_interval

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summarise_arm(cells: Sequence[Result], *, metrics: Iterable[str], series: str, confidence: float) -> dict[str, Any]:
    """Plain JSON values of one arm.

    Args:
        cells: its finished results, one a seed, possibly none.
        metrics: those to summarise, over the cells that have them.
        series: which values of the curves to summarise.
        confidence: of all intervals.

    Returns:
        ``n``, number of cells; ``parameters``, of the model; ``metrics``: name -> :func:`over_seeds`; ``leak``: see
        :func:`leak`; ``curve``: see :func:`curve`; ``learned``: name -> :func:`learned`.
    """
    measured = {name: {cell["seed"]: value_of(cell, name) for cell in cells} for name in metrics}
    present = {
        name: known for name, of in measured.items() if (known := {k: v for k, v in of.items() if v is not None})
    }
    names = sorted({name for cell in cells for name in cell.get("learned", {})})
    return {
        "n": len(cells),
        "parameters": cells[0]["metrics"].get("parameters") if cells else None,
        "metrics": {name: over_seeds(of, confidence) for name, of in present.items() if name != "leak"},
        "leak": leak([cell for cell in cells if "leak" in cell["metrics"]], confidence) if "leak" in present else None,
        "curve": curve(cells, series, confidence),
        "learned": {
            name: learned([cell["learned"][name] for cell in cells if name in cell.get("learned", {})], confidence)
            for name in names
        },
    }


def value_of(cell: Result, metric: str) -> float | None:
    """The cell's value of a metric, one of what it learned too; ``None`` where it has none.

    What was learned and is not finite is no value.
    """
    found = LEARNED.fullmatch(metric)
    if found is None:
        return cell["metrics"].get(metric)
    values = cell.get("learned", {}).get(found[1])
    if not values:
        return None
    if found[2] == "mean":
        return math.fsum(values) / len(values)
    return min(values) if found[2] == "minimum" else max(values)


def over_seeds(values: dict[int, float], confidence: float) -> dict[str, Any]:
    """``n``, ``mean``, the Student t ``interval`` (``None`` for one seed) and the ``values`` by seed."""
    numbers = list(values.values())
    return {
        "n": len(numbers),
        "mean": math.fsum(numbers) / len(numbers),
        "interval": _interval(numbers, confidence),
        "values": {str(seed): values[seed] for seed in sorted(values)},
    }


def leak(cells: Sequence[Result], confidence: float) -> dict[str, Any]:
    """Truncated minus whole-window loss of one arm.

    Returns:
        As :func:`over_seeds`, and, of the mean over seeds: ``sampling_standard_error``, of having measured
        ``positions`` sampled positions of ``available`` ones a seed (taken as independent; ``None`` where not known or
        all were measured), and the normal ``sampling_interval`` from it. Positions are drawn anew for every seed, so
        ``interval`` covers both, the choice of seeds and of positions.
    """
    measured = [cell["metrics"] for cell in cells]
    values = over_seeds({cell["seed"]: cell["metrics"]["leak"] for cell in cells}, confidence)
    positions = measured[0].get("positions")
    context = cells[0]["config"].get("model", {}).get("context")
    windows = measured[0].get("windows")
    available = context * windows if context and windows else None
    errors = [each.get("leak_standard_error") for each in measured]
    standard_error = None
    if positions != available and None not in errors:
        standard_error = math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)
    sampling = None
    if standard_error is not None:
        half = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * standard_error
        sampling = [values["mean"] - half, values["mean"] + half]
    return {
        **values,
        "sampling_standard_error": standard_error,
        "sampling_interval": sampling,
        "positions": positions,
        "available": available,
    }


def curve(cells: Sequence[Result], series: str, confidence: float) -> dict[str, Any] | None:
    """``series``, ``steps``, and for each the ``mean`` over seeds and the Student t band from ``low`` to ``high``.

    Only points that every cell has count. The band is ``None`` at every step for one seed.
    """
    points = [{point["step"]: point.get(series) for point in cell["curve"]} for cell in cells]
    steps = sorted(step for step in set().union(*points) if all(each.get(step) is not None for each in points))
    if not steps:
        return None
    rows = [[each[step] for each in points] for step in steps]
    bands = [_interval(row, confidence) or (None, None) for row in rows]
    return {
        "series": series,
        "steps": steps,
        "mean": [math.fsum(row) / len(row) for row in rows],
        "low": [band[0] for band in bands],
        "high": [band[1] for band in bands],
    }


def learned(seeds: Sequence[Sequence[float]], confidence: float) -> dict[str, Any]:
    """Values of one learned parameter in several seeds.

    Returns:
        ``n`` seeds; ``mean`` over elements and seeds, and the Student t ``interval`` of each seed's mean;
        ``minimum``, ``maximum`` and ``quantiles`` (level -> value) of all elements of all seeds; ``elements``, the
        mean of each element over seeds.
    """
    values = np.array(seeds, dtype=np.float64)
    quantiles = np.quantile(values, QUANTILES).tolist()
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "interval": _interval(values.mean(1).tolist(), confidence),
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "quantiles": {f"{level:g}": value for level, value in zip(QUANTILES, quantiles, strict=True)},
        "elements": values.mean(0).tolist(),
    }


def _interval(values: Sequence[float], confidence: float) -> list[float] | None:
    bounds = mean_interval(values, confidence=confidence)
    return None if bounds is None else list(bounds)
