"""Verdicts on ratios of two sides that were measured in the same rounds.

A time on a shared machine drifts and has heavy tails; the ratio of two times of one round keeps little of that. Nothing
is assumed of the distribution of these ratios but that rounds are independent: the interval of their median is that of
the sign test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from biases._checks import fail

Call = Literal["regression", "improved", "no change", "inconclusive", "unsettled"]

MINIMUM_ROUNDS = 8
MOST = 20  # times the interval may be too wide for more rounds to be a remedy
BYTES = ("b", "byte", "bytes", "kb", "kib", "mb", "mib", "gb", "gib")


@dataclass(frozen=True)
class Estimate:
    """The median of the ratios head / base, with an interval.

    Attributes:
        ratio: above 1 = head is larger, that is slower.
        low: lower end of the interval; 0 where there are too few rounds for one.
        high: upper end; infinite where there are too few rounds.
        level: confidence of the interval.
        spread: third over first quartile of the ratios of single rounds.
        rounds: ratios.
    """

    ratio: float
    low: float
    high: float
    level: float
    spread: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an end without bound is ``None``."""
        bounded = math.isfinite(self.high)
        return {**asdict(self), "low": self.low if bounded else None, "high": self.high if bounded else None}


def estimate(base: Sequence[float], head: Sequence[float], level: float = 0.95) -> Estimate:
    """The ratio of two sides that were measured in the same rounds.

    The interval runs between two order statistics of the ratios, whose ranks are those of the sign test at ``level``
    (two-sided, exact, hence conservative). On the log scale it is antisymmetric: swapping the sides gives the
    reciprocals.

    Args:
        base: one value a round, shape ``(rounds,)``, positive.
        head: the same for the other side.
        level: confidence in (0, 1).

    Raises:
        ValueError: no rounds, different numbers of them, a value that is not positive and finite, or a level outside.
    """
    if not 0 < level < 1:
        fail("level", "a number between 0 and 1", level)
    if len(base) != len(head) or not len(base):
        fail("rounds of base and head", "the same number, at least one", f"{len(base)} and {len(head)}")
    values = np.array([base, head], dtype=np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        fail("values of base and head", "positive finite numbers", values[~(np.isfinite(values) & (values > 0))][0])
    logs = np.sort(np.log(values[1]) - np.log(values[0]))
    rank = _rank(len(logs), level)
    low, high = (logs[rank - 1], logs[-rank]) if rank else (-math.inf, math.inf)
    quarter, middle, three_quarters = np.quantile(logs, (0.25, 0.5, 0.75))
    return Estimate(
        ratio=math.exp(middle),
        low=math.exp(low),
        high=math.exp(high),
        level=level,
        spread=math.exp(three_quarters - quarter),
        rounds=len(logs),
    )


def _rank(rounds: int, level: float) -> int:
    """The order statistic that bounds the interval from below, and from above counted from the end; 0 = none does."""
    from scipy.stats import binom

    return int(binom.ppf((1 - level) / 2, rounds, 0.5))


def level_of_each(family: int, confidence: float = 0.95) -> float:
    """The level at which ``family`` intervals hold all together with ``confidence`` (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, family)


def least_rounds(level: float) -> int:
    """The fewest rounds, an even number, that give an interval at ``level``."""
    rounds = MINIMUM_ROUNDS
    while not _rank(rounds, level):
        rounds += 2
    return rounds


def judge(found: Estimate, threshold: float = 1.1) -> tuple[Call, str]:
    """The verdict on a ratio, and why.

    Two thresholds are kept apart. *Statistically* the interval must lie beyond a floor between 1 and the threshold
    (its square root); *practically* the estimate must lie beyond the threshold. Both: a regression, or an
    improvement. An interval within ``1 / threshold`` and ``threshold``: no change. Otherwise more rounds would settle
    it (inconclusive) unless single rounds scatter more widely than that band (unsettled).

    Args:
        found: the estimate.
        threshold: ratio that matters, above 1.

    Raises:
        ValueError: a threshold of 1 or below.
    """
    if not threshold > 1:
        fail("threshold", "a ratio above 1", threshold)
    floor = math.sqrt(threshold)
    if found.ratio > threshold and found.low > floor:
        return "regression", f"slower by more than {threshold:g}"
    if found.ratio < 1 / threshold and found.high < 1 / floor:
        return "improved", f"faster by more than {threshold:g}"
    if found.low >= 1 / threshold and found.high <= threshold:
        return "no change", f"within {threshold:g}"
    if not math.isfinite(found.high):
        return "unsettled", f"{found.rounds} rounds are too few for an interval at this level"
    if found.spread > threshold**2:
        return (
            "unsettled",
            f"single rounds scatter by {found.spread:.2f}, more than the threshold: is the machine busy?",
        )
    return "inconclusive", _what_it_takes(found, threshold)


def _what_it_takes(found: Estimate, threshold: float) -> str:
    """Rounds that would settle it if the estimate stays and the interval shrinks with their square root."""
    middle, log = abs(math.log(found.ratio)), math.log(threshold)
    room = log - middle if middle <= log else middle - log / 2
    half = max(math.log(found.high / found.ratio), math.log(found.ratio / found.low))
    if half >= MOST * room:
        return "too close to the threshold to be settled by more rounds"
    more = math.ceil(found.rounds * (half / room) ** 2) - found.rounds
    return f"about {max(2, more)} more rounds would settle it"


def tolerance_of(unit: str, tolerance: float | None = None) -> float:
    """The relative increase of a deterministic quantity that passes: 1 % of bytes, nothing of counts."""
    if tolerance is not None:
        return tolerance
    return 0.01 if unit.lower() in BYTES else 0.0


def judge_quantity(base: float, head: float, tolerance: float = 0.0) -> tuple[Call, str]:
    """The verdict on a deterministic quantity, of which less is better: any increase beyond the tolerance counts.

    Raises:
        ValueError: a negative tolerance.
    """
    if not tolerance >= 0:
        fail("tolerance", "a number of at least 0", tolerance)
    room = tolerance * abs(base)
    if head > base + room:
        return "regression", f"{base:g} -> {head:g}"
    if base > head + tolerance * abs(head):
        return "improved", f"{base:g} -> {head:g}"
    return "no change", "equal" if base == head else f"{base:g} -> {head:g}, within {tolerance:g}"
