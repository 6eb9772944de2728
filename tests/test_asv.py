"""asv runs: what its pinned versions do with our results, how runs are counted, and machines named."""

from __future__ import annotations

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

from benchmarks import run
from benchmarks.counting import Counted, count, environment_name, read_results
from benchmarks.machine import asv_machine, machine_name
from biases.bench import facts

ROOT = Path(__file__).parent.parent


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


def test_the_machine_is_named_by_what_changes_times():
    found = {"cpu": "Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "cores": 8, "usable_cores": 2, "torch": "2.13.0+cpu"}
    found["threads"] = 2
    assert machine_name(found) == "intel-xeon-gold-6330-2c-torch2.13.0-2t"
    assert machine_name({**found, "threads": 1}) == "intel-xeon-gold-6330-2c-torch2.13.0-1t"
    cuda = {"cuda_device": "NVIDIA H100 80GB HBM3", "cuda_driver": "570.86.15", "cuda_version": "12.8"}
    named = "h100-80gb-hbm3-driver570.86.15-cuda12.8-intel-xeon-gold-6330-2c-torch2.13.0-2t"
    assert machine_name({**found, **cuda, "torch": "2.13.0+cu128"}) == named
    # Suites of the CPU run there too.
    assert "-amd-epyc-9554-2c-" in machine_name({**found, **cuda, "cpu": "AMD EPYC 9554 64-Core Processor"})
    assert machine_name({"torch": "2.9.1"}).endswith("torch2.9.1")


def test_this_machine_has_a_name_and_all_that_asv_records():
    described = asv_machine(facts())
    assert re.fullmatch(r"[a-z0-9.-]+", described["machine"])
    assert list(described) == ["machine", "os", "arch", "cpu", "num_cpu", "ram"]
    assert all(described.values())


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
