"""``biases compare``: which files are measured, and that they are left alone."""

from __future__ import annotations

import sys

import pytest
from compare_repository import PACKAGE, PEAK, scratch_folder, two_equal_commits

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


def test_outside_of_a_repository_is_bad_usage(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="expected a folder inside a git repository"):
        Repository(tmp_path)
    with pytest.raises(ValueError, match="expected an existing folder"):
        Repository(tmp_path / "nowhere")
