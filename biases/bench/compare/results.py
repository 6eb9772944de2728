"""What a comparison found."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from biases.bench.compare.revisions import State
from biases.bench.compare.statistics import Estimate

VERDICTS = (
    *("regression", "failed", "improved", "no change", "inconclusive", "unsettled"),
    *("reported", "not at base", "not at head", "skipped"),
)
BAD = ("regression", "failed")
MEASURED = ("regression", "improved", "no change", "inconclusive", "unsettled", "reported")


@dataclass(frozen=True)
class Row:
    """One benchmark.

    Attributes:
        name: with its parameters.
        kind: ``"time"``, ``"track"`` or ``"peakmem"``; ``"module"`` for one that could not be read.
        unit: of the values.
        verdict: one of :data:`VERDICTS`.
        reason: why.
        base: median of the values at base, in ``unit``; ``None`` without values.
        head: the same at head.
        estimate: of the ratio; ``None`` for what is fixed or was not measured at both sides.
        confirmation: of the ratio in the second, independent rounds, where the first ones gave a candidate.
        values: side -> a value a round; of the second rounds under ``"base again"`` and ``"head again"``.
        number: calls a sample.
        load: average number of running processes over the last minute, when it was measured.
        trace: end of the traceback of a failure.
    """

    name: str
    kind: str
    unit: str
    verdict: str
    reason: str = ""
    base: float | None = None
    head: float | None = None
    estimate: Estimate | None = None
    confirmation: Estimate | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    number: int = 1
    load: float | None = None
    trace: str = ""

    @property
    def ratio(self) -> float | None:
        """Head over base."""
        if self.estimate is not None:
            return self.estimate.ratio
        return self.head / self.base if self.head is not None and self.base else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        estimates = {name: getattr(self, name) for name in ("estimate", "confirmation")}
        plain = {name: None if each is None else each.as_dict() for name, each in estimates.items()}
        return {**asdict(self), **plain, "ratio": self.ratio}


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        base: one side.
        head: the other.
        rows: the benchmarks, in the order of the suite.
        settings: what was asked, as seed, threshold, rounds and the level of each interval.
        machine: facts about it, as of :func:`biases.bench.facts`, and its load before and after.
        not_compared: benchmarks of kinds that are not compared.
        left_out: benchmarks that match and vary, where only fixed quantities are compared.
        interrupted: whether it was cut short; the rows are those done before.
    """

    base: State
    head: State
    rows: tuple[Row, ...]
    settings: dict[str, Any]
    machine: dict[str, Any]
    not_compared: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def summary(self) -> dict[str, int]:
        """Verdict -> rows."""
        counts = Counter(row.verdict for row in self.rows)
        return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}

    @property
    def exit_code(self) -> int:
        """0 no regression; 1 a regression, or a failure at head; 3 nothing was measured at both sides."""
        verdicts = set(self.summary)
        if verdicts & set(BAD):
            return 1
        return 0 if verdicts & set(MEASURED) else 3

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema": 1,
            "base": self.base.as_dict(),
            "head": self.head.as_dict(),
            "settings": self.settings,
            "machine": self.machine,
            "interrupted": self.interrupted,
            "summary": self.summary,
            "exit_code": self.exit_code,
            "not_compared": list(self.not_compared),
            "left_out": list(self.left_out),
            "rows": [row.as_dict() for row in self.rows],
        }
