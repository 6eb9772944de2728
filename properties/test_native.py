"""The native kernel equals the specification: forward and backward, over random problems that it can run.

The reference is float64; what rounding allows is measured on the dense formulas in float32.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_cases import F32, F64, WEIGHTS, Case, Reach, Table, cases, largest
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, attend, formulation
from biases.backends import native
from biases.backends.native import arguments
from biases.backends.native.arguments import Index, Operands, Spec
from biases.bench import peak_bytes
from biases.testing.compare import assert_close_to, assert_same, assert_within
from biases.testing.strategies import make_tensor, seeds

AVAILABLE, REASON = native.available()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"no native kernel here: {REASON}")


@settings(max_examples=150)
@example(Case(weights="sigmoid", bias="alibi", decay="weights", L=80, S=80, D=20, Dv=31))
@example(Case(weights="sigmoid-normalised", decay="manhattan-weights", gate="renormalised", batch=5, L=49, S=49))
@example(Case(bias="swin", mask="rows", batch=5, L=49, S=49, D=33))
@example(Case(L=70, S=70, D=20, Dv=31, layout="channels by tokens"))
@example(Case(L=70, S=70, D=20, Dv=31, layout="every other channel"))
@example(Case(weights="sigmoid", L=70, S=70, D=20, Dv=31, layout="channels first"))
@example(Case(bias="swin", mask="regions", batch=2, L=196, S=196, D=16))
@example(Case("sigmoid", "swin", "manhattan-weights", mask="regions", batch=4, heads=1, L=64, S=64))
@example(Case(bias="table", mask="regions", heads=1, L=70, S=520))
@example(Case(bias="all", decay="weights", mask="padding", causal=True, window=5, L=70, S=75, lower_right=True))
@given(cases())
def test_every_problem_equals_the_specification(case: Case) -> None:
    """Output and gradients by everything that can carry one, for all terms, masks, windows, offsets and widths."""
    exact, exact_grads = case.call("reference", F64)
    low, low_grads = case.call("dense", F32)
    out, grads = case.call("native", F32)
    assert bool(torch.isfinite(out).all())
    leaves = case.leaves()
    # Rounding of the logits is that of their largest parts.
    sharpness = 1.0 + case.size * case.D**0.5
    assert_within(out, exact, low, magnitude=sharpness * largest(exact, leaves["v"]))
    assert set(grads) == set(exact_grads)
    direction = make_tensor(tuple(out.shape), seed=99, dtype=F64)
    products = float(direction.abs().sum(-1).max()) * largest(leaves["v"])
    scale = sharpness * max(products, largest(*exact_grads.values()))
    for name, grad in grads.items():
        assert_within(grad, exact_grads[name], low_grads[name], what=f"gradient of {name}", magnitude=scale)


@given(seeds(), st.sampled_from(WEIGHTS), st.integers(1, 40), st.booleans())
def test_rows_whose_sigmoids_all_underflow_are_still_averages(
    seed: int, weights: str, length: int, gated: bool
) -> None:
    """Logits of -300: no sigmoid is left in float32, and with row sums none is needed."""
    q = torch.full((1, 2, length, 4), 10.0)
    k, v = torch.full((1, 2, length, 4), -15.0), make_tensor((1, 2, length, 5), seed=seed)
    gate = KeyGate(torch.full((1, 1, length), -200.0)) if gated else None
    out = attend(q, k, v, weights=weights, key_gate=gate, backend="native")
    expected = attend(q, k, v, weights=weights, key_gate=gate, backend="reference")
    assert_close_to(out, expected, scale=largest(v), ulps=4 * length)
    if weights != "sigmoid" or gated:
        assert_close_to(out, v.mean(2, keepdim=True).expand_as(v), scale=largest(v), ulps=4 * length)


@given(seeds(), st.sampled_from(WEIGHTS), st.sampled_from([30, 150, 300]), st.floats(1.0, 40.0))
def test_what_is_left_out_does_not_reach_the_rounding(seed: int, weights: str, length: int, steepness: float) -> None:
    """Blocks of keys that a bias or decay puts far below the query's own key are not visited."""
    decay = None
    bias = ALiBi(torch.tensor([steepness, steepness / 40]), symmetric=True)
    if weights == "sigmoid":
        decay = ExponentialDecay(torch.tensor([-steepness, -0.1]), symmetric=True, placement="weights")
    q, k, v = (make_tensor((1, 2, length, 8), seed=seed + n) for n in range(3))
    results = []
    for backend, dtype in (("native", F32), ("dense", F32), ("reference", F64)):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, weights=weights, bias=bias, decay=decay, backend=backend)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for got, low, exact in zip(*results, strict=True):
        assert_within(got, exact, low, magnitude=8 * largest(*results[2]))


@given(seeds(), st.sampled_from(WEIGHTS), st.floats(4.0, 16.0))
def test_what_counts_is_not_left_out(seed: int, weights: str, level: float) -> None:
    """Without content the bounds are exact: keys that weigh exp(-level) count, though others weigh exp(-60)."""
    distance = torch.arange(-299, 300).abs()
    table = torch.where(distance < 100, 0.0, torch.where(distance < 200, -level, -60.0))
    q, v = torch.zeros(1, 1, 300, 4), make_tensor((1, 1, 300, 3), seed=seed) + 100.0
    results = []
    for backend, dtype in (("native", F32), ("dense", F32), ("reference", F64)):
        x = q.to(dtype)
        options: dict[str, Any] = {"bias": Table(table[None])} if weights != "sigmoid" else {"decay": Reach(table)}
        results.append(attend(x, x, v.to(dtype), weights=weights, backend=backend, **options))
    got, low, exact = results
    assert_within(got, exact, low)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("which", ["q", "k", "v", "received"])
def test_what_is_not_finite_is_not_left_out(which: str, weights: str, value: float) -> None:
    """One number of one token: outputs and gradients are not finite where those of the specification are not.

    The tokens are the first and last of blocks of keys, and others; the weights of most pairs underflow to 0.
    """
    tensors = {name: make_tensor((1, 2, 300, 8), seed=n) for n, name in enumerate(("q", "k", "v", "received"))}
    decay = ExponentialDecay(torch.tensor([-2.0, -0.1]), symmetric=True, placement="weights")
    options: dict[str, Any] = {"decay": decay} if weights == "sigmoid" else {}
    options["bias"] = ALiBi(torch.tensor([2.0, 0.05]), symmetric=True)
    for token in (0, 10, 46, 47, 49, 299):
        with_one = {name: x.clone() for name, x in tensors.items()}
        with_one[which][:, :, token, 3] = value
        *inputs, received = with_one.values()
        results = []
        for backend in ("native", "dense"):
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = attend(*leaves, weights=weights, backend=backend, **options)
            results.append([out.detach(), *torch.autograd.grad(out, leaves, received)])
        got, expected = results
        assert not all(bool(torch.isfinite(x).all()) for x in expected)
        for name, x, wanted in zip(("output", "grad q", "grad k", "grad v"), got, expected, strict=True):
            hidden = torch.isfinite(x) & ~torch.isfinite(wanted)
            assert not bool(hidden.any()), f"{name}, token {token}: {int(hidden.sum())} numbers are finite"


def test_a_query_whose_keys_are_all_excluded_still_has_none_beside_nan() -> None:
    """The row is zeros, with finite gradients, where other rows are NaN."""
    q, k, v = (make_tensor((1, 1, 70, 4), seed=n) for n in range(3))
    mask = torch.ones(70, 70, dtype=torch.bool)
    mask[5] = False
    q[:, :, 6] = torch.nan
    q.requires_grad_()
    out = attend(q, k, v, mask=mask, backend="native")
    assert out[0, 0, 5].eq(0.0).all()
    assert torch.isnan(out[0, 0, 6]).all()
    (grad,) = torch.autograd.grad(out, q, torch.ones_like(out))
    assert grad[0, 0, 5].eq(0.0).all()
    assert torch.isnan(grad[0, 0, 6]).all()


def spec_of(case: str, L: int, S: int) -> tuple[Spec, list[Tensor]]:
    """A problem of each mode with one table of distances and one of factors."""
    row, column = (torch.arange(n, dtype=torch.int32) for n in (L, S))
    index = Index(row + (S - 1), column)
    tables = [make_tensor((1, 2, L + S - 1), seed=5), make_tensor((1, 2, L + S - 1), seed=6).abs()]
    stages = (arguments.LOGITS, arguments.FACTOR)
    return Spec(case, 0.3, 0, False, None, stages, (index, index)), tables


@given(
    st.sampled_from(WEIGHTS), st.integers(1, 70), st.integers(1, 100), st.integers(1, 40), st.integers(1, 40), seeds()
)
def test_nothing_is_written_or_read_beside_the_operands(mode: str, L: int, S: int, D: int, Dv: int, seed: int) -> None:
    """Operands cut out of larger tensors that hold NaN: those stay, and nothing of them comes in."""

    def cut(*shape: int, step: int) -> tuple[Tensor, Tensor]:
        whole = torch.full((shape[0], shape[1], shape[2] + 4, shape[3] + 3), float("nan"))
        part = whole[:, :, 2:-2, 1:-2]
        part.copy_(make_tensor(shape, seed=seed + step))
        return whole, part

    spec, tables = spec_of(mode, L, S)
    whole, parts = zip(*(cut(1, 2, n, d, step=s) for s, (n, d) in enumerate(((L, D), (S, D), (S, Dv)))), strict=True)
    copies = [x.clone() for x in whole]
    out, top, inverse = arguments.forward(spec, Operands(*parts, tables=tables))
    _, grad = cut(1, 2, L, Dv, step=3)
    grads = arguments.backward(
        spec, Operands(*parts, tables=tables), grad, out, top, inverse, (False, False, True, True)
    )
    expected, top, inverse = arguments.forward(spec, Operands(*(x.contiguous() for x in parts), tables=tables))
    assert_same(out.contiguous(), expected)
    assert [tuple(x.shape) for x in grads] == [tuple(x.shape) for x in (*parts, *tables)]
    assert all(bool(torch.isfinite(x).all()) for x in (out, *grads))
    for before, after in zip(copies, whole, strict=True):
        assert torch.equal(before.isnan(), after.isnan())
        assert torch.equal(before.nan_to_num(), after.nan_to_num())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("batch", "heads", "length"), [(1, 1, 1000), (1, 3, 600), (6, 2, 49)])
def test_threads_do_not_change_the_result(weights: str, batch: int, heads: int, length: int) -> None:
    """With one thread and with two, by heads or, where those are too few, by parts of the queries or keys."""
    case = Case(weights, "slopes", "weights", batch=batch, heads=heads, L=length, S=length, D=16, Dv=16, seed=3)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(case.call("native", F32))
    finally:
        torch.set_num_threads(threads)
    (one, one_grads), (two, two_grads) = results
    assert_close_to(two, one, scale=largest(one))
    for name, grad in two_grads.items():
        # Sums over all pairs, taken in another order.
        assert_close_to(grad, one_grads[name], scale=largest(one_grads[name]), ulps=2 * length**0.5, what=name)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("bias", ["table", "key"])
def test_memory_is_linear(weights: str, bias: str, direction: str) -> None:
    """Scratch of the kernel included: twice the tokens, twice the bytes, and fewer of them than pairs of one head."""

    def peak(length: int) -> int:
        case = Case(weights, bias, "weights", L=length, S=length, D=16, Dv=16)
        leaves = {name: x.requires_grad_(direction == "backward") for name, x in case.leaves().items()}

        def run() -> None:
            out = attend(leaves["q"], leaves["k"], leaves["v"], backend="native", **case.options(leaves))
            if direction == "backward":
                out.sum().backward()

        return peak_bytes(run, torch.device("cpu"))

    short, long = peak(1024), peak(2048)
    assert long <= 2.1 * short
    assert long < 2048 * 2048


@pytest.mark.parametrize(("threads", "parts"), [(1, 1), (2, 8), (100, 8)])
def test_memory_of_the_backward_does_not_grow_with_the_threads(threads: int, parts: int) -> None:
    """One head of 20 chunks of keys: however many threads want one, so many gradients of the queries at most."""
    length = 20 * arguments.kernel()[1].chunk
    x = torch.zeros(1, 1, length, 4)
    call = arguments._Call(Spec("softmax", 1.0, 0, False, None), Operands(x, x, x))
    call.problem.threads = threads
    nothing = SimpleNamespace(biases_sizes=lambda *_: None, biases_backward=lambda *_: None)
    call.library = nothing  # type: ignore[assignment]
    partial = call.run(backward=True)
    assert call.problem.parts == parts
    assert (1 if partial is None else partial.shape[0]) == parts


def test_one_seed_after_another_or_all_at_once() -> None:
    """``torch.func.vmap`` of gradients over seeds, tables and key biases with and without the axis."""
    q, k, v = (make_tensor((3, 2, 2, 12, 8), seed=n) for n in range(3))
    slopes, key = make_tensor((3, 2), seed=4).abs(), make_tensor((3, 2, 2, 12), seed=5)
    mask = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.7

    def loss(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, key: Tensor) -> Tensor:
        table = -slopes[:, None] * torch.arange(-12.0, 13.0).abs()
        out = attend(q, k, v, bias=(Table(table), KeyBias(key)), mask=mask, causal=True, backend="native")
        return out.square().sum()

    gradients = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))
    for dims in ((0, 0, 0, 0, 0), (0, 0, 0, None, None), (None, None, None, 0, None), (None, 0, None, None, 0)):
        arguments_ = [x if dim == 0 else x[0] for x, dim in zip((q, k, v, slopes, key), dims, strict=True)]
        together = torch.func.vmap(gradients, in_dims=dims)(*arguments_)
        for seed in range(3):
            alone = gradients(*(x[seed] if dim == 0 else x for x, dim in zip(arguments_, dims, strict=True)))
            for one, all_ in zip(alone, together, strict=True):
                assert_close_to(all_[seed], one, scale=largest(one))


def test_second_derivatives_are_refused() -> None:
    q = make_tensor((1, 1, 5, 4), seed=0).requires_grad_()
    (grad,) = torch.autograd.grad(attend(q, q, q, backend="native").sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"backend='dense'.*biases\.set_backend\(module, 'dense'\)"):
        grad.sum().backward()


def test_compiled_code_has_no_graph_break() -> None:
    """``fullgraph=True`` raises at any; output and gradients are those of the uncompiled call."""
    case = Case("sigmoid", "key", "weights", mask="rows", causal=True, L=20, S=20, D=8, Dv=6)
    options = case.options(leaves := case.leaves())
    leaves = {name: leaves[name].requires_grad_() for name in "qkv"}

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, **options)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for got, expected in zip(
        *(torch.autograd.grad(f(*leaves.values()).square().sum(), list(leaves.values())) for f in (compiled, run)),
        strict=True,
    ):
        assert_same(got, expected)
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_shapes_may_be_unknown_when_compiled(backend: str) -> None:
    """``dynamic=True`` with the default scale, which follows from the number of channels; a scale given is checked."""
    bias = ALiBi(2, symmetric=True)

    def run(q: Tensor) -> Tensor:
        return attend(q, q, q, bias=bias, backend=backend)

    compiled = torch.compile(run, backend="aot_eager", dynamic=True, fullgraph=True)
    for length, channels in ((10, 8), (20, 12)):
        q = make_tensor((1, 2, length, channels), seed=0)
        assert_same(compiled(q), run(q))
    torch.compiler.reset()
    for scale in (torch.nan, torch.inf, 0.0, -1.0):
        with pytest.raises(ValueError, match="attend scale: expected a positive finite number"):
            attend(q, q, q, scale=scale, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_by_way_of_float32(dtype: torch.dtype) -> None:
    """Sigmoid weights, for which no stock kernel is fused."""
    q, k, v = (make_tensor((1, 2, 30, 16), seed=n, dtype=dtype) for n in range(3))
    assert formulation(q, k, v, weights="sigmoid").name == "native"
    assert formulation(q, k, v, causal=True).name != "native"
    out = attend(q, k, v, weights="sigmoid")
    exact, low = (attend(q, k, v, weights="sigmoid", backend=backend) for backend in ("reference", "dense"))
    assert out.dtype == dtype
    assert_within(out, exact.double(), low)


REFUSED = {
    "float64": ({"dtype": F64}, "float32"),
    "linear weights": ({"weights": "linear"}, "linear"),
    "dropout": ({"dropout": 0.5}, "dropout"),
    "a gate with eps": ({"key_gate": KeyGate(torch.zeros(1, 1, 6), eps=1e-3)}, "eps"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_it_cannot_run_is_refused_by_name_and_run_by_auto(name: str) -> None:
    options, message = REFUSED[name]
    q = make_tensor((1, 2, 6, 4), seed=0, dtype=options.get("dtype", F32))
    rest = {key: value for key, value in options.items() if key != "dtype"}
    with pytest.raises(ValueError, match=f"attend backend 'native': expected .*, got .*{message}"):
        attend(q, q, q, backend="native", **rest)
    assert attend(q, q, q, **rest).shape == q.shape


def test_expanding_the_tables_changes_nothing() -> None:
    """Many small windows share the sums of their tables; one of them has them looked up."""
    case = Case("sigmoid", "swin", "manhattan-weights", batch=8, L=49, S=49, D=16, Dv=16)
    many, many_grads = case.call("native", F32)
    leaves = case.leaves()
    total: dict[str, Tensor] = {}
    direction = make_tensor(tuple(many.shape), seed=99, dtype=F64).to(F32)
    for b in range(case.batch):
        own = {name: (x[b : b + 1] if name in "qkv" else x).requires_grad_() for name, x in leaves.items()}
        own = {name: x.detach().requires_grad_() for name, x in own.items()}
        out = attend(own["q"], own["k"], own["v"], backend="native", **replace(case, batch=1).options(own))
        assert_close_to(out, many[b : b + 1], scale=largest(many))
        grads = torch.autograd.grad(out, list(own.values()), direction[b : b + 1])
        for name, grad in zip(own, grads, strict=True):
            if name not in "qkv":
                total[name] = total.get(name, 0.0) + grad
    assert set(total) == {"swin", "rates"}
    for name, grad in total.items():
        assert_close_to(grad, many_grads[name], scale=largest(grad), ulps=64, what=name)
