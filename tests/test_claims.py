"""The claims ledger: what counts as evidence, the entries of EGA and MoPE, what bounds and costs rest on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from claims_studies import row_of

from biases.claims import CLAIMS, cost, ega, mope, run_claims, schedule
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, NOT_REPRODUCIBLE, Evidence, counted, decided
from biases.claims.ledger import STATEMENTS, Claim, claim, claims_of, get

# A verdict that changes is a change of what this package says of a paper.
PINNED = {
    "ega-causal": FAILS,
    "ega-rows-sum-to-one": HOLDS,
    "ega-gate-after-softmax": HOLDS,
    "ega-gate-multiplies-logits": FAILS,
    "ega-gate-range": CONDITIONAL,
    "ega-bias-is-learned": FAILS,
    "ega-baseline-parameters": HOLDS,
    "ega-parameters": CONDITIONAL,
    "ega-parameters-per-head": FAILS,
    "ega-variants-parameters": HOLDS,
    "ega-no-measurable-cost": INCONCLUSIVE,
    "ega-reflect-padding-causal": FAILS,
    "ega-morlet-admissible": FAILS,
    "ega-fixed-bases-suboptimal": INCONCLUSIVE,
    "ega-wavelet-order": FAILS,
    "ega-36-percent-of-tokens": CONDITIONAL,
    "ega-alpha-travel": FAILS,
    "ega-identical-batches": FAILS,
    "ega-two-seeds": NOT_REPRODUCIBLE,
    "ega-ptb-gain": NOT_REPRODUCIBLE,
    "ega-conv-lag-mixes-lags": FAILS,
    "ega-conv-lag-causal": FAILS,
    "mope-initialisation": HOLDS,
    "mope-parameters": HOLDS,
    "mope-512-parameters": FAILS,
    "mope-sinusoidal-limit": HOLDS,
    "mope-generalises-sinusoidal": CONDITIONAL,
    "mope-kernel": HOLDS,
    "mope-rope-kernel": CONDITIONAL,
    "mope-averaged-kernel": CONDITIONAL,
    "mope-eq-33": FAILS,
    "mope-eq-20": FAILS,
    "mope-uncertainty-product": HOLDS,
    "mope-uncertainty-widths": FAILS,
    "mope-phase": HOLDS,
    "mope-alibi-special-case": FAILS,
    "mope-product-bound": HOLDS,
    "mope-admissible": CONDITIONAL,
    "mope-clamp-gradient": FAILS,
    "mope-boundary-without-data": CONDITIONAL,
    "mope-compression": FAILS,
    "mope-sigma-clusters": FAILS,
    "mope-coarse-scale": FAILS,
    "mope-superadditivity-sum": HOLDS,
    "mope-abstract-baseline": CONDITIONAL,
}
MODULES = ("ega", "ega_results", "ega_protocol", "mope", "mope_kernel", "mope_learned")


def test_the_ledger_is_as_large_as_promised():
    assert sum(entry.kind in STATEMENTS for entry in CLAIMS.values()) >= 80
    assert len(PINNED) >= 28
    for entry in CLAIMS.values():
        assert entry.location
        # A question of ours is worded as one.
        assert entry.statement.endswith("?" if entry.kind == "control" else (".", '."'))
        assert entry.id == entry.id.lower()


def test_every_mathematical_entry_of_these_papers_is_pinned():
    own = {id for id, entry in CLAIMS.items() if entry.test.split(".")[2] in MODULES}
    assert own == set(PINNED)


@pytest.mark.parametrize("id", PINNED)
def test_verdicts(id):
    row = row_of(id)
    assert row.status == PINNED[id]
    assert json.loads(json.dumps(row.as_dict(), allow_nan=False))["evidence"]["text"] == row.evidence.text


def test_a_test_is_the_same_twice_and_leaves_the_random_state():
    before = torch.get_rng_state()
    first, second = (row_of("ega-causal").evidence for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_planted_faults_are_noticed(monkeypatch):
    """A test that could not fail would be no evidence."""

    def not_renormalised(q, k, *, key_gate, **options):
        return pair_weights(q, k, key_gate=replace(key_gate, renormalise=False), **options)

    pair_weights, encoding, model = ega.pair_weights, mope.morlet_encoding, ega.zoo.model
    monkeypatch.setattr(ega, "pair_weights", not_renormalised)
    monkeypatch.setattr(mope, "morlet_encoding", lambda b, omega, sigma: encoding(b, omega, 1.001 * sigma))
    monkeypatch.setattr(ega.zoo, "model", lambda name, **options: model(name, **{**options, "context": 255}))
    assert row_of("ega-rows-sum-to-one").status == FAILS
    assert row_of("mope-kernel").status == FAILS
    assert row_of("mope-averaged-kernel").status == FAILS
    wrong = row_of("ega-baseline-parameters").evidence
    assert wrong.verdict == FAILS
    assert wrong.counterexample == {"parameters": {"stated": 4_816_640, "counted": 4_816_640 - 256}}


def test_planted_repairs_are_noticed(monkeypatch):
    """A statement that fails would hold of another layer."""
    layer, position = ega.zoo.layer, mope.zoo.position
    causal = {"ega": "ega-prefix", "conv-lag-4": "conv-lag-4[shift=released]"}
    monkeypatch.setattr(ega.zoo, "layer", lambda name, *sizes: layer(causal.get(name, name), *sizes))
    assert row_of("ega-causal").status == HOLDS

    def unclamped(name, dim, **options):
        return position(f"{name}[constraint=none]", dim, **options)

    monkeypatch.setattr(mope.zoo, "position", unclamped)
    assert row_of("mope-clamp-gradient").status == HOLDS
    assert row_of("mope-product-bound").status == FAILS
    assert row_of("mope-boundary-without-data").status == FAILS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"verdict": "true"}, "verdict: expected one of"),
        ({"text": " "}, "evidence text"),
        ({"error": None, "tolerance": None}, "expected error and tolerance, values or an interval, got none"),
        ({"verdict": FAILS}, "expected a counterexample, an interval or an error above its tolerance"),
        ({"verdict": FAILS, "error": None, "tolerance": None}, "expected a counterexample, an interval or an error"),
        ({"error": 2.0}, "at most its tolerance 1.0, got 2.0"),
        ({"error": 2.0, "verdict": CONDITIONAL, "conditions": "c"}, "at most its tolerance"),
        ({"tolerance": None}, "both or neither"),
        ({"error": math.nan}, "a finite number of at least 0"),
        ({"error": -1.0}, "a finite number of at least 0"),
        ({"conditions": "on Sundays"}, "and beside it with"),
        ({"verdict": CONDITIONAL}, "evidence conditions"),
        ({"counterexample": {}}, "something, in at most 2000 characters"),
        ({"counterexample": {"x": "y" * 2000}}, "something, in at most 2000 characters"),
        ({"values": {"x": math.inf}}, "plain finite JSON values"),
        ({"values": {"x": torch.ones(1)}}, "plain finite JSON values"),
        ({"interval": (2.0, 1.0), "seeds": 8, "size": "small", "unit": "nats"}, "finite low <= high"),
        ({"interval": (0.0, math.inf), "seeds": 8, "size": "small", "unit": "nats"}, "finite low <= high"),
        ({"interval": (0.0, 1.0), "size": "small", "unit": "nats"}, "seeds, size and unit"),
        ({"interval": (0.0, 1.0), "seeds": 8, "unit": "nats"}, "seeds, size and unit"),
        ({"interval": (0.0, 1.0), "seeds": 8, "size": "small"}, "seeds, size and unit"),
        ({"seeds": 0}, "evidence seeds"),
    ],
)
def test_evidence_that_is_none(fields, message):
    sound = {"verdict": HOLDS, "text": "as stated", "error": 0.5, "tolerance": 1.0}
    Evidence(**sound)
    with pytest.raises(ValueError, match=r"expected .* got") as raised:
        Evidence(**{**sound, **fields})
    assert message in str(raised.value)


def entry_of(kind, evidence):
    return Claim(id="x", paper="2605.21842", location="1", kind=kind, statement="s", run=lambda: evidence)


INTERVAL = {"interval": (0.0, 1.0), "seeds": 8, "size": "small", "unit": "nats"}


def test_empirical_verdicts_need_their_interval():
    bare = Evidence(verdict=HOLDS, text="t", values={"x": 1})
    with pytest.raises(ValueError, match="an interval, with seeds and size"):
        entry_of("empirical", bare).check(bare)
    assert entry_of("count", bare).check(bare) is bare
    for verdict in (HOLDS, FAILS, INCONCLUSIVE):
        full = Evidence(verdict=verdict, text="t", **INTERVAL)
        assert entry_of("empirical", full).check(full) is full
    for verdict in (INCONCLUSIVE, NOT_REPRODUCIBLE):
        without = Evidence(verdict=verdict, text="no results")
        assert entry_of("empirical", without).check(without) is without
    seeds_alone = Evidence(verdict=INCONCLUSIVE, text="t", seeds=8)
    for kind in ("empirical", "control"):
        with pytest.raises(ValueError, match=f"{kind} evidence of 'x': expected an interval"):
            entry_of(kind, seeds_alone).check(seeds_alone)
    assert entry_of("control", bare).check(bare) is bare
    with pytest.raises(ValueError, match="an Evidence, got str"):
        entry_of("count", "yes").check("yes")


def test_counts_name_what_differs():
    assert counted("t", {"a": 1}, {"a": 1, "b": 2}).verdict == HOLDS
    assert counted("t", {"a": 1}, {"a": 1}, conditions="c").verdict == CONDITIONAL
    wrong = counted("t", {"a": 1, "b": 2}, {"a": 1, "b": 3})
    assert (wrong.verdict, wrong.counterexample) == (FAILS, {"b": {"stated": 2, "counted": 3}})


def test_what_is_true_or_not_has_its_values_or_a_counterexample():
    assert decided("t", True, {"a": 1}) == Evidence(verdict=HOLDS, text="t", values={"a": 1})
    limited = decided("t", True, {"a": 1}, conditions="c", counterexample={"b": 2})
    assert limited == Evidence(verdict=CONDITIONAL, text="t", conditions="c", values={"a": 1})
    for counterexample, told in ((None, {"a": 1}), ({"b": 2}, {"b": 2})):
        failed = decided("t", False, {"a": 1}, conditions="c", counterexample=counterexample)
        assert failed == Evidence(verdict=FAILS, text="t", counterexample=told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "ega-causal"}, "an id not yet in the ledger"),
        ({"paper": "9999.00000"}, "paper of 'new'"),
        ({"kind": "opinion"}, "kind of 'new'"),
    ],
)
def test_entries_that_are_refused(change, message):
    sound = {"id": "new", "paper": "2605.21842", "location": "1", "kind": "count", "statement": "s"}
    with pytest.raises(ValueError, match=r"expected .* got") as raised:
        claim(**{**sound, **change})
    assert message in str(raised.value)
    assert "new" not in CLAIMS


def test_unknown_ids_and_papers_suggest_near_ones():
    with pytest.raises(ValueError, match="such as ega-causal"):
        get("ega-casual")
    with pytest.raises(ValueError, match=r"such as .* got 'zzz'"):
        run_claims(["zzz"])
    with pytest.raises(ValueError, match="paper: expected one of"):
        claims_of("2605.21843")
    assert {entry.paper for entry in claims_of("2606.01258")} == {"2606.01258"}


def test_the_bound_on_an_update_is_reached():
    """Cauchy-Schwarz is tight: the gradients g_i ~ a_i / b_i move a parameter by the bound in the last update."""
    steps, (first, second) = 40, schedule.PUBLISHED.betas
    gradients = [((first / second) ** (steps - i)) for i in range(1, steps + 1)]
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.AdamW([parameter], lr=1.0, betas=(first, second), eps=0.0, weight_decay=0.0)
    for gradient in gradients:
        before = parameter.item()
        parameter.grad = torch.full_like(parameter, gradient)
        optimiser.step()
    assert before - parameter.item() == pytest.approx(schedule._largest_ratio(steps), rel=1e-9)


def test_the_schedule_without_gradients_is_its_decay():
    parameter = torch.nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    schedule.decayed([parameter])
    assert parameter.tolist() == pytest.approx([2.0 * schedule.decay_factor()] * 3, rel=1e-9)
    assert schedule.decay_factor() == pytest.approx(0.9277, abs=5e-5)
    assert schedule.lowest(5.0) == pytest.approx(5.0 * schedule.decay_factor() - schedule.farthest())
    # Were all gradients equal, every update would move by its rate, 0.75 in all.
    assert 0.75 < schedule.farthest() < 0.9


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.98, 1.04, CONDITIONAL), (1.02, 1.04, CONDITIONAL), (0.98, 1.2, INCONCLUSIVE), (1.06, 1.2, INCONCLUSIVE)],
)
def test_the_cost_of_the_gate_is_judged_by_its_interval(monkeypatch, low, high, verdict):
    measured = {**cost.load(), "ratio": {"median": (low + high) / 2, "low": low, "high": high}}
    monkeypatch.setattr(cost, "load", lambda: measured)
    evidence = row_of("ega-no-measurable-cost").evidence
    assert (evidence.verdict, evidence.interval, evidence.repeated) == (verdict, (low, high), "rounds")
    assert evidence.seeds == cost.load()["rounds"] == cost.ROUNDS
    assert ("by less than 5%" in evidence.conditions) == (verdict == CONDITIONAL and low > 1)
    assert ("the cost can be measured" in evidence.text) == (low > 1.05)


def test_the_interval_of_a_median_covers_it():
    def coverage(count, rank):
        return 1 - 2 * sum(math.comb(count, k) for k in range(rank + 1)) / 2**count

    for count in (6, 11, 41, 101):
        low, high = cost.median_interval(range(count))
        assert high == count - 1 - low
        assert coverage(count, low) >= 0.95
        assert coverage(count, low + 1) < 0.95
    assert cost.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_measuring_and_keeping_the_cost(tmp_path):
    measured = cost.measure(rounds=3)
    assert measured.keys() == cost.load().keys()
    assert 0 < measured["ratio"]["low"] <= measured["ratio"]["median"] <= measured["ratio"]["high"]
    assert 0 < measured["extra_operations"] < 0.02
    cost.write(measured, tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text()) == measured
