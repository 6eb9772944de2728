"""Contrasts and statistics as they are declared: directions, units, margins, and what is refused."""

from __future__ import annotations

import math

import pytest

from biases.ablation.contrasts import METRICS, Contrast, Statistics, check_contrasts, seeds_for_verdicts

STATISTICS = {"metric": "full", "unit": "nats", "smallest_effect": 0.01}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"smallest_effect": 0}, r"statistics smallest_effect: expected a number in \(0, inf\), got 0"),
        ({"smallest_effect": math.inf}, "statistics smallest_effect: expected"),
        ({"confidence": 95}, r"statistics confidence: expected a number in \(0, 1\), got 95"),
        ({"power": 1.0}, "statistics power: expected"),
        ({"minimum_seeds": 1}, "statistics minimum_seeds: expected at least 2, got 1"),
        ({"minimum_seeds": 8.0}, "statistics minimum_seeds: expected an integer"),
        ({"larger_is_better": 1}, "statistics larger_is_better: expected true or false, got 1"),
        ({"metric": " "}, "statistics metric: expected a name"),
        ({"unit": None}, "statistics unit: expected a name, got None"),
        ({"smallest_effect": 10**400}, r"statistics smallest_effect: expected a number in \(0, inf\)"),
        (
            {"larger_is_better": True},
            "statistics larger_is_better: expected false, the direction of full, got true",
        ),
        (
            {"metric": "test_accuracy", "larger_is_better": False},
            "statistics larger_is_better: expected true, the direction of test_accuracy, got false",
        ),
        (
            {"metric": "learned.tau.mean"},
            "statistics larger_is_better: expected true or false, which learned.tau.mean does not tell, got nothing",
        ),
    ],
)
def test_bad_statistics(values, words):
    with pytest.raises(ValueError, match=words):
        Statistics(**{**STATISTICS, **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "contrast 'c': expected arms a and b, or y00, y10, y01, y11, got no arms"),
        ({"a": "x"}, "expected arms a and b, or y00, y10, y01, y11, got a"),
        ({"a": "x", "b": "y", "y00": "z"}, "got a, b, y00"),
        ({"y00": "x", "y10": "y", "y01": "z", "y11": "x"}, "contrast 'c': expected each arm once, got x, y, z, x"),
        ({"a": "x", "b": 3}, "contrast 'c' b: expected a name, got 3"),
        ({"a": "x", "b": "y", "margin": -1}, r"contrast 'c' margin: expected a number in \(0, inf\), got -1"),
        ({"a": "x", "b": "y", "larger_is_better": "no"}, "contrast 'c' larger_is_better: expected true or false"),
        ({"a": "x", "b": "y", "name": ""}, "contrast name: expected a name, got ''"),
    ],
)
def test_bad_contrasts(values, words):
    with pytest.raises(ValueError, match=words):
        Contrast(**{"name": "c", **values})


def test_contrasts_must_fit_their_study():
    statistics = Statistics(**STATISTICS)
    one, other = Contrast(name="c", a="x", b="y"), Contrast(name="d", a="x", b="q")
    options = {"arms": ["x", "y"], "metrics": METRICS["text"]}
    check_contrasts(statistics, [one], [], **options)
    for family, exploratory, words in (
        ([one], [one], "contrast 'c': expected a name that no other contrast has"),
        ([], [other], "contrast 'd' b: expected one of 'x', 'y', got 'q'"),
        ([Contrast(name="c", a="x", b="y", metric="test_loss")], [], "contrast 'c' metric: expected one of 'full'"),
        (
            [Contrast(name="c", a="x", b="y", unit="bits")],
            [],
            "contrast 'c' margin: expected a margin in its unit, bits",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            check_contrasts(statistics, family, exploratory, **options)
    with pytest.raises(ValueError, match="statistics metric: expected one of 'test_accuracy'"):
        check_contrasts(statistics, [], [], arms=[], metrics=METRICS["images"])


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        *dict.fromkeys(METRICS["text"], False).items(),
        *(("test_accuracy", True), ("train_accuracy", True), ("test_loss", False), ("train_loss", False)),
    ],
)
def test_a_metric_knows_its_direction(metric, direction):
    assert Statistics(metric=metric, unit="u", smallest_effect=1).larger_is_better is direction


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"larger_is_better": True}, "contrast 'c' larger_is_better: expected false, the direction of full, got true"),
        (
            {"metric": "test_accuracy", "unit": "share", "margin": 1, "larger_is_better": False},
            "contrast 'c' larger_is_better: expected true, the direction of test_accuracy, got false",
        ),
        (
            {"metric": "test_accuracy", "margin": 1},
            "contrast 'c' unit: expected the unit of test_accuracy, as the study's is that of full, got none",
        ),
        (
            {"metric": "test_accuracy", "unit": "nats"},
            "contrast 'c' margin: expected a margin in its unit, nats, got none",
        ),
        (
            {"metric": "learned.tau.mean", "unit": "1", "margin": 1},
            "contrast 'c' larger_is_better: expected true or false, which learned.tau.mean does not tell",
        ),
    ],
)
def test_a_contrast_of_another_quantity_brings_its_own_scale(values, words):
    with pytest.raises(ValueError, match=words):
        Contrast(name="c", a="x", b="y", **values).resolved(Statistics(**STATISTICS))


def test_a_contrast_takes_from_the_study_what_it_leaves_open():
    statistics = Statistics(**STATISTICS)
    resolved = Contrast(name="c", a="x", b="y", metric="leak").resolved(statistics)
    assert (resolved.metric, resolved.margin, resolved.unit, resolved.larger_is_better) == ("leak", 0.01, "nats", False)
    own = Contrast(name="c", a="x", b="y", unit="bits", margin=2, larger_is_better=False).resolved(statistics)
    assert (own.metric, own.margin, own.unit, own.larger_is_better) == ("full", 2.0, "bits", False)
    accuracy = Contrast(name="c", a="x", b="y", metric="test_accuracy", unit="share", margin=0.02).resolved(statistics)
    assert (accuracy.margin, accuracy.unit, accuracy.larger_is_better) == (0.02, "share", True)
    tau = Statistics(**STATISTICS | {"metric": "learned.tau.mean"}, larger_is_better=True)
    highest = Contrast(name="c", a="x", b="y", metric="learned.tau.maximum").resolved(tau)
    assert (highest.margin, highest.unit, highest.larger_is_better) == (0.01, "nats", True)
    assert seeds_for_verdicts(statistics, 4) == 8
    assert seeds_for_verdicts(statistics, 7) == 9
    assert seeds_for_verdicts(Statistics(**STATISTICS, minimum_seeds=2), 1) == 6
