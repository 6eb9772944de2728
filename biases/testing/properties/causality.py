"""Promises of layers that declare ``Traits.causal``: token t is computed from tokens 0 to t.

Catalogue of published faults of this kind: flash-sparse-attention#146, nanochat#844 (statistics and summaries
taken over the whole sequence before the mask).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import assert_alike, magnitude, promises, rounding_of
from biases.testing.properties.interface import gradients_of
from biases.traits import Traits

CAUSAL = "Traits.causal is True"


def not_causal(traits: Traits) -> str | None:
    return None if traits.causal else "it needs a causal layer, and Traits.causal is False"


def _with_a_telling_one(case: Case) -> Iterator[tuple[Case, str]]:
    """The example, and the same with what shows a leak wherever there is one, and how to name it.

    Zeros hide a leak, as do parameters that begin at zero, and a query that sees one key only: a few examples may all
    do. Whether a layer leaks must not depend on the seed.
    """
    yield case, ""
    cut = case.length - 2
    yield (
        Case(case.subject, {**case.example, "regime": "normal", "parameters": "moved", "position": cut}),
        f" (of normal values, parameters moved, cut after token {cut})",
    )


@promises(
    "future-independence",
    "Changing the tokens after t does not change the outputs up to t.",
    trait=CAUSAL,
    reason=not_causal,
    domains=("sequence",),
    min_length=2,
    cut=True,
    choices={"change": ("small", "large")},
)
def future_independence(case: Case) -> None:
    for each, where in _with_a_telling_one(case):
        _assert_future_independent(each, where)


def _assert_future_independent(case: Case, where: str) -> None:
    layer, x, out = case.run(case.precise)
    last = case.example["position"]
    future = x[:, last + 1 :]
    draw = case.normal(future)
    changed = x.clone()
    size = magnitude(x)
    if case.example["change"] == "small" or not size:
        changed[:, last + 1 :] = future + 0.1 * (size or 1.0) * draw
    else:
        changed[:, last + 1 :] = 1e4 * draw
    after = case.call(layer, changed)
    # What convolutions by FFT round at the size of the changed tokens, a norm may bring back to that of the others.
    grown = max(1.0, magnitude(changed) / size) if size else 1.0
    assert_tolerance(
        after[:, : last + 1],
        out[:, : last + 1],
        tolerance=max(grown * rounding_of(out), rounding_of(after)),
        what=f"outputs 0..{last} after changing tokens {last + 1}..{x.shape[1] - 1}{where}",
        nan_equal=True,
    )


@promises(
    "future-gradient",
    "The gradient of the output at t is zero for the tokens after t.",
    trait=CAUSAL,
    reason=not_causal,
    domains=("sequence",),
    min_length=2,
    cut=True,
)
def future_gradient(case: Case) -> None:
    for each, where in _with_a_telling_one(case):
        _assert_future_has_no_gradient(each, where)


def _assert_future_has_no_gradient(case: Case, where: str) -> None:
    layer, x = case.layer(case.precise), case.input(case.precise).detach().requires_grad_()
    t = case.example["position"]
    (gradient,) = gradients_of(case, case.call(layer, x, grad=True), [x], slice(t, t + 1))
    if gradient is None:
        return
    assert_tolerance(
        gradient[:, t + 1 :],
        torch.zeros_like(gradient[:, t + 1 :]),
        tolerance=rounding_of(gradient[:, : t + 1]),
        what=f"gradient of output {t} for tokens {t + 1}..{x.shape[1] - 1}{where}",
    )


@promises(
    "prefix-consistency",
    "The output for a prefix of the input is the prefix of the output.",
    trait=CAUSAL,
    reason=not_causal,
    domains=("sequence",),
    min_length=2,
    cut=True,
)
def prefix_consistency(case: Case) -> None:
    for each, where in _with_a_telling_one(case):
        _assert_prefix_consistent(each, where)


def _assert_prefix_consistent(case: Case, where: str) -> None:
    layer, x, out = case.run(case.precise)
    length = case.example["position"] + 1
    alone = case.call(layer, x[:, :length])
    what = f"output for the first {length} of {x.shape[1]} tokens{where}"
    assert_alike(case, layer, x, out, (alone, out[:, :length]), what)
