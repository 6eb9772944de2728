"""Promises of long sequences: nothing overflows, no block is left over, memory grows as declared.

Catalogue of published faults of this kind: fla-org/flash-linear-attention#649 (overflow of a decay), #77 (lengths that
blocks do not divide).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from biases._memory import peak_bytes
from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties import precision
from biases.testing.properties.base import magnitude, noise, promises, rounding_of
from biases.testing.properties.gradients import backward
from biases.testing.properties.interface import assert_finite
from biases.testing.properties.symmetry import not_permutable, permutation_equivariance
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer, NotApplicable, Violation
from biases.traits import Traits

_LONG = 65
# A length that is at no edge of a block.
_USUAL = 11
_EDGES = [block + offset for block in (16, 32, 64, 128) for offset in (-1, 0, 1)]
_FAR_EDGES = [block + offset for block in (256, 512) for offset in (-1, 0, 1)]
# How many of the last tokens are asked whether they are seen, and with how many inputs before it is said they are not.
_LAST, _DRAWS = 3, 8
# At these, what flash attention on CPUs sets aside for its blocks no longer grows.
_MANY, _GROWTH = 1024, 2.6


def _short(traits: Traits, needed: int) -> str | None:
    longest = traits.max_length
    short = longest is not None and longest < needed
    return f"it needs {needed} tokens, and Traits.max_length is {longest}" if short else None


def _lengths(traits: Traits) -> Mapping[str, Any]:
    longest = min(300, traits.max_length or 300)
    return {"among": MODERATE, "max_batch": 2, "min_length": _LONG, "max_length": longest}


@promises(
    "long-input-finite",
    "A long finite input gives a finite output and a finite gradient.",
    reason=lambda traits: _short(traits, _LONG),
    drawn=_lengths,
)
def long_input_finite(case: Case) -> None:
    layer, x = case.layer(case.single), case.input(case.single).detach().requires_grad_()
    out = case.call(layer, x, grad=True)
    assert_finite(out, f"output for {case.length} tokens")
    if out.requires_grad:
        (gradient,) = backward(out, [x], case.normal(out, 2))
        if gradient is not None:
            assert_finite(gradient, f"gradient for an input of {case.length} tokens")


def _edges(traits: Traits) -> Mapping[str, Any]:
    edges = [*_EDGES, *_FAR_EDGES] if traits.causal else _EDGES
    fitting = [length for length in edges if length <= (traits.max_length or length)]
    return {"among": ("normal", "alternating-sign"), "max_batch": 2, "max_length": 1, "choices": {"length": fitting}}


@promises(
    "block-boundaries",
    "Lengths just below, at and above 16, 32, 64, 128 and more are computed in full: no block is left over.",
    reason=lambda traits: _short(traits, _EDGES[0]),
    domains=("sequence",),
    drawn=_edges,
)
def block_boundaries(case: Case) -> None:
    """A causal layer is held to its own prefixes; of any other, the last tokens are to be seen as at other lengths."""
    if case.subject.traits.causal:
        _causal_boundaries(case)
        return
    if not_permutable(case.subject.traits) is None:
        permutation_equivariance(case)
    _assert_seen(case)


def _causal_boundaries(case: Case) -> None:
    length = case.length
    layer, x, out = case.run(case.precise)
    usual = x[:, :_USUAL]
    out_usual = case.call(layer, usual)
    inside = 0.0
    if case.precise == torch.float64:
        # Lower precision inside is float64-agreement's to tell.
        inside = 8 * magnitude(precision.call_float64(case, layer, usual)[0] - out_usual)
    try:
        _assert_prefix(case, layer, usual, out_usual, _USUAL - 1, inside)
    except AssertionError as error:
        why = "it is not consistent with its prefixes at other lengths either (prefix-consistency)"
        raise NotApplicable(why) from error
    below = max(edge for edge in (1, *_EDGES[::3], *_FAR_EDGES[::3]) if edge < length)
    for shorter in {below, length - 1}:
        _assert_prefix(case, layer, x, out, shorter, inside)
    changed = torch.cat([x[:, :-1], case.normal(x[:, -1:])], 1)
    pair = (case.call(layer, changed)[:, :-1], out[:, :-1])
    _assert_near(case, layer, x, out, pair, f"outputs 0..{length - 2} after changing token {length - 1}", inside)


def _assert_prefix(case: Case, layer: Layer, x: Tensor, out: Tensor, length: int, inside: float) -> None:
    pair = (case.call(layer, x[:, :length]), out[:, :length])
    _assert_near(case, layer, x, out, pair, f"output for the first {length} of {x.shape[1]} tokens", inside)


def _assert_near(
    case: Case, layer: Layer, x: Tensor, out: Tensor, pair: tuple[Tensor, Tensor], what: str, inside: float
) -> None:
    """As ``assert_alike``, with ``inside`` for lower precision inside, and noise measured only where it is needed."""
    got, expected = pair
    tolerance = rounding_of(out) + inside
    if not torch.allclose(got, expected, rtol=0, atol=tolerance, equal_nan=True):
        tolerance += 8 * noise(case, layer, x, out)
    assert_tolerance(got, expected, tolerance=tolerance, what=what, nan_equal=True)


def _assert_seen(case: Case) -> None:
    """What sees other tokens is seen by others, where it is so for a usual length."""
    layer, x = case.layer(case.precise), case.input(case.precise)
    length, usual = x.shape[1], x[:, :_USUAL]
    for back in range(min(_LAST, usual.shape[1])):
        if not _seen(case, layer, usual, usual.shape[1] - 1 - back):
            continue
        at = length - 1 - back
        # Blocks that do not mix may leave the last token alone, and what chooses its keys may choose others.
        inputs = [x, *(case.normal(x, 40 + draw) for draw in range(_DRAWS))]
        if any(_seen(case, layer, each, at) for each in inputs) or not any(_sees(case, layer, e, at) for e in inputs):
            continue
        alike = f"as token {usual.shape[1] - 1 - back} of {usual.shape[1]} makes"
        raise Violation(
            f"outputs of other tokens after changing token {at} of {length}: expected a change, {alike}, "
            f"got none with {len(inputs)} inputs, and its own output sees theirs"
        )


def _seen(case: Case, layer: Layer, x: Tensor, at: int) -> bool:
    """Whether a change of this token moves another's output."""
    changed = x.clone()
    changed[:, at] += case.normal(x[:, at], 3)
    out = case.call(layer, x)
    moved = (case.call(layer, changed) - out).abs()
    moved[:, at] = 0
    return magnitude(moved) > rounding_of(out)


def _sees(case: Case, layer: Layer, x: Tensor, at: int) -> bool:
    """Whether a change of the other tokens moves this one's output."""
    changed = x + case.normal(x, 3)
    changed[:, at] = x[:, at]
    out = case.call(layer, x)
    return magnitude((case.call(layer, changed) - out)[:, at]) > rounding_of(out)


def _not_linear(traits: Traits) -> str | None:
    if traits.memory != "linear":
        return f"it needs memory linear in the length, and Traits.memory is {traits.memory!r}"
    return _short(traits, 2 * _MANY)


@promises(
    "memory-growth",
    "Twice the tokens need about twice the memory, forward and backward.",
    trait="Traits.memory is 'linear'",
    reason=_not_linear,
    domains=("sequence",),
    slow=True,
    drawn=lambda traits: {"among": ("normal",), "max_batch": 1, "max_length": 1, "choices": {"length": (_MANY,)}},
)
def memory_growth(case: Case) -> None:
    if case.device.type not in ("cpu", "cuda"):
        raise NotApplicable(f"memory is counted on cpu and cuda, and this is {case.device.type}")
    with _one_thread():
        short, long = _peak(case, _MANY), _peak(case, 2 * _MANY)
    if long > _GROWTH * short:
        what = f"peak memory for {2 * _MANY} tokens, forward and backward"
        expected = f"at most {_GROWTH} times the {short:,} bytes of {_MANY} tokens"
        raise Violation(f"{what}: expected {expected}, got {long:,} bytes, {long / short:.2f} times as much")


def _peak(case: Case, length: int) -> int:
    """Of the first call at this length: what a layer keeps for the next ones is held too."""
    sized = replace(case, example={**case.example, "length": length})
    layer, x = sized.layer(case.single), sized.input(case.single).detach().requires_grad_()
    weighting = sized.normal(x, 2)
    sized.call(layer, x.detach()[:, :8])

    def step() -> object:
        out = sized.call(layer, x, grad=True)
        return out, backward(out, [x], weighting) if out.requires_grad else None

    try:
        return peak_bytes(step, case.device)
    except RuntimeError as error:
        raise NotApplicable(f"memory cannot be counted: {error}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """What operators set aside for each thread would hide what grows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
