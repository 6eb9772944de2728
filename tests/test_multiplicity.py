"""Several contrasts at once, and planning: Holm's correction, families, power, seeds that are needed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from biases.stats import (
    attainable_seeds,
    family,
    holm,
    mean_interval,
    paired,
    paired_power,
    required_seeds,
    smallest_p,
)


def test_holm_keeps_the_type():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm((0.01, 0.04, 0.03)) == (0.03, 0.06, 0.06)
    assert holm({"x": 0.5, "y": 0.01}) == {"x": 0.5, "y": 0.02}
    assert list(holm({"x": 0.5, "y": 0.01})) == ["x", "y"]
    array = holm(np.array([0.01, 0.04, 0.03]))
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [0.03, 0.06, 0.06]
    assert (holm([]), holm(()), holm({})) == ([], (), {})


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ([0.5, 1.5], r"p at position 1: expected a number in \[0, 1\], got 1.5"),
        ([-0.1], "p at position 0"),
        ([math.nan], "p at position 0: expected a finite number, got nan"),
        ({"alibi": None}, "p of 'alibi': expected a finite number, got None"),
        (0.5, "p: expected a mapping, a sequence"),
        ("0.5", "p: expected a mapping, a sequence"),
        (np.array([[0.5]]), "p: expected a mapping, a sequence"),
    ],
)
def test_holm_bad_input(p, words):
    with pytest.raises(ValueError, match=words):
        holm(p)


def shifted(mean, n=8, **options):
    """``n`` seeds whose differences have this mean and the standard deviation 1."""
    noise = np.arange(n) - (n - 1) / 2
    return paired(mean + noise / noise.std(ddof=1), np.zeros(n), margin=2.0, **options)


def test_a_family_by_hand():
    """Three with eight differences of one sign, p = 2 / 256, and one near 0 within a margin of 2."""
    judged = family({"far": shifted(-9), "farther": shifted(-12), "up": shifted(8), "near": shifted(0.2)})
    assert [each.verdict for each in judged.values()] == ["better", "better", "worse", "equivalent"]
    assert [judged[name].p_holm for name in ("far", "farther", "up")] == [4 * 2**-7] * 3
    assert judged["near"].p_holm == judged["near"].inference.p_sign_flip
    assert judged["near"].p_equivalence_holm == 4 * judged["near"].inference.p_equivalence
    assert {each.p_holm_smallest for each in judged.values()} == {4 * 2**-7}
    low, high = judged["far"].interval_simultaneous
    half = scipy.stats.t.isf(0.05 / 4 / 2, 7) / math.sqrt(8)
    assert (low, high) == pytest.approx((-9 - half, -9 + half))


def test_the_correction_can_take_a_verdict_back():
    """A raw p of 4/256 passes alone, not beside three that show nothing."""
    a = np.array([-1.0, -0.9, -1.1, -1.2, -0.8, -1.0, -1.0, 0.05])
    one, none = paired(a, np.zeros(8)), shifted(0.0)
    assert (one.verdict, one.p_sign_flip) == ("better", 4 / 256)
    judged = family({"one": one, "x": none, "y": none, "z": none})
    assert (judged["one"].p_holm, judged["one"].verdict) == (0.0625, "inconclusive")
    assert judged["one"].reason == "interval excludes 0; adjusted sign-flip p > 0.05"
    assert family({"one": one}, size=4)["one"].p_holm == 0.0625


def test_an_outlier_of_the_same_sign_is_no_verdict():
    """All differences are of one sign, but the interval includes 0."""
    differences = [0.01, 0.02, 0.03, 0.02, 0.01, 0.02, 0.03, 10.0]
    (judged,) = family({"one": paired(differences, np.zeros(8))}).values()
    assert (judged.p_holm, judged.verdict) == (2 / 256, "inconclusive")
    assert judged.reason == "interval includes 0; adjusted sign-flip p <= 0.05"


def test_a_family_too_large_for_its_seeds_is_refused():
    few, many = shifted(-9, n=7), shifted(-9, n=12)
    judged = family({i: few for i in range(4)})
    for each in judged.values():
        assert (each.verdict, each.reason) == ("refused", "n = 7 in a family of 4 cannot reach an adjusted p of 0.05")
        assert each.p_holm is each.inference.p_sign_flip is each.inference.p_equivalence is None
        assert each.p_holm_smallest == 4 * 2**-6
        assert each.interval_simultaneous is not None
    # Beside contrasts of more seeds that come first, seven are enough.
    mixed = family({"a": many, "b": many, "c": few, "d": many})
    assert {each.verdict for each in mixed.values()} == {"better"}
    assert mixed["c"].p_holm == 2**-6


def test_a_refused_contrast_counts_in_its_family():
    one = paired([1.0], [2.0])
    judged = family({"one seed": one, "far": shifted(-9)})
    assert (judged["one seed"].verdict, judged["one seed"].reason) == ("refused", "expected at least 3 seeds, got 1")
    assert judged["one seed"].interval_simultaneous is judged["one seed"].p_holm_smallest is None
    assert judged["far"].p_holm == 2 * 2**-7


def test_a_judged_contrast_is_json():
    values = json.loads(json.dumps(family({"far": shifted(-9)}, size=3)["far"].as_dict(), allow_nan=False))
    assert (values["verdict"], values["family_size"], values["n"]) == ("better", 3, 8)
    assert values["reason"] == "interval excludes 0 and adjusted sign-flip p <= 0.05"
    assert len(values["interval"]) == len(values["interval_simultaneous"]) == 2
    assert family({}) == {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: family({"a": shifted(0), "b": shifted(0)}, size=1), "size: expected an integer of at least 2, got 1"),
        (
            lambda: family({"a": shifted(0), "b": shifted(0, confidence=0.9)}),
            "family: expected contrasts of one confidence, got 0.9, 0.95",
        ),
        (lambda: mean_interval([]), "values: expected at least one seed, got none"),
        (lambda: mean_interval([1.0, math.inf]), "values: expected finite numbers"),
        (lambda: mean_interval([1.0, 2.0], confidence=1), "confidence: expected"),
    ],
)
def test_bad_families(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: required_seeds(0, 1), "effect: expected a difference other than 0, got 0"),
        (lambda: required_seeds(1, 0), "sd: expected a number above 0, got 0"),
        (lambda: required_seeds(1, -2), "sd: expected a number above 0, got -2"),
        (lambda: required_seeds(math.nan, 1), "effect: expected a finite number, got nan"),
        (lambda: required_seeds(1, 1, power=1.0), "power: expected a number strictly between 0 and 1"),
        (lambda: required_seeds(1, 1, confidence=0), "confidence: expected a number strictly between"),
        (lambda: required_seeds(1e-9, 1), "effect / sd: expected at least 1e-06, got 1e-09"),
        (lambda: paired_power(1, 1, 1), "n: expected an integer of at least 2, got 1"),
        (lambda: smallest_p(0), "n: expected an integer of at least 1, got 0"),
        (lambda: smallest_p(2.5), "n: expected an integer of at least 1, got 2.5"),
        (lambda: attainable_seeds(0.95, 0), "contrasts: expected an integer of at least 1, got 0"),
        (lambda: attainable_seeds(0.95, 10**6), "level: expected at least 1.91e-06"),
    ],
)
def test_bad_planning_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("n", "size"), [(3, 10), (6, 3), (20, 3), (100, 3), (1000, 0.3), (1000, 1e8), (2, 1e12), (3, 1e300)]
)
def test_power_of_large_effects_is_one_and_not_nan(n, size):
    assert paired_power(n, size, 1.0) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("confidence", [0.5, 0.99, 1 - 1e-6, 1 - 1e-9])
@pytest.mark.parametrize("n", [2, 3, 10, 2000])
def test_power_rises_with_the_effect_over_all_sizes(n, confidence):
    sizes = np.geomspace(1e-9, 1e12, 150)
    power = np.array([paired_power(n, size, 1.0, confidence=confidence) for size in sizes])
    assert np.all(np.diff(power) >= -1e-7)
    assert power[0] == pytest.approx(1 - confidence)
    assert power[-1] == pytest.approx(1)


def test_required_seeds_at_the_ends():
    assert required_seeds(1e100, 1e-100) == 2
    assert required_seeds(1, 1, power=0.01) == 2
    # n grows as (sd / effect) squared: (1.95996 + 0.84162) ** 2 seeds at effect = sd, in the limit.
    assert required_seeds(1e-3, 1) == pytest.approx(7.8489e6, rel=1e-4)


def test_power_without_an_effect_is_the_level():
    assert paired_power(9, 0.0, 2.0, confidence=0.9) == pytest.approx(0.1)
