"""``python -m benchmarks.gpu``: resuming, stopping, refusing, what it says and chooses; on the CPU with tiny shapes."""

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


def measured(length: int, subject: str = "manhattan", **ratios: float | tuple[float, float]) -> dict[str, Any]:
    """A cell of ratios to the floor, or of such ratios and those of memory."""
    found: dict[str, Any] = {}
    for name, each in ratios.items():
        ratio, memory = each if isinstance(each, tuple) else (each, 1.0)
        found[name] = {"status": "ok", "ratio": {"value": ratio}, "memory_ratio": memory}
    setting = {"length": length, "dtype": "bfloat16", "direction": "forward"}
    return {
        "status": "ok",
        "subject": subject,
        "family": "map",
        "setting": setting,
        "backends": {"triton": {"status": "wrong"}} | found,
    }


def fastest(*cells: dict[str, Any]) -> dict[str, Any]:
    """The one row of a family."""
    (row,) = gpu.fastest({str(n): cell for n, cell in enumerate(cells)}).values()
    return row


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
            "ratios": {"fused": 1.3, "flex": 1.1},
            "cells": ["long"],
        }
    }


def test_all_subjects_of_a_family_decide() -> None:
    """A backend that is wrong for one of them, refuses it, or was left out of its rounds is not chosen for any."""
    one, other = measured(4096, fused=1.5, flex=1.1), measured(4096, "documents", fused=1.3, flex=1.2)
    assert fastest(one, other)["backend"] == "flex"
    for status in ("wrong", "refused", "slow", "error"):
        other["backends"]["flex"] = {"status": status}
        row = fastest(one, other)
        assert (row["backend"], row["ratios"]) == ("fused", {"fused": 1.5})
        assert fastest(other, one) == {**row, "cells": ["0", "1"]}


def test_the_worst_ratio_decides() -> None:
    one, other = measured(4096, fused=1.4, flex=1.0), measured(4096, "documents", fused=1.3, flex=1.6)
    assert fastest(one, other)["ratios"] == {"fused": 1.4, "flex": 1.6}
    assert fastest(one, other)["backend"] == "fused"


def test_memory_rules_out() -> None:
    """Within the bar of the floor nothing is; beyond it, what takes over 5 % more than the least."""
    assert fastest(measured(4096, fused=(1.0, 40.0), flex=(1.2, 1.0)))["backend"] == "flex"
    assert fastest(measured(4096, fused=(1.0, 1.04), flex=(1.2, 0.5)))["backend"] == "fused"
    assert fastest(measured(4096, fused=(1.0, 2.08), flex=(1.2, 2.0)))["backend"] == "fused"


def test_where_nothing_is_right_for_all_the_stock_kernels_are_used() -> None:
    row = fastest(measured(4096, fused=1.0), measured(4096, "documents", flex=1.0))
    assert (row["backend"], row["ratios"]) == ("fused", {})


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
    settings = [f"PYTHON={python}", f"VENV={tmp_path / 'none'}", "GPU=--only tests"]
    command = ["make", "--no-print-directory", "gpu", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["ran -m benchmarks.gpu --only tests"]


def test_the_source_is_told_by_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = gpu.fingerprint()
    assert before == gpu.fingerprint("latency")
    (tmp_path / "biases").mkdir()
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    empty = gpu.fingerprint()
    (tmp_path / "biases" / "kernel.cpp").write_text("int x;")
    assert len({before, empty, gpu.fingerprint()}) == 3


@pytest.mark.parametrize("changed", ["tests/test_new.py", "properties/cases.py", "conftest.py", "pyproject.toml"])
def test_other_tests_are_run_afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str) -> None:
    """And nothing is measured again for their sake."""
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    before = [gpu.fingerprint(piece) for piece in gpu_pieces.PIECES]
    (tmp_path / changed).parent.mkdir(exist_ok=True)
    (tmp_path / changed).write_text("x = 1\n")
    after = [gpu.fingerprint(piece) for piece in gpu_pieces.PIECES]
    assert [name for name, a, b in zip(gpu_pieces.PIECES, before, after, strict=True) if a != b] == ["tests"]


def test_half_a_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "gpu_tiny_latency.json"
    for content in ("", "{", "[]", '{"cells": 3}'):
        path.write_text(content)
        assert gpu.read(path) is None
    assert gpu.read(tmp_path / "none.json") is None
