"""Power of the paired t test, and the seeds that a claim needs."""

from __future__ import annotations

import math

from biases._checks import fail
from biases.stats._inputs import fraction, integer, number, positive, scipy_module

# Above this the t distribution equals the normal one in every digit that a seed count could show.
_NORMAL_FROM = 1_000_000
# Above this the numerator of t is constant for all purposes (relative error of power about 1 / noncentrality**2),
# and scipy's noncentral series stop converging further up.
_CONSTANT_NUMERATOR_FROM = 1e4
# Power exceeds the level by less than 1e-12 below this, and scipy's ncf.sf is wrong at 0.
_SMALLEST_NONCENTRALITY = 1e-6
# Below this the count is beyond 10**12 seeds.
_SMALLEST_SIZE = 1e-6


def paired_power(n: int, effect: float, sd: float, *, confidence: float = 0.95) -> float:
    """Chance that the two-sided paired t test on ``n`` seeds finds a difference of ``effect``.

    The t statistic is noncentral t with n - 1 degrees of freedom and noncentrality effect / sd * sqrt(n).

    Args:
        n: number of paired seeds, at least 2.
        effect: true mean difference, in the unit of ``sd``; the sign is ignored.
        sd: standard deviation of the per-seed *differences*: for arms of equal sd s and correlation rho,
            s * sqrt(2 (1 - rho)), and twice the variance again for a 2x2 interaction contrast.
        confidence: 1 - confidence is the level of the test.

    Raises:
        ValueError: a value is outside its range.
    """
    seeds = integer("n", n, 2)
    size = abs(number("effect", effect)) / positive("sd", sd)
    return _power(seeds, size, 1 - fraction("confidence", confidence))


def required_seeds(effect: float, sd: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """Fewest paired seeds with which the two-sided paired t test reaches ``power``.

    Note:
        This is the t test alone. A verdict of :func:`~biases.stats.paired` also needs the sign-flip p, which
        is out of reach below :func:`~biases.stats.attainable_seeds` (6 seeds at 95 %): plan for the larger of
        the two.

    Args:
        effect: the mean difference to be found, not 0, in the unit of ``sd``; the sign is ignored.
        sd: standard deviation of the per-seed differences (see :func:`paired_power`), above 0.
        power: chance of finding it.
        confidence: 1 - confidence is the level of the test.

    Returns:
        A number of seeds, at least 2.

    Raises:
        ValueError: a value is outside its range, or effect / sd is below 1e-6.
    """
    if number("effect", effect) == 0:
        fail("effect", "a difference other than 0", repr(effect))
    size = abs(float(effect)) / positive("sd", sd)
    target, level = fraction("power", power), 1 - fraction("confidence", confidence)
    if size < _SMALLEST_SIZE:
        fail("effect / sd", f"at least {_SMALLEST_SIZE:g}", f"{size:g}")
    high = 2
    while _power(high, size, level) < target:
        high *= 2
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        if _power(middle, size, level) < target:
            low = middle + 1
        else:
            high = middle
    return high


def _power(n: int, size: float, level: float) -> float:
    """Power at standardised effect ``size``, both rejection regions counted."""
    stats = scipy_module("stats")
    df, noncentrality = n - 1, size * math.sqrt(n)
    if noncentrality < _SMALLEST_NONCENTRALITY:
        return level
    if n > _NORMAL_FROM:
        critical = stats.norm.isf(level / 2)
        return float(stats.norm.sf(critical - noncentrality) + stats.norm.cdf(-critical - noncentrality))
    critical = stats.t.isf(level / 2, df)
    if noncentrality > _CONSTANT_NUMERATOR_FROM:
        ratio = noncentrality / float(critical)
        return float(stats.chi2.cdf(df * ratio * ratio, df))
    # The square of a noncentral t is a noncentral F: both tails in one call, where scipy's nct.cdf gives NaN
    # for the far one.
    return float(stats.ncf.sf(critical**2, 1, df, noncentrality**2))
