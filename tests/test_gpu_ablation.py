"""The piece ``ablation`` of ``python -m benchmarks.gpu``: what it trains, keeps, takes over and leaves for later."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_ablation
from benchmarks.gpu_plan import Plan
from biases import cli
from biases.ablation import TextUnavailable, load_results, load_study, load_text
from biases.ablation._locks import acquire
from biases.ablation.results import write_result

ROOT = Path(__file__).parent.parent
FOLDER = Path("ablations") / "gate-sight-tiny"
ARMS = ["standard", "ega", "ega-prefix", "ega-token"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One study and no results but those of the test; nothing is measured beside."""
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(gpu_ablation, "STUDIES", ("gate-sight",))
    monkeypatch.setattr(gpu_ablation, "together", lambda plan: {"status": "ok"})


def run(out: Path, *arguments: str) -> int:
    return gpu.main(["--device", "cpu", "--tiny", "--only", "ablation", "--out", str(out), *arguments])


def index(out: Path) -> dict[str, Any]:
    """The entries of cells."""
    cells = json.loads((out / "gpu_tiny_ablation.json").read_text())["cells"]
    return {name: cell for name, cell in cells.items() if "study" in cell}


def stored(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / FOLDER / "cells").glob("*.json")}


def plan(out: Path, seconds: float = 60.0, tiny: bool = True) -> Plan:
    return Plan("cpu", tiny, time.monotonic() + seconds, out, out / "committed")


def make_failed(folder: Path, name: str = "standard") -> None:
    """As if the arm's training had failed."""
    (result,) = [each for each in load_results(folder) if each["arm"] == name]
    write_result(folder, {**result, "status": "failed", "error": "Traceback\nRuntimeError: too hot", "metrics": {}})


def test_every_study_is_run_into_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """The same folders that ``biases ablate`` goes on with and ``biases stats`` reads."""
    studies = ("gate-sight", "superadditivity", "mope-controls")
    monkeypatch.setattr(gpu_ablation, "STUDIES", studies)
    assert run(tmp_path) == gpu.OK
    found = index(tmp_path)
    assert list(dict.fromkeys(cell["study"] for cell in found.values())) == [f"{name}-tiny" for name in studies]
    assert {cell["status"] for cell in found.values()} == {"ok"}
    for name in studies:
        folder = tmp_path / "ablations" / f"{name}-tiny"
        study = load_study(folder / "study.toml")
        results = {each["id"]: each for each in load_results(folder)}
        assert (study.size, "no evidence" in study.notes[0]) == ("tiny", True)
        assert set(results) == {cell.id for cell in study.grid.cells()}
        entries = [cell for cell in found.values() if cell["study"] == study.folder]
        for cell in entries:
            result = results[cell["id"]]
            assert cell | {key: result[key] for key in ("arm", "seed", "status", "seconds")} == cell
            assert result["study"] == {"name": name, "size": "tiny"}
        capsys.readouterr()
        assert cli.main(["ablate", str(folder / "study.toml"), "--out", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["trained"] == []
        assert cli.main(["stats", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["arms"].keys() == study.grid.arms.keys()


def test_a_rerun_trains_nothing_again(tmp_path: Path) -> None:
    assert run(tmp_path) == gpu.OK
    before, entries = stored(tmp_path), index(tmp_path)
    assert len(before) == len(ARMS)
    assert run(tmp_path) == gpu.OK
    assert stored(tmp_path) == before
    assert {key: cell["id"] for key, cell in index(tmp_path).items()} == {k: c["id"] for k, c in entries.items()}


def test_what_is_removed_is_trained_again(tmp_path: Path) -> None:
    """The folder says what there is, not the index."""
    assert run(tmp_path) == gpu.OK
    before = stored(tmp_path)
    gone = index(tmp_path)["gate-sight-tiny/ega/seed0"]["id"]
    (tmp_path / FOLDER / "cells" / f"{gone}.json").unlink()
    assert run(tmp_path, "--budget", "0") == gpu.OK
    assert "gate-sight-tiny/ega/seed0" not in index(tmp_path)
    assert run(tmp_path) == gpu.OK
    after = stored(tmp_path)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == {f"{gone}.json"}


def test_committed_results_are_taken_over(tmp_path: Path) -> None:
    assert run(gpu.RESULTS) == gpu.OK
    assert run(tmp_path / "out", "--budget", "0") == gpu.OK
    assert stored(tmp_path / "out") == stored(gpu.RESULTS)
    assert (tmp_path / "out" / FOLDER / "study.toml").exists()
    assert len(index(tmp_path / "out")) == len(ARMS)


def test_committed_failures_are_not_taken_over(tmp_path: Path) -> None:
    assert run(gpu.RESULTS) == gpu.OK
    make_failed(gpu.RESULTS / FOLDER)
    assert run(tmp_path / "out", "--budget", "0") == gpu.FAILED
    assert len(stored(tmp_path / "out")) == len(ARMS) - 1
    assert run(tmp_path / "out") == gpu.OK
    assert len(stored(tmp_path / "out")) == len(ARMS)


def test_results_of_another_text_are_refused(tmp_path: Path) -> None:
    assert run(gpu.RESULTS) == gpu.OK
    folder = gpu.RESULTS / FOLDER
    for result in load_results(folder):
        write_result(folder, {**result, "data": {"name": "pydoc", "sha256": "0" * 64}})
    assert run(tmp_path / "out") == gpu.FAILED
    assert stored(tmp_path / "out") == {}


def test_a_killed_run_loses_the_cell_in_flight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_ablation, "STUDIES", ("gate-sight", "superadditivity", "mope-controls"))
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--only", "ablation"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "gate-sight-tiny/ega/seed0" in line:
                break
        process.kill()
    before = stored(tmp_path)
    assert len(before) >= 2
    assert run(tmp_path) == gpu.OK
    after = stored(tmp_path)
    assert after | before == after
    assert len(after) == len(ARMS)


def test_whole_pairs_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the committed studies: one after another, and in each seed by seed."""
    monkeypatch.setattr(gpu_ablation, "STUDIES", ("gate-sight", "mope-controls"))
    monkeypatch.setattr(gpu_ablation, "load_text", lambda name: load_text("pydoc"))
    names = [name for name, _ in gpu_ablation.ablation(plan(tmp_path, tiny=False))]
    first = [f"gate-sight-paper/{arm}/seed{seed}" for seed, arm in itertools.product(range(8), ARMS)]
    assert names[: 1 + len(first)] == ["together", *first]
    assert {name.partition("/")[0] for name in names[1 + len(first) :]} == {"mope-controls-paper"}
    assert len(names) == 1 + len(first) + 8 * 7


def test_what_failed_is_tried_again_last(tmp_path: Path) -> None:
    assert run(tmp_path) == gpu.OK
    make_failed(tmp_path / FOLDER)
    (tmp_path / FOLDER / "cells" / f"{index(tmp_path)['gate-sight-tiny/ega/seed0']['id']}.json").unlink()
    yielded = list(gpu_ablation.ablation(plan(tmp_path)))
    run_names = [name for name, cell in yielded if callable(cell)]
    assert run_names == ["together", "gate-sight-tiny/ega/seed0", "gate-sight-tiny/standard/seed0"]
    assert run(tmp_path) == gpu.OK
    assert {cell["status"] for cell in index(tmp_path).values()} == {"ok"}


def test_a_training_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("too hot")

    monkeypatch.setattr("biases.ablation.training.TextTraining.loss", fail)
    assert run(tmp_path) == gpu.FAILED
    assert "RuntimeError: too hot" in capsys.readouterr().err
    assert {each["status"] for each in load_results(tmp_path / FOLDER)} == {"failed"}


def test_no_cell_is_begun_that_would_not_end_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """By the median of the study's cells on this device; nor is then a later study begun."""
    assert run(tmp_path) == gpu.OK
    folder = tmp_path / FOLDER
    for result in load_results(folder):
        write_result(folder, {**result, "seconds": 10_000.0})
    (folder / "cells" / f"{index(tmp_path)['gate-sight-tiny/ega/seed0']['id']}.json").unlink()
    monkeypatch.setattr(gpu_ablation, "STUDIES", ("gate-sight", "mope-controls"))
    assert run(tmp_path, "--budget", "5000") == gpu.OK
    assert len(stored(tmp_path)) == len(ARMS) - 1
    assert not list((tmp_path / "ablations" / "mope-controls-tiny").glob("cells/*.json"))
    assert "8 cells are left" in capsys.readouterr().err


def test_times_of_another_device_say_nothing(tmp_path: Path) -> None:
    clock = gpu_ablation.Clock(plan(tmp_path, seconds=100.0))
    slow = {"status": "ok", "seconds": 10_000.0, "device_name": "another"}
    clock.add("gate-sight", slow)
    clock.add("gate-sight", {**slow, "status": "failed", "device_name": clock.device})
    assert clock.allows("gate-sight")
    clock.add("gate-sight", {**slow, "seconds": 50.0, "device_name": clock.device})
    assert clock.allows("gate-sight")
    assert clock.allows("a study without any")
    clock.add("superadditivity", {**slow, "device_name": clock.device})
    assert not clock.allows("superadditivity")
    assert not clock.allows("gate-sight")


def test_without_the_text_cells_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an earlier run has is still told, and it is looked for again."""
    assert run(tmp_path) == gpu.OK
    gone = index(tmp_path)["gate-sight-tiny/ega/seed0"]["id"]
    (tmp_path / FOLDER / "cells" / f"{gone}.json").unlink()

    def unavailable(name: str) -> Any:
        raise TextUnavailable("no network")

    with monkeypatch.context() as offline:
        offline.setattr(gpu_ablation, "load_text", unavailable)
        assert run(tmp_path) == gpu.OK
        found = index(tmp_path)
        missing = found.pop("gate-sight-tiny/ega/seed0")
        assert missing["status"] == "skipped"
        assert "no network; set BIASES_CACHE" in missing["message"]
        assert {cell["status"] for cell in found.values()} == {"ok"}
    assert run(tmp_path) == gpu.OK
    assert index(tmp_path)["gate-sight-tiny/ega/seed0"]["status"] == "ok"


def test_cells_of_other_processes_are_left_to_them(tmp_path: Path) -> None:
    study = gpu_ablation.tiny_study("gate-sight")
    lock = tmp_path / FOLDER / "cells" / f"{study.grid.cells()[0].id}.lock"
    lock.parent.mkdir(parents=True)
    assert acquire(lock)
    assert run(tmp_path) == gpu.OK
    found = index(tmp_path)["gate-sight-tiny/standard/seed0"]
    assert (found["status"], str(lock) in found["message"]) == ("skipped", True)
    assert len(stored(tmp_path)) == len(ARMS) - 1
    assert lock.exists()


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path) == gpu.OK
    path = tmp_path / FOLDER / "study.toml"
    path.write_text(path.read_text().replace("steps = 2", "steps = 3"))
    before = stored(tmp_path)
    assert run(tmp_path) == gpu.FAILED
    assert "that of the study begun there" in index(tmp_path)["gate-sight"]["message"]
    assert stored(tmp_path) == before


def test_seeds_together_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    measured = gpu_ablation.together(plan(tmp_path))
    seconds = measured["seconds_per_update_and_seed"]
    assert (measured["status"], measured["seeds"], measured["updates"]) == ("ok", 4, 20)
    assert min(seconds.values()) > 0
    assert measured["gain"]["low"] <= measured["gain"]["value"] <= measured["gain"]["high"]
