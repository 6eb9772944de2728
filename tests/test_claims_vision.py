"""The ledger's entries on RMT, Gated-SwinRMT, Swin, RetNet, ALiBi, RoPE, SWAT, G1 and Daubechies filters."""

from __future__ import annotations

import pytest
import torch

from biases.claims import CLAIMS, get, run_claims
from biases.claims._judge import (
    exponent,
    influence,
    judged,
    limited,
    manhattan_distance,
    multiply_adds,
    normal,
    reconstructed,
    rise,
)
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, NOT_REPRODUCIBLE
from biases.claims.ledger import Row

VERDICTS = {
    "alibi-any-length": HOLDS,
    "alibi-key-bias": CONDITIONAL,
    "alibi-slopes": CONDITIONAL,
    "ega-daubechies-filters": CONDITIONAL,
    "g1-headwise": HOLDS,
    "g1-low-rank": HOLDS,
    "g1-non-linearity": CONDITIONAL,
    "g1-parameters": CONDITIONAL,
    "g1-range": HOLDS,
    "g1-sinks": INCONCLUSIVE,
    "g1-tables-agree": FAILS,
    "gated-swinrmt-global-windows": CONDITIONAL,
    "gated-swinrmt-isolation": CONDITIONAL,
    "gated-swinrmt-locality": CONDITIONAL,
    "gated-swinrmt-mini-imagenet": NOT_REPRODUCIBLE,
    "gated-swinrmt-normalised-output": NOT_REPRODUCIBLE,
    "gated-swinrmt-parameters": CONDITIONAL,
    "gated-swinrmt-swat-locality": CONDITIONAL,
    "retnet-first-chunkwise": FAILS,
    "retnet-linear-complexity": HOLDS,
    "retnet-score-normalisation": CONDITIONAL,
    "retnet-three-forms": HOLDS,
    "rmt-decay-separable": HOLDS,
    "rmt-decomposed-attention": FAILS,
    "rmt-decomposed-receptive-field": CONDITIONAL,
    "rmt-decomposed-saving": HOLDS,
    "rmt-decomposed-stages": FAILS,
    "rmt-equation-5": FAILS,
    "rmt-flops": NOT_REPRODUCIBLE,
    "rmt-imagenet": NOT_REPRODUCIBLE,
    "rmt-learning-rate": FAILS,
    "rmt-linear-complexity": FAILS,
    "rmt-log-decay-before-softmax": HOLDS,
    "rmt-manhattan-decay": HOLDS,
    "rmt-parameters": HOLDS,
    "rmt-stem": FAILS,
    "rmt-theta-relative": CONDITIONAL,
    "rope-relative": HOLDS,
    "swat-average-accuracy": FAILS,
    "swat-balanced-outperforms": FAILS,
    "swat-balanced-slopes": HOLDS,
    "swat-forward-looking": FAILS,
    "swat-no-normalisation": HOLDS,
    "swat-receptive-field": HOLDS,
    "swat-released-code": NOT_REPRODUCIBLE,
    "swin-complexity": HOLDS,
    "swin-connections": HOLDS,
    "swin-cyclic-shift": HOLDS,
    "swin-flops": HOLDS,
    "swin-parameters": HOLDS,
    "swin-window-count": HOLDS,
}
MODULES = ("alibi", "gated_attention", "gated_swinrmt", "retnet", "rmt", "rmt_models", "swat", "swin", "wavelets")


def run(id: str) -> Row:
    (row,) = run_claims([id])
    return row


@pytest.mark.parametrize("id", VERDICTS)
def test_the_verdict_is_the_known_one(id):
    row = run(id)
    assert row.message == ""
    assert row.status == VERDICTS[id]
    if row.status in (FAILS, CONDITIONAL):
        assert row.evidence.counterexample or row.evidence.values
        assert row.evidence.source
        assert any(character.isdigit() for character in row.evidence.text)


def test_every_entry_of_these_papers_is_pinned():
    rooms = {f"biases.claims.{name}" for name in MODULES}
    assert {id for id, entry in CLAIMS.items() if entry.run.__module__ in rooms} == set(VERDICTS)


def plant(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the code under the statements."""
    from biases.claims import alibi, retnet, swat
    from biases.decays.manhattan import MapTerm
    from biases.gates import OutputGate
    from biases.layers import SwinAttention
    from biases.positions import Rotary
    from biases.windows import Axis, Windows

    offsets = MapTerm.offsets
    slopes, recurrent = alibi.alibi_slopes, retnet.retention_recurrent
    faults = {
        "the shift's mask forgotten": (Axis, "mask", lambda axis, device=None: None),
        "rows not counted in the distance": (
            MapTerm,
            "offsets",
            lambda term, i, j: (torch.zeros_like(i - j), offsets(term, i, j)[1]),
        ),
        "a gate without its sigmoid": (
            OutputGate,
            "gate",
            lambda gate, x: gate.projection(x).unflatten(-1, (gate.heads, -1)).transpose(1, 2),
        ),
        "a recurrence with another rate": (
            retnet,
            "retention_recurrent",
            lambda q, k, v, gamma: recurrent(q, k, v, gamma**2),
        ),
        "slopes one power off": (alibi, "alibi_slopes", lambda heads: slopes(heads) / 2),
        "slopes of one sign": (swat, "alibi_slopes", lambda heads, rule, balanced: slopes(heads, rule)),
        "keys that are not rotated": (Rotary, "forward", lambda rotary, x, start=0: x * (1 + start)),
        "windows that are never shifted": (
            SwinAttention,
            "windows",
            lambda layer, height, width: Windows.of(height, width, layer.window, rule="clamp"),
        ),
    }
    monkeypatch.setattr(*faults[fault])


@pytest.mark.parametrize(
    ("fault", "id"),
    [
        ("the shift's mask forgotten", "gated-swinrmt-isolation"),
        ("the shift's mask forgotten", "swin-cyclic-shift"),
        ("rows not counted in the distance", "rmt-manhattan-decay"),
        ("rows not counted in the distance", "rmt-decay-separable"),
        ("a gate without its sigmoid", "g1-range"),
        ("a recurrence with another rate", "retnet-three-forms"),
        ("slopes one power off", "alibi-slopes"),
        ("slopes of one sign", "swat-balanced-slopes"),
        ("keys that are not rotated", "rope-relative"),
        ("windows that are never shifted", "swin-connections"),
    ],
)
def test_a_fault_in_the_code_overturns_the_verdict(fault, id, monkeypatch):
    plant(fault, monkeypatch)
    row = run(id)
    assert row.message == ""
    assert row.status == FAILS


def test_a_statement_that_fails_would_hold_if_the_code_did_as_it_says(monkeypatch):
    from biases.claims import retnet, rmt, rmt_models

    decay = rmt._decay
    monkeypatch.setattr(rmt, "_decay", lambda placement="logits", *size: decay("weights", *size))
    monkeypatch.setattr(rmt, "_cost", lambda side, form: side**2 if form == "decomposed" else side**4)
    monkeypatch.setattr(
        retnet, "_without_zeta", lambda q, k, v, gamma, chunk: retnet.retention_chunkwise(q, k, v, gamma, chunk=chunk)
    )
    monkeypatch.setattr(rmt_models, "FIRST_THREE", ("decomposed", "decomposed", "full", "full"))
    found = {id: run(id).status for id in ("rmt-equation-5", "rmt-linear-complexity", "retnet-first-chunkwise")}
    assert set(found.values()) == {HOLDS}, found
    assert run("rmt-decomposed-stages").evidence.counterexample.keys() == {"s", "b", "l"}


def test_models_of_another_size_overturn_the_count(monkeypatch):
    from biases.claims import gated_swinrmt
    from biases.gates import OutputGate

    parameters = gated_swinrmt.parameters
    monkeypatch.setattr(
        gated_swinrmt, "parameters", lambda part: parameters(part) * (1 if isinstance(part, OutputGate) else 3)
    )
    assert run("gated-swinrmt-parameters").status == FAILS


def test_what_holds_in_our_reconstruction_is_conditional():
    held = reconstructed("x", error=0.0, tolerance=1.0, values={"n": 1})
    assert (held.verdict, held.conditions[:21]) == (CONDITIONAL, "in our reconstruction")
    failed = reconstructed("x", error=2.0, tolerance=1.0, counterexample={"n": 1})
    assert (failed.verdict, failed.conditions) == (FAILS, "")


def test_judged_by_the_error():
    assert judged("x", error=1.0, tolerance=1.0, values={"n": 1}).verdict == HOLDS
    failed = judged("x", error=1.5, tolerance=1.0, counterexample={"n": 1})
    assert (failed.verdict, failed.counterexample, failed.error) == (FAILS, {"n": 1}, 1.5)


@pytest.mark.parametrize(
    ("inside", "outside", "verdict"), [(0.0, 2.0, CONDITIONAL), (0.0, 0.5, HOLDS), (2.0, 2.0, FAILS), (2.0, 0.0, FAILS)]
)
def test_limited_to_conditions(inside, outside, verdict):
    evidence = limited("x", inside=inside, outside=outside, tolerance=1.0, conditions="if", counterexample={"n": 1})
    assert evidence.verdict == verdict
    assert evidence.conditions == ("if" if verdict == CONDITIONAL else "")
    assert evidence.values["deviation_outside_the_conditions"] == outside


def test_rise_is_the_largest_step_up():
    distance = torch.tensor([[0, 1, 1, 2]])
    weights = torch.tensor([[[0.5, 0.3, 0.2, 0.1]], [[0.5, 0.3, 0.1, 0.25]], [[0.1, 0.3, 0.2, 0.9]]])
    assert rise(weights, distance).tolist() == pytest.approx([0.0, 0.15, 0.8])


def test_manhattan_distance_in_raster_order():
    assert manhattan_distance(2, 3)[0].tolist() == [0, 1, 2, 1, 2, 3]


def test_influence_is_that_of_each_pixel():
    found = influence(lambda x: x.roll(1, 2) * 3, normal(0, 1, 2, 2, 1))
    expected = torch.tensor([[0, 3, 0, 0], [3, 0, 0, 0], [0, 0, 0, 3], [0, 0, 3, 0]], dtype=found.dtype)
    assert torch.allclose(found, expected)


def test_multiply_adds_and_their_exponent():
    def cost(n: int) -> int:
        return multiply_adds(lambda: torch.empty(n, 5, device="meta") @ torch.empty(5, n, device="meta"))

    assert cost(4) == 80
    assert exponent(cost, 4, 16) == pytest.approx(2.0)


def test_ids_are_found_by_near_names():
    with pytest.raises(ValueError, match="rmt-equation-5"):
        get("rmt-equation")
