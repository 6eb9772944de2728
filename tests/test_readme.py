"""The README: its generated parts are up to date, its code runs, its commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from biases.demo import readme
from biases.demo.run import headline

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
RESULTS = json.loads((ROOT / readme.RESULTS).read_text())
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_generated_parts_are_up_to_date() -> None:
    assert readme.generate(TEXT, RESULTS) == TEXT, "run `python -m biases.demo.readme`"


def test_missing_markers_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"expected the markers .* got neither or one"):
        readme.generate(TEXT.replace("<!-- end zoo -->", ""), RESULTS)


def test_the_committed_result_is_a_whole_run_of_the_demo() -> None:
    assert headline(RESULTS) == RESULTS
    assert set(RESULTS) == {"created", "machine", "versions", "bench", "ablation"}
    assert {row["verdict"] for row in RESULTS["ablation"]["contrasts"]} <= {"better", "worse", "inconclusive"}
    assert all(row["status"] == "ok" for row in RESULTS["bench"]["rows"])


@pytest.mark.parametrize("block", BLOCKS[1:], ids=[block.splitlines()[-1][:30] for block in BLOCKS[1:]])
def test_code_runs(block: str, tmp_path: Path) -> None:
    """In an empty folder, as a reader would paste it."""
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_example_finds_what_it_says(tmp_path: Path) -> None:
    """The layer of the first block looks ahead, and the battery says so."""
    command = [sys.executable, "-c", BLOCKS[0]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "future-independence: " in done.stdout
    assert "replay(" in done.stdout


def test_paths_and_targets_exist() -> None:
    for path in re.findall(r"`((?:biases|properties|tests|benchmarks|docs)/[\w/.]*)`", TEXT) + re.findall(
        r"\((docs/[\w/.]+)\)", TEXT
    ):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make (\w+)", TEXT)) <= targets
