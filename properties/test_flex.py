"""FlexAttention: what the terms add to a score, which blocks are visited, and equality with the specification.

On the CPU the eager formulation of FlexAttention runs the same arithmetic without the generated kernel; it is
differentiated by autograd, and once by way of the joint graph from which the CUDA kernel of the backward is generated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, ManhattanDecay, attend, zoo
from biases.attention import _problem
from biases.backends import Geometry, PairTerm, Problem, RelativeTerm, block_masks, choice, flex, reference, score_mods
from biases.backends.block_masks import BLOCK, block_mask
from biases.backends.score_mods import on_device
from biases.backends.transforms import transformed
from biases.bench.workloads import Setting, record
from biases.positions.relative_position import AxisSum, RelativePositionBias
from biases.testing.compare import assert_within
from biases.testing.strategies import make_tensor, seeds

HEADS = 2


class LearnedTable(RelativeTerm):
    """A bias of the distance, (H, 2 R + 1), that somebody adds and that knows nothing of FlexAttention."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.heads = table, table.shape[0]

    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        return self.table.to(dtype)[:, distance + self.table.shape[1] // 2]


def tensor(*shape: int, seed: int, learned: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    return make_tensor(shape, seed=seed, dtype=dtype).requires_grad_(learned)


def rates(seed: int, learned: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    return (-tensor(HEADS, 1, seed=seed)[:, 0].abs() / 4).to(dtype).requires_grad_(learned)


def term(kind: str, geometry: Geometry, seed: int, learned: bool, batch: int = 2) -> PairTerm:
    """A term that fits the geometry; maps are 3 pixels wide."""
    L, S = geometry.L, geometry.S
    return {
        "key": lambda: KeyBias(tensor(batch, 1, S, seed=seed, learned=learned)),
        "key of a head": lambda: KeyBias(tensor(1, HEADS, S, seed=seed, learned=learned)),
        "alibi": lambda: ALiBi(-rates(seed, learned)),
        "alibi-symmetric": lambda: ALiBi(-rates(seed, learned), symmetric=True),
        "decay": lambda: ExponentialDecay(rates(seed, learned)),
        "decay-symmetric": lambda: ExponentialDecay(rates(seed, learned), symmetric=True),
        "low-rank": lambda: LowRankBias(
            tensor(HEADS, L, 3, seed=seed, learned=learned), tensor(HEADS, S, 3, seed=seed + 1, learned=learned)
        ),
        "table": lambda: LearnedTable(tensor(HEADS, 2 * (L + S) + 1, seed=seed, learned=learned)),
        "manhattan": lambda: ManhattanDecay(L // 3, 3, rates(seed, learned)),
        "relative-position": lambda: RelativePositionBias(
            tensor((2 * max(L // 3, 3) - 1) ** 2, HEADS, seed=seed, learned=learned), L // 3, 3
        ),
        "axis-sum": lambda: AxisSum(ALiBi(-rates(seed, learned), symmetric=True), L // 3, 3),
    }[kind]()


ANYWHERE = ("key", "key of a head", "alibi", "alibi-symmetric", "decay", "decay-symmetric", "table")
KINDS = (*ANYWHERE, "low-rank", "manhattan", "relative-position", "axis-sum")


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


# Whole problems


def problem(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Problem:
    every: dict[str, Any] = {"bias": None, "key_gate": None, "weights": "softmax", "decay": None, "mask": None}
    every |= {"causal": False, "window": None, "alignment": None, "dropout": 0.0, "scale": None}
    return _problem(q, k, v, **(every | options))


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


# Blocks


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Blocks of 4, so that drawn lengths, offsets and windows end at every place in a block."""
    monkeypatch.setattr(block_masks, "BLOCK", 4)
    block_masks._cached.cache_clear()
    yield 4
    block_masks._cached.cache_clear()


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_block_is_left_out_and_none_is_whole_that_is_not(small_blocks: int, data: st.DataObject) -> None:
    block = small_blocks
    L, S = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))
    causal, window = data.draw(st.booleans()), data.draw(st.none() | st.integers(1, 13))
    masked = data.draw(st.sampled_from([None, (2, 1, 1, S), (1, 1, L, S)]))
    q, k = torch.zeros(2, 1, L, 1), torch.zeros(2, 1, S, 1)
    # Mostly allowed, so that whole blocks occur.
    mask = None if masked is None else tensor(*masked, seed=data.draw(seeds())) > -1.5
    placed = {"causal": causal, "window": window if causal else None, "alignment": data.draw(st.sampled_from(ALIGNED))}
    each = problem(q, k, k, mask=mask, **placed)
    blocks = block_mask(each)
    i, j = each.geometry.positions(torch.device("cpu"))
    allowed = each.geometry.allowed(i - j)
    allowed = torch.ones(L, S, dtype=torch.bool) if allowed is None else allowed
    allowed = (allowed if mask is None else allowed & mask).expand(2, 1, L, S)
    if blocks is None:
        assert allowed.all()
        return
    padded = torch.nn.functional.pad(allowed, (0, -S % block, 0, -L % block))
    tiles = padded.unflatten(3, (-1, block)).unflatten(2, (-1, block))
    some, every = tiles.any(5).any(3), tiles.all(5).all(3)
    partial, whole = (_listed(blocks, name, some) for name in ("kv", "full_kv"))
    assert not (partial & whole).any()
    assert not (whole & ~every).any()
    assert not (some & ~(partial | whole)).any()
    if mask is None:
        torch.testing.assert_close(partial | whole, some)
        torch.testing.assert_close(whole, every)


ALIGNED = ("upper-left", "lower-right")


def _listed(blocks: Any, name: str, like: Tensor) -> Tensor:
    """The blocks of a list as booleans, (2, 1, L / BLOCK, S / BLOCK)."""
    count, order = getattr(blocks, f"{name}_num_blocks"), getattr(blocks, f"{name}_indices")
    listed = torch.arange(order.shape[-1]) < count[..., None]
    return torch.zeros(order.shape, dtype=torch.bool).scatter(-1, order.long(), listed).expand_as(like)


def test_blocks_are_those_of_the_mask_over_all_pairs(small_blocks: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    for offset, window in itertools.product(range(-5, 6), (None, *range(1, 13))):
        geometry = Geometry(13, 10, offset, True, window)
        q, k = torch.zeros(1, 1, geometry.L, 1), torch.zeros(1, 1, geometry.S, 1)
        ours = block_mask(Problem(q, k, k, geometry, 1.0))
        assert ours is not None
        sizes = {"Q_LEN": geometry.L, "KV_LEN": geometry.S, "BLOCK_SIZE": small_blocks}
        theirs = create_block_mask(ours.mask_mod, None, None, **sizes, device="cpu")
        for name in names:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (name, geometry)


def test_no_mask_over_all_pairs_is_made() -> None:
    """One boolean a pair would be 256 MiB."""
    from biases.bench import peak_bytes

    q = torch.zeros(1, 1, 1 << 14, 1)
    each = problem(q, q, q, causal=True, window=777)
    assert peak_bytes(lambda: block_mask(each)) < (1 << 14) ** 2 // BLOCK


# The compiled form


def test_the_joint_graph_gives_the_gradients_of_all_that_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slopes in two terms, a gate and a table: through the joint graph out of which the backward kernel is generated,
    in which no tensor may receive its gradient from two places."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch.nn.attention import flex_attention as module

    scattered: list[list[Any]] = []

    def keep_joint(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        for name, inner in graph.named_modules():
            if "joint" in name and isinstance(inner, torch.fx.GraphModule):
                scatters = inner.graph.find_nodes(
                    op="call_function", target=torch.ops.flex_lib.zeros_and_scatter.default
                )
                scattered.append(list(scatters))
        return make_boxed_func(graph.forward)

    monkeypatch.setattr(module, "_validate_device", lambda *tensors: None)
    torch.compiler.reset()
    geometry = Geometry(40, 40, 0, True)
    slopes = tensor(HEADS, 1, seed=1)[:, 0].abs().requires_grad_()
    logits, table = tensor(2, HEADS, 40, seed=2, learned=True), term("table", geometry, 3, True)
    q, k, v = (tensor(2, HEADS, 40, 16, seed=n, learned=True) for n in range(4, 7))
    options: dict[str, Any] = {"causal": True, "bias": (ALiBi(slopes), table), "decay": ExponentialDecay(-slopes)}

    def gated() -> Problem:
        return problem(q, k, v, **options, key_gate=KeyGate(torch.nn.functional.logsigmoid(logits)))

    call = flex.arguments(gated())
    compiled = torch.compile(
        flex._flex, backend=aot_autograd(fw_compiler=lambda g, _: make_boxed_func(g.forward), bw_compiler=keep_joint)
    )
    learned = (q, k, v, slopes, logits, table.table)  # type: ignore[attr-defined]
    direction = tensor(2, HEADS, 40, 16, seed=8)
    out = compiled(*call[:-1])[..., : call.width]
    got = torch.autograd.grad(out, learned, direction)
    wanted = torch.autograd.grad(reference(gated()), learned, direction)
    magnitude = float(direction.norm(dim=-1).max() * v.detach().norm(dim=-1).max())
    for one, other in zip(got, wanted, strict=True):
        assert_within(one, other, other, magnitude=10 * magnitude)
    assert len(scattered) == 1
    # Each is read once: slopes by two tables of distances, not a number a head, whose additions would be serialised.
    distances = [HEADS, 79]
    assert sorted(list(node.args[0]) for node in scattered[0]) == [[2, HEADS, 40], *[distances] * 3]


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


def test_a_kernel_that_does_not_compile_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(flex, "_kernel", lambda family: broken)
    monkeypatch.setattr(flex, "_failed", {})
    q = tensor(1, HEADS, 5, 16, seed=1)
    family = ("family", None)
    with pytest.raises(flex.CompilationFailed, match=r"RuntimeError: no such instruction$"):
        flex._guarded(lambda: flex.arguments(problem(q, q, q)), family)
    assert flex._failed == {family: "RuntimeError: no such instruction"}


def test_memory_that_ran_out_is_no_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(flex, "_kernel", lambda family: full)
    monkeypatch.setattr(flex, "_failed", {})
    q = tensor(1, HEADS, 5, 16, seed=1)
    with pytest.raises(torch.OutOfMemoryError):
        flex._guarded(lambda: flex.arguments(problem(q, q, q)), ("family", None))
    assert not flex._failed


def test_the_backward_is_compiled_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose backward fails must not fail in the user's backward pass."""

    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("out of shared memory")

    monkeypatch.setattr(flex, "_kernel", lambda family: lambda q, *rest: NoBackward.apply(q))
    monkeypatch.setattr(flex, "_failed", {})
    q = tensor(1, HEADS, 5, 16, seed=1, learned=True)
    with pytest.raises(flex.CompilationFailed, match="out of shared memory"):
        flex._guarded(lambda: flex.arguments(problem(q, q, q)), ("backward", None))


@pytest.fixture
def eager_kernel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """FlexAttention as ``attend`` would use it on CUDA, the compiled kernel being the eager form; the list gets
    an item for each of its backward passes."""
    from torch._higher_order_ops.flex_attention import math_attention
    from torch.nn.attention import flex_attention as module

    backward: list[str] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, mod: Any, blocks: Any, scale: float) -> Tensor:
        blocks = blocks or module._create_empty_block_mask(q, k)
        out = math_attention(q, k, v, mod or module._identity, blocks.as_tuple(), scale, {})[0]
        if out.requires_grad:
            out.register_hook(lambda grad: backward.append("one"))
        return out

    monkeypatch.setattr(flex, "_kernel", lambda family: kernel)
    monkeypatch.setattr(flex, "why_not", lambda each: "transform" if transformed(each) else flex.inexpressible(each))
    for name in ("_failed", "_lengths"):
        monkeypatch.setattr(flex, name, {})
    monkeypatch.setattr(flex, "_proved", set())
    monkeypatch.setattr(choice, "_broken", set())
    row = choice.Row(("flex",), "as on CUDA")
    monkeypatch.setattr(choice, "ORDER", {("cpu", name): row for name in choice.FAMILIES})
    return backward


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("early_stop", [True, False])
def test_the_proof_is_unseen_by_checkpoints(eager_kernel: list[str], early_stop: bool) -> None:
    """What is saved for the proof is not counted, and what stops the second run is no failure of the kernel."""
    from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

    logits, slopes = tensor(2, HEADS, 9, seed=2, learned=True), (-rates(3, False)).requires_grad_()
    q, k, v = (tensor(2, HEADS, 9, 16, seed=n, learned=True) for n in range(4, 7))
    leaves = (q, k, v, logits, slopes)

    def operator(*_: Tensor) -> Tensor:
        gate = KeyGate(torch.nn.functional.logsigmoid(logits))
        return choice.run(problem(q, k * 2.0, v, causal=True, bias=ALiBi(slopes * 1.0), key_gate=gate)) ** 2

    direction = tensor(2, HEADS, 9, 16, seed=8)
    with set_checkpoint_early_stop(early_stop):
        got = torch.autograd.grad(checkpoint(operator, *leaves, use_reentrant=False), leaves, direction)
    assert len(flex._proved) == 1
    assert not flex._failed
    assert not choice._broken
    assert len(eager_kernel) == 2
    for one, other in zip(got, torch.autograd.grad(operator(), leaves, direction), strict=True):
        torch.testing.assert_close(one, other)


def test_a_kernel_that_fails_in_a_checkpoint_leaves_nothing_behind(
    eager_kernel: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run tries the kernel, the second does not; both must save the same."""
    from torch.utils.checkpoint import checkpoint

    def broken(*arguments: Any) -> Tensor:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(flex, "_kernel", lambda family: broken)
    q, logits = tensor(1, HEADS, 9, 16, seed=1, learned=True), tensor(1, HEADS, 9, seed=2, learned=True)

    def operator(x: Tensor) -> Tensor:
        gate = KeyGate(torch.nn.functional.logsigmoid(logits), renormalise=False)
        return choice.run(problem(x, x, x, bias=ALiBi(HEADS), key_gate=gate))

    with pytest.warns(RuntimeWarning, match="failed to compile"):
        out = checkpoint(operator, q, use_reentrant=False)
    got = torch.autograd.grad(out.sum(), (q, logits))
    for one, other in zip(got, torch.autograd.grad(operator(q).sum(), (q, logits)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_backward_is_proved_where_a_term_alone_is_learned(eager_kernel: list[str]) -> None:
    """On leaves of the proof's own: what leads to the term is neither run nor freed."""
    q, x = tensor(2, HEADS, 9, 16, seed=1), tensor(2, HEADS, 9, seed=2, learned=True)
    squared = x**2
    out = flex.run(problem(q, q, q, bias=(KeyBias(x), KeyBias(squared))))
    assert len(eager_kernel) == 1
    (got,) = torch.autograd.grad(out.sum(), x)
    wanted = reference(problem(q, q, q, bias=(KeyBias(x), KeyBias(x**2))))
    torch.testing.assert_close(got, torch.autograd.grad(wanted.sum(), x)[0], rtol=0, atol=1e-12)


def test_a_proved_kernel_passes_on_what_is_no_failure_of_its_own(
    eager_kernel: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    q = tensor(1, HEADS, 9, 16, seed=1)
    flex.run(problem(q, q, q))

    def interrupted(*arguments: Any) -> Tensor:
        raise RuntimeError("of the user's")

    monkeypatch.setattr(flex, "_kernel", lambda family: interrupted)
    with pytest.raises(RuntimeError, match="of the user's"):
        flex.run(problem(q, q, q))
    assert not flex._failed


WHERE = ("q", "k", "v", "gate", "keep", "mask", "bias", "nested bias", "decay")


@pytest.mark.parametrize("where", WHERE)
def test_a_transform_over_any_tensor_is_seen(where: str) -> None:
    """A kernel without rules for torch.func must not be given such a tensor."""
    seen = []

    def call(x: Tensor, name: str) -> Tensor:
        given: dict[str, Tensor] = {name: x}
        q, k, v = (given.get(each, torch.ones(1, HEADS, 9, 4)) for each in "qkv")
        with_x = {
            "gate": lambda: {"key_gate": KeyGate(x)},
            "keep": lambda: {"mask": x > 0},
            "mask": lambda: {"mask": x > 0},
            "bias": lambda: {"bias": KeyBias(x)},
            "nested bias": lambda: {"bias": AxisSum(LearnedTable(x), 3, 3)},
            "decay": lambda: {"decay": ManhattanDecay(3, 3, x)},
        }
        options = with_x[name]() if name in with_x else {}
        seen.append(transformed(problem(q, k, v, **options)))
        return x * 1.0

    shape = {"keep": (1, 1, 1, 9), "mask": (1, 1, 9, 9), "gate": (1, HEADS, 9), "bias": (1, HEADS, 9)}.get(where)
    shape = shape or {"nested bias": (HEADS, 21), "decay": (HEADS,)}.get(where) or (1, HEADS, 9, 4)
    x = -torch.ones(shape)
    call(x, where)
    if where == "decay":
        # A decay looks at its rates, which vmap forbids.
        torch.func.jvp(lambda each: call(each, where), (x,), (x,))
    else:
        torch.func.vmap(lambda each: call(each, where))(x[None])
    assert seen == [False, True]


def test_a_transform_goes_by_another_formulation(eager_kernel: list[str]) -> None:
    q, k, v = (tensor(3, 1, HEADS, 9, 16, seed=n) for n in range(3))

    def one(keys: Tensor) -> Tensor:
        return choice.run(problem(q[0], keys, v[0], bias=ALiBi(HEADS), causal=True))

    got = torch.func.vmap(one)(k)
    torch.testing.assert_close(got, torch.stack([one(each) for each in k]))


def test_the_first_lengths_of_a_family_have_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_lengths", {})
    monkeypatch.setattr(flex, "_kernels", {})
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    problems = [problem(q, q, q) for q in (tensor(1, HEADS, 5 + n % 7, 16, seed=n) for n in range(14))]
    kernels = [flex._kernel(flex._family(each)) for each in problems]
    assert kernels[:7] == kernels[7:]
    assert len(set(kernels)) == flex.OWN_LENGTHS + 1
    assert len({kernel.__code__ for kernel in kernels}) == flex.OWN_LENGTHS + 1


def test_new_terms_and_lengths_find_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call makes its functions afresh; only a new length compiles, and all lengths after the first two share."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, compile_with = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_with(function, backend=counter))
    monkeypatch.setattr(flex, "_lengths", {})
    monkeypatch.setattr(flex, "_kernels", {})
    compiled = []
    for length in (40, 40, 30, 30, 20, 25, 10, 35, 40):
        q = tensor(2, HEADS, length, 16, seed=length)
        gate = KeyGate(tensor(2, HEADS, length, seed=2))
        each = problem(q, q, q, causal=True, bias=ALiBi(HEADS), key_gate=gate, mask=torch.arange(length) != 3)
        call = flex.arguments(each)
        with torch.no_grad():
            out = flex._kernel(flex._family(each))(*call[:-1])[..., : call.width]
        wanted = reference(each)
        assert_within(out, wanted, wanted, magnitude=10 * float(q.abs().max()))
        compiled.append(counter.frame_count)
    assert compiled[:4] == [1, 1, 2, 2]
    assert len(set(compiled[5:])) == 1


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


def test_a_copy_on_another_device_is_made_once_for_each_state() -> None:
    x, there = torch.ones(3), torch.device("meta")
    first = on_device(x, there, torch.float32)
    assert first.device == there
    assert on_device(x, there, torch.float32) is first
    assert on_device(x, there, torch.float64).dtype == torch.float64
    x.mul_(2)
    assert on_device(x, there, torch.float32) is not first
    learned = torch.ones(3, requires_grad=True)
    assert on_device(learned, there, torch.float32).requires_grad


def test_what_inference_keeps_training_can_use() -> None:
    x, there = torch.ones(3), torch.device("meta")
    q = tensor(1, 1, 261, 1, seed=1)
    with torch.inference_mode():
        kept, blocks = on_device(x, there, torch.float32), block_mask(problem(q, q, q, causal=True))
    assert on_device(x, there, torch.float32) is kept
    assert block_mask(problem(q, q, q, causal=True)) is blocks
    assert not kept.is_inference()
    assert blocks is not None
    assert not blocks.kv_indices.is_inference()


def test_nothing_of_a_captured_graph_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors hold nothing before it is replayed, and kept ones that are dropped are read by it all the same."""
    x, there = torch.ones(3), torch.device("meta")
    each = problem(*[tensor(1, 1, 263, 1, seed=1)] * 3, causal=True)
    for module in (score_mods, block_masks):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    during = on_device(x, there, torch.float32), block_mask(each)
    for module in (score_mods, block_masks):
        monkeypatch.setattr(module, "capturing", lambda device: False)
    after = on_device(x, there, torch.float32), block_mask(each)
    assert after[0] is not during[0]
    assert after[1] is not during[1]
    assert block_mask(each) is after[1]


def test_what_is_kept_is_finished_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stream may be the next to read it."""
    waited: list[torch.device] = []
    for module in (score_mods, block_masks):
        monkeypatch.setattr(module, "finished", waited.append)
    x, there, here = torch.ones(3), torch.device("meta"), torch.device("cpu")
    each = problem(*[tensor(1, 1, 265, 1, seed=1)] * 3, causal=True)
    for _ in range(2):
        on_device(x, there, torch.float32)
        block_mask(each)
    assert waited == [there, here]


# On a GPU


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
