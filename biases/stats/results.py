"""Results of the comparisons: plain values, for people and for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What the per-seed numbers say about their mean.

    Attributes:
        n: number of seeds.
        mean: mean over seeds, in the unit of the metric.
        sd: sample standard deviation over seeds (n - 1), same unit; ``None`` for one seed, 0 where the seeds
            differ by rounding only.
        interval: Student t interval of the mean; ``None`` for one seed, a point where ``sd`` is 0.
        confidence: level of the interval; 1 - confidence is the level of the tests.
        p_sign_flip: two-sided sign-flip p, exact up to 20 seeds, Monte Carlo above; ``None`` if refused.
        p_smallest: the smallest ``p_sign_flip`` that this many seeds can give, whatever the data.
        p_t: two-sided one-sample t test of the per-seed numbers; ``None`` if refused. Where ``sd`` is 0, its
            limit: 1 for mean 0, otherwise 0.
        effect_size: Cohen's d_z, mean / sd; ``None`` where ``sd`` is 0 or missing.
        margin: largest mean, either way, that counts as no difference; declared before the run, same unit.
        p_equivalence: larger p of the two one-sided t tests against the margin (TOST, Schuirmann 1987);
            ``None`` without a margin or if refused.
        verdict: ``"better"``, ``"worse"``, ``"equivalent"``, ``"inconclusive"`` or ``"refused"``.
        reason: why, in words.
        larger_is_better: direction of the metric.
        unit: unit of the metric, for people.
        differences: the per-seed numbers.
    """

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    confidence: float
    p_sign_flip: float | None
    p_smallest: float
    p_t: float | None
    effect_size: float | None
    margin: float | None
    p_equivalence: float | None
    verdict: str
    reason: str
    larger_is_better: bool
    unit: str
    differences: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain finite values for JSON; a missing value is ``None``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
            elif isinstance(value, dict):
                values[name] = dict(value)
        return values

    def describe(self) -> str:
        """One line for people: mean, interval, n, p and the smallest attainable p, effect size, verdict."""
        unit = f" {self.unit}" if self.unit else ""
        parts = [f"{self._label()} {self.mean:+.4g}{unit}"]
        if self.interval is not None:
            low, high = self.interval
            parts.append(f"{100 * self.confidence:g} % interval [{low:+.4g}, {high:+.4g}]")
        parts.append(f"n = {self.n}")
        if self.p_sign_flip is None:
            parts.append(f"smallest attainable p = {self.p_smallest:.3g}")
        else:
            parts.append(f"sign-flip p = {self.p_sign_flip:.3g} (smallest attainable {self.p_smallest:.3g})")
        if self.effect_size is not None:
            parts.append(f"d_z = {self.effect_size:.3g}")
        if self.p_equivalence is not None and self.margin is not None:
            parts.append(f"equivalence p = {self.p_equivalence:.3g} (margin {self.margin:g})")
        return f"{', '.join(parts)}: {self.verdict} ({self.reason})"

    def _label(self) -> str:
        return "mean"


@dataclass(frozen=True, kw_only=True)
class Paired(Inference):
    """Arm ``a`` against arm ``b``: the per-seed numbers are a - b, and ``"better"`` says that a is.

    Attributes:
        mean_a: mean of arm a over seeds.
        mean_b: mean of arm b over seeds.
    """

    mean_a: float
    mean_b: float

    def _label(self) -> str:
        return "difference"


@dataclass(frozen=True, kw_only=True)
class Interaction(Inference):
    """The 2x2 contrast: the per-seed numbers are (y11 - y10) - (y01 - y00).

    ``"better"`` says that both factors together do better than the sum of their single effects. Additivity
    depends on the scale of the metric (accuracy, loss, log-odds): name it in ``unit``.

    Attributes:
        cell_means: means over seeds of ``"y00"``, ``"y10"``, ``"y01"`` and ``"y11"``.
    """

    cell_means: dict[str, float] = field(hash=False)

    def _label(self) -> str:
        return "interaction"
