"""``biases bench``: what it measures, refuses, writes and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
import torch

import biases.bench.run as running
from biases import attend, zoo
from biases.bench import ceilings, operators
from biases.bench.command import QUICK, USUAL
from biases.bench.run import Plan, bench
from biases.bench.table import HEADINGS
from biases.bench.workloads import Setting
from biases.cli import main

TINY = ["--length", "64", "--heads", "2", "--head-dim", "8", "--rounds", "2", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """One thread and small ceilings: nothing here depends on a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(running, "ceilings", partial(ceilings, size=32, copy_bytes=4096, rounds=1))
    yield
    torch.set_num_threads(threads)


def measured(capsys, *arguments):
    """Exit code and what is printed as JSON."""
    code = main(["bench", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_one_name_in_both_directions(capsys):
    code, printed = measured(capsys, "ega", *TINY)
    assert code == 0
    assert printed["complete"]
    assert printed["schema"] == 1
    assert [row["setting"]["direction"] for row in printed["rows"]] == ["forward", "forward+backward"]
    for row in printed["rows"]:
        assert row["status"] == "ok"
        assert row["name"] == "ega"
        assert row["checked"] == "all queries"
        assert row["formulations"]
        assert len(row["samples"]["seconds"]) == len(row["floor"]["seconds"]) == row["ratio"]["rounds"] == 2
        assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
        assert row["peak_bytes"] > row["extra_bytes"] >= 0
        assert row["floor_peak_bytes"] > row["floor_extra_bytes"] >= 0
        assert min(row["tokens_per_second"], row["matmul_share"], row["copy_share"]) > 0
    assert printed["ceilings"]["float32"]["matmul_size"] == 32
    assert {"torch", "git_revision", "cpu"} <= set(printed["machine"])
    assert printed["configuration"]["names"] == ["ega"]
    assert printed["configuration"]["settings"][0]["seed"] == 0


def test_results_do_not_count_as_memory_beyond_them():
    """Output and gradients of q, k, v: four tensors of the size of q."""
    setting = Setting(length=64, heads=2, head_dim=8, direction="forward+backward")
    ((row,), _), *_ = bench(Plan("operator", ["standard"], [setting], rounds=1))
    assert row.peak_bytes - row.extra_bytes == 4 * (64 * 2 * 8 * 4)


def test_lengths_and_levels(capsys):
    code, printed = measured(capsys, "alibi", "--level", "layer", *TINY, "--length", "16", "32")
    assert code == 0
    assert [row["setting"]["length"] for row in printed["rows"]] == [16, 16, 32, 32]
    assert {row["level"] for row in printed["rows"]} == {"layer"}
    code, printed = measured(capsys, "char-gpt", "--level", "training", *TINY)
    assert code == 0
    assert [row["setting"]["direction"] for row in printed["rows"]] == ["forward+backward"]
    assert printed["rows"][0]["setting"]["batch"] == 2


def test_without_names_all_of_the_zoo_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(zoo, "names", lambda kind=None: ["standard", "swin"] if kind == "layer" else [])
    code, printed = measured(capsys, *TINY, "--direction", "forward")
    assert code == 0
    assert [row["name"] for row in printed["rows"]] == ["standard", "swin"]


def test_wrong_results_are_not_timed(capsys, monkeypatch):
    def wrong(q, k, v, **options):
        return attend(q, k, v, **options) * 1.01

    monkeypatch.setattr("biases.bench.workloads.attend", wrong)
    code, printed = measured(capsys, "alibi", *TINY)
    assert code == 1
    for row in printed["rows"]:
        assert row["status"] == "failed"
        assert "expected an error of at most" in row["message"]
        assert row["samples"]["seconds"] == []
        assert row["ratio"] is None
    assert main(["bench", "alibi", *TINY]) == 1
    assert "failed" in capsys.readouterr().out


def test_one_that_raises_does_not_stop_the_others(capsys, monkeypatch):
    def broken(operator, call, what, *, seed):
        if what == "alibi":
            raise RuntimeError("no memory")

    monkeypatch.setattr(operators, "check", broken)
    code, printed = measured(capsys, "alibi", "standard", *TINY, "--direction", "forward")
    assert code == 1
    assert [(row["name"], row["status"]) for row in printed["rows"]] == [("alibi", "error"), ("standard", "ok")]
    assert printed["rows"][0]["message"] == "RuntimeError: no memory"


def test_what_cannot_be_measured_is_skipped_and_counted(capsys):
    code, printed = measured(capsys, "swin", *TINY, "--length", "60")
    assert code == 3
    assert {row["status"] for row in printed["rows"]} == {"skipped"}
    assert "a square number of pixels, got 60" in printed["rows"][0]["message"]
    code, printed = measured(capsys, "swin", "alibi", *TINY, "--length", "60", "--direction", "forward")
    assert code == 0
    assert [row["status"] for row in printed["rows"]] == ["skipped", "ok"]


def test_a_backend_that_cannot_run_it_says_why(capsys):
    code, printed = measured(capsys, "retention", *TINY, "--dtype", "float64", "--backend", "native")
    assert code == 3
    assert all("expected a problem that it can run" in row["message"] for row in printed["rows"])
    code, printed = measured(capsys, "retention", *TINY, "--backend", "dense")
    assert code == 0
    assert {row["backend"] for row in printed["rows"]} == {"dense"}
    assert [row["formulations"] for row in printed["rows"]] == [["dense"], ["dense"]]
    assert main(["bench", "retention", *TINY, "--direction", "forward", "--backend", "dense"]) == 0
    assert "backend dense" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alibii"], "did you mean 'alibi'"),
        (["ega[statistics=future]"], "expected one of 'window', 'prefix', 'none', got 'future'"),
        (["char-gpt"], "kind of 'char-gpt' at level 'operator': expected one of 'layer', got 'model'"),
        (["alibi", "--level", "model"], "expected one of 'model', got 'layer'"),
        (["alibi", "--length", "0"], "length: expected an integer of at least 1, got 0"),
        (["alibi", "--heads", "-1"], "--heads: expected a positive number, got -1"),
        (["alibi", "--rounds", "0"], "--rounds: expected a positive number, got 0"),
        (["alibi", "--seconds", "nan"], "--seconds: expected a positive number, got nan"),
        (["alibi", "--device", "tpu"], "device"),
        (["char-gpt", "--level", "model", "--peers"], "--level with --peers: expected operator or layer, got model"),
        (["swin-digits", "--level", "model", "--heads", "4"], "--heads of 'swin-digits': expected none"),
        (["swin-digits", "--level", "training", "--head-dim", "8"], "--head-dim of 'swin-digits': expected none"),
        (["char-gpt", "--level", "training", "--direction", "forward"], "expected forward+backward, got forward"),
    ],
)
def test_bad_input_is_exit_code_2_before_anything_is_measured(arguments, message, capsys, tmp_path):
    out = tmp_path / "out.json"
    assert main(["bench", *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_bad_input(capsys):
    assert main(["bench", "alibi", "--device", "cuda"]) == 2
    assert "expected one of the 0 CUDA devices" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_bad_input(capsys, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "below"):
        assert main(["bench", "alibi", *TINY, "--out", str(place)]) == 2
        assert "--out: expected a file that can be written" in capsys.readouterr().err


def test_a_pipe_gets_the_whole_once(tmp_path, capsys):
    code = [sys.executable, "-c", "import sys; from biases.cli import main; sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run([*code, "bench", "alibi", *TINY, "--out", "/dev/stdout"], capture_output=True, text=True)
    assert done.returncode == 0
    found, end = json.JSONDecoder().raw_decode(done.stdout)
    assert found["complete"]
    assert "{" not in done.stdout[end:]


def test_results_are_written_as_they_come(capsys, monkeypatch, tmp_path):
    """What was measured before an interruption is in the file and on the screen."""
    out, measure = tmp_path / "deep" / "out.json", running.measure

    def interrupted(plan, name, setting, rates):
        if name == "ega":
            raise KeyboardInterrupt
        return measure(plan, name, setting, rates)

    monkeypatch.setattr(running, "measure", interrupted)
    code, printed = measured(capsys, "alibi", "ega", *TINY, "--out", str(out))
    assert code == 130
    written = json.loads(out.read_text())
    assert written == printed
    assert [row["name"] for row in written["rows"]] == ["alibi"]
    assert not written["complete"]
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]


def test_a_table_for_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "alibi", "swin", *TINY, "--length", "60"]) == 0
    # The note below the table is as wide as the table, which is as wide as the times.
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "alibi",
        "ratio",
        "beyond the results",
        "of matrix products",
        "all queries",
        "swin skipped: length of an image",
    ):
        assert text in out


def test_a_model_for_images_states_no_heads(capsys):
    """It has its own; other models have those of the setting, and a table of theirs."""
    few = ["--level", "model", "--length", "64", "--rounds", "1", "--direction", "forward"]
    code, printed = measured(capsys, "swin-digits", "char-gpt", *few)
    assert code == 0
    image, text = (row["setting"] for row in printed["rows"])
    assert set(text) - set(image) == {"heads", "head_dim"}
    assert main(["bench", "swin-digits", "char-gpt", *few]) == 0
    out = capsys.readouterr().out
    assert "model, forward, (B, L) = (2, 64), float32" in out
    assert "(B, H, L, D) = (2, 8, 64, 64)" in " ".join(out.split())


@pytest.mark.parametrize("name", ["gated-swin-retention", "manhattan-decomposed"])
def test_names_stay_whole_on_a_narrow_screen(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", name, *TINY, "--direction", "forward"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(f"{name} ")]
    assert len(rows) == 2
    assert not any("…" in line for line in lines)
    assert max(map(len, lines)) <= 80
    headings = [heading for line in lines if line.startswith("name ") for heading in line.split()]
    assert [each for each in headings if each not in ("name", "by")] == list(HEADINGS)
    assert all(row.split()[1] for row in rows)


@pytest.mark.parametrize("level", ["operator", "training"])
def test_hypothesis_is_not_needed(level):
    """The checks that come before a measurement use comparators alone."""
    name = "alibi" if level == "operator" else "char-gpt"
    code = "import sys; sys.modules['hypothesis'] = None; from biases.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "bench", name, "--level", level, *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_quick_is_smaller():
    assert QUICK["length"] < USUAL["length"]
    assert QUICK["seconds"] < USUAL["seconds"]
    assert set(QUICK) == set(USUAL)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "example: biases bench" in out
    assert "(default: 1024)" in " ".join(out.split())
