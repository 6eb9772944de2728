"""The statistics of paired ratios: what must hold of any measurement, and how often they cry wolf."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from biases.bench.compare.measure import Budget
from biases.bench.compare.statistics import (
    estimate,
    judge,
    judge_quantity,
    least_rounds,
    level_of_each,
    tolerance_of,
)

pytest.importorskip("scipy")

SEVERITY = ("improved", "no change", "regression")
MIRROR = {"regression": "improved", "improved": "regression"}
EPS = np.finfo(np.float64).eps

positive = st.floats(1e-6, 1e3)
pairs = st.lists(st.tuples(positive, positive), min_size=8, max_size=60)
levels = st.sampled_from([0.8, 0.95, 0.99])
thresholds = st.floats(1.01, 3)


@st.composite
def settled_rounds(draw):
    """One effect, and noise far smaller than that of ``pairs``."""
    effect = draw(st.floats(-1, 1.2))
    noise = draw(st.lists(st.floats(-0.02, 0.02), min_size=8, max_size=40))
    return [(1.0, math.exp(effect + each)) for each in noise]


settled = settled_rounds()


def split(rounds):
    return [base for base, _ in rounds], [head for _, head in rounds]


def same(a, b):
    """Equal but for the rounding of a few logarithms and exponentials, which grows with the size of the logarithm."""
    return math.isclose(a, b, rel_tol=64 * EPS * (1 + abs(math.log(b)))) if 0 < b < math.inf else a == b


@given(pairs, levels)
def test_the_interval_holds_the_estimate(rounds, level):
    found = estimate(*split(rounds), level)
    assert found.low <= found.ratio <= found.high
    assert found.rounds == len(rounds)
    assert found.spread >= 1


@given(pairs, levels)
def test_swapping_the_sides_gives_the_reciprocals(rounds, level):
    base, head = split(rounds)
    there, back = estimate(base, head, level), estimate(head, base, level)
    assert same(back.ratio, 1 / there.ratio)
    assert same(back.low, 1 / there.high if there.high < math.inf else 0.0)
    assert same(back.spread, there.spread)


@given(pairs, thresholds)
def test_swapping_the_sides_mirrors_the_verdict(rounds, threshold):
    base, head = split(rounds)
    there, back = estimate(base, head), estimate(head, base)
    limits = (threshold, math.sqrt(threshold), 1.0, threshold**2)
    for value in (there.ratio, there.low, there.high, there.spread):
        assume(not any(same(value, limit) or same(1 / value, limit) for limit in limits if 0 < value < math.inf))
    assert judge(back, threshold)[0] == MIRROR.get(judge(there, threshold)[0], judge(there, threshold)[0])


@given(pairs, st.integers(-20, 20))
def test_the_unit_does_not_matter(rounds, power):
    """A power of two scales without rounding."""
    base, head = split(rounds)
    scaled = estimate([each * 2.0**power for each in base], [each * 2.0**power for each in head])
    assert same(scaled.ratio, estimate(base, head).ratio)
    assert same(scaled.low, estimate(base, head).low)


@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_rounds_does_not_matter(rounds, random):
    shuffled = random.sample(rounds, len(rounds))
    assert estimate(*split(shuffled)) == estimate(*split(rounds))


@given(pairs, st.floats(1, 100))
def test_a_larger_effect_is_estimated_larger(rounds, factor):
    base, head = split(rounds)
    less, more = estimate(base, head), estimate(base, [each * factor for each in head])
    for before, after in ((less.ratio, more.ratio), (less.low, more.low), (less.high, more.high)):
        assert same(after, before * factor)


@given(settled, st.floats(1, 4), thresholds)
def test_the_verdict_is_monotone_in_the_effect(rounds, factor, threshold):
    """Of two effects that are both settled, the larger one is never called the better."""
    base, head = split(rounds)
    verdicts = [judge(estimate(base, [each * f for each in head]), threshold)[0] for f in (1.0, factor)]
    assume(all(verdict in SEVERITY for verdict in verdicts))
    assert SEVERITY.index(verdicts[0]) <= SEVERITY.index(verdicts[1])


@given(pairs, levels)
def test_more_confidence_is_a_wider_interval(rounds, level):
    narrow, wide = estimate(*split(rounds), level), estimate(*split(rounds), (1 + level) / 2)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@given(settled, thresholds, st.floats(1, 2))
def test_a_regression_is_one_under_every_smaller_threshold(rounds, threshold, smaller):
    found = estimate(*split(rounds))
    if judge(found, threshold)[0] == "regression":
        assert found.low > 1
        assert found.ratio > threshold
        assert judge(found, 1 + (threshold - 1) / smaller)[0] == "regression"


@given(st.integers(1, 5000), st.floats(0.8, 0.999))
def test_the_least_rounds_are_enough_and_no_more_than_needed(family, confidence):
    level = level_of_each(family, confidence)
    least = least_rounds(level)
    assert least % 2 == 0
    assert math.isfinite(estimate([1.0] * least, [2.0] * least, level).high)
    if least > 8:
        assert not math.isfinite(estimate([1.0] * (least - 2), [2.0] * (least - 2), level).high)


@given(st.integers(1, 500), st.integers(1, 30), st.floats(1e-3, 100), st.floats(0, 10))
def test_rounds_are_even_and_within_the_budget(most, half, seconds, of_a_round):
    budget = Budget(rounds=most, least=2 * half, seconds=seconds)
    count = budget.count(of_a_round)
    assert count % 2 == 0
    assert count >= budget.least
    assert count <= budget.least or count <= most + 1
    assert count <= budget.least or (count - 1) * of_a_round <= seconds * (1 + 4 * EPS)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.sampled_from([0.0, 0.01, 0.5]))
def test_a_quantity_is_judged_alike_from_both_sides(base, head, tolerance):
    call = judge_quantity(base, head, tolerance)[0]
    assert judge_quantity(head, base, tolerance)[0] == MIRROR.get(call, call)
    if tolerance == 0:
        assert call == ("no change" if base == head else "regression" if head > base else "improved")


def test_bytes_have_a_tolerance_and_counts_have_none():
    assert [tolerance_of(unit) for unit in ("bytes", "MiB", "kernels", "unit")] == [0.01, 0.01, 0.0, 0.0]
    assert tolerance_of("kernels", 0.2) == 0.2
    assert judge_quantity(1000, 1010, tolerance_of("bytes"))[0] == "no change"
    assert judge_quantity(1000, 1011, tolerance_of("bytes"))[0] == "regression"
    assert judge_quantity(0, 1, tolerance_of("bytes"))[0] == "regression"


def rounds_of_a_busy_machine(rng, rounds, factor=1.0):
    """Times of two sides, A B B A or B A A B: a drift that wanders by tens of per cent, noise with heavy tails, bursts.

    Returns base and head, each of shape ``(rounds,)``.
    """
    drift = np.cumsum(rng.normal(0, 0.03, 2 * rounds)) + 0.3 * np.sin(np.linspace(0, rng.uniform(1, 20), 2 * rounds))
    burst = np.repeat(rng.random(rounds // 4 + 1) < 0.1, 8)[: 2 * rounds]
    slow = np.exp(drift + np.abs(rng.standard_t(2, 2 * rounds)) * 0.02 + burst * rng.exponential(0.5, 2 * rounds))
    first = np.repeat(rng.random(rounds // 2) < 0.5, 2) ^ np.tile([False, True], rounds // 2)
    early, late = slow[0::2], slow[1::2]
    return np.where(first, early, late), factor * np.where(first, late, early)


def most_likely(trials, chance):
    """So many of ``trials`` are exceeded by chance once in a million runs of this test."""
    from scipy.stats import binom

    return int(binom.isf(1e-6, trials, chance))


@pytest.mark.parametrize("rounds", [8, 20, 40])
def test_the_interval_misses_no_more_often_than_it_says(rounds):
    rng, trials, level = np.random.default_rng(rounds), 2000, 0.9
    missed = [0, 0]
    for _ in range(trials):
        found = estimate(*rounds_of_a_busy_machine(rng, rounds), level)
        missed[0] += found.low > 1
        missed[1] += found.high < 1
    for side in missed:
        assert side <= most_likely(trials, (1 - level) / 2)


def test_false_alarms_of_a_family_keep_to_its_level():
    """Even with no practical threshold to speak of, and before a second set of rounds."""
    rng, trials, family = np.random.default_rng(1), 300, 10
    level = level_of_each(family)
    alarms = 0
    for _ in range(trials):
        calls = [judge(estimate(*rounds_of_a_busy_machine(rng, 40), level), 1.000001)[0] for _ in range(family)]
        alarms += bool({"regression", "improved"} & set(calls))
    assert alarms <= most_likely(trials, 0.05)


def test_unchanged_commits_give_no_alarm_and_a_slowdown_by_two_gives_one():
    rng, level = np.random.default_rng(2), level_of_each(20)
    unchanged = [judge(estimate(*rounds_of_a_busy_machine(rng, 40), level))[0] for _ in range(1000)]
    slower = [judge(estimate(*rounds_of_a_busy_machine(rng, 40, factor=2.0), level))[0] for _ in range(200)]
    assert not {"regression", "improved"} & set(unchanged)
    assert set(slower) == {"regression"}


def test_the_rounds_that_would_settle_it_are_said_and_do():
    rng = np.random.default_rng(3)
    logs = rng.normal(math.log(1.03), 0.06, 400)
    found = estimate(np.ones(16), np.exp(logs[:16]), 0.999)
    verdict, reason = judge(found)
    assert verdict == "inconclusive"
    more = int(reason.split()[1])
    # The width of an interval of order statistics varies itself, hence twice as many.
    rounds = 2 * (16 + more)
    assert judge(estimate(np.ones(rounds), np.exp(logs[:rounds]), 0.999))[0] == "no change"


@pytest.mark.parametrize(
    ("base", "head", "level", "match"),
    [
        ([], [], 0.95, "at least one"),
        ([1.0], [1.0, 2.0], 0.95, "the same number"),
        ([1.0, 0.0], [1.0, 1.0], 0.95, "positive"),
        ([1.0], [math.nan], 0.95, "positive finite"),
        ([1.0], [1.0], 1.0, "level"),
    ],
)
def test_what_has_no_ratio_is_refused(base, head, level, match):
    with pytest.raises(ValueError, match=match):
        estimate(base, head, level)


def test_thresholds_and_tolerances_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="threshold"):
        judge(estimate([1.0], [1.0]), 1.0)
    with pytest.raises(ValueError, match="tolerance"):
        judge_quantity(1, 1, -0.1)
