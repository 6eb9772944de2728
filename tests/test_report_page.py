"""The page of the dashboard as a file: its texts are inert, its scripts its own, its size bounded."""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import json
import os
import re

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from report_pages import ATTACK, Page, full_results, sample_results, script_bodies

from biases.report import MAX_BYTES, render, write


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(full_results()))


# What a reader of the files compares, and what is drawn as an image or looked up.
KEPT = ("status", "encoding", "paper")


def _poison(value: object) -> object:
    """Every text of the results followed by an attack, keys of arms, heads and facts too; statuses stay."""
    if isinstance(value, dict):
        return {
            (key + ATTACK if key in ("cpu", "ega+mope", "torch", "head 1", "shifted") else key): (
                v if key in KEPT else _poison(v)
            )
            for key, v in value.items()
        }
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return value + ATTACK if isinstance(value, str) else value


def test_every_value_is_inert(full: Page) -> None:
    results = full_results()
    results["missing"] = {"zoo": "gone"}
    poisoned = Page(render(_poison(results)))
    assert len(poisoned.all("script")) == len(full.all("script")) == 4
    assert len(poisoned.all("img")) == len(full.all("img"))
    assert all(image["src"].startswith("data:image/png;base64,") for image in poisoned.all("img"))
    assert not poisoned.all("b")
    assert all(not name.startswith("on") for _, attributes in poisoned.elements for name in attributes)
    assert "&amp;{{ 7*7 }}" in poisoned.text()
    shown = [text for figure in poisoned.figures().values() for text in _texts(figure)]
    assert any("&lt;img" in text for text in shown)
    assert not any(re.search(r"<(?!br>|extra>|/extra>|sup>|/sup>)", text) for text in shown)


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_only_the_pages_own_scripts_may_run_and_nothing_is_fetched(full: Page) -> None:
    policy = next(m["content"] for m in full.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    data, packed, *scripts = script_bodies(full)
    json.loads(data)
    scripts.append(gzip.decompress(base64.b64decode(packed)).decode())
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    assert hashes == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    for tag, attributes in full.elements:
        assert (attributes.get("src") or "data:").startswith("data:")
        href = attributes.get("href") or "#"
        arxiv = tag == "a" and href.startswith("https://arxiv.org/abs/")
        assert href.startswith("#") or href == "data:," or arxiv
    styles = "".join(d for tag, d in full.content if tag == "style") + " ".join(
        attributes.get("style") or "" for _, attributes in full.elements
    )
    assert "url(" not in styles
    assert "@import" not in styles


def test_size_stays_under_the_limit_when_everything_fails(monkeypatch) -> None:
    results = sample_results()
    row = results["verification"]["results"][0] | {"status": "failed", "message": "x" * 9_000}
    results["verification"]["results"] = [row | {"subject": f"subject-{i}"} for i in range(600)]
    html = render(results)
    assert len(html.encode()) < MAX_BYTES
    assert "… cut, 5000 characters left out of this page" in html
    monkeypatch.setattr("biases.report.page.MAX_BYTES", 20_000)
    with pytest.raises(ValueError, match=r"size of the page: expected under 20000 bytes, got \d+: report fewer"):
        render({"verification": {"results": results["verification"]["results"]}})


def test_lone_surrogates_can_be_written(tmp_path) -> None:
    results = {"verification": {"results": [{"subject": "a", "property": "p", "status": "failed"}]}}
    results["verification"]["results"][0]["message"] = "broken \ud800 text"
    assert "broken ? text" in write(results, tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verification": 3}, "results 'verification': expected a mapping, got int"),
        ({"verification": {"results": {"a": 1}}}, "results 'results': expected a list of mappings, got dict"),
        ({"verification": {"results": [{"status": "fine"}]}}, "status of a result: expected one of 'failed'"),
        (
            {"bench": {"rows": [{"name": "a", "ratio": "1.2"}]}},
            "ratio of a benchmark: expected a number or None",
        ),
        (
            {"ablation": {"arms": {"a": {"curve": {"steps": [1, 2], "mean": [1.0]}}}}},
            "expected 2 numbers, got 1",
        ),
        ({"ablation": {"contrasts": [{"name": "c", "interval": [1.0]}]}}, "expected 2 numbers, got 1"),
        ({"claims": ["ega"]}, "an entry of 'claims': expected a mapping, got str"),
        ({"history": {"commits": [{}], "series": [{"values": [1.0, 2.0]}]}}, "expected 1 numbers, got 2"),
        ({"gallery": [{"name": "a", "encoding": 3}]}, "encoding: expected rows of numbers, got int"),
        ({"zoo": ["ega"]}, "an entry of 'zoo': expected a mapping, got str"),
    ],
)
def test_bad_results_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render(sample_results() | change)
    with pytest.raises(ValueError, match="results: expected a mapping, got list"):
        render([])  # type: ignore[arg-type]


def test_write_is_atomic(tmp_path, monkeypatch) -> None:
    target = tmp_path / "report.html"
    assert write({"title": "first"}, target) == target
    before = target.read_text(encoding="utf-8")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write({"title": "second"}, target)
    assert target.read_text(encoding="utf-8") == before
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(ValueError, match="an existing folder"):
        write({}, tmp_path / "absent" / "report.html")
    with pytest.raises(ValueError, match="a file name"):
        write({}, tmp_path)


def test_results_are_not_changed() -> None:
    results = sample_results()
    before = copy.deepcopy(results)
    render(results)
    assert results == before
