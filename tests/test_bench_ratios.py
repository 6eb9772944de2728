"""benchmarks/ratios.py and the page made from what it measures."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest
import torch

from biases import attend, formulation
from biases.attention import _problem
from biases.backends import choice

ROOT = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


ratios, pages = load("ratios"), load("pages")
BACKWARD = "/forward+backward"
DEFAULTS = {"weights": "softmax", "causal": False, "dropout": 0.0}
QUICK = ["--quick", "--rounds", "2", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Pieces of every row at small sizes."""
    out = tmp_path_factory.mktemp("ratios") / "ratios.json"
    assert ratios.main([*QUICK, "--out", str(out), "--only", BACKWARD]) == 0
    return out


def test_every_piece_is_measured(measured):
    found = json.loads(measured.read_text())
    assert set(found["pieces"]) == set(ratios.pieces(True, BACKWARD))
    assert found["made_by"]["quick"]
    for piece in found["pieces"].values():
        assert piece["status"] == "ok"
        assert piece["plain_ratio"] is not None
        assert piece["extra_bytes"] >= 0
        assert piece["formulations"]
        assert set(piece["seconds"]) == {"ours", "floor", "plain"}


def test_pieces_that_are_there_are_kept(measured, monkeypatch):
    before = measured.read_text()
    monkeypatch.setattr(ratios, "measure", lambda *given: pytest.fail("measured again"))
    assert ratios.main([*QUICK, "--out", str(measured), "--only", BACKWARD]) == 0
    assert measured.read_text() == before


def test_another_source_starts_anew(measured, monkeypatch, tmp_path):
    out = tmp_path / "ratios.json"
    changed = json.loads(measured.read_text())
    changed["made_by"]["source"] = "another"
    out.write_text(json.dumps(changed))
    assert ratios.main([*QUICK, "--out", str(out), "--only", "retention (`retention`)/1024/forward"]) == 0
    assert len(json.loads(out.read_text())["pieces"]) == 2


def test_an_interruption_loses_nothing(monkeypatch, tmp_path):
    out, measure, calls = tmp_path / "ratios.json", ratios.measure, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(ratios, "measure", interrupted)
    assert ratios.main([*QUICK, "--out", str(out), "--only", "swat"]) == 130
    assert len(json.loads(out.read_text())["pieces"]) == 2
    assert ratios.main([*QUICK, "--out", str(out), "--only", "swat"]) == 0
    assert len(json.loads(out.read_text())["pieces"]) == 4
    assert len(calls) == 5


def _too_large(q, k, v, **options):
    return attend(q, k, v, **options) * 1.01


def test_wrong_results_are_no_ratio(monkeypatch, tmp_path):
    monkeypatch.setattr("biases.bench.workloads.attend", _too_large)
    out = tmp_path / "ratios.json"
    assert ratios.main([*QUICK, "--out", str(out), "--only", "alibi`)/1024"]) == 1
    for piece in json.loads(out.read_text())["pieces"].values():
        assert piece["status"] == "wrong"
        assert "ratio" not in piece


def test_nothing_to_measure(tmp_path):
    assert ratios.main(["--only", "no such piece", "--out", str(tmp_path / "ratios.json")]) == 3
    assert not (tmp_path / "ratios.json").exists()


def test_the_page_has_every_row(measured):
    found = json.loads(measured.read_text())
    cell = {"backends": {"flex": {"ratio": {"value": 1.07}, "memory_ratio": 1.0}, "fused": {"status": "error"}}}
    page = pages.ratios_table(found, {"cells": {"alibi/4096/bfloat16/forward": cell}})
    for subject in ratios.SUBJECTS:
        tables = {"biases": page, "stages": pages.small_table(found, "stages")}
        assert f"| {subject.name} | {subject.bar:.2f} |" in tables.get(
            subject.table, pages.small_table(found, "windows")
        )
    assert "1.07 (flex, memory 1.00) | not measured |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_what_is_wrong_or_missing_is_said_on_the_page(measured):
    found = json.loads(measured.read_text())
    wrong, raised = "EGA, causal (`ega`)/1024" + BACKWARD, "swin, full/3136" + BACKWARD
    gone = "retention (`retention`)/4096" + BACKWARD
    for name, status in ((wrong, "wrong"), (raised, "error")):
        kept = {key: found["pieces"][name][key] for key in ("subject", "table", "bar")}
        found["pieces"][name] = {**kept, "status": status, "message": f"a {status}\n  message"}
    del found["pieces"][gone]
    page, windows = pages.ratios_table(found, None), pages.small_table(found, "windows")
    (row,) = (line for line in page.splitlines() if line.startswith("| EGA, causal (`ega`) |"))
    assert "| wrong |" in row
    (row,) = (line for line in windows.splitlines() if line.startswith("| swin, full |"))
    assert "| error | - | error | - |" in row
    assert f"- {wrong}: wrong, a wrong message" in page.splitlines()
    assert f"- {raised}: error, a error message" in page.splitlines()
    assert f"- {gone}: not measured" in page.splitlines()
    forward = {name for name in found["asked"] if name.endswith("/forward")}
    assert page.count(": not measured") == len(forward) + 1


def test_other_threads_are_not_mixed_in(measured, monkeypatch, tmp_path, capsys):
    out = tmp_path / "ratios.json"
    out.write_text(measured.read_text())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(ratios, "measure", lambda *given: {"status": "error", "message": "not run"})
    assert ratios.main([*QUICK, "--out", str(out), "--only", "swat"]) == 1
    assert "was made with another threads" in capsys.readouterr().err
    found = json.loads(out.read_text())
    assert len(found["pieces"]) == 4
    assert found["made_by"]["threads"] == found["machine"]["threads"] == 7


def test_what_is_over_its_bar_is_marked():
    piece = {"status": "ok", "ratio": {"value": 1.2, "low": 1.1, "high": 1.3}}
    assert pages._ratio_cell(piece, 1.15) == "1.20 † (1.10-1.30)"
    assert pages._ratio_cell(piece, 1.25) == "1.20 (1.10-1.30)"


def test_a_trial_run_is_no_evidence(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    assert pages.read_evidence("ratios_cpu") is None
    (tmp_path / "ratios_cpu.json").write_text(measured.read_text())
    assert pages.read_evidence("ratios_cpu") is None
    (tmp_path / "gpu_latency.json").write_text(json.dumps({"evidence": False, "cells": {}}))
    assert pages.read_evidence("gpu_latency") is None
    text = pages.performance_page((ROOT / "docs" / "performance.md").read_text())
    assert "Not measured" in text
    assert "Nothing on this page was measured on a GPU" in text


def test_rows_that_a_gpu_measures_too_are_rows():
    names = {subject.name for subject in ratios.SUBJECTS}
    assert set(pages.ON_GPU) <= names


@pytest.mark.parametrize("subject", [each for each in ratios.SUBJECTS if each.table == "stages"], ids=lambda s: s.name)
def test_stages_are_those_of_rmt(subject):
    """Heads and width are those of RMT-T, whose stages have maps of 56, 28, 14 and 7 for images of 224."""
    from biases.models.rmt import SIZES

    side = round(subject.lengths[0] ** 0.5)
    size = SIZES["t"]["stages"][{56: 0, 28: 1, 14: 2, 7: 3}[side]]
    assert subject.sizes["heads"] == size.heads
    assert subject.sizes["head_dim"] == size.dim // size.heads


def test_families_that_the_choice_calls_measured_are():
    """Those of the calls that are timed, and no others; the rest of the rows for the CPU say that they are not."""
    given = set(inspect.signature(formulation).parameters) - {"q", "k", "v"}
    found = set()
    for subject, setting in ratios.pieces(False, "").values():
        if subject.lengths[0] != setting.length:
            continue
        for (q, k, v), options in subject.calls(setting):
            with torch.set_grad_enabled(setting.direction != "forward"):
                problem = _problem(q, k, v, **{name: options.get(name, DEFAULTS.get(name)) for name in given})
                found.add(choice.family(problem))
    rows = {name: row for (device, name), row in choice.ORDER.items() if device == "cpu" and row.order}
    assert {name for name, row in rows.items() if row.evidence in (choice._CPU, choice._CHUNKS)} == found & set(rows)
    assert all("not measured" in row.evidence for name, row in rows.items() if name not in found)
