"""The benchmark on the digits: what it runs again and what not, its exit code, its summary, its table."""

import json
import multiprocessing
import shutil
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from biases.ablation import ImagesUnavailable, ImageTrainConfig
from biases.ablation._cells import plain

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
MODEL = "swin-digits"
TRAINING = ImageTrainConfig(steps=2, batch=64, warmup=0, evaluate_every=2)


@pytest.fixture(scope="module")
def digits():
    """The program as a module; its processes find it on the same path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import digits as program

        patch.setattr(program, "TRAINING", TRAINING)
        # Two updates learn nothing.
        patch.setattr(program, "THRESHOLD", -1.0)
        yield program
        del sys.modules["digits"]


def run(digits, out, *arguments, models=(MODEL,)):
    """Exit code and summary."""
    summary = out.parent / "summary.json"
    summary.unlink(missing_ok=True)
    words = [*models, "--out", str(out), "--summary", str(summary), *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["digits.py", *words])
        patch.chdir(out.parent)
        code = digits.main()
    return code, json.loads(summary.read_text()) if summary.exists() else None


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """One model under two seeds: folder of the results and what the run gave."""
    out = tmp_path_factory.mktemp("digits") / "out"
    return out, run(digits, out, "--seeds", "0", "1", "--steps", "2", "--jobs", "1")


@pytest.fixture
def out(finished, tmp_path):
    """A copy of the results."""
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


def stored(out):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.json")}


def changed(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def no_processes(digits, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a finished cell is run again")

    monkeypatch.setattr(digits, "ProcessPoolExecutor", refuse)


@pytest.fixture
def one_process(digits, monkeypatch):
    """Cells are run in this process, at once, on some of the images."""
    images = digits.load_images(digits.DATA)
    train, test = slice(200), slice(50)
    few = replace(
        images,
        train=images.train[train],
        train_labels=images.train_labels[train],
        test=images.test[test],
        test_labels=images.test_labels[test],
    )

    class Inline:
        def __init__(self, workers, *, initargs, **options):
            events, stop = initargs
            monkeypatch.setattr(digits, "_here", {"images": few, "events": events, "stop": stop})

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

        def submit(self, work, cell):
            future = Future()
            future.set_result(work(cell))
            return future

    monkeypatch.setattr(digits, "ProcessPoolExecutor", Inline)


def test_the_summary_says_what_was_run(digits, finished):
    out, (code, summary) = finished
    assert code == 0
    results = {result["seed"]: result for result in map(json.loads, (raw for raw, _ in stored(out).values()))}
    assert sorted(results) == [0, 1]
    assert summary["seeds"] == [0, 1]
    assert summary["train"] == json.loads(json.dumps(plain(TRAINING)))
    assert summary["data"]["train"] == 1438
    assert summary["data"]["test"] == 359
    assert summary["wall_seconds"] > 0
    assert list(summary["models"]) == [MODEL]
    family = summary["models"][MODEL]
    accuracies = [results[seed]["metrics"]["test_accuracy"] for seed in (0, 1)]
    assert family["over_threshold"]
    assert family["mean_test_accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert family["smallest_test_accuracy"] == min(accuracies)
    assert family["parameters"] == results[0]["metrics"]["parameters"]
    assert [each["id"] for each in family["seeds"]] == [results[seed]["id"] for seed in (0, 1)]
    for seed, result in results.items():
        assert result["status"] == "ok"
        assert result["id"] == digits.Cell(MODEL, seed, TRAINING).id
        assert result["threads"] == 1


def test_the_command_is_the_one_that_was_given_without_absolute_paths(digits, finished):
    _, (_, summary) = finished
    python, program, *words = summary["command"].split()
    assert python == "python"
    assert program.startswith("..")
    assert program.endswith("benchmarks/digits.py")
    assert words == [
        MODEL,
        "--out",
        "out",
        "--summary",
        "summary.json",
        "--seeds",
        "0",
        "1",
        "--steps",
        "2",
        "--jobs",
        "1",
    ]


def test_odd_words_of_the_command_are_quoted(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    words = ["gated-swinrmt-swat[size=digits]", f"--out={BENCHMARKS.parent}/my runs"]
    monkeypatch.setattr(sys, "argv", ["digits.py", *words])
    assert digits.command() == "python benchmarks/digits.py 'gated-swinrmt-swat[size=digits]' '--out=my runs'"


def test_no_cell_is_run_twice(digits, out, no_processes):
    before = stored(out)
    code, summary = run(digits, out, "--seeds", "0", "1", "--steps", "2")
    assert code == 0
    assert summary["wall_seconds"] is None
    assert stored(out) == before


def test_only_what_is_missing_or_outdated_is_run(digits, out, one_process):
    kept, outdated, other, failed = (
        out / "cells" / f"{digits.Cell(MODEL, seed, TRAINING).id}.json" for seed in (0, 1, 2, 3)
    )
    for path in (other, failed):
        shutil.copy(kept, path)
    first = json.loads(kept.read_text())
    changed(outdated, versions={**first["versions"], "code": "another"})
    changed(other, id=other.stem, seed=2, data={**first["data"], "sha256": "0"})
    changed(failed, id=failed.stem, seed=3, status="failed")
    before = stored(out)
    code, summary = run(digits, out, "--seeds", "0", "1", "2", "3", "--steps", "2")
    after = stored(out)
    assert code == 0
    assert summary["wall_seconds"] is None
    assert {path for path in after if after[path] != before[path]} == {outdated, other, failed}
    assert json.loads(outdated.read_text())["versions"] == first["versions"]
    assert [each["status"] for each in summary["models"][MODEL]["seeds"]] == ["ok"] * 4


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 0), (0.6, 1), (0.7, 1), (0.9, 1)])
def test_one_seed_that_is_not_over_the_threshold_is_exit_code_1(
    digits, out, no_processes, monkeypatch, threshold, expected
):
    for seed, accuracy in ((0, 0.9), (1, 0.6)):
        path = out / "cells" / f"{digits.Cell(MODEL, seed, TRAINING).id}.json"
        changed(path, metrics={**json.loads(path.read_text())["metrics"], "test_accuracy": accuracy})
    monkeypatch.setattr(digits, "THRESHOLD", threshold)
    code, summary = run(digits, out, "--seeds", "0", "1", "--steps", "2")
    assert code == expected
    assert summary["models"][MODEL]["over_threshold"] is (expected == 0)
    assert summary["models"][MODEL]["smallest_test_accuracy"] == 0.6
    assert summary["models"][MODEL]["mean_test_accuracy"] == pytest.approx(0.75)


def test_a_training_that_diverged_is_exit_code_1(digits, out, no_processes):
    for seed, accuracy in ((0, True), (1, False)):
        path = out / "cells" / f"{digits.Cell(MODEL, seed, TRAINING).id}.json"
        changed(path, status="diverged", error="training loss is not finite at step 1", metrics={"diverged_at": 1})
        code, summary = run(digits, out, "--seeds", "0", "1", "--steps", "2")
        assert code == 1
        assert (summary["models"][MODEL]["mean_test_accuracy"] is not None) is accuracy


def test_an_exception_in_a_cell_is_a_result(digits, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("this cell cannot be trained")

    images = digits.load_images(digits.DATA)
    monkeypatch.setattr(digits, "_here", {"images": images, "stop": multiprocessing.Event(), "events": None})
    monkeypatch.setattr(digits, "train_images", broken)
    result = digits._work(digits.Cell(MODEL, 0, TRAINING))
    assert result["status"] == "failed"
    assert "this cell cannot be trained" in result["error"]
    assert not digits.family([result])["over_threshold"]


@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        (["rmt-digit"], [], "did you mean 'rmt-digits'"),
        (["manhattan"], [], "manhattan"),
        ([MODEL], ["--steps", "0"], "steps: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_usage_is_exit_code_2(digits, tmp_path, no_processes, capsys, models, arguments, message):
    assert run(digits, tmp_path / "out", *arguments, models=models) == (2, None)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--seeds", "-1"], ["--seeds", "a"]])
def test_bad_arguments_are_exit_code_2(digits, tmp_path, no_processes, arguments):
    with pytest.raises(SystemExit) as ended:
        run(digits, tmp_path / "out", *arguments)
    assert ended.value.code == 2


def test_no_data_is_exit_code_2(digits, tmp_path, monkeypatch, capsys):
    def unavailable(name):
        raise ImagesUnavailable("no scikit-learn here")

    monkeypatch.setattr(digits, "load_images", unavailable)
    assert run(digits, tmp_path / "out") == (2, None)
    assert "no scikit-learn here" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_keeps_every_number_in_a_narrow_terminal(digits, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(digits, "THRESHOLD", 0.95)
    names = list(digits.MODELS)
    row = {
        "over_threshold": False,
        "parameters": 12_345_678,
        "mean_test_accuracy": 0.98765,
        "smallest_test_accuracy": 0.91234,
        "seconds": 98765.4,
        "seeds": [{}, {}, {}],
    }
    digits.show({"models": dict.fromkeys(names, row), "data": {"test": 359}, "wall_seconds": 60})
    lines = capsys.readouterr().out.splitlines()
    assert Console().width == width
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    full = [line for line in lines if "12,345,678" in line]
    assert len(full) == len(names)
    for line in full:
        assert line.split()[1:] == ["12,345,678", "98.77", "%", "91.23", "%", "3", "98765", "not", "over", "95", "%"]
    column = lines[0].index("parameters")
    folded = "".join(line[:column].strip() for line in lines[1 : lines.index(full[-1]) + 3])
    for name in names[:3]:
        assert name in folded
