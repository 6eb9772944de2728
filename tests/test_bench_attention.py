"""Attention callables of one's own: refusal of wrong results, floors of the same rounds, bytes, rows and table."""

from __future__ import annotations

import io
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from biases.bench import Case, Samples, Setting, bench_attention, ceilings, interleaved, render_rows

SHAPE = {"batch": 2, "heads": 2, "length": 48, "head_dim": 16}
BOTH = ("forward", "forward+backward")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """One thread and small ceilings: nothing here depends on a time, and threads wait for one another on a busy
    machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("biases.bench.suite.ceilings", partial(ceilings, size=64, copy_bytes=4096))
    yield
    torch.set_num_threads(threads)


def dense(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def dense_causal(q, k, v):
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    above = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(logits.masked_fill(above, -torch.inf), -1) @ v


def in_float64(q, k, v):
    return dense(q.double(), k.double(), v.double())


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def run(*cases, rounds=3, **changes):
    return bench_attention(cases, Setting(**{**SHAPE, **changes}), rounds=rounds)


def status(rows):
    return {row.name: row.status for row in rows}


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_cases_are_measured_beside_their_floor(monkeypatch, direction, dtype):
    timed, rates = [], ceilings(size=64, copy_bytes=4096)

    def seen(cases, **options):
        timed.append(interleaved(cases, **options))
        return timed[-1]

    monkeypatch.setattr("biases.bench.rounds.interleaved", seen)
    monkeypatch.setattr("biases.bench.suite.ceilings", lambda *given: rates)
    rows = run(
        Case("dense", reference=dense, run=dense),
        Case("causal", reference=dense_causal, run=dense_causal, low=dense_causal, causal=True),
        Case("fused", reference=dense, run=fused),
        direction=direction,
        dtype=dtype,
    )
    assert status(rows) == dict.fromkeys(["dense", "causal", "fused"], "ok"), [row.message for row in rows]
    # One timing has all of them, and both floors once.
    (samples,) = timed
    floor, causal_floor, *cases = samples.values()
    assert [row.samples for row in rows] == cases
    for row, expected in zip(rows, [floor, causal_floor, floor], strict=True):
        assert row.floor == expected
        assert len(row.samples.seconds) == len(row.floor.seconds) == 3
        assert row.ratio == row.samples.ratio_to(row.floor)
        assert row.floor_peak_bytes > 0
        assert row.tokens_per_second == pytest.approx(2 * 48 / row.samples.median)
        pairs = 48 * 49 // 2 if row.name == "causal" else 48 * 48
        flops = (2 if direction == "forward" else 7) * 2 * 16 * pairs * 2 * 2
        assert row.matmul_share == pytest.approx(flops / row.samples.median / rates.matmul_flops_per_second)
        assert row.copy_share > 0
        assert row.checked == "all queries"


def test_all_queries_are_compared_however_long(monkeypatch):
    """Where a call of ``attend`` is compared on a sample of them."""
    monkeypatch.setattr("biases.bench.operators.LARGEST_DENSE", 1)

    def wrong_in_one(q, k, v):
        out = fused(q, k, v)
        return torch.cat([out[:, :, :77], out[:, :, 77:78] * 1.001, out[:, :, 78:]], 2)

    rows = run(Case("wrong", dense, wrong_in_one), Case("right", dense, fused), length=200)
    assert status(rows) == {"wrong": "failed", "right": "ok"}


def test_a_wrong_case_is_refused_and_not_timed():
    calls = []

    def wrong(q, k, v):
        calls.append(1)
        return dense(q, k, v) * 1.001

    rows = run(Case("wrong", reference=dense, run=wrong), Case("right", reference=dense, run=fused))
    assert status(rows) == {"wrong": "failed", "right": "ok"}
    assert len(calls) == 1
    assert "wrong: output: expected an error of at most" in rows[0].message
    assert rows[0].samples == rows[0].floor == Samples()
    assert (rows[0].ratio, rows[0].peak_bytes, rows[0].tokens_per_second, rows[0].matmul_share) == (None,) * 4


@pytest.mark.parametrize("direction", BOTH)
def test_another_dtype_is_wrong(direction):
    rows = run(Case("wide", reference=dense, low=dense, run=in_float64), direction=direction)
    assert status(rows) == {"wide": "failed"}
    assert "output: expected dtype torch.float32, got torch.float64" in rows[0].message


def test_a_wrong_gradient_is_refused():
    def wrong(q, k, v):
        return dense(q, k.detach(), v) + 0 * k

    rows = run(Case("wrong", reference=dense, run=wrong), direction="forward+backward")
    assert status(rows) == {"wrong": "failed"}
    assert "gradient of" in rows[0].message
    assert status(run(Case("wrong", reference=dense, run=wrong))) == {"wrong": "ok"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("detached", [False, True], ids=["right", "wrong"])
def test_gradients_of_parameters_are_computed_and_checked(detached, dtype):
    gate = torch.linspace(-1, 1, SHAPE["length"], requires_grad=True)

    def gated(q, k, v, bias=None):
        bias = gate if bias is None else bias
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return torch.softmax(logits + bias.to(q.dtype), -1) @ v

    def measured(q, k, v):
        return gated(q, k, v, gate.detach() + 0 * gate if detached else gate)

    case = Case("gated", reference=gated, run=measured, parameters=(gate,))
    rows = run(case, direction="forward+backward", dtype=dtype)
    assert status(rows) == {"gated": "failed" if detached else "ok"}
    assert ("gradient of learned tensor 0" in rows[0].message) is detached
    assert gate.grad is None


def test_a_case_that_raises_is_reported_and_the_others_go_on():
    def broken(q, k, v):
        raise RuntimeError("no kernel")

    cases = Case("broken", reference=dense, run=broken), Case("unmade", reference=dense, make=broken)
    rows = run(*cases, Case("right", reference=dense, run=fused))
    assert status(rows) == {"broken": "error", "unmade": "error", "right": "ok"}
    assert rows[0].message == rows[1].message == "RuntimeError: no kernel"


def test_a_case_that_breaks_while_it_is_timed_is_reported():
    calls = []

    def tires(q, k, v):
        calls.append(1)
        # Once checked, once to fill caches, once weighed, three times to warm up.
        if len(calls) > 6:
            raise RuntimeError("worn out")
        return fused(q, k, v)

    rows = run(Case("tires", reference=dense, run=tires), Case("right", reference=dense, run=fused))
    assert status(rows) == {"tires": "error", "right": "ok"}
    assert len(calls) == 7
    assert rows[0].message == "RuntimeError: worn out"
    assert rows[0].samples == Samples()
    assert rows[0].ratio is None


@pytest.mark.parametrize("direction", BOTH)
def test_a_floor_that_raises_leaves_no_ratio(monkeypatch, direction):
    def broken(*given, **options):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("biases.bench.operators.stock", broken)
    (row,) = run(Case("right", reference=dense, run=fused), direction=direction)
    assert row.status == "ok"
    assert row.samples.seconds
    assert row.floor == Samples(error="RuntimeError: no kernel")
    assert (row.ratio, row.floor_peak_bytes) == (None, None)


@pytest.mark.parametrize("direction", BOTH)
def test_a_reference_that_is_not_float64_is_an_error(direction):
    case = Case("low", reference=lambda q, k, v: fused(q.float(), k.float(), v.float()), run=fused)
    rows = run(case, direction=direction)
    assert status(rows) == {"low": "error"}
    assert "reference of 'low': expected torch.float64, as its inputs, got torch.float32" in rows[0].message


def test_a_reference_that_computes_in_float64_needs_low_formulas():
    without = Case("without", reference=in_float64, run=fused)
    rows = run(without, Case("with", reference=in_float64, low=dense, run=fused))
    assert status(rows) == {"without": "error", "with": "ok"}
    assert "low-precision result of 'without': expected torch.float32" in rows[0].message


def planted_in_make(q, k, v):
    mask = torch.zeros(256, 256)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize(
    "planted",
    [
        {"run": lambda q, k, v: fused(q, k, v) + 0 * torch.zeros(256, 256).sum()},
        {"make": planted_in_make},
    ],
    ids=["run", "make"],
)
def test_a_planted_square_allocation_shows_in_the_peak(planted):
    shape = {"batch": 1, "heads": 1, "length": 256, "head_dim": 8}
    cases = Case("planted", reference=dense, **planted), Case("clean", reference=dense, run=fused)
    planted_row, clean = run(*cases, **shape)
    assert planted_row.status == clean.status == "ok", planted_row.message
    assert clean.peak_bytes == clean.floor_peak_bytes < 256 * 256 * 4
    assert clean.extra_bytes == clean.peak_bytes - 256 * 8 * 4
    assert planted_row.extra_bytes >= 256 * 256 * 4 > clean.extra_bytes


def test_what_is_built_once_is_not_timed():
    built = []

    def make(q, k, v):
        built.append(1)
        return fused

    (row,) = run(Case("made", reference=dense, make=make), rounds=5)
    assert len(row.samples.seconds) == 5
    # For the check and the rounds, and once to be weighed.
    assert len(built) == 2


def test_rows_survive_json():
    rows = run(
        Case("right", reference=dense, run=fused),
        Case("wrong", reference=dense, run=lambda q, k, v: 2 * fused(q, k, v)),
        seed=7,
    )
    plain = [row.as_dict() for row in rows]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain[0]["setting"] | SHAPE | {"seed": 7, "dtype": "float32"} == plain[0]["setting"]
    assert plain[0]["ratio"]["rounds"] == 3
    assert plain[1]["samples"]["median"] is None


def test_equal_seeds_give_equal_inputs():
    def seen(seed):
        kept = []

        def keep(q, k, v):
            kept.append((q.clone(), k.clone(), v.clone()))
            return fused(q, k, v)

        run(Case("keep", reference=dense, run=keep), rounds=1, seed=seed)
        return kept[0]

    first, again, other = seen(3), seen(3), seen(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def test_progress_counts_cases_and_rounds():
    seen = []
    cases = [Case(name, reference=dense, run=fused) for name in "ab"]
    bench_attention(cases, Setting(**SHAPE), rounds=2, progress=lambda *call: seen.append(call))
    assert seen == [("checking", 1, 2), ("checking", 2, 2), ("timing", 1, 2), ("timing", 2, 2)]


GOOD = Case("a", reference=dense, run=fused)


@pytest.mark.parametrize(
    ("cases", "rounds", "message"),
    [
        ([], 3, "cases: expected at least one"),
        ([GOOD, GOOD], 3, "names of the cases: expected unique ones"),
        ([GOOD], 0, "rounds: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(cases, rounds, message):
    with pytest.raises(ValueError, match=message):
        bench_attention(cases, Setting(**SHAPE), rounds=rounds)


def test_a_case_has_either_run_or_make():
    with pytest.raises(ValueError, match="neither"):
        Case("a", reference=dense)
    with pytest.raises(ValueError, match="both"):
        Case("a", reference=dense, run=fused, make=planted_in_make)
    with pytest.raises(ValueError, match="requires_grad"):
        Case("a", reference=dense, run=fused, parameters=(torch.ones(1),))


def test_the_table_shows_every_case_and_why_one_failed():
    from rich.console import Console

    cases = [
        Case("right", reference=dense, run=fused),
        Case("odd[name]", reference=dense, run=lambda q, k, v: 2 * fused(q, k, v)),
    ]
    out = io.StringIO()
    console = Console(file=out, width=200)
    for table in render_rows(run(*cases), console):
        console.print(table)
    printed = " ".join(out.getvalue().split())
    for text in ("float32 on cpu name", "right", "odd[name]: output: expected", "KiB", "only ratios travel"):
        assert text in printed


@pytest.mark.gpu
@pytest.mark.parametrize("direction", BOTH)
def test_cases_on_a_gpu(direction):
    (row,) = run(Case("dense", reference=dense, run=dense), device="cuda", direction=direction)
    assert row.status == "ok", row.message
    assert all(s > 0 for s in row.samples.seconds)
