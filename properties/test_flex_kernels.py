"""FlexAttention: kernels that compile, fail, are proved and found again.

The joint graph, from which the CUDA kernel of the backward is generated, is run once on the CPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flex_problems import HEADS, LearnedTable, problem, rates, tensor, term
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, ManhattanDecay
from biases.backends import Geometry, Problem, choice, flex, reference
from biases.backends.transforms import transformed
from biases.positions.relative_position import AxisSum
from biases.testing.compare import assert_within


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
