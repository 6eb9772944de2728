"""The demo, small: all its parts, what an interruption leaves, and what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from biases import attend
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


def cells_of(demo: Demo) -> Path:
    (folder,) = (demo.page.parent / "ablation").glob("*/cells")
    return folder


def test_every_part_is_there_and_well(demo: Demo) -> None:
    assert demo.failures == []
    assert not demo.interrupted
    assert demo.results["missing"] == {}
    assert {row["status"] for row in demo.results["bench"]["rows"]} == {"ok"}
    assert len(demo.results["ablation"]["arms"]) == 4
    assert demo.results["ablation"]["interaction"]["n"] == 2
    assert json.loads((demo.page.parent / "results.json").read_text())["bench"] == demo.results["bench"]


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_a_wrong_fast_path_gets_no_time(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong in the output of one query, or in the gradient by the gate."""

    def planted(q: Tensor, k: Tensor, v: Tensor, *, backend: str, **options: Any) -> Tensor:
        out = attend(q, k, v, backend=backend, **options)
        if backend != "auto":
            return out
        if direction == "forward":
            return torch.cat([out[:, :, :31], out[:, :, 31:32] * 1.001, out[:, :, 32:]], 2)
        if "key_gate" in options:
            options["key_gate"].log.register_hook(lambda grad: grad * 1.001)
        return out

    monkeypatch.setitem(benchmark.SHAPE, "length", 64)
    monkeypatch.setattr(benchmark, "DIRECTIONS", (direction,))
    monkeypatch.setattr(benchmark, "attend", planted)
    (section,) = benchmark.benchmark(rounds=1, progress=lambda *news: None)
    gated = {"ega", "gate, not renormalised"}
    wrong = gated if direction != "forward" else gated | {"alibi", "alibi-symmetric", "retention"}
    assert {row["name"]: row["status"] for row in section["rows"]} == {
        label: "failed" if label in wrong else "ok"
        for name in benchmark.cases(4, 64)
        for label in (name, f"{name}, plain")
    }
    assert {row["name"] for row in section["rows"] if row["seconds_median"] is None} == wrong
    assert set(section["floor"]) == {f"floor, {direction}", f"floor-causal, {direction}"}


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
    before = {path: path.stat().st_mtime_ns for path in cells_of(demo).iterdir()}
    assert len(before) == 8
    monkeypatch.setitem(benchmark.SHAPE, "length", 64)
    run_demo(text, demo.page.parent, **{**SMALL, "layers": ["standard"]})
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


def test_cells_of_another_grid_do_not_count(demo: Demo, text: str) -> None:
    """A folder may hold cells of several sizes; only those of the grid at hand are summarised."""
    other = study.summarise(study.grid(text, range(2), steps=5), cells_of(demo).parent)
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
    assert demo.page == tmp_path / "partial.html"
    assert demo.page.is_file()
    assert not (tmp_path / "report.html").exists()


def test_a_part_that_fails_costs_only_itself(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is written, the failure is in it and in ``failures``."""

    def broken(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        yield {"results": [], "rows": []}
        raise RuntimeError("a worker died")

    def finished(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        yield {"results": [], "rows": []}

    monkeypatch.setattr("biases.demo.verification.verify", finished)
    monkeypatch.setattr("biases.demo.benchmark.benchmark", finished)
    monkeypatch.setattr("biases.demo.study.study", broken)
    demo = run_demo(text, tmp_path, **SMALL)
    assert demo.failures == ["ablation: RuntimeError: a worker died"]
    assert "a worker died" in (tmp_path / "report.html").read_text()


def test_failed_trainings_are_failures_and_are_tried_again(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that raises: its cells are named; with the fault gone, the next run trains them and only them."""
    from biases.gates import EnergyGate

    def broken(*args: Any) -> None:
        raise RuntimeError("a broken gate")

    planned = study.grid(text, range(2), steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(EnergyGate, "forward", broken)
        (section,) = study.study(text, tmp_path, seeds=range(2), steps=4, workers=1)
    assert {(cell["arm"], cell["status"]) for cell in section["failed"]} == {
        ("ega+learned", "failed"),
        ("ega+mope", "failed"),
    }
    assert len(Demo({"ablation": section}, tmp_path).failures) == 4
    trained: list[str] = []

    def news(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            trained.append(event["arm"])

    (section,) = study.study(text, tmp_path, seeds=range(2), steps=4, workers=1, progress=news)
    assert section["failed"] == []
    assert set(trained) == {"ega+learned", "ega+mope"}
    assert len(section["arms"]) == len(planned.arms)


def test_the_report_shows_each_arm_in_its_own_cell(demo: Demo) -> None:
    """The cells of the interaction are the means of the arms they are named after."""
    from biases.report.ablation import view

    arms = demo.results["ablation"]["arms"]
    shown = view(demo.results["ablation"])["interactions"][0]["cells"]
    assert len(shown) == 4
    for attention, position, mean, _ in shown:
        losses = arms[f"{attention}+{position}"]["full"].values()
        assert float(mean) == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    assert len({mean for _, _, mean, _ in shown}) > 1


def test_cells_belong_to_a_text_and_to_the_code(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another text of the same name, or a changed gate, gets a folder of its own."""
    other = tmp_path / "text.txt"
    other.write_text("Whether 'tis nobler in the mind to suffer. " * 400)
    key = study.key(text, range(2), 4)
    assert study.key(str(other), range(2), 4) != key
    monkeypatch.setattr("biases.ablation._provenance.code_fingerprint", lambda: "0" * 12)
    assert study.key(text, range(2), 4) != key


def test_an_unusable_text_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        run_demo(str(tmp_path / "absent.txt"), tmp_path / "out", **SMALL)
    short = tmp_path / "short.txt"
    short.write_text("To be, or not to be. " * 8)
    with pytest.raises(ValueError, match="expected splits of at least"):
        run_demo(str(short), tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="expected one that exists or can be made"):
        run_demo("pydoc", short, **SMALL)


def test_what_goes_wrong_is_a_failure() -> None:
    row = {"name": "ega", "status": "failed", "message": "off by 1"}
    result = {"subject": "ega", "property": "finite-output", "status": "xpassed"}
    demo = Demo({"verification": {"results": [result]}, "bench": {"rows": [row]}}, Path("page.html"))
    assert demo.failures == ["ega: finite-output xpassed", "bench of ega: off by 1"]
