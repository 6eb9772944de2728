"""The page of the dashboard as a file: its texts are inert, its scripts its own, its size bounded."""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import json
import os
import re
from importlib import resources

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
    with pytest.raises(ValueError, match="report path: expected a file that can be written"):
        write({}, tmp_path)


def test_results_are_not_changed() -> None:
    results = sample_results()
    before = copy.deepcopy(results)
    render(results)
    assert results == before


def _palettes() -> list[dict[str, str]]:
    """The colours of the light theme, and those of the dark one, by how it is chosen."""
    style = resources.files("biases.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root[^{]*{([^}]*)}", style)
    ]
    light, *dark = blocks
    assert len(dark) == 2
    return [light, *({**light, **block} for block in dark)]


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", range(3))
def test_colours_of_charts_stand_out_from_their_ground(theme: int) -> None:
    palette = _palettes()[theme]
    names = [name for name in palette if re.match("series|passed|failed|error|xfailed|xpassed|not_applicable", name)]
    assert len(names) == 13
    grounds = [_luminance(palette[name]) for name in ("surface", "bg")]
    for name in names:
        for ground in grounds:
            low, high = sorted((_luminance(palette[name]), ground))
            # WCAG 2.1, 1.4.11: graphics.
            assert (high + 0.05) / (low + 0.05) >= 3.0, name


def test_both_ways_to_the_dark_theme_have_one_palette() -> None:
    _, by_device, by_choice = _palettes()
    assert by_device == by_choice


def test_the_page_says_of_no_number_that_it_is_in_a_table_where_it_is_not(full: Page) -> None:
    assert "Every number that was measured" not in full.text()
    told = [d["aria-label"] or "" for d in full.all("div") if d.get("class") == "chart"]
    history = next(label for label in told if label.startswith("operators: time of call"))
    assert history.endswith("The first and the last values are in the table of this section.")
    tables = {d["aria-label"] for d in full.all("div") if d.get("role") == "region"}
    assert {"Table of learning curves", "Table of verdicts by paper", "Table of the history"} <= tables
