"""``biases stats``: what it prints of a run's folder, with and without a study."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from analysed_results import SPEC, sight_results, sight_study, values_of

from biases import cli
from biases.ablation import Cell, load_results, load_study
from biases.ablation.analysis import analyse
from biases.ablation.results import write_result
from biases.stats import paired


@pytest.fixture
def study(tmp_path):
    return sight_study(tmp_path)


@pytest.fixture
def results(study):
    return sight_results(study)


@pytest.fixture
def folder(tmp_path, results):
    for result in results:
        write_result(tmp_path, result)
    return tmp_path


def stats(capsys, *arguments):
    code = cli.main(["stats", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_prints_what_a_reader_needs(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = stats(capsys, folder)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if line.startswith("1  ega ")]
    mean, low, high = paired_line(line)
    assert low < mean < high < 0
    assert line.split()[-3:] == ["8", "0.0312", "better"]
    assert "ega+mope" in out.partition("leak of")[2]
    assert "sampling interval" in out
    for word in ("least p", "TOST", "power", "Holm", "Exploratory: not declared before the run", "r1 (32)"):
        assert word in out
    assert "significan" not in out.lower()
    assert "nan" not in out.split()


def paired_line(line):
    parts = line.split()
    return float(parts[2]), float(parts[3]), float(parts[5])


def test_the_command_prints_json(folder, capsys):
    code, out, _ = stats(capsys, folder, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(analyse(load_study(folder / "study.toml"), load_results(folder))))


def test_the_command_shows_gaps(folder, capsys):
    paths = sorted((folder / "cells").glob("*.json"))
    gone = json.loads(paths[0].read_text())
    paths[0].unlink()
    broken = json.loads(paths[1].read_text())
    write_result(folder, {**broken, "status": "failed", "metrics": {}, "error": "x\nRuntimeError: [red] no memory"})
    code, out, _ = stats(capsys, folder)
    flat = " ".join(out.split())
    assert code == 0
    assert f"not run yet: {gone['arm']}, seeds {gone['seed']}" in flat
    assert f"failed: {broken['arm']}, seed {broken['seed']} ({broken['id']}): RuntimeError: [red] no memory" in flat
    assert "without seeds" in flat


def test_two_arms_without_a_study(folder, capsys, results):
    (folder / "study.toml").unlink()
    for result in results:
        if result["arm"] == "ega+learned":
            cell = replace(Cell.from_config(result["config"]), arm="ega[statistics=prefix]")
            write_result(folder, {**result, "id": cell.id, "arm": cell.arm, "config": cell.config})
    code, out, err = stats(capsys, folder)
    assert (code, out) == (2, "")
    assert (
        "expected study.toml beside its cells, or --a ARM --b ARM, got no study.toml; it has the arms ega+learned"
        in err
    )
    arms = ("--a", "ega[statistics=prefix]", "--b", "standard+learned")
    code, out, _ = stats(capsys, folder, *arms, "--json")
    analysis = json.loads(out)
    (found,) = analysis["contrasts"]
    expected = paired(values_of(results, "ega+learned"), values_of(results, "standard+learned"))
    assert (code, found["verdict"], found["interval"], found["p_sign_flip"]) == (
        0,
        "exploratory",
        list(expected.interval),
        None,
    )
    assert found["metric"] == "full"
    assert list(analysis["arms"]) == ["ega[statistics=prefix]", "standard+learned"]
    _, out, _ = stats(capsys, folder, *arms, "--metric", "truncated")
    assert "ega[statistics=prefix]" in out
    assert "(truncated)" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--a", "ega+learned"), "--a and --b: expected both or neither, got --a alone"),
        (("--a", "ega+learned", "--b", "standard"), "arm: expected an arm with results, got 'standard'"),
        (("--a", "ega+learned", "--b", "ega+learned"), "expected each arm once"),
        (("--a", "ega+learned", "--b", "ega+mope", "--metric", "x"), "metric: expected one of 'full'"),
        (("--metric", "test_loss"), "metric: expected one of 'full'"),
    ],
)
def test_bad_usage(folder, capsys, arguments, words):
    code, out, err = stats(capsys, folder, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_nothing_to_analyse(study, tmp_path, capsys):
    assert stats(capsys, tmp_path)[0] == 2
    (tmp_path / "cells").mkdir()
    code, out, _ = stats(capsys, tmp_path)
    assert code == 3
    assert "0 of 8" in out


def test_a_family_that_was_declared_anew_after_results_is_marked(folder, capsys):
    code, out, _ = stats(capsys, folder, "--json")
    assert (code, json.loads(out)["family"]["redeclared"]) == (0, [])
    (folder / "study-00000000.toml").write_text(SPEC.replace("smaller than", "smaller, than").replace("= 8\n", "= 9\n"))
    (folder / "study-11111111.toml").write_text(SPEC.replace("smallest_effect = 0.01", "smallest_effect = 0.02"))
    (folder / "study-22222222.toml").write_text("of another release")
    _, out, _ = stats(capsys, folder, "--json")
    assert json.loads(out)["family"]["redeclared"] == ["study-11111111.toml", "study-22222222.toml"]
    _, out, _ = stats(capsys, folder)
    flat = " ".join(out.split())
    assert "declared otherwise when the folder was begun (study-11111111.toml, study-22222222.toml)" in flat
