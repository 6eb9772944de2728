"""The asv suites: what asv discovers, that results are right before they are timed, and the deterministic tracks."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("asv", reason="needs the extra bench")
pytest.importorskip("asv_runner", reason="needs the extra bench")

from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks

from benchmarks import run
from benchmarks.suites import _bases, _common, _counts, battery
from biases import zoo
from biases.bench.workloads import Workload, prepare

ROOT = Path(__file__).parent.parent
SUITES = ROOT / "benchmarks" / "suites"
KINDS = {
    "battery": {"Layers.time_check", "Properties.time_check"},
    "operators": {"Cpu.time_call", "Cuda.track_call", "Kernels.track_kernels", "Memory.track_peak_bytes"},
    "layers": {"Cpu.time_call", "Cuda.track_call", "Kernels.track_kernels", "Compiled.track_graph_breaks"},
    "models": {"Cpu.time_call", "Cuda.track_call"},
    "training": {"Cpu.time_call", "Cuda.track_call"},
}
COUNTS = {
    "track_peak_bytes": "bytes",
    "track_allocated_bytes": "bytes",
    "track_operations": "operations",
    "track_operators": "operators",
}


@pytest.fixture(scope="module")
def benchmarks():
    """Name -> what asv_runner discovers."""
    importers, modules = list(sys.meta_path), set(sys.modules)
    update_sys_path(str(SUITES))
    try:
        return {found.name: found for found in disc_benchmarks(str(SUITES))}
    finally:
        sys.meta_path[:] = importers
        for name in set(sys.modules) - modules:
            if name.partition(".")[0] == "suites":
                del sys.modules[name]


def combinations(benchmark):
    """As asv matches them with patterns."""
    return [f"{benchmark.name}({', '.join(each)})" for each in itertools.product(*benchmark.params)]


def test_asv_discovers_every_kind_of_benchmark_of_every_level(benchmarks):
    expected = {f"{module}.{name}" for module, names in KINDS.items() for name in names}
    expected |= {f"{module}.Counts.{name}" for module in KINDS if module != "battery" for name in COUNTS}
    assert set(benchmarks) == expected


def test_asv_accepts_their_signatures(benchmarks):
    assert [name for name, each in benchmarks.items() if not each.check(str(SUITES))] == []


def test_versions_are_set_by_hand_and_times_are_seconds(benchmarks):
    for name, each in benchmarks.items():
        assert each.version == "1", name
        method = name.rpartition(".")[2]
        timed = method in ("time_call", "time_check", "track_call")
        assert each.unit == ("seconds" if timed else COUNTS.get(method, method.rpartition("_")[2])), name


@pytest.mark.parametrize("level", ["operators", "layers", "models", "training"])
def test_parameters_come_from_the_zoo(benchmarks, level):
    kind = "layer" if level in ("operators", "layers") else "model"
    for name, each in benchmarks.items():
        if name.startswith(f"{level}."):
            assert {repr(variant) for variant in zoo.names(kind)} <= set(each.params[0]), name
            assert set(each.params[3]) <= {"'cpu'", "'cuda'"}, name


def test_the_quick_selection_has_some_of_every_benchmark(benchmarks):
    chosen = {
        name: [label for label in combinations(each) if any(re.search(pattern, label) for pattern in run.QUICK)]
        for name, each in benchmarks.items()
    }
    assert [name for name, labels in chosen.items() if not labels] == []
    labels = [label for labels in chosen.values() for label in labels]
    assert [pattern for pattern in run.QUICK if not any(re.search(pattern, label) for label in labels)] == []
    assert len(labels) < sum(len(combinations(each)) for each in benchmarks.values()) / 20


def test_every_property_measured_applies_to_its_layer():
    assert set(battery.SUBJECTS.values()) <= set(battery.LAYERS)
    assert battery.check(battery.SUBJECTS["deterministic"], ("deterministic",)) == 1


def workload(check, run=lambda: None):
    return Workload(
        name="planted",
        level="operator",
        setting=None,
        causal=False,
        run=run,
        floor=None,
        check=check,
        checked="",
        tokens=1,
        flops=lambda: 0,
        traffic=None,
        formulations=tuple,
    )


@pytest.fixture
def planted(monkeypatch):
    """Let the suites prepare this workload."""

    def plant(made):
        monkeypatch.setattr(_common, "prepare", lambda level, name, setting: made)
        _common.prepared.cache_clear()
        _common.checked.cache_clear()

    yield plant
    _common.prepared.cache_clear()
    _common.checked.cache_clear()


class Planted(_bases.CpuLatency):
    level = "operator"


WHERE = ("planted", 16, "float32", "cpu", "forward")


def test_a_wrong_result_fails_before_it_is_timed(planted):
    runs = []

    def wrong():
        raise AssertionError("off by one")

    planted(workload(wrong, lambda: runs.append(1)))
    with pytest.raises(AssertionError, match="off by one"):
        Planted().setup(*WHERE)
    assert runs == []


def test_a_right_result_is_checked_once_and_prepared_once(planted):
    checks = []
    planted(workload(lambda: checks.append(1)))
    suite = Planted()
    for _ in range(3):
        suite.setup(*WHERE)
    assert checks == [1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_skipped():
    with pytest.raises(NotImplementedError, match="no CUDA device"):
        Planted().setup("alibi", 16, "float32", "cuda", "forward")


def test_a_battery_that_finds_a_fault_is_no_measurement(monkeypatch):
    monkeypatch.setattr(battery, "get", lambda name: type("Variant", (), {"known_failures": {}}))
    with pytest.raises(AssertionError, match=r"^ega: future-independence: "):
        battery.check("ega", ("future-independence",))


TRACKS = """
import json, torch
from benchmarks.suites import operators, layers
found = {}
for suite, where in (
    (operators.Counts, ("ega-token", 64, "float32", "cpu", "forward+backward")),
    (operators.Counts, ("manhattan-decomposed", 64, "float32", "cpu", "forward")),
    (layers.Counts, ("swat", 64, "float32", "cpu", "forward+backward")),
):
    made = suite()
    made.setup(*where)
    for name in ("track_peak_bytes", "track_allocated_bytes", "track_operations", "track_operators"):
        found[f"{suite.__module__}.{name}{where}"] = getattr(made, name)(*where)
print(json.dumps(found))
"""


def test_deterministic_tracks_are_equal_between_two_runs():
    def one_run():
        done = subprocess.run(
            [sys.executable, "-c", TRACKS], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = one_run()
    assert len(first) == 12
    assert all(value > 0 for value in first.values())
    assert one_run() == first


def test_a_planted_quadratic_tensor_shows_in_both_byte_counts():
    n = 96
    x = torch.ones(n, 4)
    outer, plain = lambda: (x @ x.mT).sum(), lambda: x.sum()
    device = torch.device("cpu")
    for counted in (_counts.allocated_bytes, _bases.peak_bytes):
        assert counted(outer, device) - counted(plain, device) == 4 * n * n


def test_operators_are_those_dispatched():
    a, b = torch.ones(8, 16), torch.ones(16, 32)
    assert _counts.operators(lambda: (a @ b).t().relu()) == 3


class OperatorCounts(_bases.Counts):
    level, heads, head_dim = "operator", 2, 16


class LayerCounts(OperatorCounts):
    level = "layer"


@pytest.fixture
def with_backend(monkeypatch):
    """Let the suites prepare for this backend."""

    def plant(backend):
        monkeypatch.setattr(_common, "prepare", partial(prepare, backend=backend))
        _common.prepared.cache_clear()

    yield plant
    _common.prepared.cache_clear()


@pytest.mark.parametrize("suite", [OperatorCounts, LayerCounts])
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_operations_do_not_change_with_the_formulation_and_operators_do(with_backend, suite, direction):
    where = ("swat", 32, "float32", "cpu", direction)
    found = {}
    for backend in ("reference", "dense", "fused"):
        with_backend(backend)
        made = suite()
        made.setup(*where)
        found[backend] = made.track_operations(*where), made.track_operators(*where)
    operations, operators = zip(*found.values(), strict=True)
    assert len(set(operations)) == 1
    assert len(set(operators)) > 1


@pytest.mark.parametrize(("direction", "products"), [("forward", 2), ("forward+backward", 7)])
@pytest.mark.parametrize(("name", "pairs"), [("alibi-symmetric", 32 * 32), ("standard", 32 * 33 // 2)])
def test_attention_counts_two_products_forward_and_seven_with_backward(name, pairs, direction, products):
    where = (name, 32, "float32", "cpu", direction)
    made = OperatorCounts()
    made.setup(*where)
    assert made.track_operations(*where) == products * 2 * 2 * pairs * 16


def test_counts_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    where = ("standard", 16, "float32", "cpu", "forward")
    try:
        torch.set_num_threads(2)
        made = OperatorCounts()
        made.setup(*where)
        for name in COUNTS:
            getattr(made, name)(*where)
        assert torch.get_num_threads() == 2
        with _bases.one_thread():
            assert torch.get_num_threads() == 1
        made.run = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            made.track_operators(*where)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_graph_breaks_are_counted_and_nothing_captured_is_an_error():
    x = torch.ones(3)

    def broken():
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    assert _counts.graph_breaks(lambda: x + 1) == 0
    assert _counts.graph_breaks(broken) == 1
    with pytest.raises(RuntimeError, match="at least one captured graph"):
        _counts.graph_breaks(lambda: None)


@pytest.mark.gpu
def test_samples_on_cuda_are_positive_and_kernels_are_counted():
    x = torch.ones(1 << 16, device="cuda")
    samples = _common.cuda_samples(lambda: x + 1, rounds=7, warmup=1)
    assert len(samples) == 7
    assert all(0 < seconds < math.inf for seconds in samples)
    assert _counts.kernels(lambda: (x + 1) * 2) == 2
    assert _counts.allocated_bytes(lambda: x + 1, x.device) == x.nbytes
