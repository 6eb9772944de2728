"""The dashboard: its sections, empty states, inertness, size and structure."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from report_pages import PROPERTIES, SUBJECTS, Page, ablation, claims, full_results, sample_results

from biases.report import effects, render
from biases.report import text as words
from biases.report.charts import study as charts


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample_results())


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(full_results()))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.mark.parametrize("which", ["page", "full"])
def test_sections_and_headings_are_in_order(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which)
    # What is empty comes last.
    last = {"page": ["gallery", "claims"], "full": ["claims", "gallery"]}[which]
    assert [s["id"] for s in page.all("section")] == ["overview", "verification", "benchmarks", "ablations", *last]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        if (link["href"] or "").startswith("#"):
            assert link["href"][1:] in ids


def test_overview_states_the_findings(page: Page) -> None:
    text = page.text()
    assert "56 checks of 7 properties on 8 subjects: 1 failed, 2 known failures, 45 passed" in text
    assert "Broken promises: swat (float64-agreement)." in text
    assert "ega-token at ×1.07 (forward, length 256)" in text
    assert "ega - standard, learned: −0.310 nats per character, 95 % interval [−0.360, −0.260], over 6 seeds" in text
    assert "over 6 seeds, better." in text
    assert "ega+learned (+0.42)" in text
    assert "standard+learned (" not in text


def test_every_figure_names_its_command_and_file(page: Page, html: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.S)
    assert len(captions) == len(page.all("figure")) == 9
    assert all("Made by <code>biases " in caption for caption in captions)
    assert sum("runs/demo" in caption for caption in captions) == 4
    assert sum("bench.json" in caption for caption in captions) == 4
    exports = [b["data-chart"] for b in page.all("button") if b.get("class") == "export"]
    assert exports == [chart for chart in page.figures() for _ in ("png", "svg", "json")]


def test_matrix_cells_lead_to_their_evidence(page: Page) -> None:
    cells = [a for a in page.all("a") if (a.get("class") or "").startswith("cell")]
    # One property applies to no subject.
    assert len(cells) == len(SUBJECTS) * (len(PROPERTIES) - 1)
    leak = next(a for a in cells if a["aria-label"] == "ega, future-independence: known failure")
    bodies = {d["id"]: d for d in page.all("div") if d.get("class") == "result-body"}
    assert leak["href"][1:] in bodies
    passed = next(a for a in cells if a["aria-label"] == "alibi, future-independence: passed")
    promises = {d["id"] for d in page.all("div") if "-property-" in (d.get("id") or "")}
    assert len(promises) == len(PROPERTIES)
    assert passed["href"][1:] in promises
    assert passed["data-told"] == "25 examples, 210 ms"
    assert not any("permutation-equivariance" in (a["aria-label"] or "") for a in cells)
    assert "equivariant_to is ()" in page.text()
    assert "replay(factory('ega'), 'future-independence'" in page.text()
    assert "batch=1, length=2, position=0, regime='normal', seed=0" in page.text()
    assert len([b for b in page.all("button") if b.get("class") == "copy"]) == 3


def test_two_results_of_one_cell_are_both_kept() -> None:
    results = sample_results()
    again = dict(results["verification"]["results"][0], status="failed", message="only in bfloat16")
    results["verification"]["results"].append(again)
    cells = [a for a in Page(render(results)).all("a") if (a.get("class") or "").startswith("cell")]
    assert [c["class"] for c in cells if c["aria-label"].startswith("standard, shape-dtype-device")] == [
        "cell passed",
        "cell failed",
    ]


def test_tables_have_captions_and_scopes(page: Page) -> None:
    assert len(page.all("caption")) == len(page.all("table")) == 8
    assert {th.get("scope") for th in page.all("th")} == {"row", "col", "rowgroup"}


@pytest.mark.parametrize("which", ["page", "full"])
def test_figures_are_valid_plotly(which: str, request: pytest.FixtureRequest) -> None:
    import plotly.graph_objects as go

    page = request.getfixturevalue(which)
    figures = page.figures()
    assert set(figures) == {d["id"] for d in page.all("div") if d.get("class") == "chart"}
    for figure in figures.values():
        plain = json.loads(re.sub(r"var\(--[\w-]+\)( [\d.]+)?", "#123456", json.dumps(figure)))
        go.Figure({key: plain[key] for key in ("data", "layout")})


def test_figures_say_what_was_measured(page: Page) -> None:
    shown = {figure["title"].rpartition(": ")[2]: figure for figure in page.figures().values()}
    ratio, latency, peak = (shown[t] for t in ("Time against the floor", *(f"{m} against length" for m in LINES)))
    assert [trace["name"] for trace in ratio["data"]] == ["length 256", "length 1024"]
    first = sample_results()["bench"]["rows"][0]
    assert ratio["data"][0]["x"][0] == pytest.approx(first["ratio"], rel=1e-4)
    assert ratio["data"][0]["error_x"]["array"][0] == pytest.approx(first["ratio_high"] - first["ratio"], rel=1e-4)
    assert ratio["data"][0]["error_x"]["arrayminus"][0] == pytest.approx(first["ratio"] - first["ratio_low"], rel=1e-4)
    assert latency["data"][0]["name"] == "ega-token"
    assert latency["data"][0]["x"] == [256, 1024]
    assert latency["data"][0]["y"][0] == pytest.approx(first["seconds_median"], rel=1e-4)
    assert peak["data"][0]["name"] == "floor"
    assert peak["data"][0]["y"] == [2 * n * 64 * 8 * 4 for n in (256, 1024)]
    assert peak["data"][0]["customdata"][1] == words.size(2 * 1024 * 64 * 8 * 4)
    assert [t["name"] for t in shown["Learning curves"]["data"] if "name" in t] == list(ablation()["arms"])
    forest = shown["Paired effects"]["data"][0]
    assert forest["x"] == [-0.31, -0.35, -0.05, -0.04]
    assert all("n = 6" in name for name in forest["y"])
    lines = shown["attention x position"]["data"]
    assert lines[1]["name"] == "ega"
    assert lines[1]["y"] == pytest.approx([1.59, 1.50])
    whole, prefixes = shown["Truncated against full window"]["data"][1:]
    assert prefixes["x"][3] - whole["x"][3] == pytest.approx(0.42)


LINES = ("Latency", "Peak memory")


def test_a_single_length_is_shown_as_bars() -> None:
    results = sample_results()
    results["bench"]["rows"] = [row for row in results["bench"]["rows"] if row["length"] == 1024]
    figures = list(Page(render(results)).figures().values())[:2]
    titles = [f"float32, forward: {title}" for title in ("Time against the floor", "Peak memory")]
    assert [figure["title"] for figure in figures] == titles
    assert figures[1]["data"][1]["x"] == [2 * 1024 * 64 * 8 * 4] * 5


def test_several_sources_of_a_section_are_shown_one_after_another(full: Page) -> None:
    text = full.text()
    assert "Verification: on CUDA" in text
    cells = [a for a in full.all("a") if (a.get("class") or "").startswith("cell")]
    assert len(cells) == 2 * len(SUBJECTS) * (len(PROPERTIES) - 1)
    assert "again (small)" in text
    assert "unreadable, result x.json: expected JSON" in text
    assert "ega+mope: not run yet under seeds 7" in text
    assert "1 input passed over" in text
    assert "2 notes on cells" in text


def test_claims_can_be_filtered_by_verdict_and_paper(full: Page) -> None:
    entries = [d for d in full.all("details") if "claim" in (d.get("class") or "").split()]
    assert [(d["data-verdict"], d["data-paper"]) for d in entries] == [
        ("fails", "2605.21842"),
        ("holds", "2309.11523"),
        ("error", "2309.11523"),
    ]
    options = [option["value"] for option in full.all("option")]
    chosen = [*("", "holds", "fails", "error"), *("", "2605.21842", "2309.11523"), *("", "stated", "questions of ours")]
    assert options[-len(chosen) :] == chosen
    text = full.text()
    assert "2 statements of the papers, executed: fails 1, error 1." in text
    assert "1 questions of ours: holds 1." in text
    assert "[0.100, 0.300] nats, 5 seeds, small" in text
    assert "RuntimeError: no such layer" in text


def test_claims_that_fail_in_the_setting_measured_alone_are_told_from_others() -> None:
    ledger = claims()
    ledger["claims"][0]["evidence"]["conditions"] = "size small"
    page = Page(render({"claims": ledger}))
    entries = [d for d in page.all("details") if "claim" in (d.get("class") or "").split()]
    assert entries[0]["data-verdict"] == "fails on condition"
    assert "executed: fails on condition 1, error 1." in page.text()


def test_steps_of_the_history_are_marked(full: Page) -> None:
    shown = next(f for f in full.figures().values() if f["title"] == "operators: time of call (Cpu)")
    line, step, flat = shown["data"]
    assert line["y"] == [1, 1, 1, None, 1, 2, 2, 2, 2, 2]
    assert (step["x"], step["y"], step["customdata"]) == (["00000005"], [2], ["100 % slower"])
    assert flat["y"] == [1] * 10
    assert "3 series over 10 commits, 1 with steps." in full.text()
    assert "operators: time of call (Cpu), alibi, 1024: 100 % slower from 00000005 of 2024-01-11 on." in full.text()


def test_the_gallery_shows_maps_profiles_gates_and_encodings(full: Page) -> None:
    titles = [figure["title"] for figure in full.figures().values()]
    for title in (
        "alibi: Weights, head 1",
        "alibi: Profile",
        "alibi: Influence",
        "ega: Gate",
        "ega: Gate against energy",
        "manhattan: Reach of a pixel",
        "manhattan: Regions, shifted",
        "sinusoidal: Encoding",
        "sinusoidal: Kernel",
    ):
        assert title in titles
    # Weights that are all alike have no profile.
    assert "ega: Profile" not in titles
    assert "It could not be drawn: RuntimeError: cannot be built" in full.text()
    images = [image["src"] for image in full.all("img")]
    assert len(images) == 4
    assert all(source.startswith("data:image/png;base64,") for source in images)


@pytest.mark.parametrize(
    "empty", [{}, {"verification": {}, "bench": {"rows": []}, "ablation": None, "zoo": [], "claims": []}]
)
def test_empty_sections_name_their_command(empty: dict) -> None:
    html = render({**empty, "missing": {"ablation": "Stopped before the first seed was finished."}})
    page = Page(html)
    text = page.text()
    for command in (
        "biases check all --json > check.json, then biases report check.json.",
        "biases bench --out bench.json, then biases report bench.json.",
        "asv run, then",
        "biases ablate SPEC.toml",
        "biases claims --json > claims.json, then",
        "biases report.",
    ):
        assert f"run {command}" in text
    assert "Stopped before the first seed was finished." in text
    assert "Nothing has been checked or measured yet" in text
    assert page.figures() == {}
    assert not page.all("figure")
    assert len(html.encode()) < 100_000


def test_refused_and_missing_numbers_leave_no_broken_chart() -> None:
    results = sample_results()
    for row in results["bench"]["rows"]:
        row["ratio"] = row["peak_bytes"] = row["seconds_median"] = math.nan
    for arm in results["ablation"]["arms"].values():
        arm["curve"] = {"steps": [], "mean": []}
        arm["leak_mean"] = arm["leak_interval"] = None
    refused = {"mean": None, "interval": None, "p_sign_flip": None, "p_smallest": None, "verdict": "refused"}
    for row in [*results["ablation"]["contrasts"], results["ablation"]["interaction"]]:
        row.update(refused, n=2, reason="2 seeds are too few, 3 are needed")
    results["ablation"]["interaction"]["cells"] = {}
    page = Page(render(results))
    assert page.figures() == {}
    assert "2 seeds are too few" in page.text()
    assert "NaN" not in page.text()
    assert "None" not in page.text()


def test_an_interval_that_was_refused_leaves_the_mean_alone() -> None:
    row = effects.contrast({"name": "a - b", "mean": 0.1, "interval": None, "n": 2, "verdict": "refused"})
    bars = charts.forest([row], "nats per character")["data"][0]["error_x"]
    assert (bars["array"], bars["arrayminus"]) == ([0.0], [0.0])


@pytest.mark.parametrize(
    "cells",
    [
        {"y00": 2.0, "y10": 1.0, "y01": 1.5, "y11": 0.5},
        {"standard+learned": 2.0, "ega+learned": 1.0, "standard+mope": 1.5, "ega+mope": 0.5},
        {"standard": {"learned": 2.0, "mope": {"mean": 1.5}}, "ega": {"learned": 1.0, "mope": {"mean": 0.5}}},
    ],
)
def test_interaction_cells_are_placed_whatever_their_form(cells: dict) -> None:
    placed = effects.grid(cells, {"attention": ["standard", "ega"], "position": ["learned", "mope"]})
    means = {(a, b): cell["mean"] for a, inner in placed.items() for b, cell in inner.items()}
    assert means == {
        ("standard", "learned"): 2.0,
        ("standard", "mope"): 1.5,
        ("ega", "learned"): 1.0,
        ("ega", "mope"): 0.5,
    }


def test_an_interaction_of_the_statistics_can_be_given_as_it_is() -> None:
    from biases.stats import interaction

    results = sample_results()
    arms = [list(arm["full"].values()) for arm in results["ablation"]["arms"].values()]
    y00, y01, y10, y11 = arms
    results["ablation"]["interaction"] = interaction(y00, y10, y01, y11).as_dict()
    figures = Page(render(results)).figures().values()
    drawn = next(figure["data"] for figure in figures if figure["title"].startswith("Interaction"))
    assert drawn[0]["y"] == pytest.approx([sum(y00) / 6, sum(y01) / 6])
    assert drawn[1]["y"] == pytest.approx([sum(y10) / 6, sum(y11) / 6])


def test_cells_that_cannot_be_placed_are_not_drawn() -> None:
    factors = {"attention": ["standard", "ega"], "position": ["learned", "mope"]}
    assert effects.grid({"elsewhere": 1.0}, factors) == {}
    assert effects.grid({"ega": 1.0}, {"attention": ["standard", "ega"]}) == {}


def test_units_for_people() -> None:
    assert [words.size(v) for v in (0, 1023, 2048, 3 * 2**20, None)] == [
        "0 B",
        "1023 B",
        "2 KiB",
        "3 MiB",
        "–",
    ]
    assert [words.duration(v) for v in (0.0, 2.5e-5, 0.0123, 3.0, 250.0)] == [
        "0 s",
        "25 µs",
        "12.3 ms",
        "3 s",
        "250 s",
    ]
    assert words.number(-0.00012345, signed=True) == "−0.0001234"
    assert words.seeds(["10", "9", "x"]) == ["9", "10", "x"]
