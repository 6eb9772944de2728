"""Properties of the statistics: symmetries, agreement with independent definitions, calibration."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from biases.stats import (
    attainable_seeds,
    holm,
    interaction,
    paired,
    paired_power,
    required_seeds,
    smallest_p,
)

MIRROR = {"better": "worse", "worse": "better"}

# Multiples of 1/64 of this size add and subtract without rounding, so exact claims can be tested exactly.
exact_values = st.integers(-512, 512).map(lambda k: k / 64)
shifts = st.integers(-1000, 1000).map(float)
confidences = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@st.composite
def arms(draw, count=2, min_size=3, max_size=10, elements=exact_values):
    n = draw(st.integers(min_size, max_size))
    return [draw(st.lists(elements, min_size=n, max_size=n)) for _ in range(count)]


def brute_force_p(differences):
    """Share of all sign assignments at least as extreme, in rational arithmetic."""
    exact = [Fraction(d) for d in differences]
    observed = abs(sum(exact))
    assignments = itertools.product((1, -1), repeat=len(exact))
    sums = [abs(sum(s * d for s, d in zip(signs, exact, strict=True))) for signs in assignments]
    return sum(s >= observed for s in sums) / len(sums)


def differences_of(a, b):
    return np.subtract(a, b)


def varies(differences):
    return np.ptp(differences) > 0


@given(arms(max_size=24), st.sampled_from([None, 0.5]), st.booleans(), confidences)
def test_swapping_the_arms_mirrors_everything(pair, margin, larger_is_better, confidence):
    a, b = pair
    options = {"margin": margin, "larger_is_better": larger_is_better, "confidence": confidence}
    there, back = paired(a, b, **options), paired(b, a, **options)
    assert back.mean == -there.mean
    assert back.interval == (-there.interval[1], -there.interval[0])
    assert back.effect_size == (None if there.effect_size is None else -there.effect_size)
    assert back.verdict == MIRROR.get(there.verdict, there.verdict)
    for same in ("n", "sd", "p_sign_flip", "p_smallest", "p_t", "p_equivalence"):
        assert getattr(back, same) == getattr(there, same), same


@given(arms(), shifts)
def test_shifting_both_arms_changes_nothing(pair, shift):
    a, b = (np.array(arm) for arm in pair)
    here, there = paired(a, b), paired(a + shift, b + shift)
    assert here.differences == there.differences
    for same in ("p_sign_flip", "p_t", "effect_size", "interval", "verdict"):
        assert getattr(here, same) == getattr(there, same), same


@given(
    arms(elements=st.floats(-10, 10, allow_nan=False)),
    st.floats(0.0, 1e3),
    st.sampled_from([0.1, 1 / 3, 7.0, 1e-9]),
)
def test_p_and_effect_size_ignore_the_unit(pair, shift, scale):
    a, b = (np.array(arm) for arm in pair)
    differences = differences_of(a, b)
    # Below this, the shift rounds the differences themselves away.
    assume(np.all(np.abs(differences) > 1e-3))
    assume(np.std(differences) > 1e-3)
    here, there = (
        paired(a, b, margin=0.5),
        paired(scale * (a + shift), scale * (b + shift), margin=scale * 0.5),
    )
    # Rounding may break a tie of two sums; the exact test on a grid covers ties.
    if brute_force_p(differences) == brute_force_p(differences_of(a + shift, b + shift)):
        assert there.p_sign_flip == here.p_sign_flip
    assert there.p_t == pytest.approx(here.p_t, rel=1e-5, abs=1e-12)
    assert there.p_equivalence == pytest.approx(here.p_equivalence, rel=1e-5, abs=1e-12)
    assert there.effect_size == pytest.approx(here.effect_size, rel=1e-6, abs=1e-9)
    assert there.interval == pytest.approx(tuple(scale * x for x in here.interval), rel=1e-6, abs=scale * 1e-9)


@given(arms(), st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter(pair, random):
    order = list(range(len(pair[0])))
    random.shuffle(order)
    here, there = paired(*pair), paired(*([arm[i] for i in order] for arm in pair))
    for same in ("mean", "sd", "interval", "p_sign_flip", "p_t", "effect_size", "verdict"):
        assert getattr(here, same) == getattr(there, same), same


@given(arms(max_size=9))
def test_sign_flip_p_is_the_share_of_all_sign_assignments(pair):
    result = paired(*pair)
    assert result.p_sign_flip == brute_force_p(differences_of(*pair))
    assert result.p_sign_flip >= result.p_smallest == smallest_p(result.n)


@given(arms(min_size=3, max_size=9, elements=st.integers(-30, 30).map(lambda k: k / 10)))
def test_rounding_does_not_break_ties(pair):
    """Tenths are not exact in binary: 0.3 - 0.2 and 0.2 - 0.1 differ as floats but tie as numbers."""
    tenths = [round(10 * x) - round(10 * y) for x, y in zip(*pair, strict=True)]
    assert paired(*pair).p_sign_flip == brute_force_p(tenths)


@given(arms(max_size=8))
def test_sign_flip_p_agrees_with_scipy(pair):
    differences = differences_of(*pair)
    expected = scipy.stats.permutation_test(
        (differences,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=math.inf,
    )
    assert paired(*pair).p_sign_flip == pytest.approx(expected.pvalue, abs=1e-12)


@given(arms(max_size=30), confidences)
def test_t_interval_and_p_agree_with_scipy(pair, confidence):
    assume(varies(differences_of(*pair)))
    result, expected = paired(*pair, confidence=confidence), scipy.stats.ttest_rel(*pair)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval(confidence)), rel=1e-9, abs=1e-12)
    assert result.p_t == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.effect_size == pytest.approx(expected.statistic / math.sqrt(result.n), rel=1e-9)


@given(arms(), st.sampled_from([0.01, 0.5, 3.0, 20.0]))
def test_equivalence_is_two_one_sided_t_tests(pair, margin):
    differences = differences_of(*pair)
    assume(varies(differences))
    lower = scipy.stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    upper = scipy.stats.ttest_1samp(differences, margin, alternative="less").pvalue
    result = paired(*pair, margin=margin)
    assert result.p_equivalence == pytest.approx(max(lower, upper), rel=1e-9, abs=1e-300)
    assert (result.verdict == "equivalent") == (max(lower, upper) <= 1 - 0.95)


@given(arms(max_size=12), confidences, st.booleans(), st.sampled_from([None, 0.25, 4.0]))
def test_a_verdict_needs_both_the_interval_and_the_sign_flip_p(pair, confidence, larger_is_better, margin):
    result = paired(*pair, confidence=confidence, larger_is_better=larger_is_better, margin=margin)
    low, high = result.interval
    level = 1 - confidence
    if margin is not None and result.p_equivalence <= level:
        expected = "equivalent"
    elif result.p_sign_flip <= level and not low <= 0 <= high:
        expected = "better" if (low > 0) is larger_is_better else "worse"
    else:
        expected = "inconclusive"
    assert result.verdict == expected


@given(arms(count=4))
def test_interaction_is_inference_on_the_contrast(cells):
    y00, y10, y01, y11 = map(np.array, cells)
    result = interaction(y00, y10, y01, y11, margin=0.5)
    expected = paired((y11 - y10) - (y01 - y00), np.zeros(len(y00)), margin=0.5)
    for same in (
        "n",
        "mean",
        "sd",
        "interval",
        "p_sign_flip",
        "p_t",
        "effect_size",
        "p_equivalence",
        "verdict",
    ):
        assert getattr(result, same) == getattr(expected, same), same
    assert result.cell_means == {name: np.mean(y) for name, y in zip(result.cell_means, cells, strict=True)}


@given(arms(count=4))
def test_interaction_does_not_depend_on_which_factor_is_first(cells):
    y00, y10, y01, y11 = cells
    here, there = interaction(y00, y10, y01, y11), interaction(y00, y01, y10, y11)
    assert here.differences == there.differences
    swapped = interaction(y10, y00, y11, y01)
    assert swapped.mean == -here.mean
    assert swapped.p_sign_flip == here.p_sign_flip


@given(arms(count=3))
def test_additive_factors_have_no_interaction(parts):
    base, first, second = map(np.array, parts)
    result = interaction(base, base + first, base + second, base + first + second)
    assert (result.mean, result.sd, result.p_t, result.p_sign_flip) == (0, 0, 1, 1)
    assert result.verdict == "inconclusive"


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_step_down_definition(raw):
    adjusted = holm(raw)
    for p, q in zip(raw, adjusted, strict=True):
        # Only values up to p step before it, or with it; the factor is the number not yet stepped over.
        steps = [(sum(other >= x for other in raw) * x) for x in raw if x <= p]
        assert q == min(1.0, max(steps))
        assert p <= q <= 1
    order = np.argsort(raw, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0) if raw else adjusted == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_sequential_procedure_rejects(raw, level):
    rejected, left = set(), sorted(range(len(raw)), key=raw.__getitem__)
    while left and len(left) * raw[left[0]] <= level:
        rejected.add(left.pop(0))
    assert {i for i, q in enumerate(holm(raw)) if q <= level} == rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_holm_follows_the_names(raw, random):
    names = [f"contrast {i}" for i in range(len(raw))]
    expected = dict(zip(names, holm(raw), strict=True))
    shuffled = random.sample(names, len(names))
    assert holm({name: raw[names.index(name)] for name in shuffled}) == expected


@given(
    st.floats(0.2, 4),
    st.floats(0.1, 3),
    st.sampled_from([0.5, 0.8, 0.9, 0.95]),
    st.sampled_from([0.9, 0.95, 0.99]),
)
def test_required_seeds_is_the_least_count_with_that_power(effect, sd, power, confidence):
    n = required_seeds(effect, sd, power, confidence)
    assert paired_power(n, effect, sd, confidence=confidence) >= power
    assert n == 2 or paired_power(n - 1, effect, sd, confidence=confidence) < power
    assert required_seeds(-effect, sd, power, confidence) == n


@given(st.integers(2, 200), st.floats(0, 6), confidences)
def test_power_is_the_probability_of_the_t_test(n, size, confidence):
    """Against the same probability by conditioning on the sample variance."""
    df, critical = n - 1, scipy.stats.t.isf((1 - confidence) / 2, n - 1)
    # Gauss-Legendre on the probability scale of the chi distribution.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    sample_sd = np.sqrt(scipy.stats.chi2.ppf((nodes + 1) / 2, df) / df)
    shift = size * math.sqrt(n)
    reject = scipy.stats.norm.sf(critical * sample_sd - shift) + scipy.stats.norm.cdf(-critical * sample_sd - shift)
    assert paired_power(n, size, 1.0, confidence=confidence) == pytest.approx(weights @ reject / 2, abs=2e-4)


@pytest.mark.parametrize(
    ("effect", "rho", "difference", "contrast"),
    [
        (0.5, 0, 65, 128),
        (0.5, 0.5, 34, 65),
        (0.5, 0.8, 15, 28),
        (1.0, 0, 18, 34),
        (1.0, 0.5, 10, 18),
        (1.0, 0.8, 6, 9),
        (1.5, 0, 10, 16),
        (1.5, 0.5, 6, 10),
        (1.5, 0.8, 4, 6),
    ],
)
def test_required_seeds_by_correlation_of_the_arms(effect, rho, difference, contrast):
    assert required_seeds(effect, math.sqrt(2 * (1 - rho))) == difference
    assert required_seeds(effect, 2 * math.sqrt(1 - rho)) == contrast


@pytest.mark.parametrize(
    ("n", "p"),
    [(3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125), (7, 0.015625), (8, 0.0078125), (10, 0.001953125)],
)
def test_smallest_p_is_attained_by_differences_of_one_sign(n, p):
    result = paired(np.arange(1.0, n + 1), np.zeros(n))
    assert result.p_sign_flip == result.p_smallest == smallest_p(n) == p
    assert (result.verdict == "inconclusive") == (n < 6)


def test_seeds_that_a_family_needs():
    assert attainable_seeds() == 6
    assert attainable_seeds(contrasts=4) == 8


@pytest.fixture(scope="module")
def null_simulations():
    """2000 comparisons of 8 seeds with no true difference, correlated within the seed."""
    rng = np.random.default_rng(20240)
    shared = rng.normal(size=(2000, 8))
    a, b = (shared + rng.normal(size=(2000, 8)) for _ in range(2))
    return [paired(x, y) for x, y in zip(a, b, strict=True)]


def within_binomial_limits(successes, trials, probability):
    low, high = scipy.stats.binom.interval(0.999, trials, probability)
    return low <= successes <= high


def test_false_positive_rates_under_the_null(null_simulations):
    trials = len(null_simulations)
    t_rejects = sum(r.p_t <= 0.05 for r in null_simulations)
    assert within_binomial_limits(t_rejects, trials, 0.05)
    # Of the attainable levels k / 128, the largest up to 0.05 is 6 / 128.
    flip_rejects = sum(r.p_sign_flip <= 0.05 for r in null_simulations)
    assert within_binomial_limits(flip_rejects, trials, 6 / 128)
    claims = sum(r.verdict in MIRROR for r in null_simulations)
    assert 0 < claims <= min(t_rejects, flip_rejects)


def test_interval_coverage_under_the_null(null_simulations):
    covered = sum(r.interval[0] <= 0 <= r.interval[1] for r in null_simulations)
    assert within_binomial_limits(covered, len(null_simulations), 0.95)


def test_p_is_uniform_under_the_null(null_simulations):
    assert scipy.stats.kstest([r.p_t for r in null_simulations], "uniform").pvalue > 0.001
    # The sign-flip p is uniform on multiples of 1/128.
    counts = np.bincount([round(128 * r.p_sign_flip) for r in null_simulations], minlength=129)[1:]
    assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_equivalence_claims_at_the_margin_are_rare():
    rng = np.random.default_rng(7)
    trials = 1500
    differences = 0.5 + 0.2 * rng.normal(size=(trials, 6))
    claims = sum(paired(d, np.zeros(6), margin=0.5).verdict == "equivalent" for d in differences)
    assert within_binomial_limits(claims, trials, 0.05)


def test_power_is_reached_in_simulation():
    n, trials = required_seeds(0.8, 1.0, power=0.8), 1500
    rng = np.random.default_rng(11)
    rejected = sum(paired(0.8 + d, np.zeros(n)).p_t <= 0.05 for d in rng.normal(size=(trials, n)))
    assert within_binomial_limits(rejected, trials, paired_power(n, 0.8, 1.0))
