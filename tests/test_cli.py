"""The console script: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from biases import zoo
from biases.cli import main

SMALL_DEMO = """
import sys
from biases import cli
from biases.demo import benchmark, study, verification
benchmark.SHAPE["length"] = 32
benchmark.ROUNDS = 3
study.TRAIN.update(steps=4, warmup=1, evaluate_every=4, truncated_positions=8, evaluation_windows=2)
verification.zoo.names = lambda *kinds: ["ega"]
if __name__ == "__main__":
    sys.exit(cli.main(["demo", "--json", "--seeds", "2", "--out", sys.argv[1]]))
"""


def test_list_shows_every_variant(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in zoo.names():
        assert name in out


def test_list_as_json_is_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "--kind", "position"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == zoo.names("position")


def test_check_all_covers_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of sequences and those of images."""
    arguments = ["check", "all", "--json", "--max-examples", "1", "--property", "shape-dtype-device"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {result["subject"]: result["status"] for result in results} == dict.fromkeys(zoo.names("layer"), "passed")


def test_list_of_one_shows_what_it_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "ega"]) == 0
    out = capsys.readouterr().out
    assert "2605.21842" in out
    assert "future-independence" in out
    assert main(["list", "ega[statistics=prefix]", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["known_failures"] == {}
    assert row["traits"]["gate_sees"] == "prefix"


def test_list_of_one_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Those too that are None by default."""
    for name in zoo.names():
        assert main(["list", name]) == 0
        shown = capsys.readouterr().out.splitlines()
        for option, value in zoo.get(name).options.items():
            assert f"    {option:<22}{value}" in shown, (name, option)


@pytest.mark.parametrize("value", ["x", "[1]", "-1"])
def test_whatever_an_option_gets_list_tells_or_refuses(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in zoo.names():
        for option in zoo.get(name).options:
            code = main(["list", f"{name}[{option}={value}]"])
            told = capsys.readouterr()
            assert code in (0, 2)
            assert (told.err.startswith("biases: "), bool(told.out)) == (code == 2, code == 0)


def test_list_counts_the_parameters_of_the_model_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    name = "gated-swinrmt-retention[size=digits,attention_options={'gate_granularity':'headwise','theta_shift':'axis'}]"
    assert main(["list", name]) == 0
    shown = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in zoo.model(name).parameters())
    assert f"  parameters  {count:,}\n" in shown
    assert "(summary and notes speak of the default options)" in shown
    for written in (name, "gated-swinrmt-retention"):
        assert main(["list", written, "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["parameters"] == f"{count:,}") == (written == name)
    assert main(["list", "ega[mixing=True]"]) == 0
    assert "(summary, parameters and notes speak of the default options)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "gated-swinrmt-swat[size=digitz]"], "did you mean 'digits'?"),
        (["list", "swin[window=-1]"], "expected an integer of at least 1, got -1"),
        (["list", "rmt-digits[classes=0]"], "expected an integer of at least 1, got 0"),
        (["list", "manhattan[placement=foo]"], "got 'foo'"),
        (["list", "egaa"], "did you mean 'ega'"),
        (["list", "ega[statistic=prefix]"], "expected one of 'mixing', 'statistics', got 'statistic'"),
        (["list", "ega[statistics=future]"], "expected one of 'window', 'prefix', 'none', got 'future'"),
        (["demo", "--text", "no such file"], "no such file"),
        (["demo", "--dataset", "wikipedia"], "expected"),
        (["demo", "--text", ""], "expected"),
        (["demo", "--out", __file__], "expected one that exists or can be made"),
        (["demo", "--seeds", "1"], "expected at least 2"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("biases: ")
    assert message in error


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["list", "--nonsense"], ["demo", "--text", "a", "--dataset", "b"]]
)
def test_bad_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_output_for_machines_is_nothing_but_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress goes to the other stream."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DEMO, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) >= {"verification", "bench", "ablation", "zoo"}
    assert "verify" in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m biases.cli list --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[\n"
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["list", "demo"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example: biases {command}" in capsys.readouterr().out


def test_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rich", "rich.console", "rich.table"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["list"]) == 2
    assert "pip install 'attention-biases[check]'" in capsys.readouterr().err


def test_the_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "biases.cli", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("biases ")
