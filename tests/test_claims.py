"""The claims ledger: what counts as evidence, the entries of EGA and MoPE, the studies they read, the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from biases import cli
from biases.ablation.analysis import analyse
from biases.ablation.study import load_study
from biases.claims import CLAIMS, cost, ega, ledger, mope, run_claims, schedule
from biases.claims import analyses as reader
from biases.claims.evidence import CONDITIONAL, FAILS, HOLDS, INCONCLUSIVE, NOT_REPRODUCIBLE, Evidence, counted
from biases.claims.ledger import Claim, claim, claims_of, get

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
    "ega-no-measurable-cost": CONDITIONAL,
    "ega-reflect-padding-causal": FAILS,
    "ega-morlet-admissible": FAILS,
    "ega-fixed-bases-suboptimal": INCONCLUSIVE,
    "ega-wavelet-order": FAILS,
    "ega-36-percent-of-tokens": CONDITIONAL,
    "ega-alpha-travel": FAILS,
    "ega-identical-batches": FAILS,
    "ega-two-seeds": NOT_REPRODUCIBLE,
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
    "mope-learned-frequencies": FAILS,
    "mope-coarse-scale": FAILS,
    "mope-superadditivity-sum": HOLDS,
}
FROM_STUDIES = [
    entry for entry in CLAIMS.values() if entry.test.startswith(("biases.claims.analyses", "biases.claims.tr"))
]


def row_of(id):
    (row,) = run_claims([id])
    assert row.message == "", row.message
    return row


def test_the_ledger_is_as_large_as_promised():
    assert len(CLAIMS) >= 40
    assert len(PINNED) >= 28
    for entry in CLAIMS.values():
        assert entry.location
        assert entry.statement.endswith((".", '."'))
        assert entry.id == entry.id.lower()


def test_every_mathematical_entry_of_these_papers_is_pinned():
    modules = ("ega", "ega_results", "mope", "mope_learned")
    own = {id for id, entry in CLAIMS.items() if entry.test.split(".")[2] in modules}
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
    with pytest.raises(ValueError, match="an interval"):
        entry_of("empirical", seeds_alone).check(seeds_alone)
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


def made_up(name, size, values, *, learned=None, seeds=8):
    """The analysis of a study whose cells have the metrics ``values(arm, seed)``."""
    study = load_study(STUDIES / f"{name}-small.toml")
    results = []
    for cell in study.grid.cells():
        if cell.seed >= seeds:
            continue
        config = {**cell.config, "model": dict(cell.config["model"])}
        result = {"schema": 1, "id": cell.id, "arm": cell.arm, "seed": cell.seed, "config": config, "status": "ok"}
        result |= {"metrics": values(cell.arm, cell.seed), "curve": [], "data": {"name": "t", "sha256": "0"}}
        results.append({**result, "versions": {"git": "f" * 40}, "learned": learned(cell) if learned else {}})
    return analyse(replace(study, size=size), results)


def noise(arm, seed, scale=1e-3):
    """Small, the same for the same arm and seed."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(map(ord, arm)))
    return scale * torch.randn(1, generator=generator).item()


def gate_sight(size="small", seeds=8):
    full = {"standard": 1.80, "ega": 1.70, "ega-prefix": 1.801, "ega-token": 1.9}
    truncated = {**full, "ega": 1.95}

    def values(arm, seed):
        found = {"full": full[arm] + noise(arm, seed), "truncated": truncated[arm] + noise(arm, seed)}
        found |= {"full_at_truncated": found["full"], "train": 1.5, "positions": 2048, "windows": 871}
        return {**found, "leak": truncated[arm] - full[arm] + noise(arm, seed), "leak_standard_error": 0.002}

    def learned(cell):
        if cell.arm != "ega":
            return {}
        tau, alpha = (value + noise(cell.arm, cell.seed, 0.05) for value in (0.35, 3.0))
        return {
            f"blocks.{layer}.attention.key_gate.{name}": [value + layer, value + layer + 0.01]
            for layer in range(2)
            for name, value in (("tau", tau), ("alpha", alpha))
        }

    return made_up("gate-sight", size, values, learned=learned, seeds=seeds)


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
@pytest.mark.parametrize("entry", [e for e in FROM_STUDIES if isinstance(e.run, partial)], ids=lambda e: e.id)
def test_the_studies_declare_the_contrasts_that_are_read(entry, size):
    asked = dict(entry.run.keywords)
    study = load_study(STUDIES / f"{entry.run.args[0]}-{size}.toml")
    metric = asked.pop("metric")
    assert asked.pop("stated") in reader.STATED
    assert asked.pop("published")
    declared = [(c.arms, c.metric or study.statistics.metric) for c in (*study.family, *study.exploratory)]
    assert (asked, metric) in declared


def test_verdicts_from_a_study(folder):
    keep(folder, gate_sight())
    gain = row_of("ega-gain").evidence
    assert gain.verdict == CONDITIONAL
    assert gain.conditions.startswith("size small, smaller than the paper's")
    assert (gain.seeds, gain.size, gain.unit) == (8, "small", "nats per character")
    assert gain.interval[0] < -0.1 < gain.interval[1]
    for part in ("n = 8", "Holm-adjusted p = 0.0312 (smallest attainable 0.0312): lower", "2000 updates", "+0.103"):
        assert part in gain.text
    assert row_of("ega-gain-without-the-future").status == FAILS
    assert row_of("ega-gain-of-a-causal-gate").status == FAILS
    assert "equivalent" in row_of("ega-gain-of-a-causal-gate").evidence.text
    assert "higher" in row_of("ega-gain-without-statistics").evidence.text
    leak = row_of("ega-loss-without-the-future").evidence
    assert leak.verdict == FAILS
    assert leak.interval[0] < 0.25 < leak.interval[1]


def test_learned_values_from_a_study(folder):
    keep(folder, gate_sight())
    tau, alpha = (row_of(f"ega-{name}-converges").evidence for name in ("tau", "alpha"))
    assert (tau.verdict, alpha.verdict) == (CONDITIONAL, FAILS)
    assert tau.interval[0] < 0.355 < tau.interval[1]
    assert tau.values["heads"][1] > 1.2
    assert list(tau.values["by layer"]) == [f"blocks.{layer}.attention.key_gate.tau" for layer in range(2)]


def test_the_papers_own_size_comes_first_and_needs_no_condition(folder):
    keep(folder, gate_sight())
    keep(folder, gate_sight("paper"))
    gain = row_of("ega-gain").evidence
    assert (gain.verdict, gain.size, gain.conditions) == (HOLDS, "paper", "")
    assert gain.source.startswith("gate-sight-paper.json")


def test_too_few_seeds_are_inconclusive(folder):
    keep(folder, gate_sight(seeds=3))
    gain = row_of("ega-gain").evidence
    assert (gain.verdict, gain.seeds) == (INCONCLUSIVE, 3)
    assert "refused" in gain.text
    keep(folder, gate_sight(seeds=1))
    assert row_of("ega-gain").evidence.seeds is None


def superadditivity(excess):
    losses = {"standard+learned": 1.8, "standard+mope": 1.83, "standard+rotary": 1.7, "standard+none": 1.83}

    def values(arm, seed):
        gate, _, position = arm.partition("+")
        loss = losses.get(f"standard+{position}", 1.8) - 0.1 * (gate != "standard")
        loss -= excess * (gate != "standard" and position == "mope")
        return {name: loss + noise(arm, seed) for name in ("full", "truncated", "full_at_truncated", "leak", "train")}

    return made_up("superadditivity", "small", values)


@pytest.mark.parametrize(("excess", "verdict"), [(0.06, CONDITIONAL), (0.0, FAILS), (-0.06, FAILS)])
def test_interactions_and_what_stays_exploratory(folder, excess, verdict):
    keep(folder, superadditivity(excess))
    assert row_of("superadditivity").status == verdict
    assert row_of("mope-alone-is-worse").status == CONDITIONAL
    exploratory = row_of("rope-gain").evidence
    assert exploratory.verdict == INCONCLUSIVE
    assert exploratory.interval[1] < 0
    assert "outside the declared family, so there is no test" in exploratory.text
    assert "p = " not in exploratory.text


def test_products_that_end_elsewhere_are_no_convergence(folder):
    ends = {"published": 4.5, "no-decay": 5.2, "product-10-no-decay": 9.8}

    def learned(cell):
        end = ends.get(cell.arm, 5.0) + noise(cell.arm, cell.seed, 0.01)
        return {"position.unclamped_product": [end - 0.1, end + 0.1]}

    full = {"full": 1.8, "truncated": 1.8, "full_at_truncated": 1.8, "leak": 0.0, "train": 1.5}
    keep(folder, made_up("mope-controls", "small", lambda arm, seed: full, learned=learned))
    for id in ("mope-converges-from-elsewhere", "mope-converges-without-decay"):
        evidence = row_of(id).evidence
        assert (evidence.verdict, evidence.unit) == (FAILS, "omega sigma")
        assert "higher" in evidence.text


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


def test_the_kept_cost_is_the_measured_one():
    """If not, `cost.write(Path("benchmarks/results/ratios_cpu.json"))` writes it anew."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "ratios_cpu.json").read_text())
    assert cost.load() == cost.extract(measured)


def test_writing_the_cost(tmp_path):
    cost.write(ROOT / "benchmarks" / "results" / "ratios_cpu.json", tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text()) == cost.load()


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
    assert document["summary"] == {HOLDS: 1, FAILS: 1}
    assert document["claims"][1]["evidence"]["counterexample"]["tau"] == 6


def test_the_command_shows_tables_by_paper(capsys, monkeypatch):
    chosen = {id: CLAIMS[id] for id in ("mope-kernel", "ega-causal", "ega-rows-sum-to-one")}
    monkeypatch.setattr(ledger, "CLAIMS", chosen)
    code, out = command(capsys)
    assert code == cli.OK
    assert out.index("arXiv 2605.21842") < out.index("ega-causal") < out.index("arXiv 2606.01258")
    assert "3 claims: 2 holds, 1 fails" in out
    code, out = command(capsys, "--verdict", "fails", "--json")
    assert [row["id"] for row in json.loads(out)["claims"]] == ["ega-causal"]
    code, out = command(capsys, "--paper", "2606.01258", "--json")
    assert [row["id"] for row in json.loads(out)["claims"]] == ["mope-kernel"]


def test_the_command_reads_results_from_a_folder(capsys, tmp_path):
    keep(tmp_path, gate_sight())
    code, out = command(capsys, "ega-gain", "--results", str(tmp_path), "--json")
    assert (code, json.loads(out)["summary"]) == (cli.OK, {CONDITIONAL: 1})
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


def test_nothing_to_run_is_told(capsys):
    assert command(capsys, "ega-causal", "--paper", "2606.01258")[0] == cli.NOTHING
