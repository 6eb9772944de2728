"""Processes that share a run's directory, and their locks."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ablation_models import FAST, build, files, small_grid

from biases.ablation import _locks, run_grid

OTHER_PROCESS = """
import sys, time
sys.path[:0] = {paths!r}
from dataclasses import replace
from ablation_models import FAST, LEAKY, SMALL, build
from biases.ablation import Grid, run_grid

grid = Grid({{"causal": SMALL, "leaky": LEAKY}}, (0, 1), replace(FAST, steps={steps}), data={data!r})

def tell(event):
    print(event["event"], event["id"], flush=True)
    if event["event"] == "step" and event["arm"] == {hang_in!r}:
        time.sleep(600)

run_grid(grid, {out!r}, build=build, progress=tell, workers={workers})
"""


def start_process(grid, out, steps, workers=1, hang_in=None):
    paths = [str(Path(__file__).parent), *sys.path]
    code = OTHER_PROCESS.format(
        paths=paths, data=grid.data, out=str(out), steps=steps, workers=workers, hang_in=hang_in
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def wait_for(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return line.split()[1]
    raise AssertionError(f"the process ended without {start!r}")


@pytest.fixture
def grid(tmp_path):
    return small_grid(tmp_path)


class TestSharing:
    def test_killed_run_loses_only_the_cell_in_flight(self, grid, tmp_path):
        first, second, *_ = grid.cells()
        process = start_process(grid, tmp_path, FAST.steps, hang_in=second.arm)
        try:
            while wait_for(process, "step") != second.id:
                pass
        finally:
            process.kill()
        # Not reaped: a killed process that its parent has not waited for is dead all the same.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        events = []
        assert files(tmp_path) == sorted([f"{first.id}.json", f"{second.id}.lock"])
        assert len(run_grid(grid, tmp_path, build=build, progress=events.append)) == 4
        assert [e["id"] for e in events if e["event"] == "skipped"] == [first.id]
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())
        process.wait()
        process.stdout.close()

    def test_processes_on_one_directory_do_not_run_a_cell_twice(self, grid, tmp_path):
        steps = 40
        shared = replace(grid, train=replace(FAST, steps=steps))
        processes = [start_process(grid, tmp_path / "run", steps) for _ in range(2)]
        outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        started = [line.split()[1] for lines in outputs for line in lines if line.startswith("started")]
        assert sorted(started) == sorted(c.id for c in shared.cells())
        assert files(tmp_path / "run") == sorted(f"{c.id}.json" for c in shared.cells())

    def test_cells_held_by_a_living_process_are_left_to_it(self, grid, tmp_path):
        held = grid.cells()[1]
        lock = tmp_path / "cells" / f"{held.id}.lock"
        lock.parent.mkdir()
        assert _locks.acquire(lock)
        events = []
        results = run_grid(grid, tmp_path, build=build, progress=events.append)
        assert held.id not in [r["id"] for r in results]
        assert [e["id"] for e in events if e["event"] == "locked"] == [held.id]
        assert lock.exists()
        _locks.release(lock)
        assert len(run_grid(grid, tmp_path, build=build)) == 4

    def test_workers_end_with_a_killed_parent(self, grid, tmp_path):
        process = start_process(grid, tmp_path / "run", 10**6, workers=2)
        try:
            wait_for(process, "step")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if not children.exists():
                pytest.skip("this system does not list a process's children")
            pids = [int(pid) for pid in children.read_text().split()]
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert len(pids) >= 2
        deadline = time.monotonic() + 60
        while any(_locks._alive(pid, None) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in pids if _locks._alive(pid, None)]


class TestLocks:
    def owner(self, **changes):
        stat = _locks._stat(os.getpid())
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "birth": stat and stat[1]}
        return json.dumps(owner | changes)

    def test_held_once(self, tmp_path):
        lock = tmp_path / "a.lock"
        assert _locks.acquire(lock)
        assert not _locks.acquire(lock)
        _locks.release(lock)
        assert _locks.acquire(lock)

    def test_dead_owner_of_this_machine_is_replaced(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        lock = tmp_path / "a.lock"
        lock.write_text(self.owner(pid=dead.pid, birth=None))
        assert _locks.acquire(lock)
        assert json.loads(lock.read_text())["pid"] == os.getpid()

    def test_reused_pid_is_not_the_owner(self, tmp_path):
        if _locks._stat(os.getpid()) is None:
            pytest.skip("this system does not tell when a process started")
        lock = tmp_path / "a.lock"
        lock.write_text(self.owner(birth="1"))
        assert _locks.acquire(lock)

    def test_owner_on_another_machine_is_respected(self, tmp_path):
        lock = tmp_path / "a.lock"
        lock.write_text(self.owner(host="elsewhere.invalid", pid=2**22 + 1))
        assert not _locks.acquire(lock)

    def test_lock_without_owner_is_respected_while_young(self, tmp_path):
        lock = tmp_path / "a.lock"
        lock.touch()
        assert not _locks.acquire(lock)
        os.utime(lock, (time.time() - 3600, time.time() - 3600))
        assert _locks.acquire(lock)

    def test_only_the_owner_gives_a_lock_back(self, tmp_path):
        lock = tmp_path / "a.lock"
        assert _locks.acquire(lock)
        owner = json.loads(lock.read_text())
        for other in ({**owner, "pid": 1}, {**owner, "birth": "1"}, []):
            lock.write_text(json.dumps(other))
            _locks.release(lock)
            assert lock.exists()
        lock.write_text(json.dumps(owner))
        _locks.release(lock)
        assert not lock.exists()

    @pytest.mark.parametrize(
        ("machine", "boot", "taken"),
        [("here", "earlier", True), ("there", "earlier", False), (None, "earlier", False), ("there", "this", True)],
    )
    def test_another_boot_of_this_machine_is_over_and_another_machine_of_its_name_is_respected(
        self, tmp_path, monkeypatch, machine, boot, taken
    ):
        monkeypatch.setattr(_locks, "_boot", lambda: "this")
        monkeypatch.setattr(_locks, "_machine", lambda: "here")
        lock = tmp_path / "a.lock"
        dead = {"pid": 2**22 + 1, "host": socket.gethostname(), "birth": "1", "boot": boot, "machine": machine}
        lock.write_text(json.dumps(dead))
        assert _locks.acquire(lock) is taken
