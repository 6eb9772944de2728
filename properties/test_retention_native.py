"""Linear weights with exponential decay in the native kernel: equal to the specification, forward and backward.

The reference is float64; what rounding allows is measured on the dense formulas in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from biases import ExponentialDecay, attend, formulation, zoo
from biases.backends import native
from biases.backends.native import arguments
from biases.backends.native.retention import ROWS, retention
from biases.bench import peak_bytes
from biases.decays import retention_parallel, retnet_log_rates
from biases.testing.compare import assert_close_to, assert_same, assert_within
from biases.testing.strategies import make_tensor, seeds

AVAILABLE, REASON = native.available()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"no native kernel here: {REASON}")

F32, F64 = torch.float32, torch.float64
# gamma from 0 by way of subnormal powers to 1.
LOG_RATES = (-1e4, -745.0, -50.0, -1.0, -0.03, -1e-5, 0.0)
# Order of the axes (B, H, L, D) in memory.
LAYOUTS = {"heads first": (0, 1, 2, 3), "tokens first": (0, 2, 1, 3), "channels apart": (0, 1, 3, 2)}
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200)


def laid_out(x: Tensor, layout: str) -> Tensor:
    order = LAYOUTS[layout]
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])


@dataclass(frozen=True)
class Case:
    """Shapes of a problem; its numbers follow from ``seed``."""

    L: int
    D: int = 8
    Dv: int = 8
    batch: int = 1
    log_rates: tuple[float, ...] = (-0.03,)
    layout: str = "heads first"
    padded: bool = False
    seed: int = 0

    def leaves(self) -> list[Tensor]:
        shapes = [(self.batch, len(self.log_rates), self.L, width) for width in (self.D, self.D, self.Dv)]
        return [
            laid_out(make_tensor(shape, "normal", self.seed + n, F32), self.layout) for n, shape in enumerate(shapes)
        ]

    def options(self) -> dict[str, Any]:
        keep = None
        if self.padded:
            keep = (torch.arange(self.L) % 5 != 2).expand(self.batch, 1, 1, self.L)
        decay = ExponentialDecay(torch.tensor(self.log_rates, dtype=F64), placement="weights")
        return {"weights": "linear", "causal": True, "decay": decay, "mask": keep}

    def call(self, backend: str, dtype: torch.dtype) -> list[Tensor]:
        """Output and gradients of q, k and v, of a fixed direction."""
        leaves = [x.to(dtype).requires_grad_() for x in self.leaves()]
        out = attend(*leaves, backend=backend, **self.options())
        received = make_tensor(tuple(out.shape), "normal", self.seed + 9, F32)
        return [out.detach(), *torch.autograd.grad(out, leaves, laid_out(received, self.layout).to(dtype))]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        L=draw(st.one_of(st.sampled_from(LENGTHS), st.integers(1, 200))),
        D=draw(st.sampled_from([1, 4, 16, 20, 33, 64, 70])),
        Dv=draw(st.sampled_from([1, 3, 16, 31, 32, 70])),
        batch=draw(st.sampled_from([1, 2])),
        log_rates=tuple(draw(st.lists(st.sampled_from(LOG_RATES), min_size=1, max_size=3))),
        layout=draw(st.sampled_from(list(LAYOUTS))),
        padded=draw(st.booleans()),
        seed=draw(seeds()),
    )


def assert_like_the_specification(got: list[Tensor], exact: list[Tensor], low: list[Tensor]) -> None:
    for name, x, wanted, rounded in zip(("output", "dq", "dk", "dv"), got, exact, low, strict=True):
        assert_within(x, wanted, rounded, what=name, magnitude=float(wanted.abs().max()))


@settings(max_examples=60)
@example(Case(L=1, Dv=3))
@example(Case(L=1000, D=64, Dv=64, log_rates=(0.0,), layout="tokens first"))
@example(Case(L=200, D=33, Dv=20, batch=2, log_rates=LOG_RATES, layout="tokens first", padded=True))
@given(cases())
def test_every_problem_equals_the_specification(case: Case) -> None:
    assert_like_the_specification(case.call("native", F32), case.call("reference", F64), case.call("dense", F32))


def test_long_sequences_are_as_precise_as_the_parallel_form() -> None:
    """4096 tokens in float32, with a rate so slow that the first of them still count at the end."""
    log_rates = torch.cat([retnet_log_rates(8)[[0, 7]], torch.tensor([-2.0, 0.0], dtype=F64)])
    q, k, v = (make_tensor((1, 4, 4096, 8), "normal", seed, F32) for seed in range(3))
    gamma = log_rates.exp()
    exact = retention_parallel(q.double(), k.double(), v.double(), gamma)
    low = retention_parallel(q, k, v, gamma.float())
    out = attend(
        q, k, v, weights="linear", causal=True, decay=ExponentialDecay(log_rates, placement="weights"), backend="native"
    )
    assert_within(out, exact, low)
    assert_close_to(out, exact.float(), scale=float(exact.abs().max()), ulps=64)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("threads", "heads", "length", "parts"), [(2, 1, 1000, 2), (4, 1, 500, 4), (7, 3, 200, 2)])
def test_fewer_heads_than_threads_go_in_parts(
    threads: int, heads: int, length: int, parts: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state before a part is joined from what the parts before it add."""
    q, k, v = (make_tensor((1, heads, length, 16), "normal", seed, F32) for seed in range(3))
    gamma = torch.tensor([[0.999, 0.9, 1.0][:heads]], dtype=F64)
    library, limits = arguments.kernel()
    if not limits.threads:
        pytest.skip("the kernel was compiled without OpenMP")
    used = []

    def run(problem: Any) -> None:
        used.append((problem._obj.threads, problem._obj.parts))
        library.biases_retention(problem)

    seen = SimpleNamespace(biases_retention_sizes=library.biases_retention_sizes, biases_retention=run)
    monkeypatch.setattr(arguments, "kernel", lambda: (seen, limits))
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(retention(q, k, v, gamma, scale=0.25, reverse=reverse))
    finally:
        torch.set_num_threads(before)
    assert used == [(1, 1), (threads, parts)]
    assert_close_to(results[1], results[0], scale=float(results[0].abs().max()), ulps=16)


@given(st.sampled_from(LENGTHS), st.integers(1, 40), st.integers(1, 40), st.booleans(), seeds())
def test_nothing_is_written_or_read_beside_the_operands(L: int, D: int, Dv: int, reverse: bool, seed: int) -> None:
    """Operands cut out of larger tensors that hold NaN: those stay, and nothing of them comes in."""
    whole = [torch.full((1, 2, L + 4, width + 3), torch.nan) for width in (D, D, Dv)]
    parts = [x[:, :, 2:-2, 1:-2] for x in whole]
    for n, part in enumerate(parts):
        part.copy_(make_tensor(tuple(part.shape), "normal", seed + n, F32))
    copies = [x.clone() for x in whole]
    gamma = torch.tensor([[0.9, 1.0]], dtype=F64)
    out = retention(*parts, gamma, scale=0.3, reverse=reverse)
    assert bool(torch.isfinite(out).all())
    assert_same(out, retention(*(x.contiguous() for x in parts), gamma, scale=0.3, reverse=reverse))
    for before, after in zip(copies, whole, strict=True):
        assert torch.equal(before.isnan(), after.isnan())
        assert torch.equal(before.nan_to_num(), after.nan_to_num())


@pytest.mark.parametrize("token", [1, 15, 16, 63, 64, 99])
def test_later_keys_count_nothing_even_where_their_products_overflow(token: int) -> None:
    q, k, v = (make_tensor((1, 2, 100, 8), "normal", seed, F32) for seed in range(3))
    options: dict[str, Any] = {"weights": "linear", "causal": True, "backend": "native"}
    options["decay"] = ExponentialDecay(torch.tensor([-0.1, 0.0]), placement="weights")
    expected = attend(q, k, v, **options)
    k[:, :, token:] = 3e38
    v[:, :, token:] = 3e38
    got = attend(q, k, v, **options)
    assert_same(got[:, :, :token], expected[:, :, :token])
    assert not bool(torch.isfinite(got[:, :, token:]).all())


def test_vectorised_over_seeds_and_rates() -> None:
    """``torch.func.vmap`` of gradients, with and without the axis on each operand."""
    q, k, v = (make_tensor((3, 2, 2, 70, 4), "normal", seed, F32) for seed in range(3))
    gamma = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)

    def loss(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
        return retention(q, k, v, gamma, scale=0.5).square().sum()

    gradients = torch.func.grad(loss, argnums=(0, 1, 2))
    for dims in ((0, 0, 0, 0), (0, None, 0, None), (None, 0, None, None), (None, None, None, 0)):
        given_ = [x if dim == 0 else x[0] for x, dim in zip((q, k, v, gamma), dims, strict=True)]
        together = torch.func.vmap(gradients, in_dims=dims)(*given_)
        for seed in range(3):
            alone = gradients(*(x[seed] if dim == 0 else x for x, dim in zip(given_, dims, strict=True)))
            for one, all_ in zip(alone, together, strict=True):
                assert_close_to(all_[seed], one, scale=float(one.abs().max()))


def test_second_derivatives() -> None:
    """Of q, k and v, each by each: they are those of the specification in float64."""
    case = Case(L=70, D=5, Dv=3, log_rates=(-0.1, 0.0))
    results = []
    for backend, dtype in (("native", F32), ("reference", F64), ("dense", F32)):
        leaves = [x.to(dtype).requires_grad_() for x in case.leaves()]
        out = attend(*leaves, backend=backend, **case.options())
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        directions = [make_tensor(tuple(x.shape), "normal", 20 + n, F32).to(dtype) for n, x in enumerate(grads)]
        total = sum((x * y).sum() for x, y in zip(grads, directions, strict=True))
        results.append(torch.autograd.grad(total, leaves))
    for got, exact, low in zip(*results, strict=True):
        assert_within(got, exact, low, magnitude=float(exact.abs().max()))


def test_compiled_code_has_no_graph_break() -> None:
    """``fullgraph=True`` raises at any; output and gradients are those of the uncompiled call."""
    case = Case(L=70, log_rates=(-0.1, 0.0), layout="tokens first")
    options = case.options()
    assert formulation(*case.leaves(), **options).name == "native"
    compiled = torch.compile(lambda *x: attend(*x, **options), backend="aot_eager", fullgraph=True)
    results = []
    for run in (compiled, lambda *x: attend(*x, **options)):
        leaves = [x.requires_grad_() for x in case.leaves()]
        out = run(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected)
    torch.compiler.reset()


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_operator_is_what_torch_is_told(layout: str) -> None:
    """Schema, and shapes and strides of fake tensors."""
    inputs = (*Case(L=70, Dv=5, log_rates=(-0.1, 0.0), layout=layout).leaves(), torch.ones(1, 2, dtype=F64), 0.3, True)
    torch.library.opcheck(torch.ops.biases.native_retention, inputs, test_utils=("test_schema", "test_faketensor"))


def test_flops_are_those_of_chunks_and_states() -> None:
    """One chunk and 10 tokens: pairs step by step, one state made of 64 tokens and used by 10."""
    q, k, v = (torch.zeros(2, 3, 74, width) for width in (4, 4, 6))
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, backend="native", **Case(L=74, log_rates=(0.0,) * 3).options())
    pairs = sum(ROWS * (ROWS + start) for start in range(0, 64, ROWS)) + 10 * 10
    assert counter.get_total_flops() == 2 * 2 * 3 * (pairs * (4 + 6) + (64 + 10) * 4 * 6)


def test_memory_is_linear() -> None:
    """Forward and backward: twice the tokens, twice the bytes."""

    def peak(length: int) -> int:
        case = Case(L=length, D=16, Dv=16, log_rates=(-0.1, 0.0))
        leaves, options = [x.requires_grad_() for x in case.leaves()], case.options()
        return peak_bytes(lambda: attend(*leaves, backend="native", **options).sum().backward(), torch.device("cpu"))

    short, long = peak(2048), peak(4096)
    assert long <= 2.1 * short
    assert long < 4096 * 4096


def test_auto_runs_it_and_without_it_the_formulation_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(L=80, log_rates=(-0.1, -0.2))
    native_out = case.call("auto", F32)
    assert formulation(*case.leaves(), **case.options()).name == "native"
    listed = zoo.fast_paths("retention")
    assert listed is not None
    assert (listed["cpu"], listed["cpu, fused"]) == ("native", "chunkwise")
    for got, expected in zip(native_out, case.call("native", F32), strict=True):
        assert_same(got, expected)
    monkeypatch.setenv("BIASES_NATIVE", "0")
    assert formulation(*case.leaves(), **case.options()).name == "chunkwise"
    for got, expected in zip(case.call("auto", F32), case.call("fused", F32), strict=True):
        assert_same(got, expected)


def refused() -> dict[str, tuple[dict[str, Any], torch.dtype, str]]:
    options = Case(L=6).options()
    rate = torch.tensor([-0.1], requires_grad=True)
    return {
        "a learned rate": (options | {"decay": ExponentialDecay(rate, placement="weights")}, F32, "no gradient"),
        "not causal": ({"weights": "linear"}, F32, "other than causal exponential decay"),
        "a window": (options | {"window": 3}, F32, "other than causal exponential decay"),
        "pairs": (options | {"mask": torch.ones(6, 6, dtype=torch.bool)}, F32, "other than causal exponential decay"),
        "float64": (options, F64, "float32"),
    }


@pytest.mark.parametrize("name", list(refused()))
def test_what_it_cannot_run_is_refused_by_name_and_run_by_auto(name: str) -> None:
    options, dtype, message = refused()[name]
    q = make_tensor((1, 1, 6, 4), "normal", 0, dtype)
    with pytest.raises(ValueError, match=f"attend backend 'native': expected .*, got .*{message}"):
        attend(q, q, q, backend="native", **options)
    out, exact = (attend(q, q, q, backend=backend, **options) for backend in ("auto", "reference"))
    assert_close_to(out, exact, scale=float(exact.detach().abs().max()), ulps=16)


def test_a_learned_rate_has_its_gradient_and_without_gradients_the_kernel() -> None:
    q, k, v = Case(L=70).leaves()
    rates = [torch.tensor([-0.1], dtype=dtype, requires_grad=True) for dtype in (F32, F64)]
    options = [{"weights": "linear", "causal": True, "decay": ExponentialDecay(x, placement="weights")} for x in rates]
    out, exact = attend(q, k, v, **options[0]), attend(q.double(), k.double(), v.double(), **options[1])
    got, expected = (
        torch.autograd.grad(x.square().sum(), rate)[0] for x, rate in zip((out, exact), rates, strict=True)
    )
    assert_close_to(got, expected.float(), scale=float(expected.abs()), ulps=256)
    with torch.no_grad():
        assert formulation(q, k, v, **options[0]).name == "native"
    with pytest.raises(NotImplementedError, match="backend='fused'"):
        retention(q, k, v, torch.ones(1, 1, dtype=F64, requires_grad=True), scale=1.0).sum().backward()
