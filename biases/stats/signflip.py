"""The sign-flip test: a randomisation test of paired differences.

If the arms are exchangeable within a seed, the sign of each difference is a fair coin. The p-value is the
share of all 2**n sign assignments whose mean is at least as far from 0 as the observed one (Fisher 1935, The
Design of Experiments). It assumes symmetry, not normality, and cannot fall below 2**(1 - n).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from biases._checks import fail
from biases.stats._inputs import fraction, integer

EXACT_UP_TO = 20
RESAMPLES = 99_999
_BATCH_ELEMENTS = 1 << 20


def smallest_p(n: int) -> float:
    """Smallest two-sided p that ``n`` paired seeds can attain by sign flips: 2**(1 - n).

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    return 2.0 ** (1 - integer("n", n, 1))


def attainable_seeds(confidence: float = 0.95, contrasts: int = 1) -> int:
    """Fewest paired seeds with which the sign-flip test can reach its level at all.

    Args:
        confidence: 1 - confidence is the level of the test.
        contrasts: size of the family under Holm's correction, whose first step multiplies p by it.

    Raises:
        ValueError: ``confidence`` is not in (0, 1), ``contrasts`` is not an integer of at least 1, or they
            ask for a level below what the exact test attains.
    """
    level = (1 - fraction("confidence", confidence)) / integer("contrasts", contrasts, 1)
    if level < smallest_p(EXACT_UP_TO):
        fail(
            "level",
            f"at least {smallest_p(EXACT_UP_TO):.3g}, the smallest p of {EXACT_UP_TO} seeds",
            f"{level:.3g}",
        )
    return next(n for n in range(1, EXACT_UP_TO + 1) if smallest_p(n) <= level)


def smallest_p_of_test(n: int) -> float:
    """Smallest p of :func:`sign_flip_p` as it is computed: above 20 seeds, not below 1 / (1 + resamples)."""
    return smallest_p(n) if n <= EXACT_UP_TO else max(smallest_p(n), 1 / (RESAMPLES + 1))


def sign_flip_p(
    differences: NDArray[np.float64], *, tolerance: float = 0.0, rng: np.random.Generator | None = None
) -> float:
    """Two-sided sign-flip p-value of the mean.

    Exact up to 20 differences; above, 99,999 random assignments with the observed one counted in, so that p
    is never 0 and the test keeps its level (Phipson and Smyth 2010, "Permutation p-values should never be
    zero").

    Args:
        differences: shape ``(n,)``, finite.
        tolerance: sums this close are ties. Rounding must not decide whether two equal sums are equal.
        rng: source of the random assignments; a fresh generator with seed 0 by default.
    """
    observed = abs(float(differences.sum())) - tolerance
    if differences.size <= EXACT_UP_TO:
        return float(np.mean(np.abs(_all_sums(differences)) >= observed))
    return _monte_carlo_p(differences, observed, np.random.default_rng(0) if rng is None else rng)


def _all_sums(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums under every assignment with the first sign fixed; the rest mirror them. Shape ``(2**(n-1),)``."""
    sums = differences[:1]
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _monte_carlo_p(differences: NDArray[np.float64], observed: float, rng: np.random.Generator) -> float:
    n, extreme, left = differences.size, 0, RESAMPLES
    while left:
        rows = min(left, max(1, _BATCH_ELEMENTS // n))
        signs = 2.0 * rng.integers(0, 2, size=(rows, n), dtype=np.int8) - 1.0
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed))
        left -= rows
    return (1 + extreme) / (1 + RESAMPLES)
