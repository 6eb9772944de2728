"""The measuring tools: structure of the samples, exact bytes, refusal of wrong results."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from biases.bench import (
    Case,
    Measurement,
    Samples,
    bench_attention,
    ceilings,
    facts,
    interleaved,
    nominal_flops,
    peak_bytes,
    render,
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One thread and small ceilings: nothing here depends on a time, and threads wait for one another on a busy
    machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("biases.bench.suite.ceilings", partial(ceilings, size=64, copy_bytes=4096))
    yield
    torch.set_num_threads(threads)


SHAPE = {"batch": 2, "heads": 2, "length": 48, "head_dim": 16}


def dense(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def dense_causal(q, k, v):
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    above = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(logits.masked_fill(above, -torch.inf), -1) @ v


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


class Recorder:
    """Callables that write down the order in which they are called."""

    def __init__(self):
        self.calls = []

    def case(self, name, fails_at=None):
        def call():
            self.calls.append(name)
            if fails_at is not None and self.calls.count(name) == fails_at:
                raise RuntimeError(f"{name} broke")

        return call


def in_float64(q, k, v):
    return dense(q.double(), k.double(), v.double())


# Timing


def test_the_order_is_rotated_each_round():
    seen = Recorder()
    interleaved({name: seen.case(name) for name in "ABC"}, rounds=4, warmup=1)
    assert "".join(seen.calls) == "ABC" + "ABC" + "BCA" + "CAB" + "ABC"


def test_every_case_has_one_sample_a_round():
    samples = interleaved({"a": lambda: None, "b": lambda: None}, rounds=5, warmup=0)
    assert list(samples) == ["a", "b"]
    for sample in samples.values():
        assert len(sample.seconds) == 5
        assert sample.error is None
        assert 0 <= sample.low <= sample.median <= sample.high


def test_a_spent_budget_still_runs_three_complete_rounds():
    seen = Recorder()
    samples = interleaved({name: seen.case(name) for name in "AB"}, rounds=15, warmup=2, seconds=0.0)
    assert [len(s.seconds) for s in samples.values()] == [3, 3]
    assert len(seen.calls) == 2 * (2 + 3)


def test_fewer_rounds_than_three_are_allowed():
    assert len(interleaved({"a": lambda: None}, rounds=2, seconds=0.0)["a"].seconds) == 2


def test_an_ample_budget_runs_every_round():
    assert len(interleaved({"a": lambda: None}, rounds=6, seconds=1e6)["a"].seconds) == 6


@pytest.mark.parametrize("fails_at", [1, 4], ids=["warm-up", "timed"])
def test_a_case_that_raises_is_dropped_and_the_others_go_on(fails_at):
    seen = Recorder()
    cases = {"good": seen.case("good"), "bad": seen.case("bad", fails_at)}
    samples = interleaved(cases, rounds=5, warmup=2)
    assert samples["bad"] == Samples(error="RuntimeError: bad broke")
    assert len(samples["good"].seconds) == 5
    assert seen.calls.count("bad") == fails_at


def test_timing_ends_where_every_case_raised():
    seen = Recorder()
    samples = interleaved({"bad": seen.case("bad", 1)}, rounds=5, warmup=1)
    assert seen.calls == ["bad"]
    assert samples["bad"].seconds == ()


def test_an_interrupt_is_not_swallowed():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleaved({"a": interrupted}, rounds=1, warmup=0)


def test_progress_counts_the_rounds():
    seen = []
    interleaved({"a": lambda: None}, rounds=3, progress=lambda *call: seen.append(call))
    assert seen == [("timing", 1, 3), ("timing", 2, 3), ("timing", 3, 3)]


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    ratio = Samples((1.0, 8.0, 3.0, 8.0, 5.0)).ratio_to(Samples((1.0, 4.0, 1.0, 2.0, 1.0)))
    assert (ratio.low, ratio.value, ratio.high, ratio.rounds) == (2.0, 3.0, 4.0, 5)


def test_the_ratio_of_a_case_to_itself_is_one():
    sample = interleaved({"a": lambda: sum(range(1000))}, rounds=5)["a"]
    ratio = sample.ratio_to(sample)
    assert (ratio.low, ratio.value, ratio.high) == (1.0, 1.0, 1.0)


def test_a_ratio_needs_samples_of_the_same_rounds():
    with pytest.raises(ValueError, match="broke"):
        Samples((1.0,)).ratio_to(Samples(error="RuntimeError: broke"))
    with pytest.raises(ValueError, match="expected 1 rounds, got 2"):
        Samples((1.0,)).ratio_to(Samples((1.0, 2.0)))


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"rounds": 0}, "rounds"),
        ({"warmup": -1}, "warmup"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"device": "tpu"}, "device"),
        ({"device": "meta"}, "device"),
        ({"device": "cuda:99"}, "device"),
    ],
)
def test_bad_timing_arguments_are_refused(bad, names):
    with pytest.raises(ValueError, match=rf"^{names}: expected .*, got"):
        interleaved({"a": lambda: None}, **bad)


def test_timing_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        interleaved({})


# Memory


def planted_matmul():
    a = torch.ones(64, 64)
    return lambda: a @ a


def planted_freed_inside():
    def fn():
        first = torch.empty(1000)
        del first
        second = torch.empty(2000)
        del second
        return torch.empty(500)

    return fn


def planted_held_together():
    def fn():
        first = torch.empty(1000, dtype=torch.float64)
        second = torch.empty(10, dtype=torch.uint8)
        return first, second

    return fn


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (planted_matmul, 64 * 64 * 4),
        (planted_freed_inside, 2000 * 4),
        (planted_held_together, 1000 * 8 + 10),
        (lambda: lambda: None, 0),
    ],
)
def test_peak_bytes_are_exact_and_equal_twice(plant, expected):
    fn = plant()
    assert [peak_bytes(fn), peak_bytes(fn)] == [expected, expected]


def test_blocks_from_before_neither_raise_nor_lower_the_peak():
    old = [torch.ones(5000)]

    def fn():
        old.clear()
        return torch.empty(100)

    assert peak_bytes(fn) == 400


def test_a_block_that_outlived_an_earlier_count_does_not_disturb_a_later_one():
    kept = []
    peak_bytes(lambda: kept.append(torch.empty(4096)))
    kept.clear()
    # The system may hand the same address out again, now for a block of another size.
    kept.extend(torch.empty(n) for n in (4096, 4095, 1024))

    def fn():
        kept.clear()
        return torch.empty(100)

    assert peak_bytes(fn) == 400


def test_the_peak_of_a_backward_is_seen():
    x = torch.ones(1000, requires_grad=True)

    def fn():
        return torch.autograd.grad((x * x).sum(), x)

    assert peak_bytes(fn) == peak_bytes(fn) >= 2 * 4000


def test_an_exception_passes_through_and_leaves_the_count_usable():
    def fn():
        raise RuntimeError("broke")

    before = os.environ.get("KINETO_LOG_LEVEL")
    with pytest.raises(RuntimeError, match="broke"):
        peak_bytes(fn)
    assert os.environ.get("KINETO_LOG_LEVEL") == before
    assert peak_bytes(planted_matmul()) == 64 * 64 * 4


# Machine


def test_facts_are_plain_values_and_survive_missing_tools(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = facts()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["git_revision"] is None
    assert found["date"].endswith("+00:00")


def test_the_revision_is_that_of_the_current_directory(monkeypatch, tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *author, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.chdir(tmp_path)
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    assert facts()["git_revision"] == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert facts()["git_revision"] == git("rev-parse", "HEAD") + "-dirty"


# The benchmark


def run(*cases, **changes):
    return bench_attention(cases, **{**SHAPE, "rounds": 3, **changes})


def status(result):
    return {case.name: case.status for case in result.cases}


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_cases_are_measured_beside_their_floor(direction, dtype):
    result = run(
        Case("dense", reference=dense, run=dense),
        Case("causal", reference=dense_causal, run=dense_causal, low=dense_causal, causal=True),
        direction=direction,
        dtype=dtype,
    )
    assert result.ok, [case.message for case in result.cases]
    assert list(result.floors) == ["floor", "floor-causal"]
    for case in result.cases:
        assert result.floor_of(case).name == ("floor-causal" if case.causal else "floor")
        assert len(case.samples.seconds) == len(result.floor_of(case).samples.seconds) == 3
        assert case.ratio == case.samples.ratio_to(result.floor_of(case).samples)
        assert case.floor_peak_bytes == result.floor_of(case).peak_bytes
        assert case.tokens_per_second == pytest.approx(2 * 48 / case.samples.median)
        rate = result.ceilings.matmul_flops_per_second
        flops = nominal_flops(**SHAPE, causal=case.causal, direction=direction)
        assert case.matmul_share == pytest.approx(flops / case.samples.median / rate)


def test_a_wrong_case_is_refused_and_not_timed():
    calls = []

    def wrong(q, k, v):
        calls.append(1)
        return dense(q, k, v) * 1.001

    result = run(Case("wrong", reference=dense, run=wrong), Case("right", reference=dense, run=fused))
    case = result.cases[0]
    assert status(result) == {"wrong": "failed", "right": "ok"}
    assert not result.ok
    assert len(calls) == 1
    assert "output" in case.message
    assert case.samples == Samples()
    assert (case.ratio, case.peak_bytes, case.tokens_per_second, case.matmul_share) == (None,) * 4


def test_a_wrong_gradient_is_refused():
    def wrong(q, k, v):
        return dense(q, k.detach(), v) + 0 * k

    result = run(Case("wrong", reference=dense, run=wrong), direction="forward+backward")
    assert status(result) == {"wrong": "failed"}
    assert "gradient of" in result.cases[0].message
    assert status(run(Case("wrong", reference=dense, run=wrong))) == {"wrong": "ok"}


@pytest.mark.parametrize("detached", [False, True], ids=["right", "wrong"])
def test_gradients_of_parameters_are_computed_and_checked(detached):
    gate = torch.linspace(-1, 1, SHAPE["length"], requires_grad=True)

    def gated(q, k, v, bias=None):
        bias = gate if bias is None else bias
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return torch.softmax(logits + bias.to(q.dtype), -1) @ v

    def measured(q, k, v):
        return gated(q, k, v, gate.detach() + 0 * gate if detached else gate)

    case = Case("gated", reference=gated, run=measured, parameters=(gate,))
    result = run(case, direction="forward+backward")
    assert status(result) == {"gated": "failed" if detached else "ok"}
    assert ("gradient of parameter 0" in result.cases[0].message) is detached
    assert gate.grad is None


def test_a_case_that_raises_is_reported_and_the_others_go_on():
    def broken(q, k, v):
        raise RuntimeError("no kernel")

    result = run(Case("broken", reference=dense, run=broken), Case("right", reference=dense, run=fused))
    assert status(result) == {"broken": "error", "right": "ok"}
    assert result.cases[0].message == "RuntimeError: no kernel"


def test_a_case_that_breaks_while_it_is_timed_is_reported():
    calls = []

    def tires(q, k, v):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("worn out")
        return fused(q, k, v)

    result = run(Case("tires", reference=dense, run=tires), Case("right", reference=dense, run=fused))
    assert status(result) == {"tires": "error", "right": "ok"}
    assert result.cases[0].samples == Samples(error="RuntimeError: worn out")
    assert result.cases[0].ratio is None


def test_a_reference_that_is_not_float64_is_an_error():
    result = run(Case("low", reference=lambda q, k, v: fused(q.float(), k.float(), v.float()), run=fused))
    assert status(result) == {"low": "error"}
    assert "expected a float64 result" in result.cases[0].message


def test_a_reference_that_computes_in_float64_needs_low_formulas():
    without = Case("without", reference=in_float64, run=fused)
    result = run(without, Case("with", reference=in_float64, low=dense, run=fused))
    assert status(result) == {"without": "error", "with": "ok"}
    assert "low-precision result of 'without': expected torch.float32" in result.cases[0].message


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
    torch.manual_seed(0)
    shape = {"batch": 1, "heads": 1, "length": 256, "head_dim": 8}
    result = run(Case("planted", reference=dense, **planted), Case("clean", reference=dense, run=fused), **shape)
    planted_case, clean = result.cases
    assert result.ok, planted_case.message
    assert clean.peak_bytes == clean.floor_peak_bytes
    assert planted_case.peak_bytes >= 256 * 256 * 4
    assert clean.peak_bytes < 256 * 256 * 4


def test_the_result_survives_json():
    result = run(
        Case("right", reference=dense, run=fused),
        Case("wrong", reference=dense, run=lambda q, k, v: 2 * fused(q, k, v)),
        seed=7,
    )
    plain = result.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["configuration"] | SHAPE | {"seed": 7, "dtype": "float32"} == plain["configuration"]
    assert plain["machine"]["torch"] == torch.__version__
    assert plain["cases"][0]["ratio"]["rounds"] == 3
    assert plain["cases"][1]["samples"]["median"] is None


def test_equal_seeds_give_equal_inputs():
    def seen(seed):
        kept = []

        def keep(q, k, v):
            kept.append(q.clone())
            return fused(q, k, v)

        run(Case("keep", reference=dense, run=keep), rounds=1, seed=seed)
        return kept[0]

    assert torch.equal(seen(3), seen(3))
    assert not torch.equal(seen(3), seen(4))


def test_nominal_operations():
    shape = {"batch": 2, "heads": 3, "length": 4, "head_dim": 5}
    assert nominal_flops(**shape, causal=False, direction="forward") == 4 * 2 * 3 * 4 * 4 * 5
    assert nominal_flops(**shape, causal=True, direction="forward") == 4 * 2 * 3 * 10 * 5
    assert nominal_flops(**shape, causal=False, direction="forward+backward") == 14 * 2 * 3 * 4 * 4 * 5
    with pytest.raises(ValueError, match="direction"):
        nominal_flops(**shape, causal=False, direction="sideways")


def test_ceilings_are_rates_of_what_was_asked():
    found = ceilings(dtype=torch.bfloat16, size=16, copy_bytes=1024, rounds=2)
    assert found.matmul_flops_per_second > 0
    assert found.copy_bytes_per_second > 0
    assert (found.matmul_size, found.copy_bytes, found.dtype) == (16, 1024, "bfloat16")
    default = ceilings(rounds=1)
    assert (default.matmul_size, default.copy_bytes, default.dtype) == (1024, 1 << 26, "float32")
    with pytest.raises(RuntimeError, match=r"ceiling of matmul in torch\.bool"):
        ceilings(dtype=torch.bool, size=16, copy_bytes=16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_on_the_cpu_has_the_faster_of_two_ceilings(monkeypatch, dtype):
    """Where products in half precision are emulated, attention that computes in float32 would be over their rate."""
    seconds = {dtype: 2.0, torch.float32: 0.5}

    def timed(cases, **options):
        return {name: Samples((next((seconds[d] for d in seconds if str(d) in name), 1.0),)) for name in cases}

    # The function hides the module of its name.
    monkeypatch.setattr(sys.modules["biases.bench.ceilings"], "interleaved", timed)
    found = ceilings(dtype=dtype, size=16, copy_bytes=16)
    own = dtype == torch.float64
    assert found.matmul_flops_per_second == 2 * 16**3 / (2.0 if own else 0.5)
    assert (found.dtype, found.matmul_dtype) == (str(dtype)[6:], "float64" if own else "float32")


GOOD = Case("a", reference=dense, run=fused)


@pytest.mark.parametrize(
    ("cases", "bad", "message"),
    [
        ([], {}, "cases: expected at least one"),
        ([GOOD, GOOD], {}, "names of the cases"),
        ([Case("floor", reference=dense, run=fused)], {}, "names of the cases"),
        ([GOOD], {"length": 0}, "length"),
        ([GOOD], {"rounds": 0}, "rounds"),
        ([GOOD], {"dtype": torch.int64}, "dtype"),
        ([GOOD], {"direction": "forwards"}, "did you mean 'forward'"),
        ([GOOD], {"device": "mps"}, "device"),
    ],
)
def test_bad_benchmark_arguments_are_refused(cases, bad, message):
    with pytest.raises(ValueError, match=message):
        bench_attention(cases, **{**SHAPE, **bad})


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
    Console(file=out, width=200).print(render(run(*cases)))
    printed = " ".join(out.getvalue().split())
    for text in ("floor-causal", "right", "odd[name] failed: output: expected", "KiB", "only ratios travel"):
        assert text in printed


def test_importing_needs_no_extras():
    code = "import sys, biases.bench; print([m for m in ('rich', 'hypothesis', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_measurement_without_times_is_json_ready():
    plain = Measurement(name="a", causal=False, status="error", message="no").as_dict()
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_the_tools_measure_a_cuda_device(direction):
    assert peak_bytes(lambda: torch.empty(1 << 20, device="cuda"), "cuda") == 4 << 20
    result = run(Case("dense", reference=dense, run=dense), device="cuda", direction=direction)
    assert result.ok, [m.message for m in (*result.floors.values(), *result.cases)]
    assert result.machine["cuda_device"]
    assert all(s > 0 for s in result.cases[0].samples.seconds)
