"""``biases ci``: what its reports say of a comparison, and of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as XML

import pytest

from benchmarks.compare_check import make_repository
from biases.bench.compare import Comparison, Row
from biases.bench.compare.revisions import State
from biases.ci.outcome import REPORTS, Outcome
from biases.cli import main
from biases.testing import Result
from biases.testing.annotations import github
from biases.testing.location import Location

ROWS = (
    Row("ops.time_fine", "time", "seconds", "no change", "within 1.1"),
    Row("ops.time_broken", "time", "seconds", "failed", "ValueError: boom", trace="in work\n"),
    Row("ops.track_gone", "track", "unit", "not at head", "not in the listing of head"),
    Row("ops.track_bytes", "track", "bytes", "regression", "10 -> 20"),
)
KEPT = [Result("mine:layer", "finite-output", "A promise.", "passed")]


def compared(*rows: Row, interrupted: bool = False) -> Comparison:
    return Comparison(State("a", "0" * 40), State("b", "1" * 40), rows, {}, {}, interrupted=interrupted)


def suite_and_run(outcome: Outcome, folder: Path) -> tuple[XML.Element, dict]:
    outcome.write(folder)
    (suite,) = (each for each in XML.parse(folder / "junit.xml").getroot() if each.get("name") == "biases compare")
    (run,) = json.loads((folder / "results.sarif").read_text())["runs"]
    return suite, run


def notes(run: dict) -> str:
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] == (not invocation["toolExecutionNotifications"])
    return "\n".join(note["message"]["text"] for note in invocation["toolExecutionNotifications"])


def title_of(line: str) -> str:
    """Of an annotation."""
    return line.partition("title=")[2].partition("::")[0]


def test_benchmarks_are_cases_and_regressions_are_results(tmp_path: Path) -> None:
    suite, run = suite_and_run(Outcome("main", results=KEPT, comparison=compared(*ROWS), codes=[0, 1]), tmp_path)
    told = {case.get("name"): [(each.tag, each.get("message")) for each in case] for case in suite}
    assert told == {
        "ops.time_fine": [],
        "ops.time_broken": [("error", "failed: ValueError: boom")],
        "ops.track_gone": [("skipped", "not at head: not in the listing of head")],
        "ops.track_bytes": [("failure", "regression: 10 -> 20")],
    }
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == dict(
        tests="4", failures="1", errors="1", skipped="1"
    )
    assert "in work" in (suite.find(".//error").text or "")
    assert [(each["ruleId"], each["message"]["text"].splitlines()[0]) for each in run["results"]] == [
        ("no-regression", "ops.track_bytes: regression: 10 -> 20"),
        ("no-regression", "ops.time_broken: failed: ValueError: boom"),
    ]
    assert len({str(each["partialFingerprints"]) for each in run["results"]}) == 2
    assert notes(run) == "comparison with main: 2 of the benchmarks regressed or failed"


def test_a_comparison_without_a_finding_is_a_success(tmp_path: Path) -> None:
    suite, run = suite_and_run(Outcome("main", results=KEPT, comparison=compared(*ROWS[::2]), codes=[0, 0]), tmp_path)
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    assert (run["results"], notes(run)) == ([], "")


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome("main", refused="no such revision", codes=[2]), "could not be made"),
        (Outcome("main", comparison=compared(ROWS[2]), codes=[3]), "nothing was measured"),
        (Outcome("main", comparison=compared(ROWS[0], interrupted=True), codes=[130]), "interrupted"),
    ],
)
def test_a_comparison_without_a_verdict_is_an_error_in_every_report(
    outcome: Outcome, told: str, tmp_path: Path
) -> None:
    suite, run = suite_and_run(outcome, tmp_path)
    assert suite.get("errors") == "1"
    (case,) = (case for case in suite if case.find("error") is not None)
    assert told in str(case.get("name"))
    assert told in notes(run)
    assert told in outcome.annotations()[0]


def test_the_comparison_is_annotated_first_and_leaves_room_for_the_battery() -> None:
    """GitHub shows ten a step."""
    many = [Row(f"ops.track_{n}", "track", "unit", "regression", f"0 -> {n}") for n in range(9)]
    failed = [Result("mine:layer", "finite-output", "", "failed", message="m")]
    lines = Outcome("main", results=failed, comparison=compared(ROWS[1], *many), codes=[1]).annotations()
    assert [title_of(line) for line in lines] == [
        *(f"ops.track_{n}%3A regression" for n in range(4)),
        "comparison with main%3A 6 more benchmarks regressed or failed",
        "mine%3Alayer%3A finite-output failed",
    ]
    assert all(f"ops.track_{n}: regression" in lines[4] for n in range(4, 9))
    assert "ops.time_broken: failed, ValueError: boom" in lines[4]


def test_properties_that_fail_by_one_exception_share_an_annotation() -> None:
    """GitHub shows ten a step."""

    def broken(subject: str, name: str, why: str, *, status: str = "failed", raised: bool = True) -> Result:
        where = f"the layer raised on an input of shape (2, {len(name)}, 16), torch.float64"
        return Result(subject, name, "", status, message=f"{name}: promise\n{where}: {why}\nexample: x", raised=raised)

    lines = github(
        [
            broken("a:b", "first", "RuntimeError: boom at 3"),
            broken("a:b", "wrong", "of the layer", raised=False),
            broken("a:b", "second", "RuntimeError: boom at 12"),
            broken("a:b", "third", "TypeError: boom at 3"),
            broken("c:d", "first", "RuntimeError: boom at 3"),
            Result("a:b", "fourth", "", "error", message="fourth: the check raised RuntimeError: boom at 4"),
        ],
        {"a:b": Location("src/a.py", 2)},
    )
    assert [title_of(line) for line in lines] == [
        "a%3Ab%3A 2 properties failed by RuntimeError%3A boom at 3",
        "a%3Ab%3A wrong failed",
        "a%3Ab%3A third failed",
        "c%3Ad%3A first failed",
        "a%3Ab%3A fourth error",
    ]
    assert lines[0].startswith("::error file=src/a.py,line=2,")
    assert "::first: promise%0Athe layer raised on an input of shape (2, 5, 16)" in lines[0]
    assert lines[0].endswith("%0A%0Afirst, second")


@pytest.mark.parametrize("check", ["it's", "a:b --property nope"])
def test_reports_of_an_earlier_run_do_not_stay_where_the_arguments_are_refused(
    check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("biases-report").mkdir()
    for name in (*REPORTS, "mine.txt"):
        Path("biases-report", name).touch()
    assert main(["ci", "--check", check]) == 2
    assert [path.name for path in Path("biases-report").iterdir()] == ["mine.txt"]


def test_all_reports_are_known(tmp_path: Path) -> None:
    Outcome("main", results=KEPT).write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(REPORTS) - {"comparison.json"}


def test_a_base_that_there_is_not_is_told_before_the_battery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_repository(tmp_path, {"one": {"README": ""}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    told = []

    def checked(options: object) -> tuple[list[Result], bool]:
        told.append(capsys.readouterr().err)
        return KEPT, False

    monkeypatch.setattr("biases.ci.command.checked", checked)
    monkeypatch.setattr("biases.ci.command.compared", lambda *arguments: pytest.fail("there is nothing to compare"))
    assert main(["ci", "--check", "alibi", "--base", "HEAD^1"]) == 2
    assert "comparison with HEAD^1: revision: expected a commit of" in told[0]
    assert "HEAD is the first commit" in told[0]
    assert "mine:layer" in Path("biases-report", "junit.xml").read_text()
