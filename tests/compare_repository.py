"""Small repositories that the tests of ``biases compare`` compare, and what they hold."""

from __future__ import annotations

import subprocess
from textwrap import dedent

from biases.bench.compare import Options, compare

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


def scratch_folder(tmp_path, monkeypatch):
    """Where the temporary folders are made. Samples are short: the planted factors are large."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    for name in ("WARMUP_SECONDS", "SAMPLE_SECONDS"):
        monkeypatch.setattr(f"biases.bench.compare.measure.{name}", 0.002)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def two_equal_commits(tmp_path, scratch):
    """Two equal commits; whatever the test does, nothing of a comparison may be left and the checkout is as it was."""
    checkout = Checkout(tmp_path / "checkout")
    checkout.commit()
    yield checkout
    assert not list(scratch.iterdir())
    assert len(checkout.git("worktree", "list").splitlines()) == 1


def rows(comparison):
    return {row.name: row for row in comparison.rows}
