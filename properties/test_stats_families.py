"""Properties of verdicts on a declared family: symmetries, agreement with the definition, calibration by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from biases.stats import family, holm, interaction, mean_interval, paired, required_seeds

MIRROR = {"better": "worse", "worse": "better"}
LEVEL = 0.05
NULLS = 1500

exact_values = st.integers(-512, 512).map(lambda k: k / 64)
margins = st.sampled_from([None, 0.5, 4.0])


@st.composite
def families(draw, max_contrasts=5, min_seeds=2, max_seeds=10):
    """Pairs of arms, of a number of seeds each."""
    pairs = []
    for _ in range(draw(st.integers(1, max_contrasts))):
        n = draw(st.integers(min_seeds, max_seeds))
        # A common shift makes small p-values as usual as large ones.
        shift = draw(st.sampled_from([0.0, 0.0, 16.0]))
        arm = st.lists(exact_values, min_size=n, max_size=n)
        pairs.append((np.array(draw(arm)) + shift, np.array(draw(arm))))
    return pairs


def judged(pairs, *, size=None, **options):
    return list(family({i: paired(a, b, **options) for i, (a, b) in enumerate(pairs)}, size=size).values())


def smallest(p):
    """Holm's adjustment of each, by its closed testing: the worst Bonferroni p of the sets that hold it."""
    sets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    return [max(min(1.0, len(s) * min(p[i] for i in s)) for s in sets if each in s) for each in range(len(p))]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p):
    assert holm(p) == pytest.approx(smallest(p), abs=1e-15)


@given(families(), margins, st.booleans())
def test_swapping_all_arms_mirrors_the_verdicts(pairs, margin, larger_is_better):
    options = {"margin": margin, "larger_is_better": larger_is_better}
    there, back = judged(pairs, **options), judged([(b, a) for a, b in pairs], **options)
    for one, other in zip(there, back, strict=True):
        assert other.verdict == MIRROR.get(one.verdict, one.verdict)
        for same in ("p_holm", "p_holm_smallest", "p_equivalence_holm", "reason"):
            assert getattr(other, same) == getattr(one, same), same
        low, high = one.interval_simultaneous
        assert other.interval_simultaneous == (-high, -low)


@given(families(), st.sampled_from([0.25, 0.5, 4.0]), st.integers(-100, 100).map(float))
def test_unit_and_shift_do_not_matter(pairs, scale, shift):
    moved = [(scale * (a + shift), scale * (b + shift)) for a, b in pairs]
    there, back = judged(pairs, margin=0.5), judged(moved, margin=scale * 0.5)
    for one, other in zip(there, back, strict=True):
        assert other.verdict == one.verdict
        assert other.p_holm == one.p_holm


@given(families(), st.randoms(use_true_random=False))
def test_the_order_of_the_contrasts_does_not_matter(pairs, random):
    order = list(range(len(pairs)))
    random.shuffle(order)
    there, back = judged(pairs, margin=0.5), judged([pairs[i] for i in order], margin=0.5)
    assert [there[i].as_dict() for i in order] == [each.as_dict() for each in back]


@given(families(min_seeds=6), margins)
def test_a_family_of_one_says_what_its_contrast_says(pairs, margin):
    alone = paired(*pairs[0], margin=margin)
    (one,) = judged(pairs[:1], margin=margin)
    assert (one.verdict, one.p_holm, one.interval_simultaneous) == (alone.verdict, alone.p_sign_flip, alone.interval)
    assert one.p_equivalence_holm == alone.p_equivalence


@given(families(), margins)
def test_a_family_never_claims_what_no_contrast_claims(pairs, margin):
    inferences = {i: paired(a, b, margin=margin) for i, (a, b) in enumerate(pairs)}
    for i, one in family(inferences).items():
        assert (
            one.verdict in (inferences[i].verdict, "inconclusive", "refused") or inferences[i].verdict == "equivalent"
        )
        low, high = one.interval_simultaneous
        assert low <= one.inference.interval[0] <= one.inference.interval[1] <= high
        if one.p_holm is not None:
            assert one.inference.p_sign_flip <= one.p_holm
            assert one.p_holm_smallest <= one.p_holm


@given(families(), margins)
def test_a_verdict_needs_the_adjusted_p_and_the_interval(pairs, margin):
    inferences = {i: paired(a, b, margin=margin) for i, (a, b) in enumerate(pairs)}
    silent = [x.verdict == "refused" for x in inferences.values()]
    reach = holm([1.0 if s else x.p_smallest for s, x in zip(silent, inferences.values(), strict=True)])
    silent = [s or p > LEVEL for s, p in zip(silent, reach, strict=True)]
    raw = [1.0 if s else x.p_sign_flip for s, x in zip(silent, inferences.values(), strict=True)]
    tost = [1.0 if s or margin is None else x.p_equivalence for s, x in zip(silent, inferences.values(), strict=True)]
    rows = zip(inferences.values(), silent, smallest(raw), smallest(tost), family(inferences).values(), strict=True)
    for inference, refused, p, p_equivalence, one in rows:
        low, high = inference.interval
        if refused:
            expected = "refused"
            assert one.p_holm is one.inference.p_sign_flip is one.inference.p_t is one.p_equivalence_holm is None
        elif p_equivalence <= LEVEL:
            expected = "equivalent"
        elif p <= LEVEL and not low <= 0 <= high:
            expected = "worse" if low > 0 else "better"
        else:
            expected = "inconclusive"
        assert one.verdict == expected


@given(families(min_seeds=3), st.integers(0, 4))
def test_undelivered_members_count(pairs, more):
    m = len(pairs) + more
    p = [1.0 if x.p_holm is None else x.inference.p_sign_flip for x in judged(pairs, size=m)] + [1.0] * more
    for one, expected in zip(judged(pairs, size=m), holm(p)[: len(pairs)], strict=True):
        assert one.family_size == m
        assert one.p_holm in (None, expected)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_of_a_mean_agrees_with_scipy(values, confidence):
    spread = np.std(values, ddof=1)
    if spread > 1e-9:
        expected = scipy.stats.t.interval(confidence, len(values) - 1, np.mean(values), spread / np.sqrt(len(values)))
        assert mean_interval(values, confidence=confidence) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def within_limits(successes, trials, probability):
    """In the central 99.9 % of the binomial distribution."""
    low, high = scipy.stats.binom.interval(0.999, trials, probability)
    return low <= successes <= high


def not_above(successes, trials, probability):
    return successes <= scipy.stats.binom.ppf(0.9995, trials, probability)


def attainable(n, level):
    """The largest p up to the level that sign flips of n seeds can give."""
    return np.floor(level * 2 ** (n - 1) + 1e-9) / 2 ** (n - 1)


def noise(rng, n, arms, trials=NULLS):
    """Arms that share the luck of their seed: (trials, arms, n)."""
    return rng.normal(size=(trials, 1, n)) + rng.normal(size=(trials, arms, n))


@pytest.mark.parametrize("n", [8, 12])
def test_a_single_contrast_keeps_its_level_and_its_coverage(n):
    effect = 0.7
    y = noise(np.random.default_rng(100 + n), n, 2)
    null = [paired(a, b) for a, b in y]
    assert within_limits(sum(r.p_sign_flip <= LEVEL for r in null), NULLS, attainable(n, LEVEL))
    assert within_limits(sum(r.p_t <= LEVEL for r in null), NULLS, LEVEL)
    claims = sum(r.verdict in MIRROR for r in null)
    assert claims > 0
    assert not_above(claims, NULLS, attainable(n, LEVEL))
    covered = sum(low <= effect <= high for low, high in (paired(a + effect, b).interval for a, b in y))
    assert within_limits(covered, NULLS, 1 - LEVEL)


@pytest.mark.parametrize("n", [8, 12])
def test_the_sign_flip_level_needs_symmetry_only(n):
    differences = np.random.default_rng(200 + n).standard_t(2, size=(NULLS, n))
    rejected = sum(paired(d, np.zeros(n)).p_sign_flip <= LEVEL for d in differences)
    assert within_limits(rejected, NULLS, attainable(n, LEVEL))


@pytest.mark.parametrize("n", [8, 12])
def test_the_interaction_keeps_its_level_and_its_coverage(n):
    """Main effects of any size are no interaction."""
    y00, y10, y01, y11 = np.moveaxis(noise(np.random.default_rng(300 + n), n, 4), 1, 0)
    additive = [interaction(a, b + 3.0, c - 2.0, d + 1.0) for a, b, c, d in zip(y00, y10, y01, y11, strict=True)]
    assert within_limits(sum(r.p_sign_flip <= LEVEL for r in additive), NULLS, attainable(n, LEVEL))
    assert within_limits(sum(r.p_t <= LEVEL for r in additive), NULLS, LEVEL)
    assert within_limits(sum(r.interval[0] <= 0 <= r.interval[1] for r in additive), NULLS, 1 - LEVEL)


@pytest.fixture(scope="module", params=[8, 12])
def null_families(request):
    """Families of four arms against one baseline, no arm different: their contrasts depend on each other."""
    n = request.param
    return [{i: paired(y[i], y[4]) for i in range(4)} for y in noise(np.random.default_rng(400 + n), n, 5)]


def test_holm_bounds_the_chance_of_any_claim(null_families):
    alone = sum(any(x.verdict in MIRROR for x in each.values()) for each in null_families)
    together = sum(any(x.verdict in MIRROR for x in family(each).values()) for each in null_families)
    assert together > 0
    assert not_above(together, NULLS, LEVEL)
    # Without the correction the same contrasts claim too much.
    assert not not_above(alone, NULLS, LEVEL)


def test_simultaneous_intervals_cover_all_means_together(null_families):
    missed = alone = 0
    for each in null_families:
        bounds = [x.interval_simultaneous for x in family(each).values()]
        missed += not all(low <= 0 <= high for low, high in bounds)
        alone += not all(x.interval[0] <= 0 <= x.interval[1] for x in each.values())
    assert not_above(missed, NULLS, LEVEL)
    assert not not_above(alone, NULLS, LEVEL)


@pytest.mark.parametrize("n", [8, 12])
def test_holm_bounds_the_claims_on_nulls_beside_real_effects(n):
    """Rejected effects leave the nulls a smaller factor, which must not be too small."""
    y = noise(np.random.default_rng(500 + n), n, 5)
    y[:, :2] += 4.0
    false = found = 0
    for each in y:
        verdicts = [x.verdict for x in judged([(arm, each[4]) for arm in each[:4]])]
        found += verdicts[:2] == ["worse", "worse"]
        false += any(verdict in MIRROR for verdict in verdicts[2:])
    assert found > 0.9 * NULLS
    assert false > 0
    assert not_above(false, NULLS, LEVEL)


@pytest.mark.parametrize("n", [8, 12])
def test_equivalence_keeps_its_level_at_the_edge_of_the_margin(n):
    rng, margin = np.random.default_rng(600 + n), 1.0
    differences = margin + 0.2 * rng.normal(size=(NULLS, 4, n))
    alone = together = 0
    for each in differences:
        inferences = {i: paired(d, np.zeros(n), margin=margin) for i, d in enumerate(each)}
        alone += inferences[0].verdict == "equivalent"
        together += any(x.verdict == "equivalent" for x in family(inferences).values())
    assert within_limits(alone, NULLS, LEVEL)
    # Independent contrasts at the edge: 1 - (1 - LEVEL / 4) ** 4, by Holm's first step.
    assert within_limits(together, NULLS, 1 - (1 - LEVEL / 4) ** 4)


def test_the_seeds_planned_for_a_family_reach_its_power():
    """At level 0.05 / 4, where Holm's method begins, with an effect in every contrast."""
    power, effect = 0.8, 1.0
    n = required_seeds(effect, 1.0, power, 1 - LEVEL / 4)
    rng = np.random.default_rng(700)
    trials = 600
    found = 0
    for each in rng.normal(size=(trials, 4, n)):
        found += judged([(d + effect, np.zeros(n)) for d in each])[0].p_holm <= LEVEL
    assert found >= scipy.stats.binom.ppf(0.0005, trials, power)
