"""The ledger in the dashboard: what the papers state is told from what is ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from report_pages import Page

from biases.claims.ledger import APART
from biases.report import claims, render

LEDGER = Path(__file__).parent.parent / "benchmarks" / "results" / "claims.json"


@pytest.fixture(scope="module")
def ledger() -> dict[str, Any]:
    return json.loads(LEDGER.read_text())


@pytest.fixture(scope="module")
def page(ledger: dict[str, Any]) -> Page:
    return Page(render({"claims": ledger}))


def test_only_statements_of_the_papers_are_charged_to_them(ledger: dict[str, Any], page: Page) -> None:
    stated = [entry for entry in ledger["claims"] if entry["kind"] not in APART]
    assert 0 < len(stated) < len(ledger["claims"])
    shown = claims.view(ledger, 1000)
    assert sum(sum(trace["x"]) for trace in shown["figure"]["data"]) == len(stated)
    assert {paper: sum(found.values()) for paper, found in shown["counts"].items()} == {
        title: sum(entry["title"] == title for entry in stated) for title in {entry["title"] for entry in stated}
    }
    counts = {words: sum(entry["kind"] == kind for entry in ledger["claims"]) for kind, words in APART.items()}
    assert ", ".join(f"{words} ({count})" for words, count in counts.items()) in shown["about"]
    assert "Verdicts by paper as a table" in page.text()


def test_entries_of_ours_are_marked_and_can_be_chosen(ledger: dict[str, Any], page: Page) -> None:
    entries = [d for d in page.all("details") if "claim" in (d.get("class") or "").split()]
    assert [d["data-kind"] for d in entries] == [APART.get(entry["kind"], "stated") for entry in ledger["claims"]]
    chips = [text for tag, text in page.content if text.endswith(" of ours") and tag == "span"]
    assert len(chips) == sum(entry["kind"] in APART for entry in ledger["claims"])
    assert {"stated", *APART.values()} <= {option["value"] for option in page.all("option")}
    assert "kind" in {select["data-filter"] for select in page.all("select")}


def test_papers_that_nobody_knows_stay_apart() -> None:
    entry = {"statement": "s", "status": "holds", "evidence": {"text": "as `f` says"}}
    named = [
        {**entry, "id": "a", "paper": "9999.99999"},
        {**entry, "id": "b", "paper": "8888.88888"},
        {**entry, "id": "c"},
        {**entry, "id": "d", "paper": "7777.77777", "title": "Same"},
        {**entry, "id": "e", "paper": "6666.66666", "title": "Same"},
    ]
    shown = claims.view({"claims": named}, 1000)
    titles = ["9999.99999", "8888.88888", "no paper named", "Same (7777.77777)", "Same (6666.66666)"]
    assert [title for _, title in shown["papers"]] == list(shown["counts"]) == titles
    assert all(trace["x"] == [1] * 5 for trace in shown["figure"]["data"])
    page = Page(render({"claims": {"claims": named}}))
    options = ["".join(text) for tag, text in page.content if tag == "option"]
    assert options[-5:] == titles
    assert "9999.99999, arXiv" not in page.text()


def test_a_ledger_of_questions_alone_has_no_verdict_on_a_paper() -> None:
    entry = {"id": "a", "statement": "Is it?", "status": "fails", "kind": "control", "paper": "2309.11523"}
    page = Page(render({"claims": {"claims": [entry]}}))
    assert page.figures() == {}
    assert "question of ours" in page.text()


def test_code_in_the_evidence_is_set_as_code() -> None:
    entry = {"id": "a", "statement": "s", "status": "holds"}
    told = [{**entry, "evidence": {"text": text}} for text in ("as `f(x)` says", "one ` alone")]
    page = Page(render({"claims": {"claims": told}}))
    assert ("code", "f(x)") in page.content
    assert "one ` alone" in page.text()
