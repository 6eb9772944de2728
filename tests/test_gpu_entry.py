"""``python -m benchmarks.gpu``: resuming, stopping, refusing, and what it says; on the CPU with tiny shapes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_pieces, gpu_properties, gpu_tests
from benchmarks.gpu_plan import Plan
from benchmarks.gpu_subjects import OWN, SUBJECTS
from biases import zoo
from biases.backends import choice
from biases.backends.triton import decomposed
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


def plan(seconds: float = 60.0, out: Path = Path("none"), committed: Path = Path("none")) -> Plan:
    return Plan("cpu", True, time.monotonic() + seconds, out, committed)


def test_subjects_are_of_the_zoo_or_own() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert len({subject.label for subject in SUBJECTS}) == len(SUBJECTS)
    assert set(OWN) <= set(names) <= {*OWN, *zoo.names("layer")}


def test_subjects_cover_what_cuda_has_more_than_one_backend_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for subject in SUBJECTS:
        sizes = plan().shape(subject.length(144))
        found.add(subject.family(gpu_pieces.Setting(**sizes, direction="forward+backward")))
    wanted = {family for (device, family), row in choice.ORDER.items() if device == "cuda" and row.order}
    assert wanted <= found


def few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(gpu_pieces, "SUBJECTS", [each for each in SUBJECTS if each.name in names])


@pytest.mark.parametrize("name", ["gated-swin-retention", "gated-swin-swat", "manhattan-decomposed"])
def test_the_kernel_of_both_passes_is_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """For windows and for small maps, in what is checked and in what is timed."""
    layers = [each for each in SUBJECTS if each.name == name and each.level == "layer"]
    monkeypatch.setattr(gpu_pieces, "SUBJECTS", layers)
    monkeypatch.setattr(gpu_pieces, "HOPELESS", 0.0)
    real, asked = decomposed.why_not, set()

    def spy(q: torch.Tensor, *others: Any, **options: Any) -> str | None:
        reason = real(q, *others, **options)
        if "interpreter only" in str(reason) or "not installed" in str(reason):
            asked.add(tuple(q.shape[2:4]))
        return reason

    monkeypatch.setattr(decomposed, "why_not", spy)
    for piece in (gpu_pieces.correctness, gpu_pieces.latency):
        asked.clear()
        for label, cell in piece(plan()):
            if label.endswith(("triton", "forward")):
                cell()
        assert {(14, 14), (16, 16)} <= asked if name == "manhattan-decomposed" else asked


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


MARKED = "import pytest\n@pytest.mark.gpu\n@pytest.mark.parametrize('n', range({}))\ndef test_it(n):\n    {}\n"


def project(monkeypatch: pytest.MonkeyPatch, folder: Path, **bodies: tuple[int, str]) -> None:
    """Files of tests marked ``gpu``, by (number of cases, body)."""
    for name in ("tests", "properties"):
        (folder / name).mkdir()
    for name, (count, body) in bodies.items():
        (folder / "tests" / f"test_{name}.py").write_text(MARKED.format(count, body))
    (folder / "tests" / "test_plain.py").write_text("def test_it(): pass\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    monkeypatch.setattr(gpu_tests, "ROOT", folder)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def test_tests_are_run_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project(monkeypatch, tmp_path, some=(3, "assert n < 2"))
    outcomes = {name: cell() for name, cell in gpu_tests.tests(plan())}
    function = "tests/test_some.py::test_it"
    assert set(outcomes) == {"collection", f"{function} 1/2", f"{function} 2/2"}
    assert outcomes["collection"] == {"status": "ok", "count": 3}
    good, bad = (outcomes[f"{function} {n}/2"] for n in (1, 2))
    assert (good["status"], good["tests"], bad["status"], bad["tests"]) == ("ok", 2, "wrong", 1)
    assert "assert 2 < 2" in bad["message"]


def test_tests_keep_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in flight some time after the deadline is stopped, and is tried again by the next run."""
    project(monkeypatch, tmp_path, slow=(1, "import time; time.sleep(300)"))
    monkeypatch.setattr(gpu_tests, "GRACE", 0.5)
    running = plan(1000.0)
    cells = dict(gpu_tests.tests(running))
    object.__setattr__(running, "deadline", time.monotonic())
    late = cells["tests/test_slow.py::test_it"]()
    assert late["status"] not in gpu.SETTLED
    assert "time was up" in late["message"]


def test_files_that_cannot_be_collected_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project(monkeypatch, tmp_path, broken=(1, "pass\nimport nonsense_that_is_nowhere"))
    (name, cell), *others = gpu_tests.tests(plan())
    assert (name, others, cell()["status"]) == ("collection", [], "error")
    assert "nonsense_that_is_nowhere" in cell()["message"]


@pytest.mark.parametrize("missing", [("pytest",), ("hypothesis",), ("pytest", "hypothesis")])
def test_missing_packages_are_said(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    """A package that is not there skips the tests, and is no failure."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else real(name, *rest))
    ((name, cell),) = gpu_tests.tests(plan())
    assert (name, cell()) == (
        "collection",
        {"status": "skipped", "message": f"{' and '.join(missing)} is not installed"},
    )
    if "hypothesis" in missing:
        ((_, battery),) = gpu_properties.properties(plan())
        assert battery()["status"] == "skipped"
    _, packages = next(iter(gpu_pieces.environment(plan())))
    assert set(missing) <= set(packages()["missing"])


def test_the_battery_is_run_on_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_properties, "EXAMPLES", 2)
    full = Plan("cpu", False, time.monotonic() + 60, Path("none"), Path("none"))
    assert [name for name, _ in gpu_properties.properties(full)] == zoo.names("layer")
    outcome = dict(gpu_properties.properties(plan()))["standard"]()
    assert (outcome["status"], outcome["failed"]) == ("ok", [])
    assert outcome["counts"]["passed"] > 5


def test_a_broken_promise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(dim: int, heads: int) -> Any:
        class Layer(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * torch.rand(())

        return Layer()

    monkeypatch.setattr(gpu_properties, "EXAMPLES", 2)
    monkeypatch.setattr(gpu_properties.zoo, "factory", lambda name: drawn)
    outcome = dict(gpu_properties.properties(plan()))["standard"]()
    assert outcome["status"] == "wrong"
    assert "deterministic failed" in outcome["message"]


def test_the_battery_is_run_on_the_device_of_the_plan() -> None:
    elsewhere = Plan("nowhere", True, time.monotonic() + 60, Path("none"), Path("none"))
    outcome = dict(gpu_properties.properties(elsewhere))["standard"]()
    assert outcome["status"] == "error"
    assert "got 'nowhere'" in outcome["message"]


# The choice


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
