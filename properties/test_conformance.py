"""The battery on this package itself: the layers of the zoo, and the operators, biases, slopes, gates and encodings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from biases import ALiBi, ExponentialDecay, KeyBias, ManhattanDecay, attend, zoo
from biases.decays.alibi import alibi_slopes
from biases.decays.exponential import retnet_log_rates
from biases.layers.build import position
from biases.positions.rotary import rotate
from biases.positions.theta_shift import ThetaShift
from biases.testing import Traits, kinds, parametrize_with_properties
from biases.traits import Decay

CONTEXT = 256
ROW = Traits(mask=("boolean",), masked_values="any", normalisation="row", empty_row="zero", memory="linear")
CAUSAL = ROW.but(causal=True, alignment="upper-left")
UPPER_LEFT = {"alignment": "upper-left"}
BACKENDS = ("fused", "dense", "reference")


def operator(traits: Traits, make_bias: Callable[[int], dict[str, Any]] = lambda heads: {}, **options: Any) -> Any:
    """``attend`` with these options, and its other backends as other forms of it."""

    def form(backend: str) -> Any:
        def make(dim: int, heads: int) -> Any:
            def op(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
                return attend(q, k, v, mask=mask, backend=backend, **options, **make_bias(heads))

            return op

        return make

    make = form("auto")
    make.kind, make.traits = "operator", traits
    make.forms = {backend: form(backend) for backend in BACKENDS}
    return make


def alibi(heads: int) -> dict[str, Any]:
    return {"bias": ALiBi(heads)}


def balanced_alibi(heads: int) -> dict[str, Any]:
    return {"bias": ALiBi(heads, rule="halving", balanced=True, odd="zero")}


def symmetric_alibi(heads: int) -> dict[str, Any]:
    return {"bias": ALiBi(heads, symmetric=True)}


def retention(heads: int) -> dict[str, Any]:
    return {"decay": ExponentialDecay(retnet_log_rates(heads), placement="weights")}


def dense_alibi(heads: int, queries: int, keys: int) -> Tensor:
    bias = ALiBi(heads).dense(queries, keys)[0]
    future = torch.arange(keys) > torch.arange(queries)[:, None]
    return bias.masked_fill(future, float("-inf"))


def dense_retention(heads: int, queries: int, keys: int) -> Tensor:
    return ExponentialDecay(retnet_log_rates(heads)).dense(queries, keys)[0]


def dense_symmetric(heads: int, queries: int, keys: int) -> Tensor:
    return ALiBi(heads, symmetric=True).dense(queries, keys)[0]


def dense_manhattan(heads: int, height: int, width: int) -> Tensor:
    return ManhattanDecay(height, width, heads).dense(height * width, height * width)[0]


def energy_gate(name: str, dim: int, heads: int) -> Any:
    gate = zoo.layer(name, dim, heads).key_gate

    class Gate(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = gate

        def forward(self, x: Tensor) -> Tensor:
            return self.gate.log_gate(x).exp().mT

    return Gate()


def output_gate(dim: int, heads: int) -> Any:
    layer = zoo.layer("g1", dim, heads).output_gate
    return lambda x: layer.gate(x).transpose(1, 2)


def table(name: str, head_dim: int) -> Any:
    """An absolute position at the given positions, as if it were added to a head."""
    module = position(name, head_dim, context=CONTEXT, heads=1)["embedding"]

    def encode(x: Tensor, positions: Tensor) -> Tensor:
        length = int(positions.max()) + 1
        zeros = torch.zeros(1, length, x.shape[-1], dtype=x.dtype, device=x.device)
        return x + module(zeros)[0, positions]

    return encode


def rotary(head_dim: int) -> Any:
    frequencies = position("rotary", 2 * head_dim, context=64, heads=2)["rotary"].frequencies()
    return lambda x, positions: rotate(x, positions, frequencies)


def theta_shift(head_dim: int) -> Any:
    frequencies = ThetaShift(head_dim).frequencies()
    return lambda x, positions: rotate(x, positions, frequencies)


RELATIVE = Traits(position="relative")
GATED = Traits(gate_range=(0.0, 1.0))
PAST = Traits(causal=True, alignment="upper-left")
SUBJECTS = {
    "attend": operator(ROW.but(equivariant_to=("permutation", "heads"), position="none")),
    "attend-causal": operator(CAUSAL.but(equivariant_to=("heads",)), causal=True, alignment="upper-left"),
    "attend-decoding": operator(CAUSAL.but(alignment="lower-right"), causal=True, alignment="lower-right"),
    "attend-alibi": operator(
        CAUSAL.but(decay=Decay("linear", "past", "logits", "alibi")), alibi, causal=True, alignment="upper-left"
    ),
    "attend-alibi-symmetric": operator(
        ROW.but(decay=Decay("linear", "absolute", "logits", "alibi")), symmetric_alibi, alignment="upper-left"
    ),
    "attend-retention": operator(
        Traits(
            mask=("boolean",),
            masked_values="any",
            causal=True,
            alignment="upper-left",
            normalisation="none",
            empty_row="zero",
            decay=Decay("exponential", "past", "weights", "retention"),
            memory="linear",
        ),
        retention,
        weights="linear",
        causal=True,
        alignment="upper-left",
    ),
    "attend-sigmoid": operator(
        Traits(
            mask=("boolean",),
            masked_values="any",
            normalisation="none",
            empty_row="zero",
            position="none",
            memory="linear",
        ),
        weights="sigmoid",
    ),
    "attend-window": operator(CAUSAL.but(window=3, equivariant_to=("heads",)), causal=True, window=3, **UPPER_LEFT),
    "attend-sigmoid-window": operator(
        CAUSAL.but(window=5, normalisation="none"),
        balanced_alibi,
        weights="sigmoid",
        causal=True,
        window=5,
        **UPPER_LEFT,
    ),
    "attend-sigmoid-normalised": operator(
        ROW.but(equivariant_to=("permutation", "heads"), position="none"), weights="sigmoid-normalised"
    ),
    "alibi": kinds.bias(dense_alibi, PAST.but(decay=Decay("linear", "past", "logits", "alibi"))),
    "alibi-symmetric": kinds.bias(dense_symmetric, Traits(decay=Decay("linear", "absolute", "logits", "alibi"))),
    "retention": kinds.bias(dense_retention, PAST.but(decay=Decay("exponential", "past", "logits", "retention"))),
    "manhattan": kinds.bias(dense_manhattan, Traits(domain="image", decay=Decay("exponential", "manhattan", "logits"))),
    "alibi-slopes": kinds.slopes(alibi_slopes, Traits(decay=Decay("linear", "past", "logits", "alibi"))),
    "gate-ega": kinds.gate(partial(energy_gate, "ega"), GATED.but(gate_sees="window", gate_monotone_in=None)),
    "gate-ega-prefix": kinds.gate(partial(energy_gate, "ega-prefix"), GATED.but(gate_sees="prefix")),
    "gate-ega-token": kinds.gate(partial(energy_gate, "ega-token"), GATED.but(gate_sees="token")),
    "gate-g1": kinds.gate(output_gate, GATED.but(gate_sees="token")),
    "rotary": kinds.encoding(rotary, RELATIVE),
    "theta-shift": kinds.encoding(theta_shift, RELATIVE),
    "sinusoidal": kinds.encoding(partial(table, "sinusoidal"), Traits(position="absolute")),
    # Beyond its context the envelopes of MoPE are numerically zero, and positions alike.
    "mope-free": kinds.encoding(partial(table, "mope-free"), Traits(position="absolute", max_length=CONTEXT)),
}


@parametrize_with_properties(SUBJECTS, max_examples=15)
def test_conformance(check: Callable[[], None]) -> None:
    check()


# Windows short enough for the sequences on which a shift is observed.
SHORT = ["swat[window=4]", "swat[window=5,normalise=True,slopes=negative]"]
LAYERS = {name: zoo.factory(name) for name in [*zoo.names("layer"), *SHORT]}
KNOWN_FAILURES = {name: zoo.get(name).known_failures for name in LAYERS if zoo.get(name).known_failures}


@parametrize_with_properties(LAYERS, known_failures=KNOWN_FAILURES, max_examples=8)
def test_layers_of_the_zoo(check: Callable[[], None]) -> None:
    check()


def test_a_key_bias_is_permuted_with_its_keys() -> None:
    """What the battery cannot put to an operator whose bias belongs to the keys."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    values = torch.randn(2, 3, 9, generator=generator, dtype=torch.float64)
    order = torch.randperm(9, generator=generator)
    expected = attend(q, k, v, bias=KeyBias(values))
    got = attend(q, k[:, :, order], v[:, :, order], bias=KeyBias(values[:, :, order]))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
