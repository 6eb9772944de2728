"""``biases ablate`` where something goes wrong around it: dead workers, closed pipes, other runs, signals, devices."""

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from ablate_runs import ablate, write_spec
from ablation_models import WORDS, files

from biases.ablation import (
    Grid,
    ModelConfig,
    TrainConfig,
    _locks,
    grid,
    load_results,
    load_study,
    load_text,
)
from biases.ablation._loop import check_device
from biases.ablation.command import _Begun, chosen_grid
from biases.ablation.executors import UnitDied
from biases.ablation.executors.local import _uninterrupted, open_local
from biases.ablation.grid import run_grid
from biases.ablation.training import build_model
from biases.cli import main

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(layers=1, heads=1, dim=8, context=12, dropout=0.0)
TRAIN = TrainConfig(steps=4, batch=4, warmup=1, evaluate_every=4, evaluation_windows=4, truncated_positions=8)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(WORDS)
    return str(path)


@pytest.fixture
def spec(tmp_path, data):
    def write(name="spec.toml", **changes):
        return write_spec(tmp_path / name, data=data, **changes)

    return write


def build_killer(cell, vocab):
    """Ends the worker that trains seed 0 of the arm "killer"."""
    if multiprocessing.parent_process() is not None and (cell.arm, cell.seed) == ("killer", 0):
        os._exit(1)
    return build_model(cell, vocab)


def unused(cells, data, progress):
    raise AssertionError


class Fatal:
    """Ends the process that reads it."""

    def __reduce__(self):
        return os._exit, (1,)


@dataclasses.dataclass
class Nothing:
    sha256: str = "0"


class TestDeadWorkers:
    def test_the_cell_that_ends_its_worker_has_failed_and_the_others_are_run(self, data, tmp_path):
        """Also the seed that advanced together with it, and what other workers had in hand."""
        plan = Grid({"standard": MODEL, "killer": MODEL}, (0, 1), TRAIN, data)
        results = run_grid(plan, tmp_path / "out", workers=2, together=2, build=build_killer)
        found = {(result["arm"], result["seed"]): result for result in results}
        failed = found.pop(("killer", 0))
        assert failed["status"] == "failed"
        assert failed["error"].startswith("the process that trained it died, often for want of memory (")
        assert [result["status"] for result in found.values()] == ["ok"] * 3
        assert files(tmp_path / "out") == sorted(f"{cell.id}.json" for cell in plan.cells())
        told = []
        assert len(run_grid(plan, tmp_path / "out", workers=2, build=build_killer, progress=told.append)) == 4
        assert {event["event"] for event in told} == {"skipped"}

    def test_workers_that_cannot_start_end_the_run(self):
        with open_local(1, Nothing(), functools.partial(unused, progress=Fatal())) as executor:
            assert isinstance(executor.submit(()).exception(60), BrokenProcessPool)
            with pytest.raises(BrokenExecutor, match="worker processes die as they start"):
                executor.submit(())

    def test_a_unit_given_up_elsewhere_has_failed_and_the_run_goes_on(self, data, tmp_path):
        from concurrent.futures import Future
        from contextlib import nullcontext

        class Cluster:
            slots = 2

            def __init__(self, work):
                self.work = work

            def submit(self, cells):
                future = Future()
                if any((cell.arm, cell.seed) == ("killer", 1) for cell in cells):
                    future.set_exception(UnitDied("tried 6 times"))
                else:
                    future.set_result(self.work(cells, load_text(data), None))
                return future

            def events(self):
                return iter(())

        plan = Grid({"killer": MODEL, "standard": MODEL}, (0, 1), TRAIN, data)
        opened = lambda data, work: nullcontext(Cluster(work))  # noqa: E731
        results = run_grid(plan, tmp_path, executor=opened, together=2)
        assert [result["status"] for result in results] == ["ok", "ok", "failed", "ok"]
        assert "tried 6 times" in results[2]["error"]


class TestPipes:
    def test_nobody_listening_ends_no_work(self, spec, tmp_path):
        out = tmp_path / "out"
        command = [sys.executable, "-m", "biases.cli", "ablate", str(spec()), "--out", str(out)]
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run(command, stdout=writer, stderr=writer, cwd=ROOT, timeout=120)
        os.close(writer)
        assert len(load_results(out)) == 4
        assert ended.returncode == 0

    def test_a_failure_is_one_though_nobody_reads_of_it(self, spec, tmp_path, monkeypatch):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(grid, "device_name", lambda device: 1 / 0)
        with os.fdopen(writer, "w") as closed:
            monkeypatch.setattr(sys, "stdout", closed)
            assert main(["ablate", str(spec()), "--out", str(tmp_path / "out")]) == 1
        assert "ZeroDivisionError" in load_results(tmp_path / "out")[0]["error"]


class TestFolders:
    def test_of_two_studies_begun_at_once_one_is_refused(self, spec, data, tmp_path):
        out, text = tmp_path / "out", load_text(data)
        first, second = (load_study(spec(steps=steps, name=f"{steps}.toml")) for steps in (4, 5))
        ours, theirs = _Begun(first, out), _Begun(second, out)
        ours.begin(text)
        with _locks.exclusive(out / "cells"):
            beginning = threading.Thread(target=theirs.begin, args=(text,))
            beginning.start()
            beginning.join(0.2)
            assert beginning.is_alive()
        beginning.join()
        lock = out / "cells" / f"{first.grid.cells()[0].id}.lock"
        assert _locks.acquire(lock)
        ours.check({"event": "skipped"})
        with pytest.raises(ValueError, match="give another --out"):
            ours.check({"event": "started"})
        _locks.release(lock)
        theirs.check({"event": "started"})

    def test_every_result_is_read_before_anything_is_run(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        last = load_study(path).grid.cells()[-1]
        bad = out / "cells" / f"{last.id}.json"
        bad.parent.mkdir(parents=True)
        for make in (lambda: bad.write_text('{"schema": 2}'), lambda: (bad.unlink(), bad.mkdir())):
            make()
            code, _, told = ablate(capsys, path, "--out", out)
            assert (code, files(out)) == (2, [bad.name])
            assert f"result {bad}: expected" in told
            assert "started" not in told

    def test_what_is_missing_is_known_from_the_beginning(self, spec, tmp_path, capsys, monkeypatch):
        path, out = spec(), tmp_path / "out"
        assert ablate(capsys, path, "--out", out, "--arms", "ega")[0] == 0

        def interrupted(self, work):
            raise KeyboardInterrupt

        monkeypatch.setattr("biases.ablation._run.GridRun.here", interrupted)
        code, printed, _ = ablate(capsys, path, "--out", out, "--json")
        counts = json.loads(printed)["cells"]
        assert (code, counts["ok"], counts["missing"]) == (130, 2, 2)

    def test_all_that_is_left_in_other_hands_is_exit_code_3(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        ablate(capsys, path, "--out", out, "--arms", "ega")
        locks = [out / "cells" / f"{cell.id}.lock" for cell in load_study(path).grid.cells() if cell.arm != "ega"]
        assert all(_locks.acquire(lock) for lock in locks)
        code, printed, _ = ablate(capsys, path, "--out", out)
        assert code == 3
        assert "2 of 4 cells done" in printed
        assert all(lock.exists() for lock in locks)

    def test_a_file_is_no_folder(self, spec, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        for out in ("file", "file/below"):
            code, _, told = ablate(capsys, spec(), "--out", tmp_path / out)
            assert code == 2
            assert "--out: expected a folder" in told


class TestSignals:
    def test_interrupted_while_pytorch_is_imported(self, tmp_path):
        (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        command = [sys.executable, "-m", "_biases_command", "--version"]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "biases: interrupted\n")

    def test_terminated_before_anything_is_trained(self, spec, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("biases.ablation.command.check_models", lambda study: os.kill(os.getpid(), signal.SIGTERM))
        code, printed, told = ablate(capsys, spec(), "--out", tmp_path / "out", "--json")
        assert code == 130
        assert json.loads(printed)["interrupted"] is True
        assert "the same command goes on" in told
        assert not (tmp_path / "out").exists()

    def test_cells_that_were_finished_before_the_interruption_are_told(self, spec, tmp_path, capsys, monkeypatch):
        out, calls = tmp_path / "out", iter(("fails", "trains", "is interrupted"))

        def device_name(device):
            call = next(calls)
            if call == "fails":
                raise ZeroDivisionError
            if call == "is interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            return "a processor"

        monkeypatch.setattr(grid, "device_name", device_name)
        code, printed, _ = ablate(capsys, spec(), "--out", out, "--json")
        document = json.loads(printed)
        assert (code, document["interrupted"], document["cells"]["missing"]) == (130, True, 2)
        stored = {result["id"]: result for result in load_results(out)}
        assert [(each["arm"], each["status"]) for each in document["results"]] == [
            ("standard", "failed"),
            ("ega", "ok"),
        ]
        assert document["trained"] == [each["id"] for each in document["results"]]
        for each in document["results"]:
            assert each == {name: stored[each["id"]][name] for name in each}

    def test_an_error_of_the_system_is_reported_as_json_too(self, spec, tmp_path, capsys, monkeypatch):
        def full(out, result):
            raise OSError("No space left on device")

        monkeypatch.setattr("biases.ablation._run.write_result", full)
        code, printed, told = ablate(capsys, spec(), "--out", tmp_path / "out", "--json")
        assert (code, json.loads(printed)["error"]) == (1, "No space left on device")
        assert "the same command goes on" in told
        assert files(tmp_path / "out") == []

    @pytest.mark.parametrize("threads", [0, 2])
    def test_ctrl_c_waits_until_a_worker_is_started(self, threads):
        """Also where a thread beside the main one, which does not block the signal, is given it."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        reached = []
        done = threading.Event()
        others = [threading.Thread(target=done.wait, args=(60,)) for _ in range(threads)]
        for other in others:
            other.start()

        def started():
            with _uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
                reached.append(True)

        try:
            with pytest.raises(KeyboardInterrupt):
                started()
        finally:
            done.set()
            for other in others:
                other.join()
            signal.signal(signal.SIGINT, before)
        assert reached
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


class TestDevices:
    def test_a_study_for_gpus_takes_them_or_says_that_there_is_none(self, spec, tmp_path, capsys, monkeypatch):
        path, out = spec(gpus=1), tmp_path / "out"
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert "cells of size 'test' train on the CPU" in ablate(capsys, path, "--out", out, "--dry-run")[2]
        assert "train on the CPU" not in ablate(capsys, path, "--out", out, "--dry-run", "--device", "cpu")[2]
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        asked = []
        monkeypatch.setattr(grid, "check_device", lambda device: asked.append(device) or device)
        assert ablate(capsys, path, "--out", out, "--dry-run")[0] == 0
        assert asked == ["cuda"]

    @pytest.mark.parametrize(("gpus", "device"), [(1, "cpu"), (0.5, "cuda:1"), (0, "cuda")])
    def test_a_device_that_a_cluster_would_not_give_is_refused(self, spec, tmp_path, capsys, gpus, device):
        arguments = (spec(gpus=gpus), "--out", tmp_path / "out", "--executor", "ray", "--device", device)
        code, _, told = ablate(capsys, *arguments)
        assert code == 2
        assert f"--device: expected {'cuda' if gpus else 'cpu'}, as a cell of the study has {gpus} GPUs" in told

    @pytest.mark.parametrize("device", ["meta", "hpu", "abacus", "cpu:x"])
    def test_what_cannot_train_is_refused_before_anything_is_listed_or_written(self, spec, tmp_path, capsys, device):
        with pytest.raises(ValueError, match=f"device: expected one that PyTorch can use here, got '{device}'"):
            check_device(device)
        for extra in ((), ("--dry-run",)):
            assert ablate(capsys, spec(), "--out", tmp_path / "out", "--device", device, *extra)[0] == 2
        assert not (tmp_path / "out").exists()

    def test_a_text_too_short_is_refused_before_anything_is_listed(self, spec, data, tmp_path, capsys):
        Path(data).write_text("short. " * 8)
        code, printed, told = ablate(capsys, spec(), "--out", tmp_path / "out", "--dry-run")
        assert (code, printed) == (2, "")
        assert "expected splits of at least" in told


def test_many_seeds_are_chosen_at_once(data):
    plan = Grid({"standard": MODEL}, tuple(range(2000)), TRAIN, data)

    class Seeds(list):
        looked = 0

        def __contains__(self, seed):
            Seeds.looked += 1
            return super().__contains__(seed)

    class Options:
        arms, shard, seeds = None, None, Seeds(range(2000))

    class Study:
        grid = plan

    assert chosen_grid(Study, Options).seeds == plan.seeds
    assert Seeds.looked == 0
