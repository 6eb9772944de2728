"""Results as Markdown, SARIF and annotations: what a CI system reads, and that nothing in them breaks its form."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from biases.checking.run import locate
from biases.cli import main
from biases.testing import Result
from biases.testing.annotations import github, github_error
from biases.testing.location import Location, location_of, project_file, source_root
from biases.testing.markdown import LIMIT, markdown, write_markdown
from biases.testing.sarif import sarif

PROMISE = "The output at a token does not change with later tokens."
FAILED = Result(
    "mine:layer",
    "future-independence",
    PROMISE,
    "failed",
    examples=7,
    counterexample={"batch": 1, "length": 2},
    message="future-independence: expected 0,\ngot 3 at [0, 1]",
    reproduce="from biases.testing import replay\nreplay(layer)\n",
)
RESULTS = [
    FAILED,
    Result("mine:layer", "finite-output", "A finite input gives a finite output.", "passed", examples=5),
    Result(
        "mine:layer", "determinism", "The same input gives the same output.", "xfailed", message="known failure: 12"
    ),
    Result("mine:layer", "batch-independence", "Examples are apart.", "xpassed", message="take it off the list"),
    Result("mine:layer", "no-such-property", "", "error", message="expected the name of a property"),
    Result("other:mask", "mask-shape", "The mask is bool.", "not_applicable", message="the subject is a layer"),
]
PLACES = {"mine:layer": Location("src/my layers.py", 12), "other:mask": Location("/usr/lib/other.py", 3)}


# Markdown


def test_markdown_counts_and_names_what_failed() -> None:
    page = markdown(RESULTS)
    assert page.startswith("### Promises of attention: 3 of 5 checks failed\n")
    assert "| mine:layer | 4 | 1 | 1 | 1 | 1 | 1 | 0 |" in page
    assert f'| mine:layer | future-independence | {PROMISE} | {{"batch": 1, "length": 2}} |' in page
    assert "| mine:layer | batch-independence (xpassed) |" in page
    assert "**other:mask: nothing was checked.** the subject is a layer: mask-shape" in page
    assert page.count("<details>") == page.count("</details>") == 3
    assert "```text\nfuture-independence: expected 0,\ngot 3 at [0, 1]\n```" in page
    assert "```python\nfrom biases.testing import replay\nreplay(layer)\n```" in page


def test_markdown_of_what_passed_and_of_nothing() -> None:
    assert "### Promises of attention: 1 checked, all as expected" in markdown(RESULTS[1:2])
    assert "| subject | property |" not in markdown(RESULTS[1:2])
    assert markdown(RESULTS[5:]).startswith("### Promises of attention: nothing was checked")
    some = markdown([RESULTS[1], RESULTS[5]])
    assert some.startswith("### Promises of attention: no verdict, nothing was checked of 1 of 2 subjects\n")


def test_nothing_in_a_result_is_read_as_markup() -> None:
    hostile = "a | b\n</details> `x` **y** ```` [z](http://z) <img src=q> \ud800"
    result = Result("s|<b>", "p", hostile, "failed", counterexample={"a": "|`"}, message=hostile, reproduce=hostile)
    page = markdown([result])
    (row,) = (line for line in page.splitlines() if line.startswith("| s") and "subject" not in line and "http" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert r"\<img src=q\>" in row
    assert page.count("`````") == 4
    outside = re.sub(r"(?s)`````.*?`````", "", page)
    assert outside.count("</details>") == 1
    assert "<summary>s\\|\\<b\\>: p failed</summary>" in page


def test_a_page_that_cannot_be_encoded_is_written_all_the_same(tmp_path: Path) -> None:
    write_markdown([Result("s", "p", "", "error", message="\ud800")], tmp_path / "deep" / "page.md")
    assert "?" in (tmp_path / "deep" / "page.md").read_text()


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("count", [1, 1000])
def test_the_page_stays_below_the_limit(size: int, count: int) -> None:
    text = "ü" * size
    many = [
        Result(f"s{n}", "p", text, "failed", counterexample={"a": text}, message=text, reproduce=text)
        for n in range(count)
    ]
    page = markdown(many)
    assert len(page.encode()) <= LIMIT
    shown = page.count("<details>")
    assert shown >= 1
    assert (f"{count - shown} more of {count} failures are left out" in page) == (shown < count)
    assert shown == count or size == 100_000


def test_many_subjects_fit_too() -> None:
    many = [Result("s" * 150 + str(n), "p", "", "not_applicable", message="no" * 3000) for n in range(500)]
    page = markdown(many)
    assert len(page.encode()) <= LIMIT
    assert page.endswith("o\n\nThe rest of this is left out here; the other reports have it.\n")


# Annotations


def test_annotations_name_file_line_and_promise() -> None:
    lines = github(RESULTS, PLACES)
    assert lines[0] == (
        "::error file=src/my layers.py,line=12,title=mine%3Alayer%3A future-independence failed"
        "::future-independence: expected 0,%0Agot 3 at [0, 1]"
    )
    assert [line.partition("title=")[2].partition("::")[0] for line in lines[1:]] == [
        "mine%3Alayer%3A batch-independence xpassed",
        "mine%3Alayer%3A no-such-property error",
        "other%3Amask%3A nothing was checked",
    ]
    assert "file=" not in lines[3]


def read_command(line: str) -> tuple[dict[str, str], str]:
    """As GitHub's runner reads it."""
    head, _, data = line.removeprefix("::error ").partition("::")
    return {name: unquote(value) for name, _, value in (each.partition("=") for each in head.split(","))}, unquote(data)


@pytest.mark.parametrize("text", ["a%0Ab", "a\r\nb", "a,b:c::d", "::error::x", "100%", "ü,=,🙂"])
def test_whatever_is_in_a_text_an_annotation_is_one_line_that_says_it(text: str) -> None:
    line = github_error(text, text, Location(text, 3))
    assert len(line.splitlines()) == 1
    assert read_command(line) == ({"file": text, "line": "3", "title": text}, text)


# SARIF


def test_sarif_has_a_rule_a_property_and_a_result_a_failure() -> None:
    run = sarif(RESULTS, PLACES, version="1.2")["runs"][0]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("biases", "1.2")
    assert [rule["id"] for rule in driver["rules"]] == [result.property for result in RESULTS]
    assert driver["rules"][0]["shortDescription"]["text"] == PROMISE
    assert [(each["ruleId"], each["level"]) for each in run["results"]] == [
        ("future-independence", "error"),
        ("batch-independence", "error"),
        ("no-such-property", "error"),
    ]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "src/my%20layers.py", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 12}
    assert run["results"][0]["properties"]["counterexample"] == {"batch": 1, "length": 2}
    helps = {rule["id"]: rule["help"]["text"] for rule in driver["rules"]}
    assert "biases check TARGET --property finite-output" in helps["finite-output"]
    assert "--property" not in helps["no-such-property"]
    (invocation,) = run["invocations"]
    assert not invocation["executionSuccessful"]
    assert "the subject is a layer: mask-shape" in invocation["toolExecutionNotifications"][0]["message"]["text"]
    assert sarif(RESULTS[:2], version="1")["runs"][0]["invocations"][0]["executionSuccessful"]
    (cut_short,) = sarif(RESULTS[:2], version="1", unfinished=["interrupted"])["runs"][0]["invocations"]
    assert not cut_short["executionSuccessful"]
    assert cut_short["toolExecutionNotifications"][0]["message"]["text"] == "interrupted"


@pytest.mark.parametrize("places", [{"mine:layer": Location("/usr/lib/my layers.py", 3)}, {}])
def test_a_result_of_another_place_or_of_none_is_put_at_a_file_of_the_project(places: dict[str, Location]) -> None:
    """GitHub refuses a file that holds a result without a place in the repository."""
    (run,) = sarif(RESULTS, places, version="1", otherwise=Location("sub/pyproject.toml", 1))["runs"]
    for result in run["results"]:
        (place,) = result["locations"]
        assert place["physicalLocation"] == {
            "artifactLocation": {"uri": "sub/pyproject.toml", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 1},
        }
        assert place["logicalLocations"] == [{"fullyQualifiedName": "mine:layer"}]
        assert result["properties"]["factory"] == ("/usr/lib/my layers.py:3" if places else None)


# Of the schema of SARIF 2.1.0: the properties of each object that is used, and those that it must have.
OBJECTS = {
    "log": ({"$schema", "version", "runs"}, {"version", "runs"}),
    "run": ({"tool", "columnKind", "invocations", "results"}, {"tool"}),
    "tool": ({"driver"}, {"driver"}),
    "driver": ({"name", "version", "rules"}, {"name"}),
    "rules": ({"id", "shortDescription", "fullDescription", "help", "defaultConfiguration", "properties"}, {"id"}),
    "defaultConfiguration": ({"level"}, set()),
    "invocations": ({"executionSuccessful", "toolExecutionNotifications"}, {"executionSuccessful"}),
    "toolExecutionNotifications": ({"level", "message"}, {"message"}),
    "results": (
        {"ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints", "properties"},
        {"message"},
    ),
    "locations": ({"logicalLocations", "physicalLocation"}, set()),
    "logicalLocations": ({"fullyQualifiedName"}, set()),
    "physicalLocation": ({"artifactLocation", "region"}, {"artifactLocation"}),
    "artifactLocation": ({"uri", "uriBaseId"}, set()),
    "region": ({"startLine"}, set()),
    **dict.fromkeys(("message", "shortDescription", "fullDescription", "help"), ({"text"}, {"text"})),
}
BAGS = ("properties", "partialFingerprints")


def check_object(name: str, value: dict) -> None:
    """Against OBJECTS, and what is in it; bags may hold anything."""
    allowed, required = OBJECTS[name]
    assert required <= set(value) <= allowed, (name, sorted(value))
    for key, inner in value.items():
        if key in BAGS:
            assert isinstance(inner, dict)
            continue
        key = "run" if key == "runs" else key
        for each in inner if isinstance(inner, list) else [inner]:
            assert isinstance(each, dict) == (key in OBJECTS), (name, key)
            if isinstance(each, dict):
                check_object(key, each)


@pytest.mark.parametrize("results", [RESULTS, RESULTS[1:2], RESULTS[5:], []], ids=["bad", "good", "nothing", "none"])
def test_sarif_has_the_structure_of_its_schema(results: list[Result]) -> None:
    log = json.loads(json.dumps(sarif(results, PLACES, version="1")))
    check_object("log", log)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for each in run["results"]:
        assert rules[each["ruleIndex"]]["id"] == each["ruleId"]
        assert each["level"] in ("none", "note", "warning", "error")
        assert all(isinstance(value, str) for value in each["partialFingerprints"].values())
    assert len({str(each["partialFingerprints"]) for each in run["results"]}) == len(run["results"])


# Where a factory is


def decorated(function):
    @functools.wraps(function)
    def inner(*arguments):
        return function(*arguments)

    return inner


def plain(dim, heads):
    raise NotImplementedError


@decorated
def wrapped(dim, heads):
    raise NotImplementedError


class Factory:
    def __call__(self, dim, heads):
        raise NotImplementedError


HERE = Path(__file__).resolve()


def line_of(text: str) -> int:
    return HERE.read_text().splitlines().index(text) + 1


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        (plain, line_of("def plain(dim, heads):")),
        (functools.partial(functools.partial(plain, 4), heads=2), line_of("def plain(dim, heads):")),
        (wrapped, line_of("@decorated")),
        (Factory, line_of("class Factory:")),
        (Factory(), line_of("class Factory:")),
        (Factory().__call__, line_of("class Factory:") + 1),
    ],
)
def test_a_factory_is_found_in_its_source(factory, line: int) -> None:
    assert location_of(factory, HERE.parent) == Location(HERE.name, line)
    assert location_of(factory, HERE.parent / "elsewhere") == Location(HERE.as_posix(), line)


def test_without_a_source_it_is_the_module_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_up.py").write_text("exec('def make(dim, heads): pass')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made_up = __import__("made_up")
    monkeypatch.delitem(sys.modules, "made_up")
    monkeypatch.setitem(sys.modules, "made_up", made_up)
    assert location_of(made_up.make, tmp_path) == Location("made_up.py", 1)
    assert location_of(len, tmp_path) is None
    assert location_of(len, tmp_path, "made_up") == Location("made_up.py", 1)


def test_the_root_is_that_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "package" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "package" / ".git").touch()
    monkeypatch.chdir(inner)
    assert source_root() == (tmp_path / "package").resolve()
    (tmp_path / "pyproject.toml").touch()
    assert project_file(source_root()) == Location("pyproject.toml", 1)
    (inner / "pyproject.toml").touch()
    assert project_file(source_root()) == Location("inner/pyproject.toml", 1)


# The command

MODULE = """import torch


def window_of_4(queries, keys):
    distance = torch.arange(queries)[:, None] - torch.arange(keys)
    return (distance >= 0) & (distance <= 4)
"""


def test_check_writes_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "masks_of_reports.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path / "package")
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    traits = ["--trait", "causal=true", "--trait", "alignment=upper-left", "--trait", "window=4"]
    target = ["masks_of_reports:window_of_4", "--as", "mask", *traits, "--property", "mask-support"]
    files = ["--markdown", "out/page.md", "--sarif", "out/page.sarif", "--annotations", "github"]
    start = (
        "::error file=package/masks_of_reports.py,line=4,title=masks_of_reports%3Awindow_of_4%3A mask-support failed"
    )
    assert main(["check", *target, *files]) == 1
    assert start in capsys.readouterr().out
    assert "1 of 1 checks failed" in Path("out/page.md").read_text()
    (result,) = json.loads(Path("out/page.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "mask-support"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "package/masks_of_reports.py"
    assert main(["check", *target, *files, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["summary"]["failed"] == 1
    assert start in printed.err


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--sarif"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_checked(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("biases.checking.command.checked", lambda options: pytest.fail("it was checked"))
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "below"):
        assert main(["check", "alibi", option, str(place)]) == 2
        assert f"{option}: expected a file that can be written" in capsys.readouterr().err


def test_a_report_that_can_no_longer_be_written_takes_nothing_else_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("biases.checking.command.checked", lambda options: (RESULTS, False))
    monkeypatch.setattr("biases.testing.sarif.write_sarif", full)
    monkeypatch.setattr("biases.testing.junit.write_junit", full)
    files = ["--junit", str(tmp_path / "a"), "--markdown", str(tmp_path / "b"), "--sarif", str(tmp_path / "c")]
    assert main(["check", "alibi", *files]) == 1
    printed = capsys.readouterr()
    assert "future-independence failed" in printed.out
    assert "no space left" in printed.err
    assert "future-independence" in (tmp_path / "b").read_text()


def test_the_zoo_is_found_in_this_package() -> None:
    places = locate(["ega[statistics=prefix]", "alibi"])
    assert set(places) == {"ega[statistics=prefix]", "alibi"}
    assert all(re.search(r"biases/\w+/\w+\.py$", place.path) for place in places.values())
