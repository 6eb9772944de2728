"""From what the sides answered to a verdict on a benchmark."""

from __future__ import annotations

import os
import statistics
from dataclasses import replace
from typing import Any

from biases.bench.compare.measure import Measured
from biases.bench.compare.results import BAD, Row
from biases.bench.compare.statistics import Call, estimate, judge, judge_quantity, tolerance_of

# As many as tell one byte of gibibytes.
_DIGITS = ".12g"


def judged(
    benchmark: dict[str, Any], found: Measured, *, level: float, threshold: float, tolerance: float | None
) -> tuple[Row, Call | None]:
    """The row of one set of rounds, and its call if that is to be confirmed in new processes.

    The verdict of the row is that of :func:`~biases.bench.compare.statistics.judge`, or of
    :func:`~biases.bench.compare.statistics.judge_quantity`. A quantity that is fixed at base is a regression where it
    varies at head, and failed where head skips it.

    Args:
        benchmark: its entry in the listing of head.
        found: by :meth:`~biases.bench.compare.measure.Pair.measure`.
        level: of the interval.
        threshold: ratio that matters.
        tolerance: of deterministic quantities; ``None`` = by their unit.
    """
    row = Row(benchmark["name"], benchmark["kind"], benchmark["unit"], "failed", number=found.number, load=load())
    if found.status["head"] == "skipped" and found.fixed_at_base is not None:
        reason = f"fixed at base ({found.fixed_at_base:{_DIGITS}}), no number at head: {found.message['head']}"
        return replace(row, reason=reason, base=found.fixed_at_base, values={"base": [found.fixed_at_base]}), None
    if found.status["head"] != "ok":
        row = replace(row, verdict=found.status["head"], reason=found.message["head"], trace=found.trace["head"])
        return row, None
    if found.status.get("base") != "ok":
        return replace(row, verdict="not at base", reason=found.message.get("base", "not in the listing of base")), None
    if not found.values:
        return replace(row, verdict="skipped", reason="it varies, and only fixed quantities are compared"), None
    medians = {side: statistics.median(values) for side, values in found.values.items()}
    row = replace(row, base=medians["base"], head=medians["head"], values=found.values)
    if row.kind == "peakmem":
        return replace(row, verdict="reported", reason="peak resident bytes of the process, without a verdict"), None
    if found.fixed_at_base is not None:
        low, high = (f"{pick(found.values['head']):{_DIGITS}}" for pick in (min, max))
        reason = f"fixed at base ({found.fixed_at_base:{_DIGITS}}), varies at head ({low}..{high})"
        return replace(row, verdict="regression", reason=reason), "regression"
    if not found.varies:
        call, reason = judge_quantity(medians["base"], medians["head"], tolerance_of(row.unit, tolerance))
        return replace(row, verdict=call, reason=reason), None
    if min(min(values) for values in found.values.values()) <= 0:
        return replace(row, verdict="inconclusive", reason="values of zero or below have no ratio"), None
    ratio = estimate(found.values["base"], found.values["head"], level)
    call, reason = judge(ratio, threshold)
    return replace(row, verdict=call, reason=reason, estimate=ratio), call


def candidate(row: Row) -> Row:
    """The row of a regression or an improvement that is still to be confirmed."""
    return replace(row, verdict="inconclusive", reason=f"candidate for {row.verdict!r}, not confirmed: {row.reason}")


def confirmed(first: Row, call: Call, second: Row) -> Row:
    """The final row of a candidate: the call of the first rounds, if the second ones make the same.

    Args:
        first: row of the first rounds.
        call: their call.
        second: row of the second rounds, in new processes.
    """
    if first.estimate is None and second.verdict not in BAD and second.values:
        reason = f"{first.reason}; in new processes {second.verdict}, {second.reason}"
        return replace(first, verdict="inconclusive", reason=reason)
    if first.estimate is None and second.estimate is not None:
        return candidate(second)
    if second.estimate is None:
        return second
    again = {f"{side} again": values for side, values in second.values.items()}
    first = replace(first, confirmation=second.estimate, values={**first.values, **again})
    if second.verdict == call:
        reason = f"{second.reason}, and {second.ratio:.3f} again in new processes"
        return replace(first, verdict=call, reason=reason)
    verdict = second.verdict if second.verdict in ("no change", "unsettled") else "inconclusive"
    reason = f"{first.ratio:.3f} at first, {second.ratio:.3f} in new processes: {second.reason}"
    return replace(first, verdict=verdict, reason=reason)


def load() -> float | None:
    """Processes that ran or waited to run, averaged over the last minute; ``None`` where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
