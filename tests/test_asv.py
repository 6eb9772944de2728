"""The asv suites: what asv discovers, what its pinned versions do with our results, and how runs are counted."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("asv", reason="needs the extra bench")
pytest.importorskip("asv_runner", reason="needs the extra bench")

from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks

from benchmarks import run
from benchmarks.counting import Counted, count, environment_name, read_results
from benchmarks.machine import asv_machine, machine_name
from benchmarks.suites import _bases, _common, _counts, battery
from biases import zoo
from biases.bench import facts
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


# Discovery


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


# Correctness before speed


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


# Deterministic tracks

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


# Counting


@given(st.lists(st.sampled_from([0.0, 1.5, math.nan, None]), min_size=1, max_size=6), st.booleans())
def test_every_selected_combination_is_measured_skipped_or_failed(outcomes, stale):
    listed = {
        "suite.track": {"params": [[repr(n) for n in range(len(outcomes))]]},
        "version": 2,
    }
    values = None if all(each is None for each in outcomes) else outcomes
    saved = {
        "result_columns": ["result", "params", "version", "started_at"],
        "results": {"suite.track": [values, [], "1", 5_000 if stale else 10_500]},
    }
    counted = count(listed, saved, since=10.9)
    expected = [None] * len(outcomes) if stale else outcomes
    assert counted.measured == sum(each is not None and not math.isnan(each) for each in expected)
    bad = (*counted.failed, *counted.missing)
    assert len(bad) == sum(each is None for each in expected)
    assert bool(counted.missing) == stale
    assert counted.measured + len(counted.skipped) + len(bad) == len(outcomes)
    assert (counted.exit_code == 1) == bool(bad)
    assert (counted.exit_code == 3) == (not counted.measured and not bad)


def test_combinations_that_were_not_selected_do_not_count():
    listed = {"suite.track": {"params": [["'a'", "'b'"], ["1", "2"]]}}
    saved = {
        "result_columns": ["result", "started_at"],
        "results": {"suite.track": [[1.0, math.nan, None, math.nan], 0]},
    }
    assert count(listed, saved, [r"'a'"]) == Counted(1, ("suite.track('a', 2)",))
    assert count(listed, saved, [r"'b', 1"]) == Counted(0, (), ("suite.track('b', 1)",))
    assert count(listed, saved, ["other"]).exit_code == 3


def test_a_run_without_results_has_failed():
    assert count({"suite.track": {"params": []}}, {}) == Counted(0, missing=("suite.track",))
    assert count({"suite.track": {"params": []}}, {}).exit_code == 1
    assert count({}, {}).exit_code == 3


# Machine


def test_the_machine_is_named_by_what_changes_times():
    found = {"cpu": "Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "cores": 8, "usable_cores": 2, "torch": "2.13.0+cpu"}
    found["threads"] = 2
    assert machine_name(found) == "intel-xeon-gold-6330-2c-torch2.13.0-2t"
    assert machine_name({**found, "threads": 1}) == "intel-xeon-gold-6330-2c-torch2.13.0-1t"
    cuda = {"cuda_device": "NVIDIA H100 80GB HBM3", "cuda_driver": "570.86.15", "cuda_version": "12.8"}
    named = "h100-80gb-hbm3-driver570.86.15-cuda12.8-torch2.13.0-2t"
    assert machine_name({**found, **cuda, "torch": "2.13.0+cu128"}) == named
    assert machine_name({"torch": "2.9.1"}).endswith("torch2.9.1")


def test_this_machine_has_a_name_and_all_that_asv_records():
    described = asv_machine(facts())
    assert re.fullmatch(r"[a-z0-9.-]+", described["machine"])
    assert list(described) == ["machine", "os", "arch", "cpu", "num_cpu", "ram"]
    assert all(described.values())


# asv itself

SLOW = """
import time

def track_done():
    return 1

def track_long():
    print("begun", flush=True)
    time.sleep(600)

track_long.timeout = 700
"""
TINY = """
class Suite:
    params = ["good", "wrong", "missing"]
    version = "1"
    timeout = 60

    def setup(self, case):
        if case == "missing":
            raise NotImplementedError("no such device")
        assert case != "wrong"

    def track_samples(self, case):
        return {"samples": [0.010, 0.011, 0.012, 0.011], "number": 1}

    track_samples.unit = "seconds"

    def track_plain(self, case):
        return 7
"""


def write_suite(folder: Path, text: str) -> None:
    """A suite and asv's files for it."""
    (folder / "suite").mkdir()
    (folder / "suite" / "__init__.py").write_text("")
    (folder / "suite" / "tiny.py").write_text(text)
    config = {
        "version": 1,
        "project": "tiny",
        "repo": str(folder),
        "dvcs": "git",
        "branches": ["HEAD"],
        "benchmark_dir": str(folder / "suite"),
        "results_dir": str(folder / "results"),
        "env_dir": str(folder / "env"),
        "environment_type": "virtualenv",
        "plugins": [".benchmarks.checkout"],
    }
    (folder / "asv.conf.json").write_text(json.dumps(config))
    machine = {"machine": "here", "os": "", "arch": "", "cpu": "", "num_cpu": "", "ram": "", "version": 1}
    (folder / ".asv-machine.json").write_text(json.dumps({"here": machine, "version": 1}))


def asv(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    home = {**os.environ, "HOME": str(folder)}
    command = [sys.executable, "-m", "asv", "--config", str(folder / "asv.conf.json"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=home, capture_output=True, text=True, timeout=200, check=False)


def git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A repository with two commits, and the results of a run of a tiny suite for each."""
    folder = tmp_path_factory.mktemp("tiny")
    write_suite(folder, TINY)
    git(folder, "init")
    git(folder, "add", "suite")
    commits = []
    for message in ("first", "second"):
        git(folder, "commit", "--allow-empty", "-m", message)
        commits.append(git(folder, "rev-parse", "HEAD"))
        done = asv(
            folder, "run", "-E", "checkout:same", "--set-commit-hash", commits[-1], "--machine", "here",
            "--record-samples", "--launch-method", "forkserver",
        )  # fmt: skip
        assert done.returncode == 2, done.stdout + done.stderr
    return folder, commits


def test_samples_of_a_track_are_statistics_in_the_pinned_asv(tiny):
    folder, commits = tiny
    listed, saved = read_results(folder / "results", "here", commits[0])
    assert saved["env_name"] == environment_name()
    row = dict(zip(saved["result_columns"], saved["results"]["tiny.Suite.track_samples"], strict=False))
    assert row["result"][0] == 0.011
    assert row["samples"][0] == [0.010, 0.011, 0.012, 0.011]
    assert row["stats_number"][0] == 1
    assert row["stats_repeat"][0] == 4
    assert row["stats_ci_99_a"][0] <= 0.011 <= row["stats_ci_99_b"][0]
    assert listed["tiny.Suite.track_samples"]["unit"] == "seconds"


def test_samples_of_a_track_are_shown_with_their_spread_by_asv_compare(tiny):
    folder, commits = tiny
    done = asv(folder, "compare", "--machine", "here", *commits)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"11\.0±0\.\d+ms .*11\.0±0\.\d+ms .*track_samples\('good'\)", done.stdout), done.stdout


def test_what_raised_is_failed_and_what_was_skipped_is_not(tiny):
    folder, commits = tiny
    counted = count(*read_results(folder / "results", "here", commits[0]))
    assert counted.measured == 2
    assert counted.skipped == tuple(f"tiny.Suite.track_{name}('missing')" for name in ("plain", "samples"))
    assert counted.failed == tuple(f"tiny.Suite.track_{name}('wrong')" for name in ("plain", "samples"))
    only = count(*read_results(folder / "results", "here", commits[0]), ["missing"])
    assert only.exit_code == 3


INTERRUPTED_RUN = """
import sys
from pathlib import Path
from benchmarks import run

run.ROOT = Path(sys.argv[1])
sys.exit(run.main(["--full", "--results", sys.argv[2]]))
"""


def test_an_interrupted_run_keeps_what_was_measured_and_says_so(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    write_suite(folder, SLOW)
    config = json.loads((folder / "asv.conf.json").read_text())
    config |= {"benchmark_dir": "suite", "env_dir": "env", "html_dir": "html"}
    (folder / "asv.conf.json").write_text(json.dumps(config))
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    git(folder, "init")
    git(folder, "add", "suite")
    git(folder, "commit", "-m", "first")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERRUPTED_RUN, str(folder), str(tmp_path / "asv")]
    # One that is started in the background ignores Ctrl-C otherwise.
    begun = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=begun
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "track_done" in line:
                time.sleep(0.5)
                process.send_signal(signal.SIGINT)
        code = process.wait(timeout=100)
    printed = "".join(lines)
    assert code == run.INTERRUPTED, printed
    assert "Traceback" not in printed
    assert "1 measured, 0 skipped, 0 failed, 1 never run" in printed
    (summary,) = (tmp_path / "asv-runs").glob("*.json")
    written = json.loads(summary.read_text())
    assert not written["complete"]
    assert written["never_run"] == ["tiny.track_long"]


def test_a_pattern_that_is_no_regular_expression_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["-b", "("])
    assert ended.value.code == 2
    assert "expected a regular expression, got '('" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_measures_counts_and_keeps_its_results(monkeypatch, tmp_path, capfd):
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout, whose revision would name the results")
    monkeypatch.setenv("HOME", str(tmp_path))
    results = tmp_path / "asv"
    common = ["--results", str(results)]
    pattern = r"^operators\.Counts\.track_operators\('swat', 256, 'float32', .*, 'forward'\)"
    assert run.main([*common, "-b", pattern, "-b", r"battery\.Properties\..*\('deterministic'\)"]) == 0
    printed = capfd.readouterr().out
    cuda = torch.cuda.is_available()
    assert f"{2 + cuda} measured, {1 - cuda} skipped" in printed
    assert "0 failed" in printed
    machine = machine_name(facts())
    assert len(list((results / machine).glob(f"*-{environment_name()}.json"))) == 1
    (summary,) = (tmp_path / "asv-runs").glob(f"{machine}-*.json")
    assert json.loads(summary.read_text())["measured"] == 2 + cuda
    assert run.main([*common, "-b", "no such benchmark"]) == 3
