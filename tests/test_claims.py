"""The claims ledger: what counts as evidence, the entries of EGA and MoPE, the studies they read, the command."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from biases import cli
from biases.ablation.analysis import analyse
from biases.ablation.study import load_study
from biases.claims import CLAIMS, compared, cost, ega, ledger, mope, published, run_claims, schedule
from biases.claims import analyses as reader
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, NOT_REPRODUCIBLE, Evidence, counted
from biases.claims.ledger import APART, STATEMENTS, Claim, claim, claims_of, get, summary

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "benchmarks" / "ablations"

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
COMPARED = [e for e in CLAIMS.values() if isinstance(e.run, partial) and e.run.func is compared.compared]
FROM_STUDIES = [*COMPARED, *(e for e in CLAIMS.values() if e.test.startswith("biases.claims.learned_values"))]


def row_of(id):
    (row,) = run_claims([id])
    assert row.message == "", row.message
    return row


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
        ({"conditions": "on Sundays"}, "and only with it"),
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


def made_up(name, size, values, *, learned=None, seeds=8, lost=()):
    """The analysis of a study whose cells have the metrics ``values(arm, seed)``; those ``lost`` are missing."""
    study = load_study(STUDIES / f"{name}-{size}.toml")
    results = []
    for cell in study.grid.cells():
        if cell.seed >= seeds or (cell.arm, cell.seed) in lost:
            continue
        result = {"schema": 1, "id": cell.id, "arm": cell.arm, "seed": cell.seed, "config": cell.config}
        result |= {"metrics": values(cell.arm, cell.seed), "curve": [], "data": {"name": "t", "sha256": "0"}}
        result |= {"status": "ok", "git": "f" * 40, "learned": learned(cell) if learned else {}}
        results.append(result)
    return analyse(study, results)


def noise(arm, seed, scale=1e-3):
    """Small, the same for the same arm and seed."""
    return random.Random(f"{arm} {seed}").gauss(0, scale)


LOSSES = {"standard": 1.80, "ega": 1.70, "ega-prefix": 1.801, "ega-token": 1.9}


def gate_sight(size="small", seeds=8, ega=1.70, leak=0.25, tau=0.35, alpha=3.0, spread=1e-3, lost=()):
    full = {**LOSSES, "ega": ega}
    truncated = {**full, "ega": ega + leak}

    def values(arm, seed):
        drawn = noise(arm, seed, spread)
        found = {"full": full[arm] + drawn, "truncated": truncated[arm] + drawn}
        found |= {"full_at_truncated": found["full"], "train": 1.5, "positions": 2048, "windows": 871}
        return {**found, "leak": truncated[arm] - full[arm] + drawn, "leak_standard_error": 0.002}

    def learned(cell):
        if cell.arm != "ega":
            return {}
        ends = {"tau": tau, "alpha": alpha}
        return {
            f"blocks.{layer}.attention.key_gate.{name}": [value + noise(name, cell.seed, spread) + layer] * 2
            for layer in range(2)
            for name, value in ends.items()
        }

    return made_up("gate-sight", size, values, learned=learned, seeds=seeds, lost=lost)


@pytest.fixture
def folder(tmp_path):
    with reader.reading(tmp_path):
        yield tmp_path


def keep(folder, analysis):
    path = folder / f"{analysis['study']}-{analysis['size']}.json"
    path.write_text(json.dumps(analysis, allow_nan=False))


@pytest.mark.parametrize("id", [entry.id for entry in FROM_STUDIES])
def test_without_results_a_study_is_named(id, folder):
    evidence = row_of(id).evidence
    assert evidence.verdict == INCONCLUSIVE
    assert (evidence.interval, evidence.seeds) == (None, None)
    command = evidence.text.split("`")[1]
    assert (ROOT / command.removeprefix("biases ablate ")).is_file()


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("entry", COMPARED, ids=lambda e: e.id)
def test_the_studies_declare_the_contrasts_that_are_read(entry, size):
    asked = dict(entry.run.keywords)
    study = load_study(STUDIES / f"{entry.run.args[0]}-{size}.toml")
    metric, departs = asked.pop("metric"), asked.pop("departs")
    assert asked.pop("stated") in compared.STATED
    assert asked.pop("published")
    declared = [(c.arms, c.metric or study.statistics.metric) for c in (*study.family, *study.exploratory)]
    assert (asked, metric) in declared
    assert study.name in published.SETTINGS
    assert isinstance(departs, str)


def test_the_studies_of_the_papers_size_are_in_the_published_setting():
    for name, setting in published.SETTINGS.items():
        study = load_study(STUDIES / f"{name}-paper.toml")
        different = published.differences(analyse(study, []))
        assert different == ("" if setting else "the published setting is not known")
    small = analyse(load_study(STUDIES / "gate-sight-small.toml"), [])
    assert published.differences(small).startswith("layers 4 (published 6), heads 4 (published 8), dim 128")


def test_verdicts_from_a_study(folder):
    keep(folder, gate_sight())
    gain = row_of("ega-gain").evidence
    assert gain.verdict == CONDITIONAL
    assert gain.conditions.startswith("size small: layers 4 (published 6)")
    assert (gain.seeds, gain.size, gain.unit) == (8, "small", "nats per character")
    assert gain.interval[0] < -0.1 < gain.interval[1]
    for part in (
        "n = 8, margin 0.01, Holm-adjusted p = 0.0312 (smallest attainable 0.0312): lower (interval excludes 0",
        "95 % interval of this contrast by itself",
        "of all 4 together",
        "2000 updates",
        "+0.103",
    ):
        assert part in gain.text
    both = gain.values["interval of all together"]
    assert both[0] < gain.interval[0] < gain.interval[1] < both[1]
    leak = row_of("ega-loss-without-the-future").evidence
    assert leak.verdict == FAILS
    assert leak.interval[0] < 0.25 < leak.interval[1]


def test_the_opposite_in_another_setting_is_inconclusive(folder):
    keep(folder, gate_sight())
    opposite, none = (row_of(id).evidence for id in ("ega-gain-without-the-future", "ega-gain-of-a-causal-gate"))
    assert (opposite.verdict, none.verdict) == (INCONCLUSIVE, INCONCLUSIVE)
    assert "The opposite at this size: higher." in opposite.text
    assert "Not so at this size: within 0.01 nats per character of no difference" in none.text
    assert "Holm-adjusted p of equivalence = " in none.text
    assert "Holm-adjusted p = " not in none.text
    assert none.values["p_equivalence_holm"] < 0.05
    assert "p_holm" not in none.values
    keep(folder, gate_sight("paper"))
    for id in ("ega-gain-without-the-future", "ega-gain-of-a-causal-gate"):
        assert row_of(id).status == FAILS
        assert "at this size" not in row_of(id).evidence.text


@pytest.mark.parametrize(
    ("size", "ega", "verdict"),
    [
        ("small", 1.795, CONDITIONAL),
        ("paper", 1.795, CONDITIONAL),
        ("paper", 1.800, FAILS),
        ("paper", 1.805, FAILS),
        ("paper", 1.900, FAILS),
        ("small", 1.900, INCONCLUSIVE),
    ],
)
def test_a_direction_within_the_smallest_effect_of_interest_is_a_condition(folder, size, ega, verdict):
    keep(folder, gate_sight(size, ega=ega, leak=0.0))
    gain = row_of("ega-gain").evidence
    assert gain.verdict == verdict
    assert gain.conditions.startswith("by less than the smallest effect of interest, 0.01") == (verdict == CONDITIONAL)


@pytest.mark.parametrize(
    ("leak", "spread", "size", "verdict"),
    [
        (0.0, 1e-9, "paper", HOLDS),
        (4e-8, 1e-9, "small", CONDITIONAL),
        (0.005, 1e-4, "small", CONDITIONAL),
        (0.010, 1e-3, "small", INCONCLUSIVE),
        (0.020, 1e-3, "small", FAILS),
        (-0.020, 1e-3, "small", FAILS),
        (0.005, 2e-2, "small", INCONCLUSIVE),
    ],
)
def test_a_leak_is_judged_by_the_smallest_effect_of_interest(folder, leak, spread, size, verdict):
    keep(folder, gate_sight(size, leak=leak, spread=spread))
    assert row_of("ega-loss-without-the-future").status == verdict


@pytest.mark.parametrize(
    ("ends", "spread", "size", "verdicts"),
    [
        ({"tau": 0.35, "alpha": 2.2}, 1e-3, "paper", (CONDITIONAL, CONDITIONAL)),
        ({"tau": 0.40, "alpha": 2.15}, 1e-3, "small", (CONDITIONAL, CONDITIONAL)),
        ({"tau": 0.35, "alpha": 3.0}, 1e-3, "small", (CONDITIONAL, INCONCLUSIVE)),
        ({"tau": 0.60, "alpha": 2.0}, 1e-3, "paper", (FAILS, FAILS)),
        ({"tau": 0.35, "alpha": 2.2}, 0.5, "paper", (INCONCLUSIVE, INCONCLUSIVE)),
    ],
)
def test_learned_values_from_a_study(folder, ends, spread, size, verdicts):
    keep(folder, gate_sight(size, spread=spread, **ends))
    tau, alpha = (row_of(f"ega-{name}-converges").evidence for name in ("tau", "alpha"))
    assert (tau.verdict, alpha.verdict) == verdicts
    assert tau.values["heads"][1] > tau.interval[1]
    assert list(tau.values["by layer"]) == [f"blocks.{layer}.attention.key_gate.tau" for layer in range(2)]
    for evidence in (tau, alpha):
        assert ("one start" in evidence.conditions) == (evidence.verdict == CONDITIONAL)


def test_the_largest_size_that_reached_a_verdict_is_taken(folder):
    keep(folder, gate_sight())
    ids = ("ega-gain", "ega-loss-without-the-future", "ega-tau-converges")
    for seeds, told in ((1, "one seed of 8"), (3, "3 of 8 seeds, no verdict")):
        keep(folder, gate_sight("paper", seeds=seeds))
        for id in ids:
            evidence = row_of(id).evidence
            assert (evidence.size, evidence.seeds) == ("small", 8)
            assert "Size paper: " in evidence.text
            assert told in evidence.text
    keep(folder, gate_sight("paper"))
    gain = row_of("ega-gain").evidence
    assert (gain.verdict, gain.size, gain.conditions) == (HOLDS, "paper", "")
    assert gain.source == f"gate-sight-paper.json, cells of revision {'f' * 12}"
    assert "Size small" not in gain.text


def test_a_small_setting_called_the_papers_needs_its_condition(folder):
    keep(folder, {**gate_sight(), "size": "paper"})
    gain = row_of("ega-gain").evidence
    assert (gain.verdict, gain.size) == (CONDITIONAL, "paper")
    assert "dim 128 (published 256)" in gain.conditions


def test_too_few_seeds_are_inconclusive(folder):
    keep(folder, gate_sight(seeds=3))
    gain = row_of("ega-gain").evidence
    assert (gain.verdict, gain.seeds) == (INCONCLUSIVE, 3)
    assert "refused (expected at least 8 seeds, got 3), without seeds 3 4 5 6 7 (ega missing, standard " in gain.text
    for id in ("ega-loss-without-the-future", "ega-tau-converges"):
        assert row_of(id).status == INCONCLUSIVE
        assert "Fewer seeds than the 8" in row_of(id).evidence.text
    keep(folder, gate_sight(seeds=1))
    for id in ("ega-gain", "ega-loss-without-the-future", "ega-tau-converges"):
        evidence = row_of(id).evidence
        assert (evidence.verdict, evidence.seeds) == (INCONCLUSIVE, None)
        assert "one seed of 8" in evidence.text
        assert "no interval" in evidence.text


def test_what_was_dropped_and_mixed_is_told(folder):
    analysis = gate_sight(lost=[("ega", 2)])
    analysis["contrasts"][0]["mixed"] = 3
    analysis["family"]["redeclared"] = ["study-0.toml"]
    keep(folder, analysis)
    gain = row_of("ega-gain").evidence
    assert gain.values["dropped"] == [{"seed": 2, "why": "ega missing", "lost": False}]
    assert gain.values["mixed"] == 3
    for part in ("without seeds 2 (ega missing)", "3 seeds with arms of different code or devices", "declared anew"):
        assert part in gain.text


def superadditivity(excess, size="small", mope=0.03):
    losses = {"learned": 1.8, "mope": 1.8 + mope, "rotary": 1.7, "none": 1.83}

    def values(arm, seed):
        gate, _, position = arm.partition("+")
        loss = losses.get(position, 1.8) - 0.1 * (gate != "standard")
        loss -= excess * (gate != "standard" and position == "mope")
        return {name: loss + noise(arm, seed) for name in ("full", "truncated", "full_at_truncated", "leak", "train")}

    def learned(cell):
        return {"position.omega": [1.0, 1.4, 1.2, 1.6]}

    return made_up("superadditivity", size, values, learned=learned)


@pytest.mark.parametrize(
    ("excess", "size", "verdict"),
    [
        (0.06, "small", CONDITIONAL),
        (0.06, "paper", HOLDS),
        (0.0, "paper", FAILS),
        (-0.06, "small", INCONCLUSIVE),
        (-0.06, "paper", FAILS),
    ],
)
def test_interactions(folder, excess, size, verdict):
    keep(folder, superadditivity(excess, size))
    for id in ("superadditivity", "superadditivity-without-the-future", "superadditivity-of-a-causal-gate"):
        assert row_of(id).status == verdict
    assert row_of("mope-alone-is-worse").status == (HOLDS if size == "paper" else CONDITIONAL)


def test_what_is_exploratory_has_an_interval_and_no_verdict(folder):
    keep(folder, superadditivity(0.06, "paper"))
    for id in ("rope-gain", "mope-beats-sinusoidal", "mope-encodes-position-for-a-gate"):
        evidence = row_of(id).evidence
        assert evidence.verdict == INCONCLUSIVE
        assert evidence.interval is not None
        assert "outside the declared family: an interval, no verdict" in evidence.text
        assert "p = " not in evidence.text
        assert "p_holm" not in evidence.values


def test_arms_that_depart_from_the_statement_are_a_condition(folder):
    analysis = superadditivity(0.06, "paper")
    for row in analysis["contrasts"]:
        if row["arms"] == {"a": "standard+rotary", "b": "standard+learned"}:
            row |= {"family": True, "verdict": "better", "reason": "made up", "family_size": 7}
    keep(folder, analysis)
    gain = row_of("rope-gain").evidence
    assert (gain.verdict, gain.conditions) == (
        CONDITIONAL,
        "RoPE alone, where the published model keeps the learned encoding beside it",
    )


def test_learned_frequencies_out_of_order_are_counted(folder):
    assert "No results" in row_of("mope-inversions").evidence.text
    keep(folder, superadditivity(0.0))
    evidence = row_of("mope-inversions").evidence
    assert evidence.values == {"superadditivity-small.json": {"out of order": 1, "of": 3, "seeds": 8}}
    assert "1 of 3 are out of order" in evidence.text


def controls(ends, size="small", tells=True):
    def learned(cell):
        raw = [ends.get(cell.arm, 5.0) + noise(cell.arm, cell.seed, 0.01) + shift for shift in (-0.02, 0.02)]
        found = {"position.unclamped_product": raw}
        return found | ({"position.product": [max(5.0, value) for value in raw]} if tells else {})

    full = {"full": 1.8, "truncated": 1.8, "full_at_truncated": 1.8, "leak": 0.0, "train": 1.5}
    return made_up("mope-controls", size, lambda arm, seed: full, learned=learned)


CONVERGES = ("mope-converges-from-elsewhere", "mope-converges-without-decay")
RAW = ("mope-raw-product-from-elsewhere", "mope-raw-product-without-decay")


@pytest.mark.parametrize(("size", "verdict"), [("small", INCONCLUSIVE), ("paper", FAILS)])
def test_products_that_end_elsewhere_are_no_convergence(folder, size, verdict):
    keep(folder, controls({"published": 4.5, "no-decay": 5.2, "product-10-no-decay": 9.8}, size))
    for id in (*CONVERGES, *RAW):
        evidence = row_of(id).evidence
        assert (evidence.verdict, evidence.unit) == (verdict, "omega sigma")
    assert "higher" in row_of(RAW[0]).evidence.text
    assert ("Not as stated at this size" in row_of(CONVERGES[0]).evidence.text) == (size == "small")


def test_products_that_the_clamp_holds_are_at_the_boundary_whatever_the_raw_ones(folder):
    keep(folder, controls({"published": 4.45, "no-decay": 4.9, "product-10-no-decay": 4.85}))
    for id in CONVERGES:
        assert row_of(id).status == CONDITIONAL
        assert row_of(id).evidence.interval == (5.0, 5.0)
    for id in RAW:
        assert row_of(id).status == INCONCLUSIVE
        assert "The opposite at this size: higher." in row_of(id).evidence.text


def test_cells_that_tell_no_product_are_no_evidence(folder):
    keep(folder, controls({}, tells=False))
    evidence = row_of(CONVERGES[0]).evidence
    assert (evidence.verdict, evidence.interval) == (INCONCLUSIVE, None)
    assert "tells no product as used" in evidence.text
    assert row_of(RAW[0]).status == CONDITIONAL


def vision(size):
    losses = {"swat": 0.1, "rmt": 0.3}

    def values(arm, seed):
        loss = losses.get(arm, 0.2) + noise(arm, seed)
        return {"test_loss": loss, "test_accuracy": 1 - loss, "train_loss": loss, "train_accuracy": 1 - loss}

    return made_up("vision", size, values)


def test_images_are_never_in_the_published_setting(folder):
    keep(folder, vision("paper"))
    for id in ("gated-swinrmt-swat-over-rmt", "gated-swinrmt-swat-gate"):
        evidence = row_of(id).evidence
        assert (evidence.verdict, evidence.conditions) == (
            CONDITIONAL,
            "size paper: the published setting is not known",
        )
    gate = row_of("gated-swinrmt-retention-gate").evidence
    assert gate.verdict == INCONCLUSIVE
    assert "Not so at this size" in gate.text


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "expected JSON"), ("[]", "got list"), ('{"schema": 1, "study": "vision", "size": "small"}', "'gate-sight'")],
)
def test_a_file_that_is_no_analysis_is_an_error(folder, content, message):
    (folder / "gate-sight-small.json").write_text(content)
    (row,) = run_claims(["ega-gain"])
    assert row.status == "error"
    assert "gate-sight-small.json" in row.message
    assert message in row.message


def test_the_analyses_that_come_with_the_package_can_be_read():
    for path in reader.KEPT.glob("*-*.json"):
        study = path.stem.rpartition("-")[0]
        assert path.name in [name for name, _ in reader.analyses_of(study)]
    for entry in FROM_STUDIES:
        assert row_of(entry.id).evidence is not None


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


@pytest.mark.parametrize("verdict", [CONDITIONAL, ledger.SHORT[CONDITIONAL]])
def test_verdicts_can_be_asked_for_as_they_are_shown(capsys, verdict):
    code, out = command(capsys, "ega-gate-range", "ega-causal", "--verdict", verdict, "--json")
    assert (code, [row["id"] for row in json.loads(out)["claims"]]) == (cli.OK, ["ega-gate-range"])


def test_kinds_that_are_no_executed_statements_are_counted_apart(capsys):
    ids = ("ega-causal", "ega-wavelet-order", "ega-two-seeds", "ega-conv-lag-causal")
    assert summary(run_claims(ids)) == {
        "statements": {FAILS: 1},
        "control": {FAILS: 1},
        "arithmetic": {FAILS: 1},
        "reading": {NOT_REPRODUCIBLE: 1},
    }
    assert set(APART) == {"control", "arithmetic", "reading"}
