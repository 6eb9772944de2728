"""``biases compare``: verdicts, on small repositories whose faults are planted. Times are never asserted."""

from __future__ import annotations

import json

import pytest
from compare_repository import PACKAGE, PEAK, SLOW, SQUARE, SUITE, WORK, rows, scratch_folder, two_equal_commits

from biases.bench.compare.render import markdown

pytest.importorskip("scipy")

scratch = pytest.fixture(scratch_folder)
repo = pytest.fixture(two_equal_commits)
UNJUDGED = {"no change", "inconclusive", "unsettled"}


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
