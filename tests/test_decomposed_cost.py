"""``benchmarks/decomposed_cost.py``: what it writes, and that it fails where a count is not the expected one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "decomposed_cost.py"


@pytest.fixture(scope="module")
def cost():
    spec = importlib.util.spec_from_file_location("decomposed_cost", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(cost, monkeypatch, out: Path) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--maps", "7x7", "14x14", "--dim", "8", "--out", str(out)])
    return cost.main()


def test_the_counts_are_the_expected_ones(cost, monkeypatch, tmp_path, capsys):
    """4 N^2 C, 4 N (H + W) C, 4 N M^2 C and 8 N M C operations, and tensors of lines rather than of pairs."""
    assert run(cost, monkeypatch, tmp_path / "costs.json") == 0
    summary = json.loads((tmp_path / "costs.json").read_text())
    assert summary["unexpected"] == 0
    assert summary["exponent_of_pixels_on_square_maps"] == {
        "full": 2.0,
        "decomposed": 1.5,
        "windowed": 1.0,
        "windowed-decomposed": 1.0,
    }
    rows = {(row["form"], row["height"]): row for row in summary["rows"]}
    assert len(rows) == len(summary["rows"]) == 8
    per_pixel = {"full": 196, "decomposed": 28, "windowed": 49, "windowed-decomposed": 14}
    for form, pairs in per_pixel.items():
        assert rows[form, 14]["flops"] == 4 * 14 * 14 * 8 * pairs
    assert rows["full", 14]["largest_tensor_bound"] is None
    assert rows["full", 14]["largest_tensor"]["dense"] == 196**2
    assert rows["decomposed", 14]["largest_tensor_bound"] == {"dense": 196 * 14, "auto": 196 * 8}
    assert rows["decomposed", 14]["largest_tensor"] == {"dense": 196 * 14, "auto": 196 * 8}
    assert rows["windowed-decomposed", 14]["largest_tensor_bound"] == {"dense": 196 * 8, "auto": 196 * 8}
    said = capsys.readouterr()
    assert "within their bounds" in said.out
    assert said.err == ""


def test_a_wrong_number_of_operations_fails(cost, monkeypatch, tmp_path, capsys):
    """As if attention along the axes were claimed to be linear in the number of pixels."""
    monkeypatch.setitem(cost.EXPECTED, "decomposed", lambda h, w, m: 14)
    assert run(cost, monkeypatch, tmp_path / "costs.json") == 1
    assert json.loads((tmp_path / "costs.json").read_text())["unexpected"] == 1
    said = capsys.readouterr()
    assert said.err == "unexpected: decomposed on 14 x 14: 112 operations a token and channel, expected 56\n"
    assert "within their bounds" not in said.out


def test_a_tensor_over_its_bound_fails(cost, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(cost.LONGEST_LINE, "decomposed", lambda h, w, m: 7)
    assert run(cost, monkeypatch, tmp_path / "costs.json") == 1
    assert capsys.readouterr().err == (
        "unexpected: decomposed on 14 x 14: largest tensor of 2,744 numbers on backend dense, expected at most 1,568\n"
    )


def test_a_form_that_holds_pairs_of_pixels_fails(cost, monkeypatch, tmp_path, capsys):
    """The bound sees what is held: full attention in place of the decomposed one."""
    run_form = cost.run
    monkeypatch.setattr(cost, "run", lambda form, *rest: run_form("full" if form == "decomposed" else form, *rest))
    assert run(cost, monkeypatch, tmp_path / "costs.json") == 1
    assert "largest tensor of 38,416 numbers on backend dense, expected at most 2,744" in capsys.readouterr().err


@pytest.mark.parametrize("maps", [["7x8"], ["14"], ["0x7"]])
def test_maps_that_do_not_fit_are_refused(cost, monkeypatch, tmp_path, maps):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--maps", *maps, "--out", str(tmp_path / "costs.json")])
    with pytest.raises(SystemExit) as stopped:
        cost.main()
    assert stopped.value.code == 2
    assert not (tmp_path / "costs.json").exists()
