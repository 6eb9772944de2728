"""The table of backends: families are told apart, the order is kept, what cannot run or compile is passed over."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, ManhattanDecay
from biases.attention import _problem
from biases.backends import Problem, choice, formulate, reference
from biases.backends.flex import CompilationFailed

HEADS, LENGTH = 2, 144


def problem(length: int = LENGTH, dtype: torch.dtype = torch.float32, **options: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, 8, generator=generator).to(dtype) for _ in range(3))
    every: dict[str, Any] = {"bias": None, "key_gate": None, "weights": "softmax", "decay": None, "mask": None}
    every |= {"causal": False, "window": None, "alignment": None, "dropout": 0.0, "scale": None}
    return _problem(q, k, v, **(every | options))


def learned(x: torch.Tensor) -> torch.Tensor:
    return x.requires_grad_()


def key(grad: bool = False) -> torch.Tensor:
    return torch.zeros(1, HEADS, LENGTH, requires_grad=grad)


PAIRS = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
SQUARE = {"height": 12, "width": 12}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("plain", {"causal": True}),
    ("folded", {"key_gate": KeyGate(key(True), renormalise=False)}),
    ("key", {"bias": KeyBias(key())}),
    ("key", {"key_gate": KeyGate(key()), "causal": True}),
    ("key", {"mask": torch.ones(1, 1, 1, LENGTH, dtype=torch.bool)}),
    ("key-learned", {"bias": KeyBias(key(True))}),
    ("key-learned", {"key_gate": KeyGate(key(True))}),
    ("relative", {"bias": ALiBi(HEADS), "causal": True}),
    ("relative", {"causal": True, "window": 5}),
    ("relative", {"decay": ExponentialDecay(-torch.ones(HEADS))}),
    ("relative-learned", {"bias": ALiBi(learned(torch.ones(HEADS)))}),
    ("map", {"decay": ManhattanDecay(**SQUARE, log_rates=HEADS)}),
    ("map-learned", {"decay": ManhattanDecay(**SQUARE, log_rates=learned(-torch.ones(HEADS)))}),
    ("low-rank", {"bias": LowRankBias(torch.ones(1, LENGTH, 2), torch.ones(1, LENGTH, 2))}),
    ("mask", {"mask": PAIRS}),
    ("masked", {"mask": PAIRS, "causal": True}),
    ("masked", {"mask": PAIRS, "bias": KeyBias(key())}),
    ("small", {"bias": ALiBi(HEADS), "length": 49}),
    ("small", {"bias": ALiBi(HEADS), "length": 49, "mask": PAIRS[:49, :49]}),
    ("small", {"bias": KeyBias(key()[..., :49]), "length": 49}),
    ("small", {"mask": torch.ones(1, 1, 1, 49, dtype=torch.bool), "length": 49, "causal": True}),
    ("sigmoid", {"weights": "sigmoid"}),
    ("sigmoid", {"weights": "sigmoid-normalised", "bias": ALiBi(HEADS)}),
    ("linear", {"weights": "linear"}),
    ("after", {"dropout": 0.5}),
    ("after", {"key_gate": KeyGate(key(), eps=0.1)}),
    ("after", {"decay": ExponentialDecay(-torch.ones(HEADS), placement="weights"), "causal": True}),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_families_are_told_apart(family: str, options: dict[str, Any]) -> None:
    assert choice.family(problem(**options)) == family


def test_decoding_is_small() -> None:
    """A kernel for each length of the cache would be compiled otherwise."""
    q, cache = torch.zeros(1, HEADS, 1, 8), torch.zeros(1, HEADS, 2000, 8)
    options: list[Any] = [ALiBi(HEADS), None, "softmax", None, None, True, None, "lower-right", 0.0, None]
    assert choice.family(_problem(q, cache, cache, *options)) == "small"


def test_every_family_has_a_case_and_rows() -> None:
    assert {family for family, _ in CASES} == set(choice.FAMILIES) - {"decomposed", "decomposed-large"}
    assert {(device, family) for device in ("cpu", "cuda") for family in choice.FAMILIES} == set(choice.ORDER)


def test_rows_name_backends_and_say_why() -> None:
    for row in choice.ORDER.values():
        assert set(row.order) <= set(choice.BACKENDS) - {"fused"}
        assert row.evidence
    measured = [row for (device, _), row in choice.ORDER.items() if device == "cuda"]
    assert all("not measured" in row.evidence for row in measured if not choice.MEASURED)


def test_measured_rows_are_those_of_the_committed_results() -> None:
    """Nothing is claimed as measured that no committed file holds."""
    path = Path(__file__).parent.parent / choice.MEASURED_EVIDENCE
    if not path.exists():
        assert choice.MEASURED == {}
        return
    import json

    found = json.loads(path.read_text())
    assert found["evidence"]
    for row, backend in choice.MEASURED.items():
        assert found["cells"]["/".join(row)]["backend"] == backend


def test_without_gradients_nothing_is_learned() -> None:
    learns = problem(bias=KeyBias(key(True)))
    with torch.no_grad():
        assert choice.family(learns) == "key"
        assert choice.direction(learns) == "forward"


def test_direction() -> None:
    each = problem()
    assert choice.direction(each) == "forward"
    each.q.requires_grad_()
    assert choice.direction(each) == "forward+backward"


# Order


class Backend:
    """A backend that can run what it is told to, and counts how often it did."""

    def __init__(self, reason: str | None = None, error: Exception | None = None) -> None:
        self.reason, self.error, self.runs = reason, error, 0

    def why_not(self, each: Problem) -> str | None:
        return self.reason

    def run(self, each: Problem) -> torch.Tensor:
        self.runs += 1
        if self.error is not None:
            raise self.error
        return torch.full_like(each.q, 7.0)


def install(monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...], **backends: Backend) -> None:
    row = choice.Row(order, "because")
    monkeypatch.setattr(choice, "ORDER", {("cpu", name): row for name in choice.FAMILIES})
    monkeypatch.setattr(choice, "backend_of", lambda name: backends[name])
    monkeypatch.setattr(choice, "_broken", set())


def test_the_first_that_can_run_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    able, unable, later = Backend(), Backend("no"), Backend()
    install(monkeypatch, ("triton", "native", "flex"), native=able, triton=unable, flex=later)
    each = problem(bias=ALiBi(HEADS))
    plan = choice.choose(each)
    assert (plan.name, plan.reason) == ("native", "because")
    assert choice.run(each).eq(7).all()
    assert (unable.runs, able.runs, later.runs) == (0, 1, 0)


def test_fused_ends_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("native",), native=Backend("no compiler"))
    each = problem(bias=ALiBi(HEADS), causal=True)
    assert choice.choose(each).name == formulate(each).name
    torch.testing.assert_close(choice.run(each), reference(each), rtol=0, atol=1e-5)


def test_a_device_that_is_not_in_the_table_runs_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ORDER", {})
    each = problem()
    assert choice.choose(each).name == "sdpa"
    torch.testing.assert_close(choice.run(each), reference(each), rtol=0, atol=1e-5)


def _triton_error() -> Exception:
    """Triton's own errors are known by their module; Triton need not be installed."""
    return type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})("shared memory")


@pytest.mark.parametrize("error", [CompilationFailed("no kernel"), _triton_error()], ids=["flex", "triton"])
def test_what_does_not_compile_is_passed_over_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    broken, each = Backend(error=error), problem(bias=ALiBi(HEADS))
    install(monkeypatch, ("flex",), flex=broken)
    with pytest.warns(RuntimeWarning, match="'flex' failed to compile, another formulation is used"):
        out = choice.run(each)
    torch.testing.assert_close(out, reference(each), rtol=0, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice.run(each)
        assert choice.choose(each).name == formulate(each).name
    assert broken.runs == 1
    # Another dtype is another kernel.
    assert choice.choose(problem(bias=ALiBi(HEADS), dtype=torch.float64)).name == "flex"


def test_an_error_that_is_none_of_compiling_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("flex",), flex=Backend(error=RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        choice.run(problem())


def test_in_half_precision_native_is_taken_for_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("native",), native=Backend())
    half = torch.bfloat16
    assert choice.choose(problem(bias=KeyBias(key()), dtype=half)).name == "key-bias"
    assert choice.choose(problem(weights="sigmoid", dtype=half)).name == "native"
    assert choice.choose(problem(bias=KeyBias(key()))).name == "native"


# What a GPU measured


def on_cuda(each: Problem) -> Any:
    """A problem that says it is on CUDA, as far as choosing looks."""
    named = SimpleNamespace(**vars(each))
    named.q = SimpleNamespace(
        device=torch.device("cuda", 0), dtype=each.q.dtype, requires_grad=False, shape=each.q.shape
    )
    return named


def order(each: Any) -> list[str]:
    return [name for name, _ in choice._order(each)]


def test_a_measurement_overrules_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sigmoid = on_cuda(problem(weights="sigmoid"))
    monkeypatch.setattr(choice, "MEASURED", {("relative", "float32", "forward"): "triton"})
    assert order(on_cuda(problem(bias=ALiBi(HEADS)))) == ["triton", "flex"]
    assert order(sigmoid) == ["triton"]
    monkeypatch.setattr(choice, "MEASURED", {("sigmoid", "float32", "forward"): "fused"})
    assert order(sigmoid) == []
    monkeypatch.setattr(choice, "MEASURED", {("sigmoid", "float32", "forward+backward"): "fused"})
    assert order(sigmoid) == ["triton"]


# Rows and then columns of a map


def a_map(height: int, width: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, HEADS, height, width, 16, dtype=dtype)


def test_small_maps_are_for_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    half, small, large = a_map(16, 16, torch.bfloat16), a_map(8, 8), a_map(16, 16)
    found = [choice.family_of_map(x) for x in (half, small, large, small.double())]
    assert found == ["decomposed", "decomposed", "decomposed-large", "decomposed-large"]
    asked = [choice.one_kernel(x, x, x, device="cuda") for x in (half, small, large)]
    assert asked == [True, True, False]
    assert not choice.one_kernel(small, small, small)
    measured = {("decomposed", "float32", "forward"): "fused", ("decomposed-large", "float32", "forward"): "triton"}
    monkeypatch.setattr(choice, "MEASURED", measured)
    assert [choice.one_kernel(x, x, x, device="cuda") for x in (half, small, large)] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_up_to_that_size_one_kernel_multiplies_no_more_than_two_passes(dtype: torch.dtype) -> None:
    """Products of tiles of the kernel's own launch parameters, two for a row or column by kernels of one line each."""
    pytest.importorskip("triton")
    from biases.backends.triton.decomposed_ops import TILES, _settings

    tile, most = TILES[dtype.itemsize], choice.MAP_PIXELS[dtype.itemsize]
    for height in range(1, 33):
        for width in range(1, min(32, most // height) + 1):
            q = torch.empty(1, 1, height, width, 16, dtype=dtype, device="meta")
            chosen = _settings(q, q, height, width)
            tiles = -(-height * width // chosen["PIXELS"])
            products = chosen["PROGRAMS"] * (2 * tiles + 2) * chosen["PIXELS"] ** 2
            assert products <= 2 * (height + width) * tile**2, (height, width)


def test_the_table_can_be_asked_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(q: torch.Tensor) -> torch.Tensor:
        return q + 1 if choice.one_kernel(q, q, q, device="cuda") else q - 1

    monkeypatch.setattr(choice, "MEASURED", {("decomposed", "bfloat16", "forward"): "fused"})
    compiled = torch.compile(asked, fullgraph=True, backend="eager")
    maps = a_map(8, 8), a_map(16, 16), a_map(8, 8, torch.bfloat16)
    assert [float(compiled(x).mean()) for x in maps] == [1, -1, -1]


@pytest.mark.parametrize("listed", [True, False])
def test_attend_decomposed_asks_the_table(monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    from biases import axial
    from biases.backends.triton import decomposed

    asked = []
    monkeypatch.setattr(choice, "one_kernel", lambda q, k, v: listed)
    monkeypatch.setattr(decomposed, "why_not", lambda *tensors, **given: asked.append(tensors) or "not here")
    x = a_map(7, 7)
    arguments: list[Any] = [x, x, x, (), "softmax", None, (None, None), None, "width-first", None]
    assert axial._in_one_kernel(*arguments, "auto") is None
    assert len(asked) == listed
    # A named backend is asked whatever the table says.
    assert axial._in_one_kernel(*arguments, "triton") is None
    assert len(asked) == listed + 1


def test_the_kernel_of_both_passes_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    from biases import zoo

    def cuda(name: str, length: int) -> str:
        found = zoo.fast_paths(name, length=length)
        assert found is not None
        return found["cuda"]

    assert cuda("manhattan-decomposed", 64).startswith(zoo.BOTH_PASSES)
    assert cuda("gated-swin-swat", 1024).startswith(zoo.BOTH_PASSES)
    assert zoo.BOTH_PASSES not in cuda("manhattan-decomposed", 1024)
    assert zoo.BOTH_PASSES not in cuda("manhattan", 64)
    monkeypatch.setattr(choice, "MEASURED", {("decomposed", "float32", "forward+backward"): "fused"})
    assert zoo.BOTH_PASSES not in cuda("manhattan-decomposed", 64)


def test_why_not_of_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match=re.escape("backend: expected one of 'native', 'flex'")):
        choice.why_not("flexx", problem())
    assert choice.why_not("fused", problem()) is None
    assert "CUDA only" in str(choice.why_not("flex", problem()))


def test_importing_the_package_imports_no_compiler() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import biases
print([name for name in ("triton", "torch._dynamo", "torch._inductor") if name in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
