"""``biases compare``: the command, its page, what it keeps when interrupted, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compare_repository import PEAK, SQUARE, SUITE, WORK, scratch_folder, two_equal_commits

from biases._files import writable_file, writable_folder
from biases.bench.compare import Comparison, Row
from biases.bench.compare.render import markdown
from biases.bench.compare.revisions import State
from biases.cli import main

pytest.importorskip("scipy")

scratch = pytest.fixture(scratch_folder)
repo = pytest.fixture(two_equal_commits)


def test_nothing_in_a_page_is_read_as_markup():
    hostile = "<b>a</b> | *b* `c`\n</td>"
    row = Row(f"ops.track_x('{hostile}')", "track", "", "regression", hostile, base=1.0, head=2.0)
    lost = Row("ops.track_y", "track", "", "failed", hostile)
    page = markdown(Comparison(State("a*b*<i>", "0" * 40), State("head", "1" * 40), (row, lost), {}, {}))
    shown = re.sub(r"(`+) .*? \1", "", page)
    assert not re.search(r"(?<!\\)[<*`]", shown.replace("**", "").replace("\n* ", "\n"))
    (line,) = (line for line in page.splitlines() if line.startswith("| `"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 7


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
