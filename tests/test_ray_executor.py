"""Cells on a Ray cluster: two nodes of this machine, one of which is killed while its cell runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from ablation_models import FAST, WORDS

import biases
from biases.ablation import Grid, ModelConfig, run_grid
from biases.ablation.executors import UnitDied
from biases.ablation.executors.ray import open_ray

MODEL = ModelConfig(attention="standard", layers=1, heads=1, dim=8, context=12, dropout=0.0)
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}

on_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray, the extra of that name")


def where(cells, data, progress):
    import ray

    return [{"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()} for _ in cells]


def refused(kind, message, **options):
    with pytest.raises(kind, match=message), open_ray("data", where, **options):
        pass


def eventually(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"not within {seconds:g} s: {condition}")


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def written(path):
    """A process id that a worker left in a file."""
    eventually(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


@pytest.fixture(scope="module")
def head():
    """A cluster of one node with one processor; its token is known to this process and its children alone."""
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": os.pathsep.join([str(Path(biases.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    # Paths of sockets are limited to about a hundred characters, which pytest's own folders may exceed.
    folder, before = tempfile.mkdtemp(prefix="ray-"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        # Ray adds the driver's directory to the workers' path, where a checkout would be found.
        os.chdir(folder)
        import ray
        from ray._raylet import Config
        from ray.cluster_utils import Cluster

        # Ray reads the mode when it is imported, which may have been before.
        Config.initialize("")
        # The nodes cannot import this module.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "temp_dir": folder})
        yield cluster
        cluster.shutdown()
        os.chdir(before)
    Config.initialize("")
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def second_node(cluster, **options):
    node = cluster.add_node(**{**NODE, **options})
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)
        eventually(lambda: node.node_id not in alive_nodes(cluster))


def alive_nodes(cluster):
    return {node["NodeID"] for node in cluster.global_state.node_table() if node["Alive"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, "cpus: expected an integer of at least 1, got 0"),
        ({"gpus": 1.5}, "gpus: expected a whole number of at least 0, or a share of one GPU, got 1.5"),
        ({"gpus": float("nan")}, "gpus: expected a whole number"),
        ({"gpus": -1}, "gpus: expected a whole number"),
    ],
)
def test_what_no_cluster_could_give_is_refused(options, message):
    refused(ValueError, message, **options)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(ModuleNotFoundError, r"pip install 'attention-biases\[ray\]'")


@on_ray
@pytest.mark.parametrize("address", ["ray://somewhere:10001", "somewhere", "local:port"])
def test_an_address_that_is_none_is_refused(address):
    expected = "Ray address: expected HOST:PORT, or 'auto' on a machine of the cluster"
    refused(ValueError, expected, address=address)


@on_ray
def test_a_cluster_that_is_not_there_is_told_at_once():
    refused(ConnectionError, r"Ray cluster 127\.0\.0\.1:9: ", address="127.0.0.1:9")


@on_ray
@pytest.mark.slow
def test_a_grid_outlives_a_node(head, tmp_path):
    """Every cell is there once, with the numbers of a local run; what had run on the dead node ran again."""
    text = tmp_path / "text.txt"
    text.write_text(WORDS)
    grid = Grid(arms={"standard": MODEL}, train=FAST, seeds=tuple(range(6)), data=str(text))
    expected = run_grid(grid, tmp_path / "local")
    told = []

    with second_node(head) as node:
        flag = tmp_path / "started-on-second"
        dead, hold = node.node_id, 1000

        @contextlib.contextmanager
        def opened(data, work):
            def slow_there(cells, data, progress):
                import ray

                if ray.get_runtime_context().get_node_id() == dead:
                    flag.write_text(f"{os.getpid()}\n")
                    time.sleep(hold)
                return work(cells, data, progress)

            with open_ray(data, slow_there, address=head.address) as executor:
                assert executor.slots == 2
                yield executor
                eventually(lambda: executor.slots == 1)

        def progress(event):
            told.append(event)
            if flag.exists() and node in head.worker_nodes:
                head.remove_node(node, allow_graceful=False)

        found = run_grid(grid, tmp_path / "ray", executor=opened, progress=progress)

    assert not alive(written(flag))
    assert [result["id"] for result in found] == [cell.id for cell in grid.cells()]
    assert sorted(path.stem for path in (tmp_path / "ray" / "cells").glob("*.json")) == sorted(
        cell.id for cell in grid.cells()
    )
    assert list((tmp_path / "ray" / "cells").glob("*.lock")) == []
    for ours, theirs in zip(found, expected, strict=True):
        assert {**ours["metrics"], "curve": ours["curve"]} == {**theirs["metrics"], "curve": theirs["curve"]}
        assert ours["status"] == "ok"
        assert ours["data"] == theirs["data"]
    assert {event["event"] for event in told} >= {"started", "step", "evaluation", "finished"}
    assert sum(event["event"] == "finished" for event in told) == 6


@on_ray
@pytest.mark.slow
def test_nodes_may_join(head):
    with open_ray("data", where, address=head.address) as executor:
        assert executor.slots == 1
        with second_node(head, num_cpus=3) as node:
            eventually(lambda: executor.slots == 4)
            futures = [executor.submit((1,)) for _ in range(8)]
            assert {future.result(90)[0]["node"] for future in futures} <= {node.node_id, head.head_node.node_id}


@on_ray
@pytest.mark.slow
def test_a_failure_of_the_work_is_handed_on(head):
    def fails(cells, data, progress):
        raise ValueError(f"of {data}")

    with open_ray("data", fails, address=head.address) as executor:
        error = executor.submit((1,)).exception(60)
    assert isinstance(error, ValueError)
    assert "of data" in str(error)


@on_ray
@pytest.mark.slow
def test_a_unit_that_kills_its_workers_is_given_up(head, tmp_path, monkeypatch):
    monkeypatch.setattr("biases.ablation.executors.ray.RETRIES", 2)
    tries = tmp_path / "tries"
    cell = Grid(arms={"standard": MODEL}, train=FAST, seeds=(0,), data="pydoc").cells()[0]

    def dies(cells, data, progress):
        with tries.open("a") as file:
            file.write("x")
        os._exit(1)

    with open_ray("data", dies, address=head.address) as executor:
        error = executor.submit((cell,)).exception(120)
    assert isinstance(error, UnitDied)
    assert str(error).startswith(f"Ray gave up on {cell.id}")
    assert tries.read_text() == "xxx"


@on_ray
@pytest.mark.slow
def test_a_block_left_by_an_exception_ends_its_work(head, tmp_path):
    flag = tmp_path / "pid"

    def endless(cells, data, progress):
        flag.write_text(f"{os.getpid()}\n")
        time.sleep(1000)

    def interrupted():
        with open_ray("data", endless, address=head.address) as executor:
            executor.submit((1,))
            assert alive(written(flag))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    eventually(lambda: not alive(written(flag)))


@on_ray
@pytest.mark.slow
def test_work_ends_with_a_killed_driver(head, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, pathlib, time
        from biases.ablation.executors.ray import open_ray

        def endless(cells, data, progress):
            pathlib.Path({str(tmp_path / "pid")!r}).write_text(f"{{os.getpid()}}\\n")
            time.sleep(1000)

        with open_ray("data", endless, address={head.address!r}) as executor:
            executor.submit((1,)).result()
        """)
    )
    driver = subprocess.Popen([sys.executable, str(script)])
    try:
        pid = written(tmp_path / "pid")
        assert alive(pid)
        driver.send_signal(signal.SIGKILL)
        eventually(lambda: not alive(pid))
    finally:
        driver.kill()
        driver.wait()


@on_ray
@pytest.mark.slow
def test_nodes_with_other_code_or_none_are_refused(head, tmp_path):
    none, other = tmp_path / "none", tmp_path / "other"
    (none / "biases").mkdir(parents=True)
    (none / "biases" / "__init__.py").write_text("raise ModuleNotFoundError('no such package')\n")
    shutil.copytree(
        Path(biases.__file__).parent, other / "biases", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    (other / "biases" / "models" / "one_more.py").write_text("")
    for path, got in ((none, "biases none that can be imported .no such package"), (other, "code of biases ")):
        with second_node(head, env_vars={"PYTHONPATH": str(path)}):
            expected = rf"Ray node .*: expected code of biases .*, as here, got {got}"
            refused(ValueError, expected, address=head.address)


@on_ray
@pytest.mark.slow
def test_a_node_with_other_code_that_joins_later_is_refused_by_its_cell(head, tmp_path):
    (tmp_path / "biases").mkdir()
    (tmp_path / "biases" / "__init__.py").write_text("raise ModuleNotFoundError('no such package')\n")
    release = tmp_path / "release"

    def waits(cells, data, progress):
        while not release.exists():
            time.sleep(0.05)
        return list(cells)

    with open_ray("data", waits, address=head.address) as executor:
        first = executor.submit((1,))
        eventually(lambda: free_processors() == 0)
        with second_node(head, env_vars={"PYTHONPATH": str(tmp_path)}):
            error = executor.submit((2,)).exception(90)
        release.touch()
        assert first.result(60) == [1]
    assert isinstance(error, ValueError)
    assert "a Ray node: expected code of biases" in str(error)


def free_processors():
    import ray

    return ray.available_resources().get("CPU", 0)


@on_ray
@pytest.mark.slow
def test_a_cell_larger_than_every_node_is_refused(head):
    expected = "Ray cluster: expected a node with {} for a cell, got nodes with .*'CPU': 1"
    refused(ValueError, expected.format("2 CPUs and 0 GPUs"), address=head.address, cpus=2)
    refused(ValueError, expected.format("1 CPUs and 0.5 GPUs"), address=head.address, gpus=0.5)


@on_ray
@pytest.mark.slow
def test_cells_with_a_gpu_are_told_their_device(head):
    """Ray counts GPUs by what a node declares, so a declared one shows how a cell is called."""

    def device_of(cells, data, progress, *, device="cpu"):
        return [(device, os.environ.get("CUDA_VISIBLE_DEVICES"))]

    with second_node(head, num_gpus=1), open_ray("data", device_of, address=head.address, gpus=0.5) as executor:
        assert executor.slots == 1
        assert executor.submit((1,)).result(60) == [("cuda", "0")]


@on_ray
@pytest.mark.slow
def test_a_connection_of_the_caller_is_used_and_kept(head):
    import ray

    ray.init(address=head.address, log_to_driver=False)
    try:
        refused(ValueError, "Ray address: .* which this process is connected to", address="127.0.0.1:9")
        with open_ray("data", where) as executor:
            assert executor.submit((1,)).result(60)[0]["pid"] != os.getpid()
        assert ray.is_initialized()
    finally:
        ray.shutdown()
