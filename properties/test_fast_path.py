"""The fast path equals the specification: over random problems of ``attend``, and over every layer of the zoo.

The reference is float64; what rounding allows is measured on the dense formulas in the precision under test.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from biases import (
    ALiBi,
    ExponentialDecay,
    KeyBias,
    KeyGate,
    LowRankBias,
    ManhattanDecay,
    attend,
    set_backend,
    specification,
    zoo,
)
from biases.backends import RelativeTerm
from biases.testing.compare import assert_within
from biases.testing.strategies import make_tensor, seeds

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BIASES = ("none", "key", "alibi", "alibi-symmetric", "low-rank", "learned-slopes", "learned-table", "alibi+key")
GATES = ("none", "renormalised", "plain", "eps")
DECAYS = ("none", "logits", "weights", "weights-renormalised", "symmetric", "manhattan")
MASKS = ("none", "padding", "pairs", "rows")


class LearnedTable(RelativeTerm):
    """A learned bias of the distance, (H, 2 R + 1)."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.heads = table, table.shape[0]

    def by_distance(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        return self.table.to(dtype)[:, distance + self.table.shape[1] // 2]


@dataclass
class Drawn:
    """Tensors of a problem (leaves, in the drawn dtype) and how to call ``attend`` with them."""

    leaves: dict[str, Tensor]
    options: dict[str, Any]
    kinds: dict[str, str]

    def direction(self, shape: torch.Size) -> Tensor:
        """The cotangent whose gradients are taken, the same for every backend."""
        return make_tensor(tuple(shape), seed=7, dtype=torch.float64).to(self.leaves["q"].dtype)

    def call(self, backend: str, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Output and gradients, with the leaves cast to ``dtype``."""
        leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in self.leaves.items()}
        out = attend(
            leaves["q"],
            leaves["k"],
            leaves["v"],
            bias=_bias(self.kinds["bias"], leaves),
            key_gate=_gate(self.kinds["gate"], leaves),
            decay=_decay(self.kinds["decay"], leaves["q"].shape),
            backend=backend,
            **self.options,
        )
        direction = self.direction(out.shape)
        used = [x for name, x in leaves.items() if name in "qkv" or name in self.kinds.values() or name in self.kinds]
        grads = torch.autograd.grad(out, used, direction.to(dtype), allow_unused=True)
        named = [name for name, x in leaves.items() if any(x is y for y in used)]
        return out.detach(), {n: g for n, g in zip(named, grads, strict=True) if g is not None}


def _bias(kind: str, leaves: dict[str, Tensor]) -> Any:
    heads = leaves["q"].shape[1]
    return {
        "none": lambda: None,
        "key": lambda: KeyBias(leaves["key"]),
        "alibi": lambda: ALiBi(heads),
        "alibi-symmetric": lambda: ALiBi(heads, symmetric=True),
        "low-rank": lambda: LowRankBias(leaves["left"], leaves["right"]),
        "learned-slopes": lambda: ALiBi(leaves["slopes"], allow_negative=True),
        "learned-table": lambda: LearnedTable(leaves["table"]),
        "alibi+key": lambda: (ALiBi(heads, symmetric=True), KeyBias(leaves["key"])),
    }[kind]()


def _gate(kind: str, leaves: dict[str, Tensor]) -> KeyGate | None:
    if kind == "none":
        return None
    log = torch.nn.functional.logsigmoid(3 * leaves["gate"])
    return KeyGate(log, renormalise=kind != "plain", eps=1e-3 if kind == "eps" else 0.0)


def _decay(kind: str, shape: torch.Size) -> Any:
    rates = torch.log(torch.linspace(0.5, 0.95, shape[1], dtype=torch.float64))
    if kind == "none":
        return None
    if kind == "manhattan":
        width = next(w for w in (3, 2, 1) if shape[2] % w == 0)
        return ManhattanDecay(shape[2] // width, width, rates)
    return ExponentialDecay(rates, symmetric=kind == "symmetric", placement="logits" if kind == "symmetric" else kind)


@st.composite
def problems(draw: st.DrawFn, weights: tuple[str, ...] = ("softmax",)) -> Drawn:
    kinds = {
        "bias": draw(st.sampled_from(BIASES)),
        "gate": draw(st.sampled_from(GATES)),
        "decay": draw(st.sampled_from(DECAYS)),
    }
    form, causal = draw(st.sampled_from(weights)), draw(st.booleans())
    L, batch, heads = draw(st.integers(1, 20)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4]))
    S = draw(st.integers(1, 20)) if draw(st.booleans()) else L
    alignment = None if L == S else draw(st.sampled_from(["upper-left", "lower-right"]))
    if form == "linear":
        kinds["gate"] = "plain" if kinds["gate"] != "none" else "none"
        kinds["decay"] = "weights" if kinds["decay"] not in ("none", "manhattan") else "none"
    if kinds["decay"] == "manhattan":
        S, alignment = L, None
    if kinds["bias"] == "low-rank":
        alignment = None if L == S else "upper-left"
    if kinds["decay"] in ("logits", "weights", "weights-renormalised"):
        causal = True
    group = draw(st.sampled_from([g for g in (1, 2, heads) if heads % g == 0]))
    D, Dv = draw(st.sampled_from([4, 8, 5])), draw(st.sampled_from([4, 8, 3]))
    seed, dtype = draw(seeds()), draw(st.sampled_from(DTYPES))

    def tensor(*shape: int, step: int = 0) -> Tensor:
        return make_tensor(shape, seed=seed + step, dtype=dtype)

    leaves = {
        "q": tensor(batch, heads, L, D),
        "k": tensor(batch, heads // group, S, D, step=1),
        "v": tensor(batch, heads // group, S, Dv, step=2),
    }
    extra = {
        "key": lambda: {"key": tensor(draw(st.sampled_from([1, batch])), heads, S, step=3)},
        "alibi+key": lambda: {"key": tensor(batch, 1, S, step=3)},
        "low-rank": lambda: {"left": tensor(heads, L, 3, step=3), "right": tensor(heads, S, 3, step=4)},
        "learned-slopes": lambda: {"slopes": tensor(1, heads, step=3)[0] / 4},
        "learned-table": lambda: {"table": tensor(heads, 85, step=3)},
    }
    leaves |= extra.get(kinds["bias"], dict)()
    if kinds["gate"] != "none":
        leaves["gate"] = tensor(batch, draw(st.sampled_from([1, heads])), S, step=5)
    options = {"weights": form, "causal": causal, "alignment": alignment, "mask": None}
    generator = torch.Generator().manual_seed(seed + 6)
    kind = draw(st.sampled_from(MASKS))
    shape = {"padding": (batch, 1, 1, S), "pairs": (L, S), "rows": (batch, heads, L, S)}.get(kind)
    if shape is not None:
        mask = torch.rand(shape, generator=generator) < 0.7
        if kind != "pairs":
            mask[0, 0, 0] = False
        options["mask"] = mask
    return Drawn(leaves, options, kinds)


def largest(*tensors: Tensor) -> float:
    """Size of the terms that may cancel: a gradient that vanishes does so up to rounding at the scale of the others."""
    return max(float(x.detach().abs().max()) for x in tensors if x.numel())


def check(drawn: Drawn) -> None:
    dtype = drawn.leaves["q"].dtype
    exact, exact_grads = drawn.call("reference", torch.float64)
    low, low_grads = drawn.call("dense", dtype)
    out, grads = drawn.call("auto", dtype)
    assert out.dtype == dtype
    assert bool(torch.isfinite(out).all())
    # The dense formulas in float64 are the reference itself and so have no error to measure: some of float64's own.
    slack = 32.0 if dtype == torch.float64 else 1.0
    assert_within(out, exact, low, magnitude=slack * largest(exact, drawn.leaves["v"]))
    assert set(grads) == set(exact_grads)
    # Gradients of logits are differences of dO . v, a sum over channels.
    products = float(drawn.direction(out.shape).abs().double().sum(-1).max()) * largest(drawn.leaves["v"])
    scale = slack * max(products, largest(*exact_grads.values()))
    for name, grad in grads.items():
        assert_within(grad, exact_grads[name], low_grads[name], what=f"gradient of {name}", magnitude=scale)


@settings(max_examples=200)
@given(problems())
def test_softmax_problems_equal_the_specification(drawn: Drawn) -> None:
    """Output and gradients, for every bias, gate, decay, mask, alignment and dtype."""
    check(drawn)


@settings(max_examples=80)
@given(problems(weights=("sigmoid", "linear")))
def test_sigmoid_and_linear_problems_equal_the_specification(drawn: Drawn) -> None:
    """SWAT's weights (arXiv 2502.18845 Eq. 3) and retention's (arXiv 2309.11523 Eq. 2)."""
    check(drawn)


@given(seeds(), st.integers(2, 24), st.integers(1, 9))
def test_last_row_of_the_whole_is_one_step_of_decoding(seed: int, S: int, L: int) -> None:
    """Lower-right alignment: the last L queries against all keys give the last L rows."""
    assume(L < S)
    q, k, v = (make_tensor((1, 4, S, 8), seed=seed + n, dtype=torch.float64) for n in range(3))
    for options in ({}, {"bias": ALiBi(4)}, {"decay": ExponentialDecay(-torch.ones(4, dtype=torch.float64))}):
        whole = attend(q, k, v, causal=True, **options)
        step = attend(q[:, :, -L:], k, v, causal=True, alignment="lower-right", **options)
        assert torch.allclose(whole[:, :, -L:], step, rtol=1e-12, atol=1e-13)


LAYERS = [name for name in zoo.names("layer", "sequence")]


def layer_gradients(layer: torch.nn.Module, x: Tensor, keep: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and the gradients of input and parameters, of a fixed direction; padding does not count."""
    x = x.detach().clone().requires_grad_()
    out = layer(x, keep)
    weights = make_tensor(tuple(out.shape), seed=11, dtype=torch.float64).to(out.dtype)
    if keep is not None:
        weights = weights * keep[..., None]
    parameters = dict(layer.named_parameters())
    grads = torch.autograd.grad(out, [x, *parameters.values()], weights, allow_unused=True)
    found = zip(["input", *parameters], grads, strict=True)
    return out.detach(), {name: grad for name, grad in found if grad is not None}


def nudge(layer: torch.nn.Module, x: Tensor, dtype: torch.dtype, seed: int) -> tuple[torch.nn.Module, Tensor]:
    """Input and parameters moved by one rounding of ``dtype``: how far this moves the result, rounding may move it."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(y: Tensor) -> Tensor:
        signs = 2.0 * torch.randint(0, 2, y.shape, generator=generator).double() - 1.0
        return y * (1.0 + torch.finfo(dtype).eps * signs)

    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(rounded(parameter))
    return layer, rounded(x)


def nearby(
    layer: torch.nn.Module,
    x: Tensor,
    keep: Tensor | None,
    dtype: torch.dtype,
    exact: Tensor,
    exact_grads: dict[str, Tensor],
    seed: int,
) -> dict[str, float]:
    """What rounding does to the output and to each gradient: how far the exact result moves when input and parameters
    move by one rounding, and how far an honest computation is off there."""
    moved, input_ = nudge(specification(layer), x.double(), dtype, seed)
    low = set_backend(copy.deepcopy(moved).to(dtype), "dense")
    there, there_grads = layer_gradients(
        set_backend(copy.deepcopy(low).double(), "reference"), input_.to(dtype).double(), keep
    )
    honest, honest_grads = layer_gradients(low, input_.to(dtype), keep)
    sizes = {"output": max(largest(there - exact), largest(honest.double() - there))}
    for name, grad in exact_grads.items():
        off = honest_grads[name].double() - there_grads[name]
        sizes[name] = max(largest(there_grads[name] - grad), largest(off))
    return sizes


def build(name: str, dim: int, heads: int, seed: int) -> torch.nn.Module:
    """A layer whose parameters are all moved off their initial values, which may be zeros."""
    torch.manual_seed(seed)
    layer = zoo.layer(name, dim, heads).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=12)
@example(batch=1, length=1, regime="normal", padding=False, seed=0)
@example(batch=2, length=33, regime="normal", padding=True, seed=1)
@example(batch=1, length=7, regime="equal-tokens", padding=False, seed=2)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 70),
    regime=st.sampled_from(["normal", "zeros", "one-hot", "alternating-sign", "non-contiguous"]),
    padding=st.booleans(),
    seed=seeds(),
)
def test_every_layer_equals_its_specification(
    name: str, dtype: torch.dtype, batch: int, length: int, regime: str, padding: bool, seed: int
) -> None:
    """Forward and backward, odd lengths, padding, a whole example of padding (empty rows)."""
    layer = build(name, 16, 2, seed).to(dtype)
    x = make_tensor((batch, length, 16), regime, seed, dtype)
    keep = None
    if padding:
        keep = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.7
        keep[0] = False
    out, grads = layer_gradients(layer, x, keep)
    exact, exact_grads = layer_gradients(specification(layer), x.double(), keep)
    low, low_grads = layer_gradients(set_backend(copy.deepcopy(layer), "dense"), x, keep)
    rounding = [nearby(layer, x, keep, dtype, exact, exact_grads, n) for n in range(3)]
    # Halved, as the largest of three draws is not the largest there is.
    eps = torch.finfo(dtype).eps / 2
    assert_within(out, exact, low, magnitude=max(near["output"] for near in rounding) / eps)
    scale = largest(*exact_grads.values())
    for key, grad in grads.items():
        assert bool(torch.isfinite(grad).all()), f"gradient of {key}"
        if regime in ("zeros", "equal-tokens") and zoo.get(name).traits.gate_sees in ("window", "prefix"):
            # Equal energies have no deviation: their gradient is rounding over the clamp of 1e-8, in any precision.
            continue
        magnitude = max(scale, *(near[key] / eps for near in rounding))
        assert_within(grad, exact_grads[key], low_grads[key], what=f"gradient of {key}", magnitude=magnitude)
