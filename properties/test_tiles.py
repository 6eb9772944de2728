"""Attention by tiles with gradients of its own equals the specification, however the problem is cut into tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, LowRankBias, ManhattanDecay, attend
from biases.backends import RelativeTerm, tile_attention
from biases.positions.relative_position import RelativePositionBias
from biases.testing.compare import assert_within
from biases.testing.strategies import make_tensor, seeds

F64 = torch.float64
MODES = ("softmax", "sigmoid", "sigmoid-normalised", "linear")
PLACEMENTS = ("logits", "weights", "weights-renormalised")


class LearnedTable(RelativeTerm):
    """A learned bias of the distance, (H, 2 R + 1)."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.heads = table, table.shape[0]

    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        return self.table.to(dtype)[:, distance + self.table.shape[1] // 2]


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    """Tiles of 5 queries and 40 pairs, so that short problems have many, of some heads or of several examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_attention, "TILE", 5)
        patch.setattr(tile_attention, "PAIRS", 40)
        yield


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """Leaves in float64, options of ``attend`` and what is added."""
    mode, seed = draw(st.sampled_from(MODES)), draw(seeds())
    batch, heads, height, width = (draw(st.integers(1, n)) for n in (3, 3, 4, 4))
    L = height * width
    kinds = st.sampled_from(["table", "slopes", "key", "low-rank", "map"])
    biases = tuple(draw(st.lists(kinds, max_size=3, unique=True)))
    S = L if "map" in biases else draw(st.integers(1, 14))
    alignment = draw(st.sampled_from(["upper-left", "lower-right"])) if S != L and "low-rank" not in biases else None
    causal = draw(st.booleans())
    shapes = {"q": (batch, heads, L, 4), "k": (batch, heads, S, 4), "v": (batch, heads, S, 3)}
    extra = {
        "table": {"table": (heads, 61)},
        "slopes": {"slopes": (1, heads)},
        "key": {"key": (draw(st.sampled_from([1, batch])), 1, S)},
        "low-rank": {"left": (heads, L, 2), "right": (1 if heads == 1 else heads, S, 2)},
        "map": {"map": (49, heads)},
    }
    for kind in biases:
        shapes |= extra[kind]
    decay = draw(st.sampled_from(["none", "distance", "map"] if S == L else ["none", "distance"]))
    placement = "weights" if mode == "linear" else draw(st.sampled_from(PLACEMENTS))
    if decay != "none":
        shapes["rates"] = (1, heads)
    gate = draw(st.sampled_from(["none", "plain", "renormalised"]))
    gate = "plain" if mode == "linear" and gate != "none" else gate
    if gate != "none":
        shapes["gate"] = (batch, draw(st.sampled_from([1, heads])), S)
    leaves = {name: make_tensor(shape, seed=seed + n, dtype=F64) for n, (name, shape) in enumerate(shapes.items())}
    options: dict[str, Any] = {"weights": mode, "causal": causal, "alignment": alignment}
    if S != L and alignment is None:
        options["alignment"] = "upper-left"
    if causal and draw(st.booleans()):
        options["window"] = draw(st.integers(1, 9))
    mask = draw(st.sampled_from([None, (batch, 1, 1, S), (1, heads, L, S), (batch, heads, L, S), (L, S)]))
    if mask is not None:
        generator = torch.Generator().manual_seed(seed)
        options["mask"] = torch.rand(mask, generator=generator) < draw(st.sampled_from([0.2, 0.7]))
    return leaves, options, (*biases, f"{decay} decay", placement, f"{gate} gate", f"{height}x{width}")


def output(leaves: dict[str, Tensor], options: dict[str, Any], kinds: tuple[str, ...], backend: str) -> Tensor:
    height, width = map(int, kinds[-1].split("x"))
    terms = {
        "table": lambda: LearnedTable(leaves["table"]),
        "slopes": lambda: ALiBi(leaves["slopes"][0], symmetric=True, allow_negative=True),
        "key": lambda: KeyBias(leaves["key"]),
        "low-rank": lambda: LowRankBias(leaves["left"], leaves["right"]),
        "map": lambda: RelativePositionBias(leaves["map"], height, width),
    }
    decay, gate = None, None
    if "rates" in leaves:
        rates = -leaves["rates"][0].square()
        if "map decay" in kinds:
            decay = ManhattanDecay(height, width, rates, placement=kinds[-3])
        else:
            decay = ExponentialDecay(rates, symmetric=True, placement=kinds[-3])
    if "gate" in leaves:
        gate = KeyGate(torch.nn.functional.logsigmoid(leaves["gate"]), renormalise="renormalised gate" in kinds)
    bias = [terms[kind]() for kind in kinds if kind in terms]
    tensors = (leaves[name] for name in "qkv")
    return attend(*tensors, bias=bias, decay=decay, key_gate=gate, backend=backend, **options)


def derivatives(drawn: tuple[Any, ...], backend: str, order: int) -> list[Tensor]:
    """The output, and the gradients of all leaves; of order 2, of the squares of the gradients."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in drawn[0].items()}
    out = output(leaves, *drawn[1:], backend)
    inputs = list(leaves.values())
    loss = (out * make_tensor(tuple(out.shape), seed=5, dtype=F64)).sum()
    grads = torch.autograd.grad(loss, inputs, create_graph=order == 2, materialize_grads=True)
    if order == 2:
        loss = sum(grad.square().sum() for grad in grads)
        grads = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return [out.detach(), *grads]


def assert_alike(got: list[Tensor], want: list[Tensor]) -> None:
    # Sums of some hundreds of terms, whose size is that of the largest gradients.
    largest = max(float(x.abs().max()) for x in want)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12 * (1.0 + largest))


@settings(max_examples=60)
@given(problems())
def test_output_and_gradients_equal_the_specification(drawn: tuple[Any, ...]) -> None:
    """All weights, structured terms, decays, gates, masks, windows and alignments, with gradients of every table."""
    want = derivatives(drawn, "reference", 1)
    assert_alike(derivatives(drawn, "fused", 1), want)


def goes_by_tiles(mode: str = "sigmoid", placement: str = "weights", length: int = 12) -> tuple[Any, ...]:
    shapes = {name: (2, 2, length, 4) for name in "qkv"} | {"table": (2, 61), "key": (1, 1, length), "rates": (1, 2)}
    leaves = {name: make_tensor(shape, seed=n, dtype=F64) for n, (name, shape) in enumerate(shapes.items())}
    kinds = ("table", "key", "distance decay", placement, "none gate", f"{length}x1")
    return leaves, {"weights": mode, "causal": True}, kinds


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_equal_those_of_the_specification(mode: str, placement: str) -> None:
    """``create_graph=True`` differentiates the backward pass; nothing of it is left out."""
    drawn = goes_by_tiles(mode, "weights" if mode == "linear" else placement)
    assert_alike(derivatives(drawn, "fused", 2), derivatives(drawn, "dense", 2))


@pytest.mark.parametrize("mode", MODES)
def test_transforms_and_forward_mode(mode: str) -> None:
    """``torch.func.vmap`` of ``grad``, and ``jvp``, agree with the specification."""
    leaves, options, kinds = goes_by_tiles(mode)
    q = leaves["q"]

    def loss(q: Tensor, backend: str) -> Tensor:
        return output(leaves | {"q": q}, options, kinds, backend).square().sum()

    stacked = torch.stack([q, 2 * q])
    got, want = (
        torch.func.vmap(torch.func.grad(lambda x, b=b: loss(x, b)))(stacked)  # type: ignore[misc]
        for b in ("fused", "dense")
    )
    assert_alike([got], [want])
    got, want = (torch.func.jvp(lambda x, b=b: loss(x, b), (q,), (q,))[1] for b in ("fused", "dense"))  # type: ignore[misc]
    assert_alike([got], [want])


def test_vectorised_backward() -> None:
    """``autograd.grad(is_grads_batched=True)`` vectorises over the backward pass alone."""
    leaves, options, kinds = goes_by_tiles()

    def jacobian(backend: str) -> Tensor:
        q = leaves["q"].clone().requires_grad_()
        out = output(leaves | {"q": q}, options, kinds, backend)[0, 0, -1]
        return torch.autograd.grad(out, q, torch.eye(len(out), dtype=F64), is_grads_batched=True)[0]

    assert_alike([jacobian("fused")], [jacobian("dense")])


@pytest.mark.parametrize("wanted", ["q", "k", "v", "table", "key", "rates"])
@pytest.mark.parametrize("mode", MODES)
def test_each_gradient_alone(mode: str, wanted: str) -> None:
    """What is not asked for is not computed, and what is asked for does not depend on it."""
    leaves, options, kinds = goes_by_tiles(mode)

    def alone(backend: str) -> Tensor:
        own = leaves | {wanted: leaves[wanted].clone().requires_grad_()}
        out = output(own, options, kinds, backend)
        return torch.autograd.grad(out.square().sum(), own[wanted])[0]

    assert_alike([alone("fused")], [alone("reference")])


@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_weights_that_underflow(mode: str) -> None:
    """Decays through the subnormal numbers to zero, beside the full result: finite, and right to rounding."""
    q, k, v = (make_tensor((1, 2, 300, 4), seed=n) for n in range(3))
    decay = ExponentialDecay(-torch.tensor([0.5, 2.0]), symmetric=True, placement="weights")
    bias = ALiBi(torch.tensor([0.4, 0.1]), symmetric=True)

    def results(backend: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, weights=mode, bias=bias, decay=decay, backend=backend)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]

    every = zip(
        results("fused", torch.float32), results("reference", F64), results("dense", torch.float32), strict=True
    )
    for got, exact, low in every:
        assert_within(got, exact, low, magnitude=float(exact.abs().max()))


@pytest.mark.parametrize("mode", MODES)
def test_backward_under_autocast_keeps_its_precision(mode: str) -> None:
    """Autocast around the backward pass changes no product of it."""
    drawn = goes_by_tiles(mode)
    leaves = {name: x.float() for name, x in drawn[0].items()}

    def grads(autocast: bool) -> tuple[Tensor, ...]:
        inputs = {name: x.clone().requires_grad_() for name, x in leaves.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = output(inputs, *drawn[1:], "fused").square().sum()
            return torch.autograd.grad(loss, list(inputs.values()))

    for plain, under in zip(grads(False), grads(True), strict=True):
        assert torch.equal(plain, under)
