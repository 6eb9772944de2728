"""Measuring older commits: which, with what suites, resumed, and where it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import history
from benchmarks.counting import environment_name

ROOT = Path(__file__).resolve().parent.parent
# Instead of asv: the "measured" value is what the package of the commit says, and what it says decides how it went.
RUN = """
import json, subprocess, sys
from pathlib import Path
from biases import VALUE

assert Path("asv.conf.json").read_text() == "present"
results = Path(sys.argv[sys.argv.index("--results") + 1])
commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
(results / "here").mkdir(parents=True)
saved = {"value": VALUE, "suite": "SUITE", "options": sys.argv[3:]}
(results / "here" / f"{commit[:8]}-ENVIRONMENT.json").write_text(json.dumps(saved))
(results / "here" / "machine.json").write_text("{}")
listed = {"track": {"params": [[f"'{VALUE}'"]], "version": "1"}, "version": 2}
(results / "benchmarks.json").write_text(json.dumps(listed))
counts = results.with_name("asv-runs") / f"here-{commit[:8]}.json"
counts.parent.mkdir()
counts.write_text(json.dumps({"commit": commit, "measured": int(VALUE != "nothing")}))
sys.exit({"wrong": 1, "nothing": 1, "interrupted": 130}.get(VALUE, 0))
"""


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Checkout:
    """A repository whose commits hold a package with one value each."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "kept" / "asv"
        git(root, "init", "--quiet", "--initial-branch=main")
        (root / "biases").mkdir()
        self.write_suite("old")

    def write_suite(self, suite: str) -> None:
        folder = self.root / "benchmarks"
        (folder / "results").mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("")
        text = RUN.replace("SUITE", suite).replace("ENVIRONMENT", environment_name())
        (folder / "run.py").write_text(text)
        (self.root / "asv.conf.json").write_text(suite)

    def commit(self, value: str, text: str = "VALUE = {!r}\n") -> str:
        (self.root / "biases" / "__init__.py").write_text(text.format(value))
        git(self.root, "add", ".")
        git(self.root, "commit", "--quiet", "-m", value)
        return git(self.root, "rev-parse", "HEAD")

    def kept(self) -> dict[str, dict]:
        """What was kept, by the commit's first digits."""
        return {path.name[:8]: json.loads(path.read_text()) for path in self.results.glob("here/*-*.json")}

    def run(self, *arguments: str) -> int:
        return history.main(["--results", str(self.results), *arguments])


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Checkout:
    made = Checkout(tmp_path)
    monkeypatch.setattr(history, "ROOT", tmp_path)
    monkeypatch.setattr(history, "machine_name", lambda facts: "here")
    return made


def test_commits_that_changed_the_package_are_measured_with_the_present_suites(checkout, capsys):
    commits = [checkout.commit(value) for value in ("one", "two", "three")]
    (checkout.root / "README").write_text("")
    git(checkout.root, "add", "README")
    git(checkout.root, "commit", "--quiet", "-m", "changes no times")
    checkout.write_suite("present")
    assert checkout.run("2", "--branch", "main", "--", "--full") == 0
    assert {name: (saved["value"], saved["suite"]) for name, saved in checkout.kept().items()} == {
        commits[1][:8]: ("two", "present"),
        commits[2][:8]: ("three", "present"),
    }
    assert all(saved["options"] == ["--full"] for saved in checkout.kept().values())
    counts = checkout.results.with_name("asv-runs") / f"here-{commits[2][:8]}.json"
    # The checkout's suites are not those that were committed.
    assert json.loads(counts.read_text())["suite"] == f"{git(checkout.root, 'rev-parse', 'HEAD')}-dirty"
    listed = json.loads((checkout.results / "benchmarks.json").read_text())
    assert listed == {"track": {"params": [["'three'", "'two'"]], "version": "1"}, "version": 2}
    # The checkout itself is as it was.
    assert git(checkout.root, "rev-parse", "HEAD^") == commits[2]
    assert git(checkout.root, "worktree", "list").count("\n") == 0
    capsys.readouterr()


def test_results_that_were_added_do_not_change_the_suites(checkout):
    commits = [checkout.commit(value) for value in ("one", "two")]
    checkout.write_suite("present")
    head = checkout.commit("three")
    (checkout.root / "benchmarks" / "results" / "other.json").write_text("{}")
    assert checkout.run("2", "--branch", "main~1") == 0
    for commit in commits:
        counts = checkout.results.with_name("asv-runs") / f"here-{commit[:8]}.json"
        assert json.loads(counts.read_text())["suite"] == head


def test_the_same_command_goes_on_where_it_was_stopped(checkout, capsys):
    older, newer = checkout.commit("interrupted"), checkout.commit("one")
    checkout.write_suite("present")
    assert checkout.run("9") == history.INTERRUPTED
    assert list(checkout.kept()) == [newer[:8]]
    path = checkout.results / "here" / f"{newer[:8]}-{environment_name()}.json"
    path.write_text('"as it was"')
    assert checkout.run("9") == history.INTERRUPTED
    assert path.read_text() == '"as it was"'
    printed = capsys.readouterr().out
    assert f"{newer[:8]} (1 of 2): has results" in printed
    assert f"{older[:8]} (2 of 2): measuring" in printed


def test_what_fails_in_an_older_commit_is_kept_and_told_by_the_exit_code(checkout):
    checkout.commit("wrong")
    checkout.commit("one")
    checkout.write_suite("present")
    assert checkout.run("2") == 1
    assert sorted(saved["value"] for saved in checkout.kept().values()) == ["one", "wrong"]


# One that cannot even be imported leaves no counts.
@pytest.mark.parametrize("text", ["VALUE = 'nothing'\n", "import no_such_module\n"])
def test_it_ends_where_nothing_could_be_measured(checkout, capsys, text):
    checkout.commit("one")
    last, newest = checkout.commit("two", text), checkout.commit("three")
    checkout.write_suite("present")
    assert checkout.run("3") == 0
    assert list(checkout.kept()) == [newest[:8]]
    assert f"{last[:8]} (2 of 3): nothing could be measured with these suites" in capsys.readouterr().out
    assert checkout.run("1", "--branch", last) == 3


@pytest.mark.parametrize("arguments", [["0"], ["-3"], ["many"], []])
def test_no_number_of_commits_is_bad_usage(arguments):
    with pytest.raises(SystemExit) as ended:
        history.main(arguments)
    assert ended.value.code == 2


def test_a_branch_that_is_not_there_is_bad_usage(checkout, capsys):
    checkout.commit("one")
    assert checkout.run("1", "--branch", "none") == 2
    assert "got 'none'" in capsys.readouterr().err


MARKED = """
from biases.marker import VALUE

def track_marker():
    return VALUE
"""


@pytest.mark.slow
def test_asv_measures_the_package_of_the_commit(tmp_path, monkeypatch):
    """Not the one that is installed, nor that of the checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    root, results = tmp_path / "root", tmp_path / "asv"
    git(tmp_path, "clone", "--quiet", "--shared", str(ROOT), str(root))
    shutil.rmtree(root / "benchmarks")
    shutil.copytree(ROOT / "benchmarks", root / "benchmarks", ignore=shutil.ignore_patterns("results", "suites"))
    commits = []
    for value in (3, 4):
        (root / "biases" / "marker.py").write_text(f"VALUE = {value}\n")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", "marked")
        commits.append(git(root, "rev-parse", "HEAD"))
    suites = root / "benchmarks" / "suites"
    suites.mkdir()
    (suites / "__init__.py").write_text("")
    (suites / "marked.py").write_text(MARKED)
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [sys.executable, "-m", "benchmarks.history", "2", "--branch", "HEAD", "--results", str(results)]
    monkeypatch.setenv("PYTHONPATH", str(root))
    done = subprocess.run([*command, "--", "--full"], cwd=root, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for path in results.glob("*/*-*.json"):
        saved = json.loads(path.read_text())
        row = dict(zip(saved["result_columns"], saved["results"]["marked.track_marker"], strict=False))
        found[saved["commit_hash"]] = row["result"]
    assert found == {commits[0]: [3], commits[1]: [4]}
