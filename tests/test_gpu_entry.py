"""``python -m benchmarks.gpu``: resuming, stopping, refusing, and what it says; on the CPU with tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_pieces
from benchmarks.gpu_subjects import OWN, SUBJECTS
from biases import zoo
from biases.backends import choice
from biases.bench import operators

ROOT = Path(__file__).parent.parent
TRIAL = ["--device", "cpu", "--tiny"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No results but those of the test."""
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "committed")


def cells(out: Path, piece: str) -> dict[str, Any]:
    return json.loads((out / f"gpu_tiny_{piece}.json").read_text())["cells"]


def only(monkeypatch: pytest.MonkeyPatch, **pieces: Any) -> list[str]:
    """Replace the pieces by lists of (name, outcome or exception); returns the names of the cells as they are run."""
    ran: list[str] = []

    def generate(listed: list[tuple[str, Any]]) -> Any:
        def run(name: str, outcome: Any) -> Any:
            ran.append(name)
            if isinstance(outcome, BaseException):
                raise outcome
            return dict(outcome)

        return lambda plan: ((name, partial(run, name, outcome)) for name, outcome in listed)

    monkeypatch.setattr(gpu, "PIECES", {name: generate(listed) for name, listed in pieces.items()})
    return ran


OKAY = {"status": "ok"}


def test_without_a_cuda_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == gpu.NOTHING
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_the_cpu_is_taken_for_a_trial_only(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--device", "cpu"])
    assert stopped.value.code == 2
    assert "expected --tiny" in capsys.readouterr().err


def test_a_rerun_skips_what_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = {"status": "error", "message": "too hot"}
    ran = only(monkeypatch, correctness=[("one", OKAY), ("two", broken)])
    arguments = [*TRIAL, "--out", str(tmp_path)]
    assert gpu.main(arguments) == gpu.FAILED
    assert gpu.main(arguments) == gpu.FAILED
    # What failed for a reason of the moment is tried again, what was measured is not.
    assert ran == ["one", "two", "two"]
    stored = json.loads((tmp_path / "gpu_tiny_correctness.json").read_text())
    assert stored["evidence"] is False
    assert stored["made_by"]["tiny"] is True
    assert {"machine", "versions", "revision", "configuration"} <= set(stored)
    assert stored["cells"]["one"]["cell_seconds"] >= 0


@pytest.mark.parametrize("changed", ["source", "device", "torch"])
def test_other_source_or_another_device_is_measured_afresh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    ran = only(monkeypatch, correctness=[("one", OKAY)])
    arguments = [*TRIAL, "--out", str(tmp_path)]
    assert gpu.main(arguments) == gpu.OK
    path = tmp_path / "gpu_tiny_correctness.json"
    stored = json.loads(path.read_text())
    stored["made_by"][changed] = "another"
    path.write_text(json.dumps(stored))
    assert gpu.main(arguments) == gpu.OK
    assert ran == ["one", "one"]


def test_committed_results_are_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a borrowed machine the folder for what comes back is empty at each command."""
    only(monkeypatch, correctness=[("one", OKAY), ("two", OKAY)])
    assert gpu.main([*TRIAL, "--out", str(gpu.RESULTS)]) == gpu.OK
    out = tmp_path / "out"
    ran = only(monkeypatch, correctness=[("one", OKAY), ("two", OKAY), ("three", OKAY)])
    assert gpu.main([*TRIAL, "--out", str(out)]) == gpu.OK
    assert ran == ["three"]
    assert set(cells(out, "correctness")) == {"one", "two", "three"}


def test_an_interruption_loses_only_what_was_in_flight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    only(monkeypatch, correctness=[("one", OKAY), ("two", KeyboardInterrupt()), ("three", OKAY)])
    assert gpu.main([*TRIAL, "--out", str(tmp_path)]) == gpu.INTERRUPTED
    assert list(cells(tmp_path, "correctness")) == ["one"]
    assert "what had finished is kept" in capsys.readouterr().err


def test_a_killed_run_keeps_what_had_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", *TRIAL, "--out", str(tmp_path), "--only", "correctness"]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        first = run.stdout.readline()
        run.kill()
    name = first.split()[1]
    assert name in cells(tmp_path, "correctness")


def test_the_time_given_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    ran = only(monkeypatch, correctness=[("one", OKAY), ("two", OKAY)])
    assert gpu.main([*TRIAL, "--out", str(tmp_path), "--budget", "0"]) == gpu.NOTHING
    assert ran == []
    assert "2 cells are left" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["wrong", "error"])
def test_a_failure_inside_a_cell_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, status: str
) -> None:
    inside = {"status": "ok", "backends": {"fused": OKAY, "flex": {"status": status, "message": "off by 3"}}}
    only(monkeypatch, latency=[("alibi", inside)])
    assert gpu.main([*TRIAL, "--out", str(tmp_path)]) == gpu.FAILED
    assert f"flex {status}" in capsys.readouterr().err


def test_only_runs_the_pieces_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = only(monkeypatch, correctness=[("one", OKAY)], ablation=[("two", OKAY)])
    assert gpu.main([*TRIAL, "--out", str(tmp_path), "--only", "ablation"]) == gpu.OK
    assert ran == ["two"]


# The pieces


def plan(seconds: float = 60.0) -> gpu_pieces.Plan:
    return gpu_pieces.Plan("cpu", True, seconds)


def test_subjects_are_of_the_zoo_or_own() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert len(set(names)) == len(names)
    assert set(OWN) <= set(names) <= {*OWN, *zoo.names("layer")}


def test_subjects_cover_what_cuda_has_more_than_one_backend_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for subject in SUBJECTS:
        sizes = plan().shape(subject, 144)
        found.add(subject.family(gpu_pieces.Setting(**sizes, direction="forward+backward")))
    wanted = {family for (device, family), row in choice.ORDER.items() if device == "cuda" and row.order}
    assert wanted <= found


def few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(gpu_pieces, "SUBJECTS", [each for each in SUBJECTS if each.name in names])


def test_correctness_finds_a_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "alibi")
    by_name = dict(gpu_pieces.correctness(plan()))
    assert by_name["alibi/float32/fused"]()["status"] == "ok"
    true = operators._specified
    monkeypatch.setattr(operators, "_specified", lambda *arguments: tuple(x + 1 for x in true(*arguments)))
    outcome = dict(gpu_pieces.correctness(plan()))["alibi/float32/fused"]()
    assert outcome["status"] == "wrong"
    assert "expected an error of at most" in outcome["message"]


def test_latency_measures_beside_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "alibi")
    monkeypatch.setattr(gpu_pieces, "HOPELESS", float("inf"))
    name, cell = next(iter(gpu_pieces.latency(plan())))
    outcome = cell()
    assert (name, outcome["status"], outcome["family"]) == ("alibi/64/bfloat16/forward", "ok", "small")
    fused = outcome["backends"]["fused"]
    assert fused["status"] == "ok"
    assert fused["ratio"]["rounds"] == 3
    assert fused["peak_bytes"] == pytest.approx(fused["memory_ratio"] * outcome["floor"]["peak_bytes"])
    assert outcome["backends"]["flex"]["status"] == "refused"
    assert outcome["bars"] == {"ratio": 1.10, "memory_ratio": 1.05}
    assert "bar 1.10" in gpu.line(outcome)


def test_what_is_hopeless_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "standard")
    monkeypatch.setattr(gpu_pieces, "HOPELESS", 0.0)
    _, cell = next(iter(gpu_pieces.latency(plan())))
    fused = cell()["backends"]["fused"]
    assert fused["status"] == "slow"
    assert "ratio" not in fused
    assert fused["seconds"] > 0


def test_only_special_backends_may_refuse() -> None:
    def refuse() -> Any:
        raise ValueError("no")

    assert gpu_pieces.guarded(refuse, "flex") == {"status": "refused", "message": "no"}
    assert gpu_pieces.guarded(refuse, "fused")["status"] == "error"
    assert gpu_pieces.guarded(refuse)["status"] == "error"


def test_tests_are_run_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "properties").mkdir()
    marked = "import pytest\n@pytest.mark.{}\ndef test_it():\n    assert {}\n"
    for name, body in (("good", "True"), ("bad", "1 == 2"), ("plain", "True")):
        text = marked.format("gpu", body) if name != "plain" else "def test_it(): pass\n"
        (tmp_path / "tests" / f"test_{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    monkeypatch.setattr(gpu_pieces, "ROOT", tmp_path)
    outcomes = {name: cell() for name, cell in gpu_pieces.tests(plan())}
    assert set(outcomes) == {"tests/test_good.py", "tests/test_bad.py"}
    assert outcomes["tests/test_good.py"]["status"] == "ok"
    assert outcomes["tests/test_good.py"]["tests"] == 1
    assert outcomes["tests/test_bad.py"]["status"] == "wrong"
    assert "1 == 2" in outcomes["tests/test_bad.py"]["message"]


def test_missing_pytest_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pieces.importlib.util, "find_spec", lambda name: None)
    assert gpu_pieces._pytest(ROOT / "tests" / "test_gpu_entry.py", plan()) == {
        "status": "skipped",
        "message": "pytest is not installed",
    }
    _, packages = next(iter(gpu_pieces.environment(plan())))
    assert packages()["missing"] == list(gpu_pieces.OPTIONAL)


def test_a_cell_of_the_ablation_is_a_training() -> None:
    (name, cell), *_ = gpu_pieces.ablation(plan())
    outcome = cell()
    assert (name, outcome["status"]) == ("standard/seed0", "ok")
    assert outcome["metrics"]["full"] > 0
    assert len(outcome["data"]["sha256"]) == 64


# The choice


def measured(length: int, **ratios: float) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"status": "ok", "ratio": {"value": value}} for name, value in ratios.items()}
    found["triton"] = {"status": "wrong"}
    setting = {"length": length, "dtype": "bfloat16", "direction": "forward"}
    return {"status": "ok", "family": "map", "setting": setting, "backends": found}


def test_the_fastest_at_the_greatest_length_is_chosen() -> None:
    rows = gpu.fastest(
        {
            "short": measured(4096, fused=1.0, flex=2.0),
            "long": measured(16384, fused=1.3, flex=1.1),
            "layer": {**measured(99999, fused=1.0), "family": None},
            "broken": {"status": "error"},
        }
    )
    assert rows == {
        "map/bfloat16/forward": {
            "status": "ok",
            "backend": "flex",
            "length": 16384,
            "ratios": {"fused": 1.3, "flex": 1.1},
            "cell": "long",
        }
    }


def test_the_table_printed_is_that_of_the_code(tmp_path: Path, capsys: Any) -> None:
    rows = gpu.fastest({"long": measured(16384, fused=1.3, flex=1.1)})
    path = tmp_path / "gpu_choice.json"
    path.write_text(json.dumps({"evidence": True, "cells": rows}))
    assert gpu.main(["--print-table", "--out", str(tmp_path)]) == gpu.OK
    printed = capsys.readouterr().out
    names: dict[str, Any] = {}
    exec(printed, names)
    assert names["MEASURED"] == {("map", "bfloat16", "forward"): "flex"}
    path.write_text(json.dumps({"evidence": False, "cells": rows}))
    assert gpu.main(["--print-table", "--out", str(tmp_path)]) == gpu.NOTHING
    assert "a trial run" in capsys.readouterr().err


def test_the_target_runs_where_nothing_can_be_installed(tmp_path: Path) -> None:
    """``make gpu`` without a virtual environment takes a Python that has torch as it is."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "ran $*"\n')
    python.chmod(0o755)
    command = ["make", "gpu", f"PYTHON={python}", f"VENV={tmp_path / 'none'}", "GPU=--only tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["ran -m benchmarks.gpu --only tests"]


def test_the_source_is_told_by_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = gpu.fingerprint()
    assert before == gpu.fingerprint()
    (tmp_path / "biases").mkdir()
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    empty = gpu.fingerprint()
    (tmp_path / "biases" / "kernel.cpp").write_text("int x;")
    assert len({before, empty, gpu.fingerprint()}) == 3


def test_half_a_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "gpu_tiny_latency.json"
    for content in ("", "{", "[]", '{"cells": 3}'):
        path.write_text(content)
        assert gpu.read(path) is None
    assert gpu.read(tmp_path / "none.json") is None
