"""``biases compare``: which files are measured, and that they are left alone."""

from __future__ import annotations

import sys

import pytest
from compare_repository import PACKAGE, PEAK, scratch_folder, two_equal_commits

from biases.bench.compare import Options, compare
from biases.bench.compare.revisions import Repository, find_suite

pytest.importorskip("scipy")

scratch = pytest.fixture(scratch_folder)
repo = pytest.fixture(two_equal_commits)


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
    (tmp_path / "other/benchmarks").mkdir(parents=True)
    (tmp_path / "other/benchmarks/b.py").touch()
    assert find_suite(tmp_path, None, "other") == ("other/benchmarks", 5.0)
    assert find_suite(tmp_path, "perf", "other") == ("perf", 5.0)
    assert find_suite(tmp_path, None, "perf/suite") == ("perf/suite", 5.0)
    with pytest.raises(ValueError, match="suite: expected a folder with asv-style benchmarks"):
        find_suite(tmp_path, "nowhere")
    (tmp_path / "perf/asv.conf.json").write_text("{broken")
    with pytest.raises(ValueError, match="expected JSON"):
        find_suite(tmp_path, None)


def test_a_suite_in_a_folder_of_a_larger_repository(repo, monkeypatch):
    """As `python -m` from that folder would find the modules, and as asv does from that of its configuration."""
    repo.write("sub/mypkg/__init__.py", "VALUE = 3\n")
    repo.write("sub/mypkg/types.py", "raise AssertionError('that of the standard library was meant')\n")
    repo.write("sub/src/other/__init__.py", "VALUE = 4\n")
    repo.write(
        "sub/benchmarks/few.py", "import mypkg, other, pkg\ndef track_x():\n    return mypkg.VALUE + other.VALUE\n"
    )
    repo.commit()
    repo.write("sub/mypkg/__init__.py", "VALUE = 5\n")

    def found(folder, **options):
        chosen = Options(deterministic_only=True, **options)
        return [(row.name, row.base, row.head) for row in compare("HEAD", repository=folder, options=chosen).rows]

    expected = [("few.track_x", 7, 9)]
    assert found(repo.root / "sub") == expected
    assert found(repo.root / "sub/mypkg", suite="benchmarks") == expected
    repo.write("sub/asv.conf.json", '{"benchmark_dir": "benchmarks"}')
    assert found(repo.root) == expected


def test_what_a_clone_lacks_is_told(repo, tmp_path):
    """The default of actions/checkout is a clone of one commit."""
    repo.git("clone", "--quiet", "--depth", "1", f"file://{repo.root}", str(tmp_path / "shallow"))
    with pytest.raises(ValueError, match=r"got 'HEAD\^1'; the clone is shallow .*fetch-depth: 2"):
        Repository(tmp_path / "shallow").resolve("HEAD^1")
    repo.git("checkout", "--quiet", "HEAD~1")
    with pytest.raises(ValueError, match=r"got 'HEAD\^1'; HEAD is the first commit"):
        Repository(repo.root).resolve("HEAD^1")
    with pytest.raises(ValueError, match=r"got 'nowhere'$"):
        Repository(repo.root).resolve("nowhere")
    repo.git("checkout", "--quiet", "-")


def test_a_suite_may_lie_outside_of_the_repository(repo, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/few.py").write_text("import pkg\ndef track_x():\n    return 1\n")
    assert repo.verdicts(suite=str(tmp_path / "mine")) == {"few.track_x": "no change"}
    assert repo.verdicts(suite=str(repo.root / "benchmarks"), bench="track") == {PEAK: "no change"}


def test_outside_of_a_repository_is_bad_usage(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="expected a folder inside a git repository"):
        Repository(tmp_path)
    with pytest.raises(ValueError, match="expected an existing folder"):
        Repository(tmp_path / "nowhere")
