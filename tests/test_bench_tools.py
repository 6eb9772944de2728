"""The measuring tools: structure of the samples, exact bytes, facts, ceilings."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from biases.bench import Samples, ceilings, facts, interleaved, peak_bytes


@pytest.fixture(autouse=True)
def _one_thread():
    """Nothing here depends on a time, and threads wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.gpu
def test_the_tools_measure_a_cuda_device():
    assert peak_bytes(lambda: torch.empty(1 << 20, device="cuda"), "cuda") == 4 << 20
    assert all(s > 0 for s in interleaved({"a": lambda: None}, rounds=2, device="cuda")["a"].seconds)
    assert facts()["cuda_device"]
