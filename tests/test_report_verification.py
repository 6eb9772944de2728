"""The verification section: what is folded away, what comes first, and scripts that are whole or not there."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from report_pages import Page, sample_results

from biases.report import MAX_BYTES, render, verification

SCRIPT = "".join(f"line_{index} = {index}\n" for index in range(200))


def result(subject: str, prop: str, status: str = "passed", **more: object) -> dict:
    return {"subject": subject, "property": prop, "promise": f"{prop} holds.", "status": status, "examples": 25, **more}


def failures(count: int, **more: object) -> list[dict]:
    return [result(f"layer-{i}", "shape", "failed", message="m" * 9_000, **more) for i in range(count)]


def test_what_went_wrong_comes_first_and_what_applies_to_none_is_folded_away() -> None:
    absent = "not_applicable"
    results = [
        *(result("a", "shape"), result("a", "leak"), result("a", "slope", absent, message="it is no bias")),
        *(result("b", "shape"), result("b", "leak", "xfailed"), result("b", "slope", absent, message="it is no bias")),
        *(result("c", "shape", "failed"), result("c", "leak", "xfailed"), result("c", "slope", absent)),
        *(result("d", "shape"), result("d", "leak", absent, message="it is not causal"), result("d", "slope", absent)),
    ]
    shown = verification.view({"results": results}, 1000)
    assert [name for name, *_ in shown["properties"]] == ["shape", "leak"]
    assert [subject for subject, _ in shown["matrix"]] == ["c", "b", "a", "d"]
    assert [(name, why) for name, _, _, why in shown["absent"]] == [("slope", "it is no bias")]
    page = Page(render({"verification": {"results": results}}))
    assert "12 checks of 3 properties on 4 subjects" in page.text()
    assert re.search(r"1 more that apply to no subject here slope ?slope holds\. ?it is no bias", page.text())
    cells = [a["aria-label"] for a in page.all("a") if (a.get("class") or "").startswith("cell")]
    assert len(cells) == 8
    assert cells[:2] == ["c, shape: failed", "c, leak: known failure"]


def test_a_run_in_which_nothing_applied_has_no_matrix() -> None:
    page = Page(render({"verification": {"results": [result("a", "shape", "not_applicable", message="too long")]}}))
    assert not page.all("table")
    assert "1 more that apply to no subject here" in page.text()


@pytest.mark.parametrize("count", [3, 50, 125])
def test_a_script_is_whole_or_not_there(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biases.report.page.MAX_BYTES", 500_000)
    run = {"configuration": {"targets": ["all"], "seed": 3, "max_examples": 25, "property": None, "device": "cuda"}}
    html = render({"verification": {"results": failures(count, reproduce=SCRIPT), **run}})
    page = Page(html)
    blocks = [text.removeprefix("\n") for tag, text in page.content if tag == "pre"]
    scripts = [text for text in blocks if "line_0" in text]
    assert all(text == SCRIPT for text in scripts)
    commands = [text for text in blocks if text.startswith("biases check")]
    assert len(scripts) + len(commands) == count
    assert len(html.encode()) < 500_000
    assert bool(commands) == (count == 125)
    if commands:
        assert commands[7] == "biases check layer-7 --property shape --seed 3 --device cuda"
    # Messages are cut before a script goes.
    assert count == 3 or "characters left out of this page" in html


@pytest.mark.parametrize(
    ("configuration", "command"),
    [
        ({}, "biases check 'my layers:make' --property p"),
        ({"targets": ["my layers:make", "ega"], "seed": 0}, "biases check 'my layers:make' --property p"),
        (
            {"targets": ["my layers:make"], "trait": ["causal=true"], "slow": True, "kind": "gate", "dtype": "float32"},
            "biases check 'my layers:make' --property p --as gate --trait causal=true --dtype float32 --slow",
        ),
        ({"targets": ["peers"], "seed": 4}, "biases check peers --property p --seed 4"),
    ],
)
def test_the_command_puts_one_property_to_one_subject_again(configuration: dict, command: str) -> None:
    assert verification.reruns(configuration)("my layers:make", "p") == command


def test_a_run_over_the_whole_zoo_stays_far_below_the_limit() -> None:
    names = [f"property-number-{i}" for i in range(109)]
    why = "it is a promise of operator, and this is of kind 'layer'"
    results = [
        result(f"subject-{s}", name, "passed" if i < 37 else "not_applicable", message="" if i < 37 else why)
        for s in range(36)
        for i, name in enumerate(names)
    ]
    html = render({"verification": {"results": results}})
    assert len(html.encode()) < MAX_BYTES / 6
    assert Page(html).text().count(why) == 72


def test_an_empty_section_is_not_the_first_that_is_met() -> None:
    results = sample_results()
    del results["verification"]
    page = Page(render(results))
    assert [s["id"] for s in page.all("section")] == [
        *("overview", "benchmarks", "ablations", "gallery"),
        *("verification", "claims"),
    ]
    links = [a["href"] for a in page.all("a") if re.fullmatch("#[a-z]+", a["href"] or "")]
    assert links[1:7] == [f"#{s['id']}" for s in page.all("section")]
