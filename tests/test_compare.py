"""The comparison of commits, on small repositories whose faults are planted. Times are never asserted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from biases._files import writable_file, writable_folder
from biases.bench.compare import Comparison, Options, Row, compare
from biases.bench.compare.render import markdown
from biases.bench.compare.revisions import Repository, State, find_suite
from biases.cli import main

pytest.importorskip("scipy")

PACKAGE = """
def work():
    return sum(range(2000))

def table(n):
    return [0.0] * n
"""
SUITE = """
import tracemalloc
import pkg

def time_work():
    pkg.work()

class Table:
    params = [64]
    param_names = ["n"]

    def track_peak(self, n):
        tracemalloc.start()
        try:
            pkg.table(n)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    track_peak.unit = "bytes"
"""
PEAK, WORK = "ops.Table.track_peak(64)", "ops.time_work"
SLOW = PACKAGE.replace("sum(range(2000))", "[sum(range(2000)) for _ in range(30)]")
SQUARE = PACKAGE.replace("[0.0] * n", "[0.0] * n * n")
UNJUDGED = {"no change", "inconclusive", "unsettled"}


class Checkout:
    """A repository with a package and a suite, in one folder."""

    def __init__(self, root):
        self.root = root
        root.mkdir()
        self.git("init", "--quiet")
        self.git("config", "user.email", "nobody@example.org")
        self.git("config", "user.name", "nobody")
        self.write("pkg/__init__.py", PACKAGE)
        self.write("benchmarks/ops.py", SUITE)
        self.commit()

    def git(self, *arguments):
        return subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True).stdout

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(dedent(text))

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "one", "--allow-empty")

    def compare(self, base="HEAD", head=None, progress=None, **options):
        chosen = Options(**{"seconds": 0.01, "rounds": 10, **options})
        return compare(base, head, repository=self.root, options=chosen, progress=progress)

    def verdicts(self, *arguments, **options):
        return {row.name: row.verdict for row in self.compare(*arguments, **options).rows}


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where the temporary folders are made. Samples are short: the planted factors are large."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    for name in ("WARMUP_SECONDS", "SAMPLE_SECONDS"):
        monkeypatch.setattr(f"biases.bench.compare.measure.{name}", 0.002)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def repo(tmp_path, scratch):
    """Two equal commits; whatever the test does, nothing of a comparison may be left and the checkout is as it was."""
    checkout = Checkout(tmp_path / "checkout")
    checkout.commit()
    yield checkout
    assert not list(scratch.iterdir())
    assert len(checkout.git("worktree", "list").splitlines()) == 1


def rows(comparison):
    return {row.name: row for row in comparison.rows}


# Verdicts


def test_a_slowdown_is_a_regression_once_it_is_confirmed(repo):
    repo.write("pkg/__init__.py", SLOW)
    repo.commit()
    found = repo.compare("HEAD~1", "HEAD")
    row = rows(found)[WORK]
    assert row.verdict == "regression"
    assert row.confirmation.low > 1
    assert {side: len(values) for side, values in row.values.items()} == dict.fromkeys(
        ("base", "head", "base again", "head again"), row.estimate.rounds
    )
    assert rows(found)[PEAK].verdict == "no change"
    assert found.exit_code == 1


def test_a_speedup_is_an_improvement(repo):
    repo.write("pkg/__init__.py", SLOW)
    repo.commit()
    repo.write("pkg/__init__.py", PACKAGE)
    found = repo.compare("HEAD", bench="time_work")
    assert [row.verdict for row in found.rows] == ["improved"]
    assert found.exit_code == 0


def test_a_square_allocation_is_a_regression_at_once(repo):
    repo.write("pkg/__init__.py", SQUARE)
    row = rows(repo.compare(bench="track"))[PEAK]
    assert row.verdict == "regression"
    assert row.estimate is None
    assert row.confirmation is None
    assert row.head > 32 * row.base


def test_a_tolerance_lets_an_increase_pass(repo):
    repo.write("pkg/__init__.py", PACKAGE.replace("* n", "* (n + 1)"))
    assert repo.verdicts(bench="track") == {PEAK: "regression"}
    assert repo.verdicts(bench="track", tolerance=0.5) == {PEAK: "no change"}


def test_equal_commits_give_no_alarm(repo):
    found = repo.compare("HEAD~1", "HEAD", threshold=5)
    assert rows(found)[WORK].verdict in UNJUDGED
    assert rows(found)[PEAK].verdict == "no change"
    assert found.exit_code == 0


def test_what_base_cannot_run_is_no_failure(repo):
    repo.write("pkg/__init__.py", PACKAGE + "\ndef new():\n    pass\n")
    repo.write("pkg/extra.py", "")
    repo.write("benchmarks/later.py", "import pkg.extra\ndef track_later():\n    return 1\n")
    repo.write("benchmarks/ops.py", SUITE + "\ndef time_new():\n    pkg.new()\n")
    found = repo.compare()
    assert rows(found)["ops.time_new"].verdict == "not at base"
    assert "no attribute 'new'" in rows(found)["ops.time_new"].reason
    assert rows(found)["later.track_later"].verdict == "not at base"
    assert "later cannot be loaded: ModuleNotFoundError" in rows(found)["later.track_later"].reason
    assert found.exit_code == 0


def test_what_head_cannot_run_is_a_failure(repo):
    repo.write("pkg/__init__.py", "def work():\n    raise ValueError('broken')\n")
    found = repo.compare()
    assert rows(found)[WORK].verdict == "failed"
    assert "ValueError: broken" in rows(found)[WORK].reason
    assert "in work" in rows(found)[WORK].trace
    assert found.exit_code == 1


def test_a_module_of_the_suite_that_does_not_load_is_a_failure(repo):
    repo.write("benchmarks/broken.py", "import nothing_of_that_name")
    found = repo.compare(bench="track|broken")
    assert rows(found)["broken"].verdict == "failed"
    assert rows(found)[PEAK].verdict == "no change"


def test_a_suite_that_ends_its_process_fails_at_head_and_is_not_there_at_base(repo):
    repo.write("benchmarks/broken.py", "import os\nimport pkg\nif hasattr(pkg, 'END'):\n    os._exit(3)\n")
    repo.commit()
    repo.write("pkg/__init__.py", PACKAGE + "\nEND = True\n")
    repo.commit()
    (row,) = repo.compare("HEAD~1", "HEAD").rows
    assert (row.name, row.verdict) == ("suite", "failed")
    assert "exit code 3" in row.reason
    found = repo.compare("HEAD", "HEAD~1")
    assert {row.verdict for row in found.rows} == {"not at base"}
    assert all("suite cannot be loaded" in row.reason for row in found.rows)
    assert found.exit_code == 3


def test_only_skipped_benchmarks_are_nothing_measured(repo):
    repo.write("benchmarks/ops.py", "def time_gpu():\n    raise NotImplementedError('no device')\n")
    found = repo.compare()
    assert [(row.verdict, row.reason) for row in found.rows] == [("skipped", "no device")]
    assert found.exit_code == 3


def test_no_match_is_nothing_measured(repo, tmp_path):
    found = repo.compare(bench="no_such", out=tmp_path / "out")
    assert json.loads((tmp_path / "out/comparison.json").read_text())["exit_code"] == 3
    assert found.rows == ()
    assert found.exit_code == 3
    assert "no benchmark matches" in markdown(found)


def test_benchmarks_that_only_base_knows_are_named(repo):
    repo.write("pkg/names.py", "NAMES = ['old', 'kept']")
    repo.write(
        "benchmarks/ops.py", "from pkg.names import NAMES\ndef track_it(x):\n    return 1\ntrack_it.params = NAMES"
    )
    repo.commit()
    repo.write("pkg/names.py", "NAMES = ['kept', 'new']")
    expected = {"old": "not at head", "kept": "no change", "new": "not at base"}
    assert repo.verdicts() == {f"ops.track_it({name!r})": verdict for name, verdict in expected.items()}


# asv's conventions


def test_setup_teardown_cache_and_parameters(repo):
    repo.write(
        "benchmarks/ops.py",
        """
        SEEN = []

        def setup(*arguments):
            SEEN.append("module")

        class Suite:
            params = ([1, 2], ["a"])
            param_names = ["number", "letter"]

            def setup_cache(self):
                SEEN.append("cache")
                return {"ten": 10}

            def setup(self, cache, number, letter):
                SEEN.append("class")
                self.number = number

            def teardown(self, cache, number, letter):
                SEEN.append("teardown")

            def track_sum(self, cache, number, letter):
                return cache["ten"] + self.number

        def track_zz_order():
            return sum(3**position * len(what) for position, what in enumerate(SEEN[:-1]))
        """,
    )
    found = rows(repo.compare())
    assert found["ops.Suite.track_sum(1, 'a')"].head == 11
    assert found["ops.Suite.track_sum(2, 'a')"].head == 12
    order = ["cache", "module", "class", "teardown", "module", "class", "teardown"]
    assert found["ops.track_zz_order"].head == sum(3**position * len(what) for position, what in enumerate(order))


def test_setup_runs_again_for_every_sample_of_an_explicit_number(repo):
    repo.write(
        "benchmarks/ops.py",
        """
        COUNTS = {"Once": [0, 0], "Again": [0, 0]}

        class Once:
            def setup(self):
                COUNTS[type(self).__name__][0] += 1
                self.left = 3

            def time_call(self):
                COUNTS[type(self).__name__][1] += 1
                if type(self).__name__ == "Again":
                    self.left -= 1
                    assert self.left >= 0

        class Again(Once):
            number = 3

        def track_zz_once():
            return COUNTS["Once"][0]

        def track_zz_again():
            setups, calls = COUNTS["Again"]
            return calls / setups
        """,
    )
    found = rows(repo.compare())
    assert found["ops.track_zz_once"].head == 1
    assert found["ops.track_zz_again"].head == 3
    assert found["ops.Again.time_call"].number == 3


def test_tracks_that_vary_or_return_samples_are_judged_by_rounds(repo):
    repo.write(
        "benchmarks/ops.py",
        """
        import itertools
        COUNT = itertools.count(100)

        def track_varying():
            return next(COUNT)

        def track_latency():
            return {"samples": [0.5, 0.25, 1.0], "number": 1}

        def track_seconds():
            return 0.5

        def track_zero():
            return {"samples": [0.0], "number": 1}

        track_seconds.unit = "seconds"
        """,
    )
    found = rows(repo.compare())
    assert found["ops.track_varying"].estimate is not None
    assert found["ops.track_latency"].head == 0.5
    assert found["ops.track_latency"].estimate.ratio == found["ops.track_seconds"].estimate.ratio == 1
    assert found["ops.track_latency"].verdict == found["ops.track_seconds"].verdict == "no change"
    assert found["ops.track_zero"].verdict == "inconclusive"


def test_only_what_is_deterministic(repo):
    """No time is taken, not even of what turns out to vary, and nothing else is left out."""
    repo.write(
        "benchmarks/ops.py",
        """
        import itertools
        import pkg
        COUNT = itertools.count(100)

        def track_varying():
            return next(COUNT)

        def track_latency():
            return {"samples": [0.5, 0.25, 1.0], "number": 1}

        def track_seconds():
            raise AssertionError

        def track_size():
            return len(pkg.table(64))

        def time_work():
            raise AssertionError

        def peakmem_work():
            raise AssertionError

        track_seconds.unit = "seconds"
        """,
    )
    repo.write("pkg/__init__.py", SQUARE)
    found = repo.compare(deterministic_only=True)
    assert {row.name: row.verdict for row in found.rows} == {
        "ops.track_varying": "skipped",
        "ops.track_latency": "skipped",
        "ops.track_size": "regression",
    }
    assert found.exit_code == 1
    assert found.settings["deterministic_only"]
    assert "Only fixed quantities were compared" in markdown(found)
    assert repo.compare(deterministic_only=True, bench="varying|time").exit_code == 3
    only_times = repo.compare(deterministic_only=True, bench="seconds|time")
    assert (only_times.exit_code, only_times.rows) == (3, ())
    assert set(only_times.left_out) == {"ops.track_seconds", "ops.time_work"}
    assert "every benchmark that matches varies" in markdown(only_times)


def test_nothing_in_a_page_is_read_as_markup():
    hostile = "<b>a</b> | *b* `c`\n</td>"
    row = Row(f"ops.track_x('{hostile}')", "track", "", "regression", hostile, base=1.0, head=2.0)
    lost = Row("ops.track_y", "track", "", "failed", hostile)
    page = markdown(Comparison(State("a*b*<i>", "0" * 40), State("head", "1" * 40), (row, lost), {}, {}))
    shown = re.sub(r"(`+) .*? \1", "", page)
    assert not re.search(r"(?<!\\)[<*`]", shown.replace("**", "").replace("\n* ", "\n"))
    (line,) = (line for line in page.splitlines() if line.startswith("| `"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 7


def test_other_kinds_are_reported_or_named(repo):
    repo.write(
        "benchmarks/ops.py",
        """
        def peakmem_x():
            bytearray(10**6)

        def timeraw_x():
            pass

        class _Base:
            def time_x(self):
                pass
        """,
    )
    found = repo.compare()
    assert [(row.name, row.verdict) for row in found.rows] == [("ops.peakmem_x", "reported")]
    assert found.rows[0].head > 10**6
    assert found.not_compared == ("ops.timeraw_x",)
    assert r"timeraw\_x" in markdown(found)


def test_parameters_marked_as_skipped_are_skipped(repo):
    repo.write(
        "benchmarks/ops.py",
        """
        class Suite:
            params = [1, 2]
            skip_params = [(1,)]

            def track_x(self, n):
                return n

        def track_nan():
            return float("nan")
        """,
    )
    expected = {"ops.Suite.track_x(1)": "skipped", "ops.Suite.track_x(2)": "no change", "ops.track_nan": "skipped"}
    assert repo.verdicts() == expected


def test_output_and_input_of_benchmarks_do_not_disturb(repo):
    repo.write("benchmarks/ops.py", "import sys\ndef track_x():\n    print('{}')\n    return len(sys.stdin.read())\n")
    assert repo.verdicts() == {"ops.track_x": "no change"}


def test_a_process_that_dies_or_hangs_costs_its_benchmark_only(repo):
    repo.write(
        "benchmarks/ops.py",
        """
        import os, sys, time

        def track_dies():
            print("last words", file=sys.stderr, flush=True)
            os.abort()

        def track_hangs():
            time.sleep(600)

        track_hangs.timeout = 0.5

        def track_well():
            return 1
        """,
    )
    found = rows(repo.compare())
    assert "killed by SIGABRT" in found["ops.track_dies"].reason
    assert "last words" in found["ops.track_dies"].reason
    assert found["ops.track_hangs"].reason == "no answer within 0.5 s"
    assert {name: row.verdict for name, row in found.items()} == {
        "ops.track_dies": "failed",
        "ops.track_hangs": "failed",
        "ops.track_well": "no change",
    }


# What is measured


def test_the_working_tree_is_measured_as_it_is_and_left_alone(repo):
    repo.write(".gitignore", "ignored.py\n")
    repo.write("pkg/gone.py", "")
    repo.commit()
    repo.write("pkg/__init__.py", PACKAGE + "\nVALUE = 2\n")
    repo.write("pkg/untracked.py", "VALUE = 3")
    repo.write("pkg/ignored.py", "VALUE = 4")
    (repo.root / "pkg/gone.py").unlink()
    repo.write(
        "benchmarks/ops.py",
        """
        import importlib.util
        import pkg

        def track_changed():
            return getattr(pkg, "VALUE", 1)

        def track_modules():
            return sum(4**i for i, name in enumerate(["untracked", "ignored", "gone"])
                       if importlib.util.find_spec(f"pkg.{name}"))
        """,
    )
    before = repo.git("status", "--porcelain")
    found = repo.compare()
    assert found.head.dirty
    assert [(row.base, row.head) for row in found.rows] == [(1, 2), (16, 1)]
    assert repo.git("status", "--porcelain") == before


def test_both_sides_run_the_suite_of_head(repo):
    repo.write("benchmarks/ops.py", "from . import common\ndef track_x():\n    return common.VALUE\n")
    repo.write("benchmarks/common.py", "VALUE = 1")
    repo.commit()
    repo.write("benchmarks/common.py", "VALUE = 2")
    repo.write("benchmarks/only_here.py", "def track_y():\n    return 1\n")
    repo.commit()
    assert repo.verdicts("HEAD~1", "HEAD") == {"ops.track_x": "no change", "only_here.track_y": "no change"}
    assert repo.verdicts("HEAD", "HEAD~1") == {"ops.track_x": "no change"}


def test_measuring_the_wrong_files_is_a_failure(repo):
    suite = f"import sys\nsys.path.insert(0, {str(repo.root)!r})\nimport pkg\ndef track_x():\n    return 1\n"
    repo.write("benchmarks/ops.py", suite)
    (row,) = repo.compare().rows
    assert row.verdict == "failed"
    assert "expected module pkg from the measured tree, got" in row.reason


def test_source_folder_python_path_and_preparation(repo, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(repo.root / "lib"))
    repo.write("src/inner/__init__.py", "")
    repo.write("lib/outer/__init__.py", "")
    repo.write(
        "benchmarks/ops.py", "import inner, outer\nfrom inner.built import VALUE\ndef track_x():\n    return VALUE\n"
    )
    script = "from pathlib import Path; Path('src/inner/built.py').write_text('VALUE = 7')"
    repo.write("build.py", script)
    repo.commit()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    try:
        (row,) = repo.compare("HEAD", "HEAD", prepare=f"{sys.executable} build.py").rows
        with pytest.raises(ValueError, match="exit code 3"):
            repo.compare("HEAD", "HEAD", prepare=f"{sys.executable} -c 'raise SystemExit(3)'")
    finally:
        monkeypatch.delenv("GIT_DIR")
    assert (row.verdict, row.head) == ("no change", 7)


def test_hooks_of_the_user_are_not_run(repo, tmp_path):
    hook = repo.root / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    repo.compare(bench="track")
    assert not (tmp_path / "hooked").exists()


def test_a_suite_is_found_by_the_configuration_of_asv(tmp_path):
    (tmp_path / "perf/suite").mkdir(parents=True)
    (tmp_path / "perf/suite/a.py").touch()
    text = """{
        // where "it" is
        "benchmark_dir": "suite", /* http://x */
        "show_commit_url": "http://a//b",
        "default_benchmark_timeout": 5,
    }"""
    (tmp_path / "perf/asv.conf.json").write_text(text)
    assert find_suite(tmp_path, None) == ("perf/suite", 5.0)
    assert find_suite(tmp_path, "perf") == ("perf", 5.0)
    with pytest.raises(ValueError, match="suite: expected a folder with asv-style benchmarks"):
        find_suite(tmp_path, "nowhere")
    (tmp_path / "perf/asv.conf.json").write_text("{broken")
    with pytest.raises(ValueError, match="expected JSON"):
        find_suite(tmp_path, None)


def test_a_suite_may_lie_outside_of_the_repository(repo, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/few.py").write_text("import pkg\ndef track_x():\n    return 1\n")
    assert repo.verdicts(suite=str(tmp_path / "mine")) == {"few.track_x": "no change"}
    assert repo.verdicts(suite=str(repo.root / "benchmarks"), bench="track") == {PEAK: "no change"}


# Interruption and results


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_keeps_what_was_measured(repo, tmp_path, how):
    def interrupt(name, done, total):
        if done == 1:
            signal.raise_signal(how)

    before = signal.getsignal(signal.SIGTERM)
    found = repo.compare(progress=interrupt, out=tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) == before
    assert found.interrupted
    assert [row.name for row in found.rows] == [PEAK]
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    assert written["interrupted"]
    assert [row["name"] for row in written["rows"]] == [PEAK]
    assert "Interrupted" in markdown(found)


def test_a_killed_comparison_leaves_nothing_behind(repo, tmp_path, scratch):
    repo.write("benchmarks/ops.py", SUITE + "\ndef time_zz_hangs():\n    import time\n    time.sleep(600)\n")
    code = (
        f"from biases.cli import main; main(['compare', 'HEAD', '--rounds', '10', '--out', {str(tmp_path / 'out')!r}])"
    )
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=repo.root, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    seen = next((line for line in process.stderr if "time_zz_hangs" in line), None)
    process.kill()
    process.wait()
    process.stderr.close()
    assert seen is not None
    wait_until(lambda: not list(scratch.iterdir()))
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    assert {row["name"] for row in written["rows"]} == {PEAK, WORK}


@pytest.mark.parametrize("option", ["--markdown", "--out"])
def test_a_place_that_cannot_be_written_is_refused_before_measuring(repo, tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(repo.root)
    (tmp_path / "file").touch()
    assert main(["compare", "HEAD", option, str(tmp_path / "file" / "below")]) == 2
    printed = capsys.readouterr()
    assert f"{option.lstrip('-') if option == '--out' else option}: expected a f" in printed.err
    assert "that can be writ" in printed.err
    assert ops_named(printed.err) == []
    assert printed.out == ""


def ops_named(text):
    return [line for line in text.splitlines() if "ops." in line]


def test_refusing_a_place_leaves_files_as_they_were(tmp_path):
    (tmp_path / "page.md").write_text("mine")
    writable_file("--markdown", tmp_path / "page.md")
    writable_file("--markdown", tmp_path / "new.md")
    writable_file("--markdown", tmp_path / "pages" / "new.md")
    writable_folder("out", tmp_path / "new" / "folder")
    assert (tmp_path / "page.md").read_text() == "mine"
    assert not (tmp_path / "new.md").exists()
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(ValueError, match="--markdown: expected a file that can be written"):
        writable_file("--markdown", tmp_path)


def test_a_comparison_is_shown_even_if_its_page_can_no_longer_be_written(repo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(repo.root)
    (tmp_path / "pages").mkdir()

    def markdown_of(comparison):
        (tmp_path / "pages").rmdir()
        return ""

    monkeypatch.setattr("biases.bench.compare.render.markdown", markdown_of)
    assert main(["compare", "HEAD", "--bench", "track", "--markdown", str(tmp_path / "pages" / "page.md")]) == 1
    assert PEAK in capsys.readouterr().out


def wait_until(holds, seconds=60):
    """Another process does it; how soon does not matter."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds()


def test_the_command(repo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(repo.root)
    repo.write("pkg/__init__.py", SQUARE)
    page, out = tmp_path / "page.md", tmp_path / "out"
    common = ["compare", "HEAD", "--bench", "track", "--out", str(out)]
    assert main([*common, "--json", "--markdown", str(page)]) == 1
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((out / "comparison.json").read_text())
    assert printed["rows"] == written["rows"]
    assert printed["summary"] == {"regression": 1}
    assert printed["head"]["dirty"]
    assert printed["settings"]["seed"] == 0
    assert "| `ops.Table.track_peak(64)` |" in page.read_text()
    assert "**regression**" in page.read_text()
    assert main(common) == 1
    assert "regression: " in capsys.readouterr().out
    assert main(["compare", "HEAD", "--bench", "nothing"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "revision: expected a commit of"),
        (["--", "-x"], "revision: expected a commit of"),
        (["HEAD", "--suite", "pkgs"], "suite: expected a folder with asv-style benchmarks"),
        (["HEAD", "--threshold", "1"], "threshold: expected a ratio above 1, got 1.0"),
        (["HEAD", "--rounds", "3"], "rounds: expected at least 8, for intervals of 2 benchmarks"),
        (["HEAD", "--rounds", "0"], "rounds: expected an integer of at least 1"),
        (["HEAD", "--seconds", "0"], "seconds: expected a number above 0"),
        (["HEAD", "--tolerance", "-1"], "tolerance: expected a number of at least 0"),
        (["HEAD", "--bench", "("], "bench: expected a regular expression"),
        (["HEAD", "--python", "no-such-python"], "python: expected an interpreter that can be run"),
    ],
)
def test_bad_usage_says_what_was_expected(repo, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(repo.root)
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_outside_of_a_repository_is_bad_usage(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="expected a folder inside a git repository"):
        Repository(tmp_path)
    with pytest.raises(ValueError, match="expected an existing folder"):
        Repository(tmp_path / "nowhere")
