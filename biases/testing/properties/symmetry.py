"""Promises of layers that declare ``Traits.equivariant_to``."""

from __future__ import annotations

import torch

from biases.testing.case import Case
from biases.testing.properties.base import assert_alike, promises
from biases.traits import Traits


def not_permutable(traits: Traits) -> str | None:
    return None if "permutation" in traits.equivariant_to else "Traits.equivariant_to lacks 'permutation'"


def not_shiftable(traits: Traits) -> str | None:
    """A layer has no argument for where its first token stands: only a window makes a shift observable."""
    if "shift" not in traits.equivariant_to:
        return "Traits.equivariant_to lacks 'shift'"
    if not traits.causal or traits.window is None:
        return "a shift can be observed only where Traits.causal is True and Traits.window is set"
    if traits.window > 8:
        return f"Traits.window is {traits.window}, and the sequences tried leave windows of at most 8"
    if traits.gate_sees in ("prefix", "window"):
        return f"Traits.gate_sees is {traits.gate_sees!r}, which reaches beyond the attention window"
    return None


@promises(
    "permutation-equivariance",
    "Permuting the tokens permutes the outputs.",
    trait="Traits.equivariant_to has 'permutation'",
    reason=not_permutable,
    min_length=2,
)
def permutation_equivariance(case: Case) -> None:
    layer, x, out = case.run(case.precise)
    order = torch.randperm(x.shape[1], generator=case.generator())
    if torch.equal(order, torch.arange(x.shape[1])):
        order = order.flip(0)
    got = case.call(layer, x[:, order])
    assert_alike(case, layer, x, out, (got, out[:, order]), f"output for the tokens in the order {order.tolist()}")


@promises(
    "shift-equivariance",
    "Tokens whose whole window is kept have the same outputs after the tokens before it are dropped.",
    trait="Traits.equivariant_to has 'shift', with a causal window",
    reason=not_shiftable,
    min_length=10,
    max_length=16,
    choices={"dropped": (1, 2)},
)
def shift_equivariance(case: Case) -> None:
    layer, x, out = case.run(case.precise)
    dropped, window = case.example["dropped"], case.subject.traits.window
    assert window is not None
    first = dropped + window - 1
    got = case.call(layer, x[:, dropped:])[:, window - 1 :]
    what = f"outputs {first}..{x.shape[1] - 1} after dropping the first {dropped} tokens"
    assert_alike(case, layer, x, out, (got, out[:, first:]), what)
