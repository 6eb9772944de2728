"""The demo, small: all its parts, what an interruption leaves, and what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from biases.demo import benchmark, run_demo, study
from biases.demo.run import Demo
from biases.demo.summary import show

SMALL: dict[str, Any] = {"layers": ["standard", "ega"], "seeds": range(2), "steps": 4, "rounds": 3, "workers": 1}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 400)
    return str(path)


@pytest.fixture(scope="module")
def demo(text: str, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(benchmark.SHAPE, "length", 64)
        return run_demo(text, tmp_path_factory.mktemp("demo"), **SMALL)


def printed(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> str:
    out = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **options: Console(file=out, width=200, **options))
    show(demo)
    return out.getvalue()


def test_every_part_is_there_and_well(demo: Demo) -> None:
    assert demo.failures == []
    assert not demo.interrupted
    assert demo.results["missing"] == {}
    assert {row["status"] for row in demo.results["bench"]["rows"]} == {"ok"}
    assert len(demo.results["ablation"]["arms"]) == 4
    assert demo.results["ablation"]["interaction"]["n"] == 2
    assert json.loads((demo.page.parent / "results.json").read_text())["bench"] == demo.results["bench"]


def test_the_leak_is_shown_with_its_counterexample(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.leak is not None
    assert demo.leak["status"] == "xfailed"
    assert demo.leak["counterexample"]["length"] <= 3
    out = printed(demo, monkeypatch)
    assert "future-independence" in out
    for line in demo.leak["reproduce"].splitlines():
        assert line in out


def test_the_script_of_the_leak_fails_alone(demo: Demo) -> None:
    assert demo.leak is not None
    with pytest.raises(AssertionError, match="future-independence"):
        exec(demo.leak["reproduce"], {})


def test_the_page_has_all_sections(demo: Demo) -> None:
    page = demo.page.read_text()
    for wanted in ("future-independence", "alibi-symmetric", "ega+mope", "2605.21842"):
        assert wanted in page


def test_a_second_run_repeats_no_cell(demo: Demo, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (demo.page.parent / "ablation" / "cells").iterdir()}
    assert len(before) == 8
    monkeypatch.setitem(benchmark.SHAPE, "length", 64)
    run_demo(text, demo.page.parent, **{**SMALL, "layers": ["standard"]})
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


def test_cells_of_another_grid_do_not_count(demo: Demo, text: str) -> None:
    """A folder may hold cells of several sizes; only those of the grid at hand are summarised."""
    other = study.summarise(study.grid(text, range(2), steps=5), demo.page.parent / "ablation")
    assert other["arms"] == {}


@pytest.mark.parametrize("part", ["verification.verify", "benchmark.benchmark", "study.study"])
def test_interruption_keeps_what_is_finished(
    part: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C inside a part: what it had found is kept, the parts after it are named as missing, the page is written."""

    def finished(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        yield {"results": [], "rows": []}

    def stopped(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        yield {"results": [], "rows": [], "config": {"kept": True}}
        raise KeyboardInterrupt

    for name in ("verification.verify", "benchmark.benchmark", "study.study"):
        monkeypatch.setattr(f"biases.demo.{name}", stopped if name == part else finished)
    demo = run_demo(text, tmp_path, **SMALL)
    assert demo.interrupted
    order = ["verification", "bench", "ablation"]
    at = ["verification.verify", "benchmark.benchmark", "study.study"].index(part)
    assert list(demo.results["missing"]) == order[at:]
    assert demo.results[order[at]]["config"] == {"kept": True}
    assert demo.page.is_file()


def test_an_unusable_text_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        run_demo(str(tmp_path / "absent.txt"), tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_what_goes_wrong_is_a_failure() -> None:
    row = {"name": "ega", "status": "failed", "message": "off by 1"}
    result = {"subject": "ega", "property": "finite-output", "status": "xpassed"}
    demo = Demo({"verification": {"results": [result]}, "bench": {"rows": [row]}}, Path("page.html"))
    assert demo.failures == ["ega: finite-output xpassed", "bench of ega: off by 1"]
