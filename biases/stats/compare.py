"""Paired comparison of two arms, and the 2x2 interaction contrast, over the seeds that the arms share.

Every inference here is on one number a seed: the difference of two arms, or the contrast of four. The
interval is Student's t, which keeps its coverage at few seeds where the bootstrap does not; the p-value is
the sign-flip test's, which needs symmetry only. A verdict needs both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biases._checks import fail
from biases.stats._inputs import Values, fraction, integer, positive, same_seeds, scipy_module, seed_values
from biases.stats.results import Interaction, Paired
from biases.stats.signflip import sign_flip_p, smallest_p_of_test


def paired(
    a: Values,
    b: Values,
    *,
    margin: float | None = None,
    confidence: float = 0.95,
    minimum_seeds: int = 3,
    larger_is_better: bool = False,
    unit: str = "",
    rng: np.random.Generator | None = None,
) -> Paired:
    """Compare two arms that were run on the same seeds.

    ``"better"`` and ``"worse"`` need an interval that excludes 0 and a sign-flip p of at most 1 - confidence.
    ``"equivalent"`` needs a margin and TOST at that same level; it takes precedence, as a difference that
    lies within the declared margin was declared not to matter.

    Args:
        a: shape ``(n,)``, the metric of arm a, one value a seed.
        b: shape ``(n,)``, arm b, in the same seed order.
        margin: largest difference that counts as none, in the unit of the metric; declare it before the run.
        confidence: of the interval; 1 - confidence is the level of the tests.
        minimum_seeds: below this the verdict is refused and no p is given; at least 2.
        larger_is_better: ``False`` for a loss, ``True`` for an accuracy.
        unit: unit of the metric, shown by ``describe()``.
        rng: source of the random sign flips above 20 seeds; a fresh generator with seed 0 by default.

    Raises:
        ValueError: the arms are empty, not one-dimensional, not finite or of unequal length, or an option is
            outside its range.
    """
    options = _Options(margin, confidence, minimum_seeds, larger_is_better, unit, rng)
    arms = same_seeds({"a": a, "b": b})
    inference = _infer(arms["a"] - arms["b"], _rounding(arms), options)
    return Paired(**inference, mean_a=_mean(arms["a"]), mean_b=_mean(arms["b"]))


def interaction(
    y00: Values,
    y10: Values,
    y01: Values,
    y11: Values,
    *,
    margin: float | None = None,
    confidence: float = 0.95,
    minimum_seeds: int = 3,
    larger_is_better: bool = False,
    unit: str = "",
    rng: np.random.Generator | None = None,
) -> Interaction:
    """Test whether two factors add.

    The contrast (y11 - y10) - (y01 - y00) of each seed is inferred as the difference in :func:`paired`. At
    the same size it needs about twice the seeds of a simple difference.

    Args:
        y00: shape ``(n,)``, neither factor, one value a seed.
        y10: shape ``(n,)``, the first factor alone, in the same seed order.
        y01: shape ``(n,)``, the second factor alone.
        y11: shape ``(n,)``, both.
        margin: largest contrast that counts as additive, in the unit of the metric.
        confidence: see :func:`paired`.
        minimum_seeds: see :func:`paired`.
        larger_is_better: see :func:`paired`.
        unit: unit and scale of the metric.
        rng: see :func:`paired`.

    Raises:
        ValueError: as :func:`paired`.
    """
    options = _Options(margin, confidence, minimum_seeds, larger_is_better, unit, rng)
    cells = same_seeds({"y00": y00, "y10": y10, "y01": y01, "y11": y11})
    contrast = (cells["y11"] - cells["y10"]) - (cells["y01"] - cells["y00"])
    means = {name: _mean(values) for name, values in cells.items()}
    return Interaction(**_infer(contrast, _rounding(cells), options), cell_means=means)


def mean_interval(values: Values, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student t interval of the mean of one number a seed; ``None`` for one seed.

    Args:
        values: shape ``(n,)``.
        confidence: level of the interval.

    Raises:
        ValueError: the values are empty, not one-dimensional or not finite, or the confidence is not in (0, 1).
    """
    checked, level = seed_values("values", values), fraction("confidence", confidence)
    sd = _sd(checked, _rounding({"values": checked}))
    return None if sd is None else t_interval(_mean(checked), sd, checked.size, level)


@dataclass(frozen=True)
class _Options:
    margin: float | None
    confidence: float
    minimum_seeds: int
    larger_is_better: bool
    unit: str
    rng: np.random.Generator | None

    def __post_init__(self) -> None:
        if self.margin is not None:
            object.__setattr__(self, "margin", positive("margin", self.margin))
        object.__setattr__(self, "confidence", fraction("confidence", self.confidence))
        integer("minimum_seeds", self.minimum_seeds, 2)
        if not isinstance(self.larger_is_better, bool):
            fail("larger_is_better", "True or False", repr(self.larger_is_better))
        if not isinstance(self.unit, str):
            fail("unit", "a string", repr(self.unit))
        if self.rng is not None and not isinstance(self.rng, np.random.Generator):
            fail("rng", "a numpy.random.Generator or None", type(self.rng).__name__)

    @property
    def level(self) -> float:
        return 1 - self.confidence


def _rounding(arms: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Size per seed below which a difference of these values is rounding. Shape ``(n,)``."""
    return 4 * np.finfo(np.float64).eps * np.sum([np.abs(values) for values in arms.values()], axis=0)


def _mean(values: NDArray[np.float64]) -> float:
    """Correctly rounded sum, so that the order of the seeds does not matter."""
    return math.fsum(values) / values.size


def _sd(values: NDArray[np.float64], rounding: NDArray[np.float64]) -> float | None:
    if values.size < 2:
        return None
    # A power of two keeps the squares of tiny differences from vanishing, and is exact.
    exponent = int(np.frexp(np.abs(values).max())[1])
    scaled = np.ldexp(values, -exponent)
    variance = math.fsum((scaled - _mean(scaled)) ** 2) / (values.size - 1)
    sd = math.ldexp(math.sqrt(variance), exponent)
    return 0.0 if sd <= rounding.max() else sd


def _infer(raw: NDArray[np.float64], rounding: NDArray[np.float64], options: _Options) -> dict[str, Any]:
    """Fields of :class:`Inference` from one number a seed and its rounding, both of shape ``(n,)``."""
    differences = np.where(np.abs(raw) <= rounding, 0.0, raw)
    n, mean, sd = differences.size, _mean(differences), _sd(differences, rounding)
    values: dict[str, Any] = {
        "n": n,
        "mean": mean,
        "sd": sd,
        "interval": None if sd is None else t_interval(mean, sd, n, options.confidence),
        "confidence": options.confidence,
        "p_sign_flip": None,
        "p_smallest": smallest_p_of_test(n),
        "p_t": None,
        "effect_size": mean / sd if sd else None,
        "margin": options.margin,
        "p_equivalence": None,
        "larger_is_better": options.larger_is_better,
        "unit": options.unit,
        "differences": tuple(differences.tolist()),
    }
    if sd is None or n < options.minimum_seeds:
        reason = f"expected at least {options.minimum_seeds} seeds, got {n}"
        return values | {"verdict": "refused", "reason": reason}
    # Summation errors grow with n; the rounding of the inputs is counted once per seed.
    tolerance = float(rounding.sum()) * (1 + n / 4)
    values["p_sign_flip"] = sign_flip_p(differences, tolerance=tolerance, rng=options.rng)
    values["p_t"] = _p_t(mean, sd, n)
    if options.margin is not None:
        values["p_equivalence"] = _p_equivalence(mean, sd, n, options.margin)
    verdict, reason = _verdict(values, options.level)
    return values | {"verdict": verdict, "reason": reason}


def t_interval(mean: float, sd: float, n: int, confidence: float) -> tuple[float, float]:
    """Student t interval of a mean over ``n`` seeds of sample standard deviation ``sd``."""
    half = -float(scipy_module("special").stdtrit(n - 1, (1 - confidence) / 2)) * sd / math.sqrt(n)
    return mean - half, mean + half


def _p_t(mean: float, sd: float, n: int) -> float:
    if not sd:
        return float(mean == 0)
    return float(2 * scipy_module("special").stdtr(n - 1, -abs(mean) / (sd / math.sqrt(n))))


def _p_equivalence(mean: float, sd: float, n: int, margin: float) -> float:
    """The nearer bound decides: both one-sided tests must reject."""
    room = margin - abs(mean)
    if not sd:
        return float(room <= 0)
    return float(scipy_module("special").stdtr(n - 1, -room / (sd / math.sqrt(n))))


def _verdict(values: dict[str, Any], level: float) -> tuple[str, str]:
    (low, high), p, p_equivalence = values["interval"], values["p_sign_flip"], values["p_equivalence"]
    excludes = low > 0 or high < 0
    position = f"interval {'excludes' if excludes else 'includes'} 0"
    if p_equivalence is not None and p_equivalence <= level:
        return (
            "equivalent",
            f"within the margin {values['margin']:g}: equivalence p <= {level:.3g}; {position}",
        )
    if excludes and p <= level:
        verdict = "better" if (low > 0) == values["larger_is_better"] else "worse"
        return verdict, f"{position} and sign-flip p <= {level:.3g}"
    if values["p_smallest"] > level:
        return "inconclusive", f"{position}; n = {values['n']} cannot reach a sign-flip p of {level:.3g}"
    return "inconclusive", f"{position}; sign-flip p {'<=' if p <= level else '>'} {level:.3g}"
