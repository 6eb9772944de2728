"""``biases compare``: asv's conventions in the suites that it runs."""

from __future__ import annotations

import pytest
from compare_repository import SQUARE, rows, scratch_folder, two_equal_commits

from biases.bench.compare.render import markdown

pytest.importorskip("scipy")

scratch = pytest.fixture(scratch_folder)
repo = pytest.fixture(two_equal_commits)

# Two tracks that only rounds can judge.
VARYING = """
import itertools
COUNT = itertools.count(100)

def track_varying():
    return next(COUNT)

def track_latency():
    return {"samples": [0.5, 0.25, 1.0], "number": 1}
"""


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
        VARYING
        + """
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
        VARYING
        + """
import pkg

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
