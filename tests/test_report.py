"""The dashboard: its sections, empty states, inertness, size and structure."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import math
import os
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("jinja2", reason="the report extra is not installed")
pytest.importorskip("plotly", reason="the report extra is not installed")

from biases.report import MAX_BYTES, charts, render, write
from biases.report import ablation as ablation_view
from biases.report import text as words

SUBJECTS = ("standard", "ega", "ega-prefix", "ega-token", "alibi", "retention", "swat", "g1-headwise")
PROPERTIES = {
    "shape-dtype-device": "The output has the input's shape, dtype and device.",
    "finite-output": "Finite input gives finite output.",
    "future-independence": "The output at t does not change with any input after t.",
    "prefix-consistency": "The output on a prefix is the prefix of the output.",
    "batch-independence": "An example's output does not depend on the others.",
    "float64-agreement": "The fast path is within the rounding budget of the float64 specification.",
    "permutation-equivariance": "Permuting the tokens permutes the output.",
}
LEAK = ("future-independence", "prefix-consistency")
VOID = ("br", "col", "hr", "img", "input", "link", "meta")


def _verification() -> dict:
    results = []
    for subject in SUBJECTS:
        for name, promise in PROPERTIES.items():
            result = {
                "subject": subject,
                "property": name,
                "promise": promise,
                "status": "passed",
                "examples": 25,
                "counterexample": None,
                "message": "",
                "reproduce": "",
                "seconds": 0.21,
            }
            if name == "permutation-equivariance":
                result |= {"status": "not_applicable", "message": "equivariant_to is ()", "examples": 0}
            elif subject == "ega" and name in LEAK:
                result |= {
                    "status": "xfailed",
                    "counterexample": {"batch": 1, "length": 2, "position": 0, "regime": "normal", "seed": 0},
                    "message": "output[0, 0, 3] changed by 0.0417 when tokens after 0 changed: expected at "
                    "most 2.4e-07\nshape (1, 2, 16), float32; applies because causal=True",
                    "reproduce": "from biases.testing import replay\nfrom biases.zoo import factory\n\n"
                    "replay(factory('ega'), 'future-independence',\n"
                    "       {'batch': 1, 'length': 2, 'position': 0, 'regime': 'normal', 'seed': 0})\n",
                }
            elif subject == "swat" and name == "float64-agreement":
                result |= {
                    "status": "failed",
                    "counterexample": "batch=1, length=3, regime='large', seed=4",
                    "message": "output[0, 2, 5] is 1.0021, expected 1.0 within 3.1e-06",
                    "reproduce": "raise AssertionError('float64-agreement')\n",
                }
            results.append(result)
    return {"results": results, "command": "biases check all --seed 0"}


def _bench() -> dict:
    rows = []
    for index, name in enumerate(("ega-token", "alibi", "retention", "swat", "g1-headwise")):
        for length in (256, 1024):
            ratio, floor = 1.04 + 0.31 * index + length / 9000, 2 * length * 64 * 8 * 4
            seconds = 1.3e-6 * length * ratio
            rows.append(
                {
                    "name": name,
                    "causal": True,
                    "direction": "forward",
                    "length": length,
                    "seconds_median": seconds,
                    "seconds_low": 0.96 * seconds,
                    "seconds_high": 1.07 * seconds,
                    "ratio": ratio,
                    "ratio_low": 0.97 * ratio,
                    "ratio_high": 1.05 * ratio,
                    "peak_bytes": int(floor * ratio),
                    "floor_peak_bytes": floor,
                    "status": "ok",
                    "message": "",
                }
            )
    wrong = dict.fromkeys(rows[0]) | {
        "name": "manhattan",
        "causal": False,
        "direction": "forward",
        "length": 256,
        "status": "failed",
        "message": "output differs from its reference by 0.3, expected at most 1e-5",
    }
    return {
        "config": {"batch": 2, "heads": 8, "head_dim": 64, "dtype": "float32", "rounds": 15, "seed": 0},
        "rows": [*rows, wrong],
        "floor": {"causal": {"seconds_median": 0.0011}, "full": {"seconds_median": 0.0013}},
        "file": "bench.json",
    }


def _ablation() -> dict:
    steps = [0, 50, 100, 150, 200, 250, 300]
    arms, cells = {}, {}
    for i, attention in enumerate(("standard", "ega")):
        for j, position in enumerate(("learned", "mope")):
            floor, leak = 1.9 - 0.31 * i - 0.05 * j - 0.04 * i * j, 0.42 * i
            mean = [floor + 2.3 * math.exp(-step / (70 + 10 * j)) for step in steps]
            full = {str(seed): floor + 0.01 * (seed - 2) for seed in range(6)}
            arms[f"{attention}+{position}"] = {
                "curve": {
                    "steps": steps,
                    "mean": mean,
                    "low": [value - 0.06 for value in mean],
                    "high": [value + 0.06 for value in mean],
                },
                "full": full,
                "truncated": {seed: value + leak for seed, value in full.items()},
                "leak_mean": leak or 1.6e-8,
                "leak_interval": [leak - 0.03, leak + 0.03] if i else [1e-9, 3e-8],
            }
            cells[f"y{i}{j}"] = floor
    common = {"n": 6, "p_sign_flip": 0.03125, "p_smallest": 0.03125, "unit": "nats per character"}
    contrasts = [
        {"name": "ega - standard, learned", "mean": -0.31, "interval": [-0.36, -0.26], "verdict": "better"},
        {"name": "ega - standard, mope", "mean": -0.35, "interval": [-0.43, -0.27], "verdict": "better"},
        {
            "name": "mope - learned, standard",
            "mean": -0.05,
            "interval": [-0.12, 0.02],
            "verdict": "inconclusive",
            "p_sign_flip": 0.4375,
        },
    ]
    return {
        "config": {"steps": 300, "seeds": [0, 1, 2, 3, 4, 5], "data": "pydoc"},
        "factors": {"attention": ["standard", "ega"], "position": ["learned", "mope"]},
        "arms": arms,
        "contrasts": [common | row for row in contrasts],
        "interaction": common
        | {
            "name": "attention x position",
            "mean": -0.04,
            "interval": [-0.11, 0.03],
            "verdict": "inconclusive",
            "p_sign_flip": 0.4375,
            "cells": cells,
        },
        "command": "biases ablate demo.toml",
        "file": "runs/demo",
    }


def _zoo() -> list[dict]:
    return [
        {
            "name": name,
            "family": "gates" if "ega" in name else "decays",
            "summary": f"The {name} layer of its paper, in the form that the equations give",
            "paper": "2405.12345, eq. 7",
            "traits": {
                "domain": "sequence",
                "causal": True,
                "normalisation": "row",
                "window": None,
                "decay": {"kind": "linear", "monotone_in": "past", "placement": "logits"},
                "equivariant_to": [],
                "fast_path": "bias folded into the keys",
            },
            "fast_path": "bias folded into the keys",
        }
        for name in SUBJECTS
    ]


def sample_results() -> dict:
    """Results of the kind and size that the demo has."""
    return {
        "title": "Attention biases: the demo",
        "created": "2026-01-15T10:30:00+00:00",
        "command": "biases demo",
        "machine": {"cpu": "Example CPU @ 2.4 GHz", "cores": 2, "memory_bytes": 8_000_000_000, "cuda": None},
        "versions": {"python": "3.12.4", "torch": "2.9.0", "biases": "0.1.0"},
        "verification": _verification(),
        "bench": _bench(),
        "ablation": _ablation(),
        "zoo": _zoo(),
        "missing": {},
    }


class Page(HTMLParser):
    """A strict reading of a page: every element closed in order, and what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.content.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(d for tag, d in self.content if tag not in ("script", "style")))

    def figures(self) -> dict:
        return json.loads(_script_bodies(self)[0])


def _script_bodies(page: Page) -> list[str]:
    bodies = ["".join(data) for data in _runs(page.content, "script")]
    assert len(bodies) == len(page.all("script"))
    return bodies


def _runs(content: list[tuple[str, str]], tag: str) -> list[list[str]]:
    runs: list[list[str]] = []
    previous = ""
    for name, data in content:
        if name == tag:
            if previous != tag:
                runs.append([])
            runs[-1].append(data)
        previous = name
    return runs


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample_results())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_sections_and_headings_are_in_order(page: Page) -> None:
    assert [s["id"] for s in page.all("section")] == [
        "overview",
        "verification",
        "benchmarks",
        "ablations",
        "zoo",
    ]
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
    assert "ega - standard, learned: −0.310 nats per character [−0.360, −0.260] over 6 seeds, better." in text
    assert "ega+learned (+0.42)" in text
    assert "standard+learned (" not in text


def test_every_figure_names_its_command_and_file(page: Page, html: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.S)
    assert len(captions) == len(page.all("figure")) == 6
    assert all("Made by <code>biases " in caption for caption in captions)
    assert sum("runs/demo" in caption for caption in captions) == 3
    assert sum("bench.json" in caption for caption in captions) == 2


def test_matrix_cells_lead_to_their_evidence(page: Page) -> None:
    cells = [a for a in page.all("a") if (a.get("class") or "").startswith("cell")]
    assert len(cells) == len(SUBJECTS) * len(PROPERTIES)
    leak = next(a for a in cells if a["aria-label"] == "ega, future-independence: known failure")
    bodies = {d["id"]: d for d in page.all("div") if d.get("class") == "result-body"}
    assert leak["href"][1:] in bodies
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
    assert len(page.all("caption")) == len(page.all("table")) == 7
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))


def test_figures_are_valid_plotly_and_say_what_was_measured(page: Page) -> None:
    import plotly.graph_objects as go

    figures = page.figures()
    assert set(figures) == {d["id"] for d in page.all("div") if d.get("class") == "chart"}
    for figure in figures.values():
        go.Figure(json.loads(re.sub(r"var\(--[\w-]+\)( [\d.]+)?", "#123456", json.dumps(figure))))
    ratio, peak, curves, forest, interaction = figures.values()
    assert [trace["name"] for trace in ratio["data"]] == ["length 256", "length 1024"]
    first = sample_results()["bench"]["rows"][0]
    assert ratio["data"][0]["x"][0] == first["ratio"]
    assert ratio["data"][0]["error_x"]["array"][0] == pytest.approx(first["ratio_high"] - first["ratio"])
    assert ratio["data"][0]["error_x"]["arrayminus"][0] == pytest.approx(first["ratio"] - first["ratio_low"])
    assert peak["data"][1]["customdata"][0] == words.size(2 * 1024 * 64 * 8 * 4)
    assert peak["data"][3]["x"] == [2 * 1024 * 64 * 8 * 4] * 5
    assert [t["name"] for t in curves["data"] if "name" in t] == list(_ablation()["arms"])
    assert forest["data"][0]["x"] == [-0.31, -0.35, -0.05, -0.04]
    assert all("n = 6" in name for name in forest["data"][0]["y"])
    assert interaction["data"][1]["name"] == "ega"
    assert interaction["data"][1]["y"] == pytest.approx([1.59, 1.50])


@pytest.mark.parametrize("empty", [{}, {"verification": {}, "bench": {"rows": []}, "ablation": None, "zoo": []}])
def test_empty_sections_name_their_command(empty: dict) -> None:
    html = render({**empty, "missing": {"ablation": "Stopped before the first seed was finished."}})
    page = Page(html)
    text = page.text()
    for command in ("biases check all", "biases bench", "biases ablate SPEC.toml", "biases list"):
        assert f"run {command}" in text
    assert "Stopped before the first seed was finished." in text
    assert "Nothing has been checked or measured yet" in text
    assert page.figures() == {}
    assert not page.all("figure")
    assert len(html.encode()) < 100_000


def test_refused_and_missing_numbers_leave_no_broken_chart() -> None:
    results = sample_results()
    for row in results["bench"]["rows"]:
        row["ratio"] = row["peak_bytes"] = math.nan
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
    row = ablation_view.contrast({"name": "a - b", "mean": 0.1, "interval": None, "n": 2, "verdict": "refused"})
    bars = charts.forest([row], "nats per character")["data"][0]["error_x"]
    assert (bars["array"], bars["arrayminus"]) == ([0.0], [0.0])


ATTACK = '</script></pre><script>alert(1)</script><img src=x onerror=alert(1)><b a="\'">&amp;{{ 7*7 }}'


def _poison(value: object) -> object:
    """Every text of the results followed by an attack, keys of arms and facts too; statuses stay."""
    if isinstance(value, dict):
        return {
            (key + ATTACK if key in ("cpu", "ega+mope", "torch") else key): v if key == "status" else _poison(v)
            for key, v in value.items()
        }
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return value + ATTACK if isinstance(value, str) else value


def test_every_value_is_inert(page: Page) -> None:
    results = sample_results()
    results["missing"] = {"zoo": "gone"}
    results["zoo"] = []
    poisoned = Page(render(_poison(results)))
    assert len(poisoned.all("script")) == len(page.all("script")) == 3
    assert not poisoned.all("img")
    assert not poisoned.all("b")
    assert all(not name.startswith("on") for _, attributes in poisoned.elements for name in attributes)
    assert "&amp;{{ 7*7 }}" in poisoned.text()
    shown = [text for figure in poisoned.figures().values() for text in _texts(figure)]
    assert any("&lt;img" in text for text in shown)
    assert not any(re.search(r"<(?!br>|extra>|/extra>)", text) for text in shown)


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_only_the_pages_own_scripts_may_run_and_nothing_is_fetched(html: str, page: Page) -> None:
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    data, *scripts = _script_bodies(page)
    json.loads(data)
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    assert hashes == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    for tag, attributes in page.elements:
        assert "src" not in attributes
        href = attributes.get("href") or "#"
        arxiv = tag == "a" and href.startswith("https://arxiv.org/abs/")
        assert href.startswith("#") or href == "data:," or arxiv
    styles = "".join(d for tag, d in page.content if tag == "style") + " ".join(
        attributes.get("style") or "" for _, attributes in page.elements
    )
    assert "url(" not in styles
    assert "@import" not in styles


def test_size_stays_under_the_limit_when_everything_fails(monkeypatch) -> None:
    results = sample_results()
    row = results["verification"]["results"][0] | {"status": "failed", "message": "x" * 9_000}
    results["verification"]["results"] = [row | {"subject": f"subject-{i}"} for i in range(400)]
    html = render(results)
    assert len(html.encode()) < MAX_BYTES
    assert "… cut, 8000 characters left out of this page" in html
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
        ({"verification": []}, "results 'verification': expected a mapping, got list"),
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


@pytest.mark.parametrize(
    "cells",
    [
        {"y00": 2.0, "y10": 1.0, "y01": 1.5, "y11": 0.5},
        {"standard+learned": 2.0, "ega+learned": 1.0, "standard+mope": 1.5, "ega+mope": 0.5},
        {"standard": {"learned": 2.0, "mope": {"mean": 1.5}}, "ega": {"learned": 1.0, "mope": {"mean": 0.5}}},
    ],
)
def test_interaction_cells_are_placed_whatever_their_form(cells: dict) -> None:
    placed = ablation_view.grid(cells, {"attention": ["standard", "ega"], "position": ["learned", "mope"]})
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
    drawn = list(Page(render(results)).figures().values())[-1]["data"]
    assert drawn[0]["y"] == pytest.approx([sum(y00) / 6, sum(y01) / 6])
    assert drawn[1]["y"] == pytest.approx([sum(y10) / 6, sum(y11) / 6])


def test_cells_that_cannot_be_placed_are_not_drawn() -> None:
    factors = {"attention": ["standard", "ega"], "position": ["learned", "mope"]}
    assert ablation_view.grid({"elsewhere": 1.0}, factors) == {}
    assert ablation_view.grid({"ega": 1.0}, {"attention": ["standard", "ega"]}) == {}


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
