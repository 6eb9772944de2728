"""FlexAttention: what the terms add to a score, what it cannot express, and equality with the specification.

On the CPU the eager formulation of FlexAttention runs the same arithmetic without the generated kernel, and is
differentiated by autograd.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flex_problems import ANYWHERE, HEADS, KINDS, problem, tensor, term
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyGate, attend, zoo
from biases.backends import Geometry, PairTerm, Problem, block_masks, flex, reference
from biases.bench.workloads import Setting, record
from biases.testing.compare import assert_within
from biases.testing.strategies import seeds


def assert_adds_its_values(each: PairTerm, geometry: Geometry, batch: int) -> None:
    """Every pair gets from the ``score_mod`` what :meth:`PairTerm.values` says, on top of the score."""
    score_mod = each.score_mod(geometry, torch.device("cpu"), torch.float64)
    assert score_mod is not None, f"{type(each).__name__} has no score_mod"
    heads = each.heads or 1
    axes = [torch.arange(n) for n in (batch, heads, geometry.L, geometry.S)]
    added = score_mod
    for place in range(4, 0, -1):
        added = torch.vmap(added, in_dims=tuple(0 if n in (0, place) else None for n in range(5)))
    scores = tensor(batch, heads, geometry.L, geometry.S, seed=9)
    i, j = geometry.positions(torch.device("cpu"))
    values = each.values(i, j, torch.float64).expand(batch, heads, geometry.L, geometry.S)
    allowed = geometry.allowed(i - j)
    if allowed is not None:
        # What causality and window take away is the mask's business.
        values, scores = values.masked_fill(~allowed, 0.0), scores.masked_fill(~allowed, -torch.inf)
    got = added(scores, *axes)
    assert_within(
        got, scores + values, scores + values, magnitude=float(values.detach()[values.isfinite()].abs().amax())
    )


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(data=st.data())
def test_a_score_mod_adds_the_values_of_its_term(kind: str, learned: bool, data: st.DataObject) -> None:
    causal, window = data.draw(st.booleans()), data.draw(st.none() | st.integers(1, 9))
    L = S = 3 * data.draw(st.integers(1, 5))
    offset = 0
    if kind in ANYWHERE:
        L, S = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
        offset = data.draw(st.sampled_from([0, S - L]))
    geometry = Geometry(L, S, offset, causal, window if causal else None)
    batch = data.draw(st.integers(1, 2))
    assert_adds_its_values(term(kind, geometry, data.draw(seeds()), learned, batch), geometry, batch)


def operators_of_the_zoo() -> list[Any]:
    """The terms that the layers of the zoo hand to ``attend``: a new layer's are among them by themselves."""
    found = []
    for name in zoo.names("layer"):
        setting = Setting(batch=1, heads=2, length=36, head_dim=8)
        for number, ((q, k, _), options) in enumerate(record(name, setting)):
            bias = options["bias"] if isinstance(options["bias"], list | tuple) else [options["bias"]]
            for each in (*bias, options["decay"]):
                if each is not None:
                    geometry = Geometry(q.shape[2], k.shape[2], 0, options["causal"])
                    found.append(pytest.param(each, geometry, id=f"{name}-{number}-{type(each).__name__}"))
    return found


@pytest.mark.parametrize(("each", "geometry"), operators_of_the_zoo())
def test_every_term_of_the_zoo_has_a_score_mod(each: PairTerm, geometry: Geometry) -> None:
    assert_adds_its_values(each, geometry, 1)


def eager(each: Problem) -> Tensor:
    """The output by the eager formulation, which can be differentiated on the CPU."""
    from torch._higher_order_ops.flex_attention import math_attention
    from torch.nn.attention import flex_attention as module

    call = flex.arguments(each)
    blocks = call.block_mask or module._create_empty_block_mask(call.q, call.k)
    mod = call.score_mod or module._identity
    return math_attention(call.q, call.k, call.v, mod, blocks.as_tuple(), call.scale, {})[0][..., : call.width]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Any, int]:
    """A function from a dtype to a problem and the tensors in it that carry gradients, and a seed."""
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=2, unique=True))
    L = S = 3 * draw(st.integers(1, 6))
    if not set(kinds) - set(ANYWHERE):
        L, S = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    alignment = draw(st.sampled_from(["upper-left", "lower-right"])) if L != S else None
    causal = draw(st.booleans())
    options = {
        "causal": causal,
        "alignment": alignment,
        "window": draw(st.none() | st.integers(1, 8)) if causal else None,
    }
    D, Dv, seed = draw(st.sampled_from([4, 16, 18])), draw(st.sampled_from([4, 20])), draw(seeds())
    leaves = {
        "q": tensor(2, HEADS, L, D, seed=seed, learned=True),
        "k": tensor(2, HEADS, S, D, seed=seed + 1, learned=True),
        "v": tensor(2, HEADS, S, Dv, seed=seed + 2, learned=True),
    }
    gate = draw(st.sampled_from([None, True, False]))
    if gate is not None:
        leaves["gate"] = tensor(2, HEADS, S, seed=seed + 3, learned=True)
    masked = draw(st.sampled_from([None, (2, 1, 1, S), (1, 1, L, S), (2, HEADS, L, S)]))
    if masked is not None:
        options["mask"] = tensor(*masked, seed=seed + 4) > -0.5
    geometry = Geometry(L, S)
    learned = draw(st.booleans())

    def make(dtype: torch.dtype) -> tuple[Problem, dict[str, Tensor]]:
        cast = {name: x.detach().to(dtype).requires_grad_() for name, x in leaves.items()}
        terms = [term(kind, geometry, seed + 10 + n, learned) for n, kind in enumerate(kinds)]
        cast |= {f"term {n}": x for n, each in enumerate(terms) for x in vars(each).values() if _is_leaf(x)}
        logits = cast.get("gate")
        key_gate = None if logits is None else KeyGate(torch.nn.functional.logsigmoid(logits), renormalise=bool(gate))
        return problem(cast["q"], cast["k"], cast["v"], bias=terms, key_gate=key_gate, **options), cast

    return make, seed


def _is_leaf(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_leaf and x.requires_grad


@settings(max_examples=60)
@given(drawn())
def test_the_eager_form_equals_the_specification(example: Any) -> None:
    make, seed = example
    results = []
    for run, precision in ((eager, torch.float32), (reference, torch.float64), (_dense, torch.float32)):
        each, leaves = make(precision)
        out = run(each)
        direction = tensor(*out.shape, seed=seed + 5).to(out.dtype)
        grads = torch.autograd.grad(out, list(leaves.values()), direction, allow_unused=True)
        results.append((out.detach(), *grads))
        products = float(direction.double().norm(dim=-1).max() * leaves["v"].detach().double().norm(dim=-1).max())
    for what, got, wanted, low in zip(["output", *leaves], *results, strict=True):
        if wanted is None:
            assert got is None or not got.any()
            continue
        # A gradient through the logits is a difference of products; the tensors of terms are float64, the sums are not.
        cancels = what not in ("output", "v")
        assert_within(got, wanted.double(), low, what=what, magnitude=_scale(got, products) if cancels else 0.0)


def _scale(gradient: Tensor, products: float, dtype: torch.dtype = torch.float32) -> float:
    """Size of the products dO . v whose rounding in ``dtype`` a gradient has."""
    return products * max(1.0, torch.finfo(dtype).eps / torch.finfo(gradient.dtype).eps)


def _dense(each: Problem) -> Tensor:
    return reference(each, each.q.dtype)


def test_a_query_without_keys_gives_zeros() -> None:
    q, k, v = (tensor(1, HEADS, 5, 16, seed=n) for n in range(3))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 2, :] = False
    out = eager(problem(q, k, v, mask=mask, bias=ALiBi(HEADS)))
    assert not out[:, :, 2].any()
    assert out[:, :, 3].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_every_score_mod_compiles(kind: str) -> None:
    """The forward kernel, generated for the CPU."""
    geometry = Geometry(150, 150, 0, True)
    q, k, v = (tensor(2, HEADS, 150, 16, seed=n).float() for n in range(3))
    terms = [] if kind == "none" else [term(kind, geometry, 5, False)]
    each = problem(q, k, v, bias=terms, causal=True, mask=(tensor(2, 1, 1, 150, seed=4) > -0.5))
    call = flex.arguments(each)
    with torch.no_grad():
        out = flex._kernel(flex._family(each))(*call[:-1])[..., : call.width]
    assert_within(
        out, reference(problem(*(x.double() for x in (q, k, v)), bias=terms, causal=True, mask=each.mask)), out
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "sigmoid"}, "softmax weights only"),
        ({"dropout": 0.1}, "dropout"),
        ({"key_gate": KeyGate(torch.zeros(1, 1, 6), eps=0.1)}, "eps > 0"),
        ({"decay": ExponentialDecay(torch.zeros(HEADS), placement="weights"), "causal": True}, "plain row sums"),
    ],
)
def test_what_it_cannot_express_it_says(options: dict[str, Any], reason: str) -> None:
    q = tensor(1, HEADS, 6, 16, seed=1)
    assert reason in str(flex.inexpressible(problem(q, q, q, **options)))


def test_a_term_without_form_is_refused() -> None:
    class Odd(PairTerm):
        def values(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
            return (i * j % 7).to(dtype)[None, None]

    q = tensor(1, HEADS, 6, 16, seed=1)
    assert flex.inexpressible(problem(q, q, q, bias=Odd())) == "Odd has no score_mod here"


def test_the_cpu_is_refused() -> None:
    q = tensor(1, HEADS, 6, 16, seed=1)
    assert "CUDA only" in str(flex.why_not(problem(q, q, q)))
    with pytest.raises(ValueError, match="expected a problem that it can run, got FlexAttention is used on CUDA only"):
        flex.run(problem(q, q, q))


# Every kernel takes long to compile.
FIXED = [(kind, False, torch.float32) for kind in ("key", "alibi", "decay", "manhattan")]


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "learned", "dtype"), [*((kind, True, torch.bfloat16) for kind in KINDS), *FIXED])
def test_on_cuda_it_equals_the_specification(kind: str, learned: bool, dtype: torch.dtype) -> None:
    geometry = Geometry(330, 330)
    made = [x.cuda() for x in (tensor(2, HEADS, 330, 64, seed=n) for n in range(4))]
    results = []
    for run, precision in ((flex.run, dtype), (reference, torch.float64), (_dense, dtype)):
        q, k, v = (x.detach().to(precision).requires_grad_() for x in made[:3])
        each = term(kind, geometry, 5, learned)
        leaves = [x for x in vars(each).values() if _is_leaf(x)]
        _to_cuda(each)
        causal = kind in ("alibi", "decay")
        out = run(problem(q, k, v, bias=each, causal=causal, mask=torch.arange(330, device="cuda")[None] < 300))
        grads = torch.autograd.grad(out, [q, k, v, *leaves], made[3].to(out.dtype))
        results.append((out.detach(), *grads))
    magnitude = float(made[3].norm(dim=-1).max() * made[2].norm(dim=-1).max())
    for n, (got, wanted, low) in enumerate(zip(*results, strict=True)):
        assert_within(got, wanted.double(), low, magnitude=_scale(got, magnitude, dtype) if n not in (0, 3) else 0.0)


def _to_cuda(each: PairTerm) -> None:
    for name, x in vars(each).items():
        if isinstance(x, Tensor):
            setattr(each, name, x.cuda())
        elif isinstance(x, PairTerm):
            _to_cuda(x)


@pytest.mark.gpu
def test_on_cuda_a_graph_replays_what_was_captured() -> None:
    """Blocks made while a graph is captured are the graph's own."""
    q, k, v = (torch.randn(1, HEADS, 389, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    each = problem(q, k, v, causal=True, bias=ALiBi(HEADS))
    with torch.no_grad():
        wanted = flex.run(each)
        block_masks._cached.cache_clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = flex.run(each)
        assert block_masks._cached.cache_info().currsize == 0
        graph.replay()
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)


@pytest.mark.gpu
def test_on_cuda_nothing_of_all_pairs_is_held() -> None:
    from biases.bench import peak_bytes

    q = torch.randn(1, HEADS, 8192, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    bias = ALiBi(HEADS, symmetric=True)

    def step() -> Any:
        return torch.autograd.grad(attend(q, q, q, bias=bias).float().sum(), q)

    step()
    assert peak_bytes(step, "cuda") < 8192**2
