"""``biases ci``: the battery and the comparison in one command, on a user's repository whose faults are planted."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree as XML

import pytest

from benchmarks.compare_check import make_repository
from biases.bench.compare import Comparison
from biases.bench.compare.revisions import State
from biases.ci.outcome import _LIMIT, Outcome
from biases.ci.plan import plan_of
from biases.cli import _parser, main
from biases.testing import Result

pytest.importorskip("scipy")

LAYERS = """import torch


def mean(dim, heads):
    def layer(x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1).to(x)[:, None]
    return layer
"""
FUTURE = LAYERS.replace("x.cumsum(1) /", "x.cumsum(1).flip(1) /")
TABLE = """def table(n):
    return [0.0] * n
"""
SQUARE = TABLE.replace("[0.0] * n", "[0.0] * n * n")
SUITE = """import tracemalloc


def track_peak():
    from table_of_ci import table

    tracemalloc.start()
    try:
        table(64)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


track_peak.unit = "bytes"


def time_table():
    raise AssertionError("it was to be left out")
"""
COMMITS = {
    "start": {
        "layers_of_ci.py": LAYERS,
        "table_of_ci.py": TABLE,
        "benchmarks/memory.py": SUITE,
        ".gitignore": "biases-report/\n__pycache__/\n",
    },
    "sound": {"README": ""},
}
LINE = "layers_of_ci:mean --trait causal=true --max-examples 4 --property future-independence --property finite-output"
COMPARE = "--compare=--deterministic-only"


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two equal commits; the current folder."""
    make_repository(tmp_path, COMMITS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "layers_of_ci", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def report(name: str) -> str:
    return Path("biases-report", name).read_text()


def test_equal_code_that_keeps_its_promises_passes(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repo / "pyproject.toml").write_text(
        f'[tool.biases.ci]\ncheck = ["{LINE}"]\nbase = "HEAD"\ncompare = "--deterministic-only"\n'
    )
    assert main(["ci", "--annotations", "github", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["exit_code"] == 0
    assert found["check"]["summary"]["passed"] == 2
    assert [(row["name"], row["verdict"]) for row in found["compare"]["rows"]] == [("memory.track_peak", "no change")]
    assert "::error" not in printed.err
    assert report("summary.md").startswith("## biases: all is well\n")
    assert [suite.get("failures") for suite in XML.fromstring(report("junit.xml"))] == ["0", "0"]
    (run,) = json.loads(report("results.sarif"))["runs"]
    assert (run["results"], run["invocations"][0]["executionSuccessful"]) == ([], True)
    assert json.loads(report("comparison.json"))["exit_code"] == 0


def test_both_parts_are_run_and_both_faults_are_told(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(repo / "job.md"))
    (repo / "job.md").write_text("before\n")
    (repo / "layers_of_ci.py").write_text(FUTURE)
    (repo / "table_of_ci.py").write_text(SQUARE)
    assert main(["ci", "--check", LINE, "--base", "HEAD", COMPARE, "--annotations", "github"]) == 1
    out = capsys.readouterr().out
    title = "layers_of_ci%3Amean%3A future-independence failed"
    assert f"\n::error file=layers_of_ci.py,line=4,title={title}::future-independence: " in out
    assert "\n::error title=memory.track_peak%3A regression::" in out
    job = (repo / "job.md").read_text()
    assert job == f"before\n{report('summary.md')}"
    assert "## biases: something failed" in job
    assert "| layers\\_of\\_ci:mean | future-independence |" in job
    assert "**regression**" in job
    suites = XML.fromstring(report("junit.xml"))
    assert [(suite.get("name"), suite.get("failures")) for suite in suites] == [
        ("layers_of_ci:mean", "1"),
        ("biases compare", "1"),
    ]
    results = json.loads(report("results.sarif"))["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["future-independence", "no-regression"]
    assert out.index("::error title=memory.track_peak") < out.index("::error file=layers_of_ci.py")


def test_a_regression_alone_fails(repo: Path) -> None:
    (repo / "table_of_ci.py").write_text(SQUARE)
    assert main(["ci", "--check", LINE, "--base", "HEAD", COMPARE]) == 1
    assert "checked, all as expected" in report("summary.md")
    (row,) = json.loads(report("comparison.json"))["rows"]
    assert row["verdict"] == "regression"


def test_nothing_measured_is_no_verdict(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is nothing checked; whatever else is well."""
    arguments = ["ci", "--check", LINE, "--base", "HEAD", "--annotations", "github"]
    assert main([*arguments, f"{COMPARE} --bench no_such"]) == 3
    assert (
        "\n::error title=comparison with HEAD%3A nothing was measured::no benchmark matches" in capsys.readouterr().out
    )
    assert report("summary.md").startswith("## biases: something was not measured, so that there is no verdict\n")
    assert "Nothing was measured at both sides." in report("summary.md")
    without_trait = LINE.replace("--trait causal=true", "").replace("--property finite-output", "")
    assert main(["ci", "--check", without_trait, "--annotations", "github"]) == 3
    assert "layers_of_ci%3Amean%3A nothing was checked::" in capsys.readouterr().out
    assert "nothing was checked" in report("summary.md")


def test_what_cannot_be_run_keeps_nothing_else_from_it(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = f"layers_of_ci:no_such\n\n  {LINE}\n"
    assert main(["ci", "--check", lines, "--base", "no-such-revision", "--annotations", "github"]) == 2
    out = capsys.readouterr().out
    assert "::error title=layers_of_ci%3Ano_such%3A can-be-checked error::attribute 'no_such'" in out
    assert "::error title=comparison with no-such-revision could not be made::revision: expected a commit" in out
    assert "It could not be made: revision: expected a commit of" in report("summary.md")
    (run,) = json.loads(report("results.sarif"))["runs"]
    assert not run["invocations"][0]["executionSuccessful"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "pyproject.toml"
    suites = {suite.get("name"): suite for suite in XML.fromstring(report("junit.xml"))}
    assert {name: suite.get("errors") for name, suite in suites.items()} == {
        "layers_of_ci:no_such": "1",
        "layers_of_ci:mean": "0",
        "biases compare": "1",
    }
    (repo / "table_of_ci.py").write_text(SQUARE)
    assert main(["ci", "--check", "layers_of_ci:no_such", "--base", "HEAD", COMPARE]) == 1


def test_one_subject_that_is_checked_twice_is_told_apart(repo: Path) -> None:
    """And nothing is left of an earlier comparison."""
    Path("biases-report").mkdir()
    Path("biases-report", "comparison.json").touch()
    again = f"{LINE} --dtype float32"
    assert main(["ci", "--check", LINE, "--check", again]) == 0
    suites = [suite.get("name") for suite in XML.fromstring(report("junit.xml"))]
    assert suites == ["layers_of_ci:mean", f"layers_of_ci:mean ({again})"]
    assert not Path("biases-report", "comparison.json").exists()


@pytest.mark.parametrize(
    ("arguments", "table", "message"),
    [
        ([], "", "expected something to check or to compare with, got neither"),
        (["--check", "", "--base", ""], "", "expected something to check or to compare with, got neither"),
        (["--check", "a:b --no-such"], "", "--check 'a:b --no-such': unrecognized arguments: --no-such"),
        (["--check", "a:b --junit x"], "", "unrecognized arguments: --junit x"),
        (["--check", "a:b 'c"], "", "No closing quotation"),
        (["--check", "alibi --trait cusal=true"], "", "did you mean 'causal'"),
        (["--check", "a:b --trait causal=maybe"], "", "Traits causal: expected True or False, got 'maybe'"),
        (["--check", "a:b --property nope"], "", "--check 'a:b --property nope': property: expected one of"),
        (["--check", "a:b --max-examples -3"], "", "--max-examples: expected an integer of at least 1, got -3"),
        (["--check", "a:b --widths 64"], "", "--widths: expected dim:heads"),
        (["--check", "a:b --option x"], "", "--option: expected name=value"),
        (["--check", "a:b --as maks"], "", "--as: expected one of"),
        (["--base", "HEAD", "--compare", "--threshold 1"], "", "threshold: expected a ratio above 1"),
        (["--check=--slow"], "", "the following arguments are required: TARGET"),
        (["--base", "HEAD", "--compare", "--rounds x"], "", "argument --rounds: invalid int value: 'x'"),
        (["--base", "HEAD", "--compare", "HEAD~1"], "", "unrecognized arguments: HEAD~1"),
        (
            ["--check", "a:b", "--compare", "--bench x"],
            "",
            "--base: expected a revision, as there are options",
        ),
        (["--config", "nowhere.toml"], "", "configuration 'nowhere.toml': expected a readable file"),
        ([], "[tool", "configuration 'pyproject.toml': expected TOML"),
        ([], "[tool]\nbiases = 3", "[tool.biases.ci]: expected a table, got int"),
        ([], "[tool.biases.ci]\nchecks = []", "did you mean 'check'?"),
        ([], "[tool.biases.ci]\ncheck = 'a:b'", "check: expected a list of strings, got 'a:b'"),
        ([], "[tool.biases.ci]\nbase = ['HEAD']", "base: expected a string, got ['HEAD']"),
        (["--check", "a:b", "--out", "file"], "", "--out: expected a folder that can be written in"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(
    arguments: list[str],
    table: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if table:
        (tmp_path / "pyproject.toml").write_text(table)
    assert main(["ci", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("biases-report").exists()


def test_arguments_win_over_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = '[tool.biases.ci]\ncheck = ["a:b --seed 3", "c:d"]\nbase = "v1"\ncompare = "--bench x"\n'
    (tmp_path / "pyproject.toml").write_text(text)
    (tmp_path / "other.toml").write_text('[tool.biases.ci]\ncheck = ["e:f"]\n')

    def plan(*arguments: str) -> tuple[list[str], str | None, str | None]:
        made = plan_of(_parser().parse_args(["ci", *arguments]))
        return list(made.checks), made.base, made.compare.bench

    assert plan() == (["a:b --seed 3", "c:d"], "v1", "x")
    assert plan("--check", "", "--base", "", "--compare", "", "--config", "") == plan()
    assert plan("--check", "g:h", "--base", "v2") == (["g:h"], "v2", "x")
    assert plan("--compare=--bench y") == (["a:b --seed 3", "c:d"], "v1", "y")
    assert plan("--config", "other.toml") == (["e:f"], None, None)
    assert plan_of(_parser().parse_args(["ci"])).checks["a:b --seed 3"].seed == 3


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([0, 0], 0), ([0, 3], 3), ([3, 2], 2), ([2, 1, 3], 1), ([1, 130], 130)],
)
def test_the_gravest_part_counts(codes: list[int], code: int) -> None:
    assert Outcome(None, codes=codes).exit_code == code


def test_interrupted_it_reports_what_was_found(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("biases.ci.command.compared", interrupt)
    assert main(["ci", "--check", LINE, "--base", "HEAD"]) == 130
    assert report("summary.md").startswith("## biases: interrupted\n")
    assert "layers_of_ci:mean" in report("junit.xml")
    (invocation,) = json.loads(report("results.sarif"))["runs"][0]["invocations"]
    assert not invocation["executionSuccessful"]
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == "interrupted"


def test_interrupted_in_a_check_it_compares_nothing(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = "    def layer(x):\n"
    (repo / "layers_of_ci.py").write_text(
        LAYERS.replace(inside, f"{inside}        if x.requires_grad:\n            raise KeyboardInterrupt\n")
    )
    assert main(["ci", "--check", f"{LINE} --property finite-gradient", "--base", "HEAD", COMPARE, "--json"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert found["compare"] is None
    assert {each["status"] for each in found["check"]["results"]} == {"passed", "error"}
    assert "interrupted: what is not listed was not checked" in report("summary.md")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("no asv"), "no asv; pip install 'attention-biases[check,bench]'"),
        (OSError("no space left"), "no space left"),
        (RuntimeError("a fault of this package"), ""),
    ],
)
def test_what_was_checked_is_told_whatever_becomes_of_the_comparison(
    error: Exception,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*arguments: object) -> None:
        raise error

    make_repository(tmp_path, {"one": {"README": ""}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    failed = [Result("alibi", "p", "", "failed", message="m")]
    monkeypatch.setattr("biases.ci.command.checked", lambda options: (failed, False))
    monkeypatch.setattr("biases.ci.command.compared", broken)
    with nullcontext() if told else pytest.raises(RuntimeError, match="of this package"):
        assert main(["ci", "--check", "alibi", "--base", "HEAD"]) == 1
    assert "alibi: p failed" in capsys.readouterr().out
    assert told in report("summary.md").replace("\\", "")
    assert "<failure" in report("junit.xml")


def test_without_a_base_it_says_that_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where an expression of a workflow comes out empty; zeros are what was before the first push of a branch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setattr("biases.ci.command.checked", lambda options: ([Result("alibi", "p", "", "passed")], False))
    assert main(["ci", "--check", "alibi", "--base="]) == 0
    assert "Nothing was compared" in capsys.readouterr().out
    assert "Nothing was compared" in report("summary.md")
    assert main(["ci", "--check", "alibi", "--base", "0" * 40]) == 2
    assert "before the first push of a branch" in report("summary.md")


@pytest.mark.parametrize(
    ("left_out", "told"), [((), "no benchmark matches"), (("time_x",), "every benchmark that matches varies")]
)
def test_why_nothing_was_measured(left_out: tuple[str, ...], told: str) -> None:
    found = Comparison(State("a", "0"), State("b", "1"), (), {}, {}, left_out=left_out)
    (line,) = Outcome("main", comparison=found).annotations()
    assert f"nothing was measured::{told}" in line


def test_an_interrupted_comparison_is_called_that() -> None:
    found = Comparison(State("a", "0"), State("b", "1"), (), {}, {}, interrupted=True)
    (line,) = Outcome("main", comparison=found, codes=[130]).annotations()
    assert line.startswith("::error title=comparison with main%3A interrupted::")
    assert "interrupted before a benchmark was measured" in Outcome("main", comparison=found, codes=[130]).summary()


def test_nothing_of_a_refusal_is_read_as_markup() -> None:
    page = Outcome("a*b*", refused="no <b>such</b>\n| thing", codes=[2]).summary()
    assert r"### Comparison with a\*b\*" in page
    assert r"It could not be made: no \<b\>such\</b\> \| thing" in page


def test_the_summary_fits_on_the_page_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub shows none that is larger than 1 MiB."""
    long = "ü" * 10_000
    results = [Result(f"s{n}", "p", long, "failed", message=long, reproduce=long) for n in range(300)]
    monkeypatch.setattr("biases.ci.outcome.markdown_of_comparison", lambda comparison: f"{long}\n" * 1000)
    page = Outcome("main", results=results, comparison=object(), codes=[1]).summary()  # type: ignore[arg-type]
    assert _LIMIT < len(page.encode()) < 1024 * 1024
    assert page.endswith("\n\nThe rest is left out here; comparison.json has all of it.\n")
