"""``biases claims``: what it shows, chooses and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from claims_studies import gate_sight, keep

from biases import cli
from biases.claims import CLAIMS, ledger, run_claims
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, NOT_REPRODUCIBLE
from biases.claims.ledger import APART, summary


def command(capsys, *arguments):
    code = cli.main(["claims", *arguments])
    return code, capsys.readouterr().out


def test_the_command_shows_a_claim_in_full(capsys):
    code, out = command(capsys, "ega-baseline-parameters", "mope-eq-33")
    assert code == cli.OK
    for part in (
        "4,816,640",
        "parameters",
        "arXiv 2605.21842",
        "Table 1",
        "biases.claims.ega_results.baseline_parameters",
    ):
        assert part in out
    assert "counterexample" in out
    assert '"tau": 6' in out


def test_the_command_writes_json(capsys):
    code, out = command(capsys, "ega-baseline-parameters", "mope-eq-33", "--json")
    document = json.loads(out)
    assert (code, document["schema"]) == (cli.OK, 1)
    assert [row["id"] for row in document["claims"]] == ["ega-baseline-parameters", "mope-eq-33"]
    assert document["summary"] == {"statements": {HOLDS: 1, FAILS: 1}}
    assert document["claims"][1]["evidence"]["counterexample"]["tau"] == 6


def test_the_command_shows_tables_by_paper(capsys, monkeypatch):
    chosen = {id: CLAIMS[id] for id in ("mope-kernel", "ega-causal", "ega-rows-sum-to-one")}
    monkeypatch.setattr(ledger, "CLAIMS", chosen)
    code, out = command(capsys)
    assert code == cli.OK
    assert out.index("arXiv 2605.21842") < out.index("ega-causal") < out.index("arXiv 2606.01258")
    assert "3 statements of the papers, executed: 2 holds, 1 fails" in out
    assert "questions of ours" not in out
    code, out = command(capsys, "--verdict", "fails", "--json")
    assert [row["id"] for row in json.loads(out)["claims"]] == ["ega-causal"]
    code, out = command(capsys, "--paper", "2606.01258", "--json")
    assert [row["id"] for row in json.loads(out)["claims"]] == ["mope-kernel"]


def test_the_command_reads_results_from_a_folder(capsys, tmp_path):
    keep(tmp_path, gate_sight())
    code, out = command(capsys, "ega-gain", "--results", str(tmp_path), "--json")
    assert (code, json.loads(out)["summary"]["statements"]) == (cli.OK, {CONDITIONAL: 1})
    code, out = command(capsys, "ega-gain", "--results", str(tmp_path))
    assert "8 seeds, size small" in out


def test_a_test_that_raises_fails_the_command_whatever_is_asked_for(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such layer")

    monkeypatch.setattr(ledger, "CLAIMS", {"x": replace(CLAIMS["ega-causal"], id="x", run=broken)})
    code, out = command(capsys, "--verdict", HOLDS, "--json")
    assert code == cli.FAILED
    (row,) = json.loads(out)["claims"]
    assert (row["status"], row["evidence"], row["message"]) == ("error", None, "RuntimeError: no such layer")
    code, out = command(capsys, "x")
    assert (code, "no such layer" in out) == (cli.FAILED, True)


@pytest.mark.parametrize("arguments", [["ega-casual"], ["ega-gain", "--results", "/nowhere"], ["ega-casual", "--json"]])
def test_bad_input_is_refused(arguments, capsys):
    assert cli.main(["claims", *arguments]) == cli.USAGE
    assert "expected" in capsys.readouterr().err


def test_unknown_verdicts_and_papers_are_refused(capsys):
    for arguments in (["--verdict", "true"], ["--paper", "1"]):
        with pytest.raises(SystemExit) as raised:
            cli.main(["claims", *arguments])
        assert raised.value.code == cli.USAGE


@pytest.mark.parametrize("arguments", [["--paper", "2606.01258"], ["--verdict", HOLDS], ["--verdict", HOLDS, "--json"]])
def test_nothing_to_show_is_told(capsys, arguments):
    assert command(capsys, "ega-causal", *arguments)[0] == cli.NOTHING


@pytest.mark.parametrize(
    ("verdict", "id"),
    [
        ("holds on condition", "ega-gate-range"),
        ("fails", "ega-causal"),
        ("fails on condition", "ega-gain-without-the-future"),
        ("not reproducible", "ega-two-seeds"),
        (NOT_REPRODUCIBLE, "ega-two-seeds"),
    ],
)
def test_verdicts_can_be_asked_for_as_they_are_shown_and_written(capsys, verdict, id):
    ids = ("ega-gate-range", "ega-causal", "ega-gain-without-the-future", "ega-two-seeds")
    code, out = command(capsys, *ids, "--verdict", verdict, "--json")
    found = [row["id"] for row in json.loads(out)["claims"]]
    assert code == cli.OK
    assert found == (["ega-causal", "ega-gain-without-the-future"] if verdict == FAILS else [id])


@pytest.mark.parametrize(
    "id", ["ega-gate-range", "ega-causal", "ega-gain-without-the-future", "ega-two-seeds", "superadditivity"]
)
def test_the_words_for_a_verdict_are_those_of_the_documentation(capsys, id):
    """In the table, of one entry, and in the totals."""
    label = next(run_claims([id])).label
    page = Path(__file__).parent.parent / "docs" / "claims.md"
    assert f"\n| {label} | " in page.read_text()
    assert f"\n{label}\n" in command(capsys, id)[1]


def test_kinds_that_are_no_executed_statements_are_counted_apart(capsys):
    ids = ("ega-causal", "ega-wavelet-order", "ega-two-seeds", "ega-conv-lag-causal")
    assert summary(run_claims(ids)) == {
        "statements": {FAILS: 1},
        "control": {FAILS: 1},
        "arithmetic": {FAILS: 1},
        "reading": {NOT_REPRODUCIBLE: 1},
    }
    assert set(APART) == {"control", "arithmetic", "reading"}
