"""Paired differences and interactions: degenerate data, refusals, bad input, JSON, the Monte Carlo branch."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch

from biases.stats import interaction, mean_interval, paired, smallest_p
from biases.stats.signflip import RESAMPLES, sign_flip_p

LOSSES_A = [1.50, 1.48, 1.51, 1.47, 1.49, 1.52]
LOSSES_B = [1.55, 1.52, 1.58, 1.50, 1.56, 1.55]


def test_lower_loss_is_better_and_says_so():
    result = paired(LOSSES_A, LOSSES_B, unit="nats per character")
    assert result.verdict == "better"
    assert result.mean == pytest.approx(-0.29 / 6)
    assert (result.mean_a, result.mean_b) == pytest.approx((np.mean(LOSSES_A), np.mean(LOSSES_B)))
    assert paired(LOSSES_A, LOSSES_B, larger_is_better=True).verdict == "worse"


def test_describe_names_what_a_reader_needs():
    line = paired(LOSSES_A, LOSSES_B, unit="nats per character", margin=0.01).describe()
    assert line.startswith("difference -0.04833 nats per character, 95 % interval [-0.06")
    assert "n = 6, sign-flip p = 0.0312 (smallest attainable 0.0312)" in line
    assert "margin 0.01" in line
    assert line.endswith("better (interval excludes 0 and sign-flip p <= 0.05)")
    assert "\n" not in line


@pytest.mark.parametrize("n", [1, 2, 3, 6, 25])
def test_describe_never_speaks_of_significance(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n))
    for line in (
        paired(a, b, margin=1.0).describe(),
        paired(a, a).describe(),
        interaction(a, b, b, a).describe(),
    ):
        assert "significan" not in line.lower()
        assert "nan" not in line


def test_five_seeds_cannot_decide_at_95_percent():
    result = paired(LOSSES_A[:5], LOSSES_B[:5])
    assert result.interval[1] < 0
    assert result.verdict == "inconclusive"
    assert "n = 5 cannot reach a sign-flip p of 0.05" in result.reason
    assert paired(LOSSES_A[:5], LOSSES_B[:5], confidence=0.9).verdict == "better"


def test_too_few_seeds_are_refused_without_p():
    result = paired(LOSSES_A[:2], LOSSES_B[:2], margin=10.0)
    assert result.verdict == "refused"
    assert result.reason == "expected at least 3 seeds, got 2"
    assert result.p_sign_flip is result.p_t is result.p_equivalence is None
    assert result.p_smallest == 0.5
    assert "sign-flip p =" not in result.describe()
    assert paired(LOSSES_A, LOSSES_B, minimum_seeds=7).verdict == "refused"
    assert paired(LOSSES_A[:2], LOSSES_B[:2], minimum_seeds=2).verdict == "inconclusive"


def test_one_seed_has_a_mean_and_nothing_else():
    result = paired([1.0], [3.0])
    assert (result.n, result.mean, result.verdict) == (1, -2.0, "refused")
    assert result.sd is result.interval is result.effect_size is None


def test_equal_arms():
    result = paired(LOSSES_A, LOSSES_A)
    assert (result.mean, result.sd, result.interval) == (0, 0, (0, 0))
    assert (result.p_sign_flip, result.p_t, result.effect_size) == (1, 1, None)
    assert result.verdict == "inconclusive"
    with_margin = paired(LOSSES_A, LOSSES_A, margin=0.01)
    assert (with_margin.p_equivalence, with_margin.verdict) == (0, "equivalent")


def test_constant_difference_up_to_rounding():
    """x - (x + 0.1) is not the same float for every x."""
    losses = np.array([0.3, 1.48, 2.51, 0.07, 4.49, 1.52])
    shifted = losses + 0.1
    assert len(set(losses - shifted)) > 1
    result = paired(losses, shifted, margin=0.05)
    assert result.sd == 0
    assert result.interval == pytest.approx((-0.1, -0.1))
    assert (result.p_sign_flip, result.p_t, result.p_equivalence) == (0.03125, 0, 1)
    assert (result.effect_size, result.verdict) == (None, "better")


def test_rounding_alone_is_no_difference():
    a = np.array([0.1 + 0.2, 1.1 + 2.2, 0.7 + 0.1])
    b = np.array([0.3, 3.3, 0.8])
    assert np.any(a != b)
    result = paired(a, b)
    assert (result.mean, result.sd, result.p_t, result.p_sign_flip) == (0, 0, 1, 1)


def test_a_difference_within_the_margin_is_equivalent_even_where_it_excludes_zero():
    a = np.add(LOSSES_B, [0.001, 0.0012, 0.0008, 0.001, 0.0011, 0.0009])
    assert paired(a, LOSSES_B).verdict == "worse"
    result = paired(a, LOSSES_B, margin=0.01)
    assert result.verdict == "equivalent"
    assert "interval excludes 0" in result.reason


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-9, 1e149])
def test_extreme_units_stay_finite(scale):
    a = [8 * scale, 3 * scale, 5 * scale]
    result = paired(a, [0.0, scale, 0.0], margin=1e-300)
    json.dumps(result.as_dict(), allow_nan=False)
    assert result.effect_size == pytest.approx(5 / 3, rel=2e-3)
    assert result.sd > 0


def test_interaction_of_a_loss():
    y00, y10, y01 = LOSSES_B, np.subtract(LOSSES_B, 0.02), np.subtract(LOSSES_B, 0.03)
    extra = [0.04, 0.05, 0.06, 0.05, 0.04, 0.07]
    result = interaction(y00, y10, y01, np.subtract(LOSSES_B, np.add(0.05, extra)))
    assert result.mean == pytest.approx(-np.mean(extra))
    assert result.verdict == "better"
    assert result.cell_means["y10"] == pytest.approx(np.mean(y10))
    assert result.describe().startswith("interaction -0.05167")


def test_results_are_json_and_frozen():
    two = paired(LOSSES_A, LOSSES_B, margin=0.1)
    four = interaction(LOSSES_A, LOSSES_B, LOSSES_B, LOSSES_A)
    for result in (two, four, paired([1.0], [2.0])):
        values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
        assert values["n"] == result.n
        assert values["differences"] == list(result.differences)
        with pytest.raises(AttributeError):
            result.verdict = "better"
        assert isinstance(hash(result), int)
    values = four.as_dict()
    values["cell_means"]["y00"] = 0.0
    assert four.cell_means["y00"] != 0


@pytest.mark.parametrize(
    "convert", [tuple, np.array, torch.tensor, lambda x: np.array(x, dtype=np.float64)[::-1][::-1]]
)
def test_sequences_of_any_make(convert):
    a, b = convert([1, 2, 4, 8]), convert([2, 2, 2, 2])
    assert paired(a, b).differences == (-1.0, 0.0, 2.0, 6.0)


def test_monte_carlo_follows_the_generator_and_nothing_else():
    a, b = np.random.default_rng(3).normal(0.4, 1, size=(2, 30)) * [[1], [0.5]]
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first, second = paired(a, b), paired(a, b)
    assert first == second
    assert np.array_equal(np.random.get_state()[1], before)
    same = [paired(a, b, rng=np.random.default_rng(5)).p_sign_flip for _ in range(2)]
    assert same[0] == same[1] != first.p_sign_flip
    assert same[0] == pytest.approx(first.p_sign_flip, abs=0.01)


def test_monte_carlo_is_close_to_the_exact_count():
    """Of 25 differences that are all 1, the sum of random signs is binomial."""
    differences = np.array([1.0] * 17 + [-1.0] * 8)
    exact = 2 * scipy.stats.binom.cdf(8, 25, 0.5)
    p = sign_flip_p(differences)
    assert abs(p - exact) < 4 * math.sqrt(exact * (1 - exact) / RESAMPLES)


def test_monte_carlo_p_is_never_zero():
    result = paired(np.arange(1.0, 101.0), np.zeros(100))
    assert result.p_sign_flip == result.p_smallest == 1 / (RESAMPLES + 1)


def test_twenty_seeds_are_exact():
    result = paired(np.arange(1.0, 21.0), np.zeros(20))
    assert result.p_sign_flip == smallest_p(20) == 2.0**-19


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([], [], "a: expected at least one seed, got none"),
        ([1.0, 2.0], [1.0], "a: 2, b: 1"),
        ([[1.0, 2.0]], [1.0], r"a: expected .* got list of shape \(1, 2\)"),
        (1.0, [1.0], r"got float of shape \(\)"),
        ([[1.0], [1.0, 2.0]], [1.0], "a: expected a one-dimensional sequence"),
        ([1.0, math.nan], [1.0, 2.0], "a: expected finite numbers .* got nan at position 1"),
        ([1.0, 2.0], [math.inf, 2.0], "b: expected finite numbers .* got inf at position 0"),
        ([1e200, 2.0], [0.0, 2.0], "1e\\+150, got 1e\\+200"),
        (["1", "2"], [1.0, 2.0], "elements of type <U1"),
        ([True, False], [1.0, 2.0], "elements of type bool"),
        ([1.0, None], [1.0, 2.0], "elements of type object"),
        ({0: 1.0}, {0: 2.0}, "got dict"),
        (torch.ones(3, requires_grad=True), [1.0, 2.0, 3.0], "a: expected .* got Tensor"),
    ],
)
def test_bad_arms(a, b, words):
    with pytest.raises(ValueError, match=words):
        paired(a, b)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"margin": 0.0}, "margin: expected a number above 0, got 0.0"),
        ({"margin": -1}, "margin: expected a number above 0, got -1"),
        ({"margin": math.inf}, "margin: expected a finite number, got inf"),
        ({"margin": "1"}, "margin: expected a finite number, got '1'"),
        ({"margin": 10**400}, "margin: expected a finite number"),
        ({"confidence": 95}, "confidence: expected a number strictly between 0 and 1, got 95"),
        ({"confidence": 1.0}, "confidence: expected"),
        ({"confidence": True}, "confidence: expected a finite number, got True"),
        ({"minimum_seeds": 1}, "minimum_seeds: expected an integer of at least 2, got 1"),
        ({"minimum_seeds": 3.0}, "minimum_seeds: expected an integer"),
        ({"larger_is_better": 1}, "larger_is_better: expected True or False, got 1"),
        ({"unit": None}, "unit: expected a string, got None"),
        ({"rng": 0}, "rng: expected a numpy.random.Generator or None, got int"),
    ],
)
def test_bad_options(option, words):
    with pytest.raises(ValueError, match=words):
        paired(LOSSES_A, LOSSES_B, **option)
    with pytest.raises(ValueError, match=words):
        interaction(LOSSES_A, LOSSES_B, LOSSES_B, LOSSES_A, **option)


def test_interaction_names_the_cell_that_is_short():
    with pytest.raises(ValueError, match="y00: 6, y10: 6, y01: 5, y11: 6"):
        interaction(LOSSES_A, LOSSES_A, LOSSES_A[:5], LOSSES_A)


def test_interval_of_a_mean_at_the_ends():
    assert mean_interval([3.0]) is None
    assert mean_interval([3.0, 3.0, 3.0]) == (3.0, 3.0)
    assert mean_interval(LOSSES_A, confidence=0.9) == pytest.approx(
        scipy.stats.ttest_1samp(LOSSES_A, 0).confidence_interval(0.9)
    )


def test_import_does_not_need_scipy():
    code = "import sys; sys.modules['scipy'] = None; import biases.stats as s; print(s.holm([0.5]), s.smallest_p(5))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.5] 0.0625"


def test_missing_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"attention-biases\[ablate\]"):
        paired(LOSSES_A, LOSSES_B)
