"""Claims that rest on a study: the verdict that its results amount to, at which size and under which conditions."""

from __future__ import annotations

from functools import partial

import pytest
from claims_studies import STUDIES, gate_sight, keep, made_up, noise, row_of

from biases.ablation.analysis import analyse
from biases.ablation.study import load_study
from biases.claims import CLAIMS, compared, published, run_claims
from biases.claims import analyses as reader
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE

COMPARED = [e for e in CLAIMS.values() if isinstance(e.run, partial) and e.run.func is compared.compared]
FROM_STUDIES = [*COMPARED, *(e for e in CLAIMS.values() if e.test.startswith("biases.claims.learned_values"))]


@pytest.fixture
def folder(tmp_path):
    with reader.reading(tmp_path):
        yield tmp_path


@pytest.mark.parametrize("id", [entry.id for entry in FROM_STUDIES])
def test_without_results_a_study_is_named(id, folder):
    evidence = row_of(id).evidence
    assert evidence.verdict == INCONCLUSIVE
    assert (evidence.interval, evidence.seeds) == (None, None)
    command = evidence.text.split("`")[1]
    assert (STUDIES.parents[1] / command.removeprefix("biases ablate ")).is_file()


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


def test_the_opposite_in_another_setting_fails_in_that_setting_alone(folder):
    keep(folder, gate_sight())
    rows = [row_of(id) for id in ("ega-gain-without-the-future", "ega-gain-of-a-causal-gate")]
    opposite, none = (row.evidence for row in rows)
    for row in rows:
        assert (row.status, row.label) == (FAILS, "fails on condition")
        assert row.evidence.conditions.startswith("size small: layers 4 (published 6)")
    assert "The opposite at this size: higher." in opposite.text
    assert "Not so at this size: within 0.01 nats per character of no difference" in none.text
    assert "Holm-adjusted p of equivalence = " in none.text
    assert "Holm-adjusted p = " not in none.text
    assert none.values["p_equivalence_holm"] < 0.05
    assert "p_holm" not in none.values
    keep(folder, gate_sight("paper"))
    for id in ("ega-gain-without-the-future", "ega-gain-of-a-causal-gate"):
        row = row_of(id)
        assert (row.status, row.label, row.evidence.conditions) == (FAILS, FAILS, "")
        assert "at this size" not in row.evidence.text


@pytest.mark.parametrize(
    ("size", "ega", "verdict"),
    [
        ("small", 1.795, CONDITIONAL),
        ("paper", 1.795, CONDITIONAL),
        ("paper", 1.800, FAILS),
        ("paper", 1.805, FAILS),
        ("paper", 1.900, FAILS),
        ("small", 1.900, FAILS),
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
        ({"tau": 0.35, "alpha": 3.0}, 1e-3, "small", (CONDITIONAL, FAILS)),
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
        assert ("one start" in evidence.conditions) == (evidence.verdict != INCONCLUSIVE)


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
        (-0.06, "small", FAILS),
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


@pytest.mark.parametrize("size", ["small", "paper"])
def test_products_that_end_elsewhere_are_no_convergence(folder, size):
    keep(folder, controls({"published": 4.5, "no-decay": 5.2, "product-10-no-decay": 9.8}, size))
    for id in (*CONVERGES, *RAW):
        evidence = row_of(id).evidence
        assert (evidence.verdict, evidence.unit) == (FAILS, "omega sigma")
        assert bool(evidence.conditions) == (size == "small")
    assert "higher" in row_of(RAW[0]).evidence.text
    assert ("Not as stated at this size" in row_of(CONVERGES[0]).evidence.text) == (size == "small")


def test_products_that_the_clamp_holds_are_at_the_boundary_whatever_the_raw_ones(folder):
    keep(folder, controls({"published": 4.45, "no-decay": 4.9, "product-10-no-decay": 4.85}))
    for id in CONVERGES:
        assert row_of(id).status == CONDITIONAL
        assert row_of(id).evidence.interval == (5.0, 5.0)
    for id in RAW:
        assert row_of(id).status == FAILS
        assert "Not so at this size: higher." in row_of(id).evidence.text


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
    assert (gate.verdict, gate.conditions) == (FAILS, "size paper: the published setting is not known")
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
