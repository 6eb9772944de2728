"""``biases check``, and the battery inside somebody's own pytest file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as XML

import pytest
import torch

from biases.cli import main
from biases.testing import PROPERTIES, Result, Traits
from biases.testing.junit import junit_xml
from biases.testing.targets import parse_traits, read_known_failures
from biases.traits import Decay

MODULE = """
import torch


class Attention(torch.nn.Module):
    def __init__(self, dim, heads, causal):
        super().__init__()
        self.inner = torch.nn.MultiheadAttention(dim, heads, batch_first=True)
        self.causal = causal

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1) if self.causal else None
        return self.inner(x, x, x, need_weights=False, attn_mask=mask)[0]


def looking_back(dim, heads):
    return Attention(dim, heads, True)


def looking_ahead(dim, heads):
    return Attention(dim, heads, False)


class Interrupted(Attention):
    def forward(self, x):
        if x.requires_grad:
            raise KeyboardInterrupt
        return super().forward(x)


def interrupted(dim, heads):
    return Interrupted(dim, heads, True)


number = 3
"""
FAST = ["--max-examples", "4", "--property", "future-independence", "--property", "finite-output"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with somebody's module, as current folder."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_a_correct_layer_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine:looking_back", "--trait", "causal=true", *FAST]) == 0
    assert "mine:looking_back" in capsys.readouterr().out


def test_a_broken_promise_fails_with_a_script_that_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine:looking_ahead", "--trait", "causal=true", "--json", *FAST]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == 1
    assert printed["summary"]["failed"] == 1
    (broken,) = (result for result in printed["results"] if result["status"] == "failed")
    assert broken["property"] == "future-independence"
    done = subprocess.run(
        [sys.executable, "-c", broken["reproduce"]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert broken["message"].splitlines()[1] in done.stderr


def test_what_was_found_until_an_interruption_is_shown_and_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--property", "finite-output", "--property", "finite-gradient", "--max-examples", "4"]
    files = ["--junit", "junit.xml", "--sarif", "log.sarif"]
    assert main(["check", "mine:interrupted", "--json", *chosen, *files]) == 130
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(each["property"], each["status"]) for each in found] == [
        ("finite-output", "passed"),
        ("interrupted", "error"),
    ]
    assert found[1]["message"] == "interrupted: what is not listed was not checked"
    assert [suite.get("errors") for suite in XML.parse(folder / "junit.xml").getroot()] == ["1"]
    (invocation,) = json.loads((folder / "log.sarif").read_text())["runs"][0]["invocations"]
    assert not invocation["executionSuccessful"]


def test_json_says_with_what_and_on_what(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine:looking_back", "--seed", "7", "--dtype", "float32", "--json", *FAST]) == 0
    printed = json.loads(capsys.readouterr().out)
    told = {name: printed["configuration"][name] for name in ("targets", "seed", "dtype", "max_examples", "trait")}
    assert told == {"targets": ["mine:looking_back"], "seed": 7, "dtype": "float32", "max_examples": 4, "trait": []}
    assert printed["machine"]["torch"] == str(torch.__version__)
    assert set(printed["versions"]) == {"attention-biases", "hypothesis"}


def test_names_of_the_zoo_bring_their_known_failures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ega", "ega-token", "--json", *FAST]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    statuses = {(r["subject"], r["property"]): r["status"] for r in results}
    assert statuses["ega", "future-independence"] == "xfailed"
    assert statuses["ega-token", "future-independence"] == "passed"


def test_options_may_need_other_widths_than_the_default_ones(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", "swin[window=2]", "--property", "shape-dtype-device", "--max-examples", "1", "--json"]
    for widths in ([], ["--widths", "10:5"], ["--widths", "7:2", "--widths", "10:5"]):
        # Where one width fits, what the others do is for the battery to say.
        assert main([*arguments, *widths]) in ((0, 1) if len(widths) > 2 else (0,))
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert result["subject"] == "swin[window=2]"


def test_nothing_checked_is_exit_code_3(folder: Path) -> None:
    """The property needs a trait that was not declared: green would be a lie."""
    assert main(["check", "mine:looking_ahead", "--property", "future-independence"]) == 3


def test_known_failures_are_strict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "known.toml"
    arguments = ["check", "mine:looking_ahead", "--trait", "causal=true", "--known-failures", str(file), *FAST]
    file.write_text('["mine:looking_ahead"]\nfuture-independence = "no mask yet, issue 12"\n')
    assert main(arguments) == 0
    file.write_text('["mine:looking_ahead"]\nfuture-independence = "no mask yet"\nfinite-output = "overflows"\n')
    assert main(arguments) == 1
    assert "take it off the list" in capsys.readouterr().out
    file.write_text('["mine:looking_ahead"]\nfuture-independance = "no mask yet"\n')
    assert main(arguments) == 1
    assert "expected the name of a property" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:make"], "expected one that can be imported from here"),
        (["mine:looking_bak"], "did you mean 'looking_back'"),
        (["mine:number"], "expected a callable factory"),
        (["egaa"], "did you mean 'ega'"),
        (["rotary"], "expected a layer, got a position"),
        (["swin[window=-1]"], "SwinAttention window: expected an integer of at least 1, got -1"),
        (["swin", "--option", "window=-1"], "SwinAttention window: expected an integer of at least 1, got -1"),
        (["swin[window=2]", "--widths", "7:2"], "expected a multiple of heads=2, got 7"),
        (["ega", "--trait", "causal=true"], "expected targets of the form module:factory"),
        (["mine:looking_back", "--trait", "casual=true"], "did you mean 'causal'"),
        (["mine:looking_back", "--trait", "causal"], "expected name=value"),
        (["mine:looking_back", "--property", "future"], "property: expected one of"),
        (["mine:looking_back", "--max-examples", "0"], "max_examples: expected"),
        (["mine:looking_back", "--known-failures", "absent.toml"], "expected a readable file"),
    ],
)
def test_bad_input_is_exit_code_2(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("biases: ")
    assert message in error


@pytest.mark.parametrize(
    "content", ["mine = 3", "[mine]\nfinite-output = true", "[mine]\nfinite-output = ' '", "[mine"]
)
def test_unusable_files_of_known_failures_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"known\.toml.*expected"):
        read_known_failures(file)


def test_traits_from_text() -> None:
    pairs = [
        "causal=true",
        "window=4",
        "decay=exponential,past,logits",
        "gate_range=(0, 1)",
        "position=none",
        "empty_row=none",
    ]
    decay = Decay("exponential", "past", "logits")
    expected = Traits(causal=True, window=4, decay=decay, gate_range=(0, 1), position="none", empty_row=None)
    assert parse_traits(pairs) == expected
    assert parse_traits(["window=2"], expected).causal


def test_junit(folder: Path) -> None:
    file = folder / "out" / "junit.xml"
    targets = ["mine:looking_ahead", "mine:looking_back", "--trait", "causal=true"]
    assert main(["check", *targets, "--junit", str(file), *FAST]) == 1
    suites = XML.parse(file).getroot()
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in suites] == [
        ("mine:looking_ahead", "2", "1"),
        ("mine:looking_back", "2", "0"),
    ]
    (failure,) = suites.iter("failure")
    assert "replay(" in (failure.text or "")


def test_junit_survives_what_xml_has_no_form_for() -> None:
    results = [Result("mine", "finite-output", "", "error", message="\x00\x1b[31m<&>\ud800 ü 🙂")]
    (error,) = XML.fromstring(junit_xml(results)).iter("error")
    assert error.get("message") == "??[31m<&>? ü 🙂"


PYTEST = """
from biases.testing import Traits, parametrize_with_properties
from mine import looking_ahead, looking_back

CAUSAL = Traits(causal=True)


@parametrize_with_properties(
    {"back": (looking_back, CAUSAL), "ahead": (looking_ahead, CAUSAL), "plain": looking_ahead},
    known_failures={"ahead": KNOWN},
    max_examples=3,
)
def test_conformance(check):
    check()
"""
LEAKS = dict.fromkeys(("future-independence", "future-gradient", "prefix-consistency"), "no mask yet")


def run_pytest(folder: Path, known: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(PYTEST.replace("KNOWN", repr(known)))
    command = [sys.executable, "-m", "pytest", "-v", "-rA", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    return subprocess.run(
        [*command, *more, "test_mine.py"], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )


def test_somebodys_own_pytest_file(folder: Path) -> None:
    """In an empty folder, under xdist: ids, expected failures, skips with their reason."""
    done = run_pytest(folder, LEAKS, "-n", "2")
    assert done.returncode == 0, done.stdout
    for name in [name for name, each in PROPERTIES.items() if "layer" in each.kinds]:
        for subject in ("back", "ahead", "plain"):
            assert done.stdout.count(f"test_mine.py::test_conformance[{subject}-{name}]") >= 1
    expected = [
        line for line in done.stdout.splitlines() if line.startswith("XFAIL test_mine.py::test_conformance[ahead-")
    ]
    assert len(expected) == 3
    assert "PASSED test_mine.py::test_conformance[plain-finite-output]" in done.stdout
    assert "it needs a causal layer" in done.stdout


def test_somebodys_failures_are_told(folder: Path) -> None:
    known = {"future-independence": "no mask yet", "finite-output": "overflows"}
    done = run_pytest(folder, known, "-n", "1", "-k", "ahead")
    assert done.returncode == 1
    assert "FAILED test_mine.py::test_conformance[ahead-prefix-consistency]" in done.stdout
    assert "FAILED test_mine.py::test_conformance[ahead-finite-output]" in done.stdout
    assert "To see it alone:" in done.stdout
    assert "take it off the list" in done.stdout


@pytest.mark.parametrize(
    ("subjects", "known", "message"),
    [
        ({}, {}, "expected at least one"),
        ({"a": print}, {"b": {"finite-output": "x"}}, "expected a subject among"),
        ({"a": print}, {"a": {"finite": "x"}}, "expected names of properties"),
    ],
)
def test_unusable_parameters_are_refused(subjects: dict, known: dict, message: str) -> None:
    from biases.testing import parametrize_with_properties

    with pytest.raises(ValueError, match=message):
        parametrize_with_properties(subjects, known_failures=known)
