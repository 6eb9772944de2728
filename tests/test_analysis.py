"""The analysis of a study's results: known values in, the right seeds, verdicts and gaps out."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import scipy.stats
from analysed_results import (
    EFFECTS,
    IMAGES,
    SPEC,
    change,
    image_results,
    row,
    sight_results,
    sight_study,
    values_of,
)

from biases.ablation import load_results, load_study
from biases.ablation.analysis import analyse, compare_arms
from biases.ablation.results import write_result
from biases.stats import holm, interaction, paired, paired_power, required_seeds


@pytest.fixture
def study(tmp_path):
    return sight_study(tmp_path)


@pytest.fixture
def results(study):
    return sight_results(study)


def test_contrasts_are_those_of_the_statistics(study, results):
    analysis = analyse(study, results)
    full = {arm: values_of(results, arm) for arm in EFFECTS}
    truncated = {arm: values_of(results, arm, "truncated") for arm in EFFECTS}
    expected = {
        "ega": paired(full["ega+learned"], full["standard+learned"], margin=0.01),
        "ega on prefixes": paired(truncated["ega+learned"], truncated["standard+learned"], margin=0.002),
        "mope": paired(full["standard+mope"], full["standard+learned"], margin=0.01),
        "both": interaction(
            full["standard+learned"], full["ega+learned"], full["standard+mope"], full["ega+mope"], margin=0.01
        ),
    }
    adjusted = holm({name: each.p_sign_flip for name, each in expected.items()})
    equivalent = holm({name: each.p_equivalence for name, each in expected.items()})
    verdicts = {"ega": "better", "ega on prefixes": "worse", "mope": "equivalent", "both": "equivalent"}
    for name, inference in expected.items():
        found = row(analysis, name)
        for same in ("n", "mean", "sd", "p_sign_flip", "p_t", "p_equivalence", "effect_size", "margin"):
            assert found[same] == getattr(inference, same), (name, same)
        assert found["interval"] == list(inference.interval)
        assert (found["p_holm"], found["p_equivalence_holm"]) == (adjusted[name], equivalent[name])
        assert (found["verdict"], found["family"], found["family_size"]) == (verdicts[name], True, 4)
        assert found["required_seeds"] == max(8, required_seeds(inference.margin, inference.sd, 0.8, 1 - 0.05 / 4))
        assert found["power"] == paired_power(8, inference.margin, inference.sd, confidence=1 - 0.05 / 4)
        assert (found["seeds"], found["dropped"], found["mixed"]) == (list(range(8)), [], 0)
    assert row(analysis, "both")["cell_means"] == expected["both"].cell_means
    assert row(analysis, "both")["arms"]["y11"] == "ega+mope"
    assert row(analysis, "ega on prefixes")["metric"] == "truncated"
    assert analysis["family"] == {"size": 4, "seeds_needed": 8, "redeclared": []}


def test_exploratory_contrasts_have_an_interval_and_no_test(study, results):
    found = row(analyse(study, results), "mope with ega")
    expected = paired(values_of(results, "ega+mope"), values_of(results, "ega+learned"))
    assert found["interval"] == list(expected.interval)
    assert (found["n"], found["verdict"], found["family"]) == (8, "exploratory", False)
    assert found["effect_size"] == expected.effect_size
    assert {value for key, value in found.items() if key.startswith("p_")} == {None}
    assert found["required_seeds"] == required_seeds(0.01, expected.sd)


def test_contrasts_use_the_seeds_that_all_arms_finished(study, results):
    change(
        results, "ega+learned", 2, status="diverged", metrics={"diverged_at": 3}, error="loss is not finite at step 3"
    )
    change(results, "ega+mope", 5, status="failed", metrics={}, error="Traceback:\n  ...\nRuntimeError: no memory\n")
    results = [r for r in results if (r["arm"], r["seed"]) != ("standard+learned", 7)]
    analysis = analyse(study, results)
    ega, both = row(analysis, "ega"), row(analysis, "both")
    assert (ega["n"], ega["seeds"]) == (6, [0, 1, 3, 4, 5, 6])
    assert ega["dropped"] == [
        {"seed": 2, "why": "ega+learned diverged", "lost": True},
        {"seed": 7, "why": "standard+learned missing", "lost": False},
    ]
    assert ega["reason"].endswith("; of the survivors only: an arm failed or diverged under seeds 2")
    assert "survivors" not in row(analysis, "mope")["reason"]
    assert [each["seed"] for each in both["dropped"]] == [2, 5, 7]
    assert (both["n"], both["verdict"]) == (5, "refused")
    survivors = "of the survivors only: an arm failed or diverged under seeds 2 5"
    assert both["reason"] == f"expected at least 6 seeds, got 5; {survivors}"
    assert [(each["arm"], each["seed"], each["status"], each["error"]) for each in analysis["failed"]] == [
        ("ega+learned", 2, "diverged", "loss is not finite at step 3"),
        ("ega+mope", 5, "failed", "RuntimeError: no memory"),
    ]
    assert [(each["arm"], each["seed"]) for each in analysis["missing"]] == [("standard+learned", 7)]
    statuses = {name: arm["statuses"] for name, arm in analysis["arms"].items()}
    assert statuses["ega+learned"] == {"ok": 7, "failed": 0, "diverged": 1, "missing": 0}
    assert statuses["standard+learned"] == {"ok": 7, "failed": 0, "diverged": 0, "missing": 1}
    assert analysis["arms"]["ega+learned"]["n"] == 7


def test_a_contrast_without_a_seed_counts_in_the_family(study, results):
    analysis = analyse(study, [result for result in results if result["arm"] != "ega+mope"])
    both = row(analysis, "both")
    assert (both["n"], both["verdict"], both["reason"]) == (0, "refused", "no seed that all its arms finished")
    assert (both["family"], both["family_size"]) == (True, 4)
    assert row(analysis, "ega")["p_holm"] == 4 / 128


def test_a_family_out_of_reach_of_its_seeds_is_refused(study, results):
    """Six seeds give a p of 1/32 at best, and a family of four asks for 1/80."""
    analysis = analyse(study, [result for result in results if result["seed"] < 6])
    for name in ("ega", "ega on prefixes", "mope", "both"):
        found = row(analysis, name)
        assert (found["n"], found["verdict"]) == (6, "refused")
        assert found["reason"] == "n = 6 in a family of 4 cannot reach an adjusted p of 0.05"
        assert found["p_holm"] is found["p_sign_flip"] is None
        assert found["p_holm_smallest"] == 0.125
        assert found["interval"] is not None


def test_cells_of_different_data_are_not_pooled(study, results):
    """Whole seeds of another text make valid pairs, and still no study."""
    for result in results:
        if result["seed"] == 3:
            result["data"] = {"name": "pydoc", "sha256": "d2"}
    both = r"pydoc of SHA-256 d1 \(28 cells\); pydoc of SHA-256 d2 \(4 cells\)"
    with pytest.raises(ValueError, match=f"results of sight-tiny: expected cells of one data, got {both}"):
        analyse(study, results)
    with pytest.raises(ValueError, match=r"expected cells of one data, got .*d1 \(14 cells\).*d2 \(2 cells\)"):
        compare_arms(results, "ega+learned", "standard+learned", "full")
    other_study = [{**result, "id": f"{index:012d}"} for index, result in enumerate(results) if result["seed"] == 3]
    assert analyse(study, [each for each in results if each["seed"] != 3] + other_study)["other_results"] == 4
    for result in results:
        result["data"] = {"name": f"copy {result['seed']}", "sha256": "d1"}
    assert row(analyse(study, results), "ega")["n"] == 8


def test_arms_of_a_seed_that_others_made_are_counted(study, results):
    change(results, "ega+learned", 0, device_name="another")
    change(results, "ega+learned", 3, versions={"torch": "2.13.0", "code": "changed"})
    analysis = analyse(study, results)
    assert (row(analysis, "ega")["mixed"], row(analysis, "mope")["mixed"]) == (2, 0)
    provenance = analysis["provenance"]
    assert provenance["devices"] == {"a processor": 31, "another": 1}
    assert provenance["code"] == {"abc": 31, "changed": 1}
    assert (provenance["cells"], provenance["seconds"]) == (32, 64.0)
    assert provenance["started"] == ["2026-01-01T00:00:00+00:00", "2026-01-08T00:00:00+00:00"]


def test_leak_has_an_interval_over_seeds_and_one_of_sampling(study, results):
    arms = analyse(study, results)["arms"]
    leak = arms["ega+learned"]["leak"]
    measured = values_of(results, "ega+learned", "leak")
    assert leak["mean"] == pytest.approx(np.mean(measured))
    assert leak["interval"] == pytest.approx(list(scipy.stats.ttest_1samp(measured, 0).confidence_interval(0.95)))
    standard_error = 0.01 / math.sqrt(8)
    assert leak["sampling_standard_error"] == pytest.approx(standard_error)
    half = scipy.stats.norm.isf(0.025) * standard_error
    assert leak["sampling_interval"] == pytest.approx([leak["mean"] - half, leak["mean"] + half])
    assert (leak["positions"], leak["available"], leak["n"]) == (40, 120, 8)
    assert arms["standard+mope"]["leak"]["interval"] == [0.0, 0.0]


def test_a_leak_measured_at_every_position_has_no_sampling_error(study, results):
    for result in results:
        result["metrics"]["positions"] = 120
    leak = analyse(study, results)["arms"]["ega+learned"]["leak"]
    assert leak["sampling_standard_error"] is leak["sampling_interval"] is None
    assert leak["interval"] is not None


def test_curves_and_metrics_over_seeds(study, results):
    arm = analyse(study, results)["arms"]["standard+mope"]
    final = values_of(results, "standard+mope")
    low, high = scipy.stats.ttest_1samp(final, 0).confidence_interval(0.95)
    assert (arm["curve"]["series"], arm["curve"]["steps"]) == ("validation", [0, 20])
    assert arm["curve"]["mean"] == pytest.approx([4.0, np.mean(final)])
    assert arm["curve"]["low"] == pytest.approx([4.0, low])
    assert arm["curve"]["high"] == pytest.approx([4.0, high])
    assert arm["metrics"]["full"]["interval"] == pytest.approx([low, high])
    assert arm["metrics"]["full"]["values"] == {str(seed): value for seed, value in enumerate(final)}
    assert arm["parameters"] == 100
    assert arm["model"] == {"attention": "standard", "position": "mope"}
    one = analyse(study, [result for result in results if result["seed"] == 3])["arms"]["standard+mope"]
    assert (one["curve"]["low"], one["curve"]["high"]) == ([None, None], [None, None])
    assert one["metrics"]["full"]["interval"] is None


def test_learned_values_over_seeds(study, results):
    learned = analyse(study, results)["arms"]["ega+mope"]["learned"]
    assert list(learned) == ["gate.tau"]
    tau = learned["gate.tau"]
    assert (tau["n"], tau["mean"], tau["minimum"], tau["maximum"]) == (8, 4.5, 0.5, 8.5)
    assert tau["elements"] == [4.0, 5.0]
    assert tau["interval"] == pytest.approx(
        list(scipy.stats.ttest_1samp(range(8), 0).confidence_interval(0.95) + np.ones(2))
    )
    assert tau["quantiles"]["0.5"] == 4.5


def test_contrasts_of_what_was_learned(tmp_path, results):
    path = tmp_path / "learned.toml"
    declared = '[[contrasts]]\nname = "tau"\na = "ega+mope"\nb = "ega+learned"\nunit = "1"\nmargin = 0.1\n'
    declared += "larger_is_better = true\n"
    path.write_text(
        SPEC.replace('[[contrasts]]\nname = "mope"', declared + 'metric = "TAU"\n[[contrasts]]\nname = "mope"')
    )
    for metric, gain in (("mean", 1.0), ("maximum", 2.0), ("minimum", 0.0)):
        for result in results:
            if result["arm"] == "ega+mope":
                result["learned"] = {"gate.tau": [0.5 + result["seed"], 3.5 + result["seed"]]}
        path.write_text(path.read_text().replace("TAU", f"learned.gate.tau.{metric}"))
        study = load_study(path)
        analysis = analyse(study, results)
        assert (row(analysis, "tau")["n"], row(analysis, "tau")["mean"]) == (8, gain)
        assert analysis["arms"]["ega+mope"]["metrics"][f"learned.gate.tau.{metric}"]["n"] == 8
        path.write_text(path.read_text().replace(f"learned.gate.tau.{metric}", "TAU"))
    change(results, "ega+mope", 4, learned={})
    found = row(analyse(study, results), "tau")
    assert found["dropped"] == [
        {"seed": 4, "why": "ega+mope without learned.gate.tau.minimum", "lost": False},
    ]
    explored = row(analyse(study, results, metric="learned.gate.tau.mean"), "ega+learned - standard+learned")
    assert (explored["n"], explored["dropped"][0]["why"]) == (0, "standard+learned without learned.gate.tau.mean")
    with pytest.raises(ValueError, match=r"expected learned.NAME.mean, .minimum or .maximum, got 'learned.gate.tau'"):
        analyse(study, results, metric="learned.gate.tau")


def test_the_configuration_is_told_once(study, results):
    analysis = analyse(study, results)
    assert analysis["config"]["model"]["layers"] == 1
    assert "attention" not in analysis["config"]["model"]
    assert analysis["config"]["train"]["steps"] == 20
    assert (analysis["config"]["data"], analysis["config"]["seeds"]) == ("pydoc", list(range(8)))
    assert (analysis["study"], analysis["size"], analysis["notes"]) == ("sight", "tiny", ["smaller than published"])


def test_the_same_results_give_the_same_analysis(study, results, tmp_path):
    for result in results:
        write_result(tmp_path, result)
    text = json.dumps(analyse(study, load_results(tmp_path)), allow_nan=False)
    shuffled = random.Random(1).sample(results, len(results))
    assert json.dumps(analyse(study, shuffled), allow_nan=False) == text
    assert json.loads(text)["schema"] == 1


def test_results_of_other_cells_do_not_count(study, results):
    other = {**results[0], "id": "0" * 12, "metrics": {"full": 1e6}}
    analysis = analyse(study, [*results, other])
    assert analysis["other_results"] == 1
    assert analysis == analyse(study, results) | {"other_results": 1}


def test_another_metric_is_exploratory_where_it_was_not_declared(study, results):
    """One contrast for each set of arms: declared, if it is of that metric, or else named after its arms."""
    declared, explored = analyse(study, results), analyse(study, results, metric="truncated")
    assert row(explored, "ega on prefixes") == row(declared, "ega on prefixes")
    arms = [each["arms"] for each in explored["contrasts"]]
    assert all(arms.count(each) == 1 for each in arms)
    assert {json.dumps(each) for each in arms} == {json.dumps(each["arms"]) for each in declared["contrasts"]}
    mope = row(explored, "standard+mope - standard+learned")
    assert (mope["verdict"], mope["metric"]) == ("exploratory", "truncated")
    assert (mope["family"], mope["margin"]) == (False, None)
    assert mope["required_seeds"] is mope["power"] is None
    both = row(explored, "(ega+mope - ega+learned) - (standard+mope - standard+learned)")
    assert both["verdict"] == "exploratory"
    with pytest.raises(ValueError, match=r"metric: expected one of 'full'.*got 'ful' .*did you mean 'full'"):
        analyse(study, results, metric="ful")


def test_nothing_is_planned_from_four_seeds(study, results):
    for seeds in (4, 5):
        found = row(analyse(study, [result for result in results if result["seed"] < seeds]), "ega")
        assert found["n"] == seeds
        assert (found["required_seeds"] is None) == (found["power"] is None) == (seeds < 5)


def test_a_study_without_results(study):
    analysis = analyse(study, [])
    assert len(analysis["missing"]) == 32
    for each in analysis["contrasts"]:
        assert (each["n"], each["interval"], each["mean"]) == (0, None, None)
        assert each["verdict"] == ("refused" if each["family"] else "exploratory")
    assert analysis["arms"]["ega+mope"]["curve"] is None


def test_a_study_of_images(tmp_path):
    (tmp_path / "study.toml").write_text(IMAGES)
    study = load_study(tmp_path / "study.toml")
    results = image_results(study)
    analysis = analyse(study, results)
    assert row(analysis, "rmt - swin")["verdict"] == "better"
    arm = analysis["arms"]["rmt"]
    assert (arm["curve"]["series"], arm["leak"], arm["model"]) == ("test_accuracy", None, {"name": "rmt-t"})
    loss = analyse(study, results, metric="test_loss")
    assert row(loss, "rmt - swin")["mean"] == pytest.approx(-row(analysis, "rmt - swin")["mean"])
    assert loss["arms"]["rmt"]["curve"]["series"] == "test_loss"


def test_two_arms_use_what_finished_beside_what_failed(results):
    failed = {**results[0], "id": "f" * 12, "status": "failed", "metrics": {}, "error": "no memory"}
    arms = results[0]["arm"], "ega+mope"
    for order in ([failed, *results], [*results, failed]):
        analysis = compare_arms(order, *arms, "full")
        assert analysis["contrasts"][0]["n"] == 8
        assert [each["id"] for each in analysis["failed"]] == ["f" * 12]


@pytest.mark.parametrize("declared", ["", "larger_is_better = true\n"])
def test_an_accuracy_that_rises_is_better_whether_or_not_its_direction_is_declared(tmp_path, declared):
    (tmp_path / "study.toml").write_text(IMAGES.replace("larger_is_better = true\n", declared))
    study = load_study(tmp_path / "study.toml")
    results = image_results(study)
    found = row(analyse(study, results), "rmt - swin")
    assert (found["verdict"], found["larger_is_better"]) == ("better", True)
