"""``biases ablate``: from a study's file to results, killed, shared, sharded, and what it says."""

import errno
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ablate_runs import ablate, write_spec
from ablation_models import files

from biases import _files
from biases.ablation import Cell, _locks, load_results, load_study
from biases.ablation.progress import Tally, duration, show


@pytest.fixture
def spec(tmp_path):
    return functools.partial(write_spec, tmp_path / "spec.toml")


def ids(spec):
    return [cell.id for cell in load_study(spec).grid.cells()]


def start(spec, out, *arguments):
    command = [sys.executable, "-m", "biases.cli", "ablate", str(spec), "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, env=environment, cwd=Path(__file__).parents[1])


def wait_for(process, word, times=1):
    """The ids of the lines of standard error that end so, as soon as there are so many."""
    found = []
    for line in process.stderr:
        if line.rstrip().endswith(word) or f": {word} " in line:
            found.append(line.split()[0])
        if len(found) == times:
            return found
    raise AssertionError(f"the process ended after {found}")


def started(text):
    return re.findall(r"^(\w{12}) .*: started$", text, re.MULTILINE)


class TestRunning:
    def test_every_cell_becomes_a_result(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        code, printed, told = ablate(capsys, path, "--out", out)
        assert code == 0
        assert files(out) == sorted(f"{cell}.json" for cell in ids(path))
        assert (out / "study.toml").read_text() == path.read_text()
        for result in load_results(out):
            assert result["status"] == "ok"
            assert result["study"] == {"name": "tiny", "size": "test"}
            assert result["execution"] == {"workers": 1, "together": 1}
            assert Cell.from_config(result["config"]).id == result["id"]
            assert result["metrics"]["leak_low"] <= result["metrics"]["leak"] <= result["metrics"]["leak_high"]
        assert "4 of 4 cells done: 4 ok; 4 trained here" in printed
        assert f"biases stats {out}" in printed
        assert started(told) == ids(path)
        assert "(4 of 4 cells)" in told

    def test_what_is_done_is_not_done_again(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        ablate(capsys, path, "--out", out, "--seeds", 1, "--arms", "ega")
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.glob("cells/*.json")}
        assert len(before) == 1
        _, _, told = ablate(capsys, path, "--out", out)
        assert len(started(told)) == 3
        code, printed, told = ablate(capsys, path, "--out", out)
        assert (code, started(told)) == (0, [])
        assert "4 of 4 cells done: 4 ok; 0 trained here" in printed
        for file, was in before.items():
            assert (file.read_bytes(), file.stat().st_mtime_ns) == was

    def test_json(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        code, printed, _ = ablate(capsys, path, "--out", out, "--shard", "2/2", "--json")
        told = json.loads(printed)
        assert code == 0
        assert told["schema"] == 1
        assert told["study"]["name"] == "tiny"
        assert told["cells"] == {"total": 2, "ok": 2, "failed": 0, "diverged": 0, "missing": 0, "locked_elsewhere": 0}
        assert told["interrupted"] is False
        assert [(each["arm"], each["seed"]) for each in told["results"]] == [("standard", 1), ("ega", 1)]
        assert told["trained"] == [each["id"] for each in told["results"]]
        assert {f"{each['id']}.json" for each in told["results"]} == set(files(out))

    def test_shards_of_a_folder_are_the_grid(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        for shard in ("1/2", "2/2"):
            assert ablate(capsys, path, "--out", out, "--shard", shard)[0] == 0
        assert files(out) == sorted(f"{cell}.json" for cell in ids(path))

    def test_dry_run_lists_and_writes_nothing(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        code, printed, _ = ablate(capsys, path, "--out", out, "--dry-run", "--json")
        assert code == 0
        assert not out.exists()
        assert [(each["id"], each["state"]) for each in json.loads(printed)["cells"]] == [
            (cell, "to run") for cell in ids(path)
        ]
        ablate(capsys, path, "--out", out, "--seeds", 0, "--arms", "standard")
        lock = out / "cells" / f"{ids(path)[1]}.lock"
        assert _locks.acquire(lock)
        _, printed, _ = ablate(capsys, path, "--out", out, "--dry-run")
        assert re.findall(r"seed \d +(.*)$", printed, re.MULTILINE) == ["ok", "running", "to run", "to run"]
        assert "4 cells, 2 to run" in printed

    def test_cells_in_other_hands_are_left_to_them(self, spec, tmp_path, capsys):
        path, out = spec(), tmp_path / "out"
        held = ids(path)[1]
        (out / "cells").mkdir(parents=True)
        assert _locks.acquire(out / "cells" / f"{held}.lock")
        code, printed, _ = ablate(capsys, path, "--out", out)
        assert code == 0
        assert f"1 in the hands of other processes: {held}" in printed
        assert "3 of 4 cells done" in printed

    def test_diverged_cells_are_results_and_exit_code_1(self, spec, tmp_path, capsys):
        path, out = spec(steps=30), tmp_path / "out"
        path.write_text(path.read_text().replace("warmup = 1", "warmup = 0\nlearning_rate = 1e30\nclip = 1e9"))
        code, printed, told = ablate(capsys, path, "--out", out)
        assert code == 1
        assert {result["status"] for result in load_results(out)} == {"diverged"}
        assert "4 of 4 cells done: 4 diverged" in printed
        assert "is not finite at step" in printed
        assert "diverged: training loss is not finite" in told
        code, _, told = ablate(capsys, path, "--out", out)
        assert (code, started(told)) == (1, [])
        _, _, told = ablate(capsys, path, "--out", out, "--retry-failed")
        assert started(told) == ids(path)

    def test_images(self, tmp_path, capsys):
        pytest.importorskip("sklearn")
        path, out = tmp_path / "spec.toml", tmp_path / "out"
        path.write_text("""
schema = 1
name = "seen"
size = "test"
question = "Does it see?"
kind = "images"
data = "digits"
seeds = 1
train = {steps = 2, batch = 8, warmup = 0, evaluate_every = 2}
arms.swin.name = "swin-digits"
statistics = {metric = "test_loss", unit = "nats", smallest_effect = 0.02}
""")
        assert ablate(capsys, path, "--out", out)[0] == 0
        (result,) = load_results(out)
        assert result["metrics"]["test_images"] == 359
        assert result["id"] == ids(path)[0]
        assert [point["step"] for point in result["curve"]] == [0, 2]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--arms", "egg"], "--arms: expected one of 'standard', 'ega', got 'egg'"),
            (["--seeds", "7"], "--seeds: expected one of 0, 1, got 7"),
            (["--shard", "1"], "--shard: expected I/N"),
            (["--shard", "3/2"], "shard: expected I/N with 1 <= I <= N, got 3/2"),
            (["--shard", "1/3"], "at most 2 parts"),
            (["--workers", "0"], "workers: expected an integer of at least 1"),
            (["--together", "0"], "together: expected an integer of at least 1"),
            (["--device", "abacus"], "device: expected one that PyTorch can use here, got 'abacus'"),
            (["--address", "x"], "--address: expected --executor ray"),
            (["--executor", "ray", "--workers", "2"], "--workers: expected --executor local"),
        ],
    )
    def test_bad_arguments_are_exit_code_2(self, spec, tmp_path, capsys, arguments, message):
        out = tmp_path / "out"
        code, _, told = ablate(capsys, spec(), "--out", out, *arguments)
        assert code == 2
        assert message in told
        assert not (out / "cells").exists()

    def test_a_bad_study_is_exit_code_2_and_named(self, spec, tmp_path, capsys):
        for more, message in (
            ("layer = 3\n", "arms.ega.layer: expected one of the keys"),
            ("options.attention.lags = 3\n", "arm 'ega': "),
        ):
            path = spec(more=more)
            code, _, told = ablate(capsys, path, "--out", tmp_path / "out")
            assert code == 2
            assert f"biases: {path}: {message}" in told
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_another_study_is_refused(self, spec, tmp_path, capsys):
        out = tmp_path / "out"
        ablate(capsys, spec(), "--out", out, "--seeds", 0)
        for extra in ((), ("--dry-run",)):
            code, _, told = ablate(capsys, spec(steps=5), "--out", out, *extra)
            assert code == 2
            assert "give another --out" in told
        assert len(files(out)) == 2


class TestFaults:
    def test_full_disk_is_exit_code_1_and_loses_nothing(self, spec, tmp_path, capsys, monkeypatch):
        path, out = spec(), tmp_path / "out"
        ablate(capsys, path, "--out", out, "--seeds", 0)
        before = files(out)

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(_files.os, "fsync", full)
            code, _, told = ablate(capsys, path, "--out", out)
        assert code == 1
        assert "No space left on device" in told
        assert f"what was finished is in {out}; the same command goes on" in told
        assert files(out) == before
        assert ablate(capsys, path, "--out", out)[0] == 0
        assert len(files(out)) == 4

    @pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_a_killed_run_loses_only_the_cells_in_flight(self, spec, tmp_path, capsys, workers):
        path, out = spec(steps=100), tmp_path / "out"
        process = start(path, out, "--workers", str(workers))
        try:
            wait_for(process, "started", times=workers + 1)
        finally:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()
        finished = [result["id"] for result in load_results(out)]
        assert 1 <= len(finished) < 4
        before = {name: (out / "cells" / f"{name}.json").stat().st_mtime_ns for name in finished}
        # Its workers end with it, a moment later.
        code, _, told = ablate(capsys, path, "--out", out)
        assert code == 0
        assert sorted(started(told)) == sorted(set(ids(path)) - set(finished))
        assert files(out) == sorted(f"{cell}.json" for cell in ids(path))
        assert {name: (out / "cells" / f"{name}.json").stat().st_mtime_ns for name in finished} == before

    def test_processes_on_one_folder_run_every_cell_once(self, spec, tmp_path):
        path, out = spec(steps=100), tmp_path / "out"
        processes = [start(path, out) for _ in range(2)]
        ended = [process.communicate(timeout=200) for process in processes]
        told = [text for _, text in ended]
        # One that comes while the other has all that is left in hand has nothing to do.
        expected = [3 if "in the hands of" in printed and not started(text) else 0 for printed, text in ended]
        assert [process.returncode for process in processes] == expected, told
        assert sorted(cell for text in told for cell in started(text)) == sorted(ids(path))
        assert files(out) == sorted(f"{cell}.json" for cell in ids(path))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_run_gives_its_locks_back_and_says_how_to_go_on(self, spec, tmp_path, number):
        path, out = spec(steps=1000000), tmp_path / "out"
        process = start(path, out, "--json")
        try:
            wait_for(process, "started")
            time.sleep(0.3)
            process.send_signal(number)
            printed, told = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
        assert f"what was finished is in {out}; the same command goes on" in told
        assert json.loads(printed)["interrupted"] is True
        assert json.loads(printed)["cells"]["missing"] == 4
        assert files(out) == []


def event(kind, cell="a", **values):
    return {"event": kind, "id": cell, "arm": "arm", "seed": 0, **values}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    def test_durations(self):
        assert [duration(seconds) for seconds in (0.4, 61, 3599.7, 3725)] == ["0:00", "1:01", "1:00:00", "1:02:05"]

    def test_time_left_is_by_finished_cells_and_shares_of_those_in_flight(self):
        now = [0.0]
        tally = Tally(4, clock=lambda: now[0])
        tally.take(event("skipped", "done", status="ok"))
        tally.take(event("started", "a"))
        now[0] = 10.0
        tally.take(event("step", "a", step=5, steps=10, loss=1.0))
        assert tally.seconds_left is None
        now[0] = 20.0
        tally.take(event("finished", "a", status="ok"))
        assert tally.seconds_left == pytest.approx(40.0)
        tally.take(event("started", "b"))
        now[0] = 30.0
        tally.take(event("step", "b", step=5, steps=10, loss=1.0))
        # One and a half cells in 30 s, one and a half to go.
        assert tally.seconds_left == pytest.approx(30.0)
        tally.take(event("locked", "c"))
        assert tally.seconds_left == pytest.approx(10.0)
        assert tally.summary == "2 of 4 cells, about 0:10 left"

    def test_events_of_a_finished_cell_do_not_put_it_in_flight_again(self):
        tally = Tally(1)
        tally.take(event("started"))
        tally.take(event("finished", status="ok"))
        tally.take(event("step", step=10, steps=10, loss=1.0))
        assert tally.flying == {}

    def test_bars_in_a_terminal(self, monkeypatch):
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        tally = Tally(2)
        with show(tally) as tell:
            tell(event("started"))
            tell(event("step", step=5, steps=10, loss=1.25))
            time.sleep(0.3)
            tell(event("finished", status="diverged", error="loss is not finite\n", seconds=1.0))
            tell(event("skipped", "b", status="ok"))
            time.sleep(0.3)
        told = screen.getvalue()
        assert "arm seed 0" in told
        assert "loss 1.2500" in told
        assert "5/10" in told
        assert "diverged: loss is not finite" in told
        assert "2/2" in told
