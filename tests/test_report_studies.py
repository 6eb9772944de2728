"""The ablations of the dashboard, of analyses as `biases stats` prints them: words, charts and tables say the same."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from analysed_results import change, sight_results, sight_study, values_of
from report_pages import Page, ablation

from biases.ablation.analysis import analyse
from biases.claims.analyses import KEPT
from biases.report import ablation as section
from biases.report import effects, render, studies
from biases.report.charts import study as charts
from biases.report.inputs import gather

STUDIES = ("gate-sight", "mope-controls", "superadditivity", "vision")


def analysis(name: str) -> dict[str, Any]:
    return json.loads((KEPT / f"{name}-small.json").read_text())


def shown(name: str) -> dict[str, Any]:
    return section.view(studies.part_of(analysis(name)))


@pytest.fixture(scope="module")
def views() -> dict[str, dict[str, Any]]:
    return {name: shown(name) for name in STUDIES}


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render({"ablation": [studies.part_of(analysis(name)) for name in STUDIES]}))


def forest(view: dict[str, Any], unit: str) -> tuple[dict[str, Any], str]:
    """The figure of that unit, and what it says of itself."""
    (found,) = [(figure, about) for of, figure, about in view["forests"] if of == unit]
    return found


def interaction(view: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in view["interactions"] if each["name"] == name]
    return found


def test_intervals_have_a_level_and_stand_beside_what_decides(page: Page, views: dict[str, Any]) -> None:
    text = page.text()
    for words in (
        "95 % interval, each by itself",
        "Together: intervals that cover all 6 declared means at once with 95 % (Bonferroni).",
        "[−0.0609, −0.0166]together [−0.0728, −0.0047]",
        "0.0625at least 0.0469",
        "Holm: adjusted for all 6 declared contrasts, the p of equivalence by themselves.",
        "equivalent takes an equivalence p (Holm) of at most 0.05 and goes first; better and worse, of the first arm, "
        "take p (Holm) of at most 0.05 and an interval by itself without zero; what is left is inconclusive.",
        "0.0112margin 0.02",
        "the band is the 95 % interval of the mean over seeds, of each step by itself",
    ):
        assert words in text
    figure, about = forest(views["vision"], "nats")
    assert "their mean and its 95 % interval, of each contrast by itself" in about
    assert "an interval that leaves out zero does not decide alone" in about
    (trace,) = figure["data"]
    gate = next(i for i, name in enumerate(trace["y"]) if name.startswith("swat: gate"))
    assert trace["x"][gate] + trace["error_x"]["array"][gate] < 0
    assert trace["y"][gate].endswith("n = 8, inconclusive")
    bands = [(each["x0"], each["x1"]) for each in figure["layout"]["shapes"] if each["type"] == "rect"]
    assert bands == [(-0.02, 0.02)] * len(trace["y"])


def test_the_overview_states_the_level(views: dict[str, Any]) -> None:
    found = section.findings(views["superadditivity"])
    assert (
        "published gate x MoPE, whole windows: +0.0169 nats per character, 95 % interval [−0.0068, +0.0405], over 8 "
        "seeds, inconclusive." in found
    )


@pytest.mark.parametrize("name", STUDIES)
def test_charts_and_tables_have_the_numbers_of_the_analysis(name: str, views: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in analysis(name)["contrasts"]}
    assert [row["name"] for row in views[name]["contrasts"]] == list(rows)
    for unit, figure, _ in views[name]["forests"]:
        own = [row for row in rows.values() if row["unit"] == unit]
        (trace,) = figure["data"]
        assert trace["x"] == [row["mean"] for row in own]
        ends = zip(trace["x"], trace["error_x"]["arrayminus"], trace["error_x"]["array"], strict=True)
        for row, (mean, below, above) in zip(own, ends, strict=True):
            assert [mean - below, mean + above] == pytest.approx(row["interval"])
    for row in views[name]["contrasts"]:
        raw = rows[row["name"]]
        for key, value in (
            ("p", raw["p_sign_flip"]),
            ("p_holm", raw["p_holm"]),
            ("p_holm_smallest", raw["p_holm_smallest"]),
            ("p_equivalence", raw["p_equivalence_holm"]),
        ):
            assert row[key] == ("–" if value is None else f"{value:.3g}")


def test_a_level_that_is_not_stated_is_not_guessed() -> None:
    part = ablation()
    for row in (*part["contrasts"], part["interaction"]):
        row.pop("confidence", None)
    view = section.view(part)
    assert view["interval"] == "interval (of a level that the results do not state)"
    assert "%" not in view["about_effects"]
    part["contrasts"][0]["confidence"], part["contrasts"][1]["confidence"] = 0.9, 0.95
    with pytest.raises(ValueError, match=r"confidence of the contrasts: expected one level, got 0\.9, 0\.95"):
        section.view(part)


def test_tests_without_a_family_are_not_called_adjusted() -> None:
    rows = [effects.contrast({**row, "confidence": 0.95}) for row in ablation()["contrasts"]]
    told = effects.about_table(rows, 0.95)
    assert "No p is adjusted for there being several contrasts." in told
    assert "better and worse, of the first arm, take p of at most 0.05" in told
    assert "which rests on the sign-flip test too" in effects.about_forest(rows, 0.95)


def test_the_contrast_says_whether_factors_interact_and_not_the_lines(views: dict[str, Any]) -> None:
    told = interaction(views["superadditivity"], "prefix gate x MoPE")["about"]
    assert "The lines" not in told
    assert "A whisker is the 95 % interval of one cell by itself" in told
    assert told.endswith(
        "Whether they do is the contrast's to say: +0.0033 nats per character, 95 % interval [−0.0145, +0.0212], "
        "inconclusive."
    )
    assert interaction(views["vision"], "retention: gate x decay")["about"].endswith(", exploratory.")


def test_cells_of_an_interaction_are_over_the_seeds_of_its_contrast(tmp_path: Path) -> None:
    study = sight_study(tmp_path)
    results = sight_results(study)
    change(results, "ega+mope", 3, status="diverged", error="loss")
    view = section.view(studies.part_of(analyse(study, results)))
    both = interaction(view, "both")
    assert both["about"].startswith("Cell means over the 7 seeds of the contrast.")
    for line in both["figure"]["data"]:
        for position, mean in zip(line["x"], line["y"], strict=True):
            values = values_of(results, f"{line['name']}+{position}")
            assert len(values) == 8
            del values[3]
            assert mean == pytest.approx(sum(values) / 7)
    low = both["figure"]["data"][0]["y"]
    y00, y01 = low
    y10, y11 = both["figure"]["data"][1]["y"]
    (row,) = [each for each in view["contrasts"] if each["name"] == "both"]
    assert (y11 - y10) - (y01 - y00) == pytest.approx(row["mean"])


def test_factors_are_named_by_the_option_that_differs(views: dict[str, Any]) -> None:
    both = interaction(views["vision"], "retention: gate x decay")
    low, high = both["figure"]["layout"]["yaxis"]["range"]
    assert 0.18 < low < high < 0.27
    assert both["factors"] == ["gate", "decay"]
    assert [line["name"] for line in both["figure"]["data"]] == ["off", "default"]
    assert both["figure"]["data"][0]["x"] == ["off", "default"]
    assert "{" not in json.dumps([both["factors"], both["cells"]])


def test_arms_that_differ_in_several_options_are_named_by_themselves() -> None:
    raw = analysis("vision")
    (row,) = [each for each in raw["contrasts"] if each["name"] == "retention: gate x decay"]
    raw["arms"][row["arms"]["y10"]]["model"]["name"] = "another"
    both = interaction(section.view(studies.part_of(raw)), row["name"])
    assert [line["name"] for line in both["figure"]["data"]] == [row["arms"]["y00"], row["arms"]["y10"]]


def test_parts_of_a_study_that_count_no_cells_are_compared_by_their_values(tmp_path: Path) -> None:
    few = {"arms": {"a": {}}, "contrasts": [], "study": "x"}
    more = {"arms": {"a": {"full": {"0": 1.0, "1": None}}}, "contrasts": [], "study": "x"}
    for name, document in (("a", few), ("b", more)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    parts = gather([tmp_path]).sections["ablation"]
    assert str(tmp_path / "b.json") in [part["file"] for part in parts]
    assert [studies.finished(part) for part in (few, more)] == [0, 1]
    assert studies.finished(studies.part_of(analysis("gate-sight"))) == 32


def test_sizes_can_be_read_off_a_forest(views: dict[str, Any]) -> None:
    figures = [figure for view in views.values() for _, figure, _ in view["forests"]]
    figures += [view["leaks"] for view in views.values() if view["leaks"]]
    assert len(figures) == 9
    for figure in figures:
        axis = figure["layout"]["xaxis"]
        low, high = axis["range"]
        step = axis["dtick"]
        ticks = math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1
        assert ticks in (3, 4), axis
        assert f"{step:e}"[0] in "125"
        assert float(f"{step:.0e}") == pytest.approx(step)
    for view in views.values():
        for _, figure, _ in view["forests"]:
            (trace,) = figure["data"]
            # A mark that hides an interval leaves its ends to be seen.
            assert trace["error_x"]["width"] > trace["marker"]["size"] / 2
            reach = [value for shape in figure["layout"]["shapes"] for value in (shape["x0"], shape["x1"])]
            low, high = figure["layout"]["xaxis"]["range"]
            assert low < min(reach) <= 0 <= max(reach) < high


def test_an_effect_of_nothing_is_drawn() -> None:
    row = effects.contrast({"name": "a - b", "mean": 0.0, "interval": [0.0, 0.0], "n": 8, "verdict": "inconclusive"})
    assert "range" not in charts.forest([row], "nats")["layout"]["xaxis"]


def test_the_direction_is_that_of_the_metric(views: dict[str, Any]) -> None:
    sides = {
        ("vision", "nats"): "Left",
        ("vision", "share of test images"): "Right",
        ("mope-controls", "omega sigma"): "Right",
        ("mope-controls", "nats per character"): "Left",
    }
    for (name, unit), side in sides.items():
        told = forest(views[name], unit)[1]
        assert f"{side} of zero is better." in told
        assert told.count("of zero is better") == 1
    unknown = [effects.contrast(row) for row in ablation()["contrasts"]]
    for row in unknown:
        row["larger_is_better"] = None
    assert "is better" not in effects.about_forest(unknown, 0.95)


def test_learning_curves_begin_where_they_can_be_told_apart(views: dict[str, Any], page: Page) -> None:
    curves = views["gate-sight"]["curves"]
    low, high = curves["figure"]["layout"]["xaxis"]["range"]
    assert 900 < low < 1000
    assert 2000 < high < 2100
    assert "The axes begin at step 1000; the values before are in the table below." in curves["about"]
    raw = analysis("gate-sight")["arms"]
    # Every recorded point is in the table, also those that are not drawn.
    assert [(arm, step) for arm, step, *_ in curves["points"]] == [
        (arm, str(step)) for arm in raw for step in raw[arm]["curve"]["steps"]
    ]
    assert ("standard", "0", "4.1969", "[4.1834, 4.2104]") in curves["points"]
    assert page.text().count("Values of the learning curves") == len(STUDIES)


def test_short_curves_are_shown_whole() -> None:
    curve = {"steps": [0, 20], "mean": [4.0, 1.5], "low": [None, None], "high": [None, None]}
    assert charts.first_shown([curve]) is None
    assert "range" not in charts.curves({"a": curve}, "loss")["layout"]["xaxis"]
    long = {key: [values[0]] * 11 for key, values in curve.items()} | {"steps": [100 * step for step in range(11)]}
    assert charts.first_shown([long]) == 400
    # No arm is left out of the picture.
    assert charts.first_shown([long, curve]) is None


def test_a_range_that_is_not_told_is_not_called_an_interval() -> None:
    part = copy.deepcopy(ablation())
    assert "the band is the range that the results give for it" in section.view(part)["curves"]["about"]
    part["band"] = "range from the lowest to the highest seed"
    assert "the band is the range from the lowest to the highest seed." in section.view(part)["curves"]["about"]
