"""Promises of what makes a bias or a mask out of sizes: its form, what may be seen, and how sizes relate.

A bias means the same under a softmax with a constant added to a whole row, so that biases are compared relative to
each query's own key or its nearest one.

Catalogue of published faults of this kind: transformers#39408, transformers#40700, pytorch#108108,
pytorch-image-models#2438, mlx#3071.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.masks import expected_support
from biases.testing.properties.base import magnitude, promises
from biases.testing.properties.edges import edge_length, listed, map_beyond, out_of_reach, with_edge
from biases.testing.properties.generated import bias_of, built, drawn_sizes, mask_of, sizes
from biases.testing.strategies import make_tensor
from biases.testing.subject import BuildError, Layer, NotApplicable, Violation, cast
from biases.traits import Traits

# The longest window for which masks and biases are made: they are cheap.
_MOST = 1200
OTHERS = ((64, 8), (16, 2), (24, 3), (32, 4))


@promises(
    "bias-shape",
    "The bias is a floating tensor that broadcasts to (H, L, S), without NaN and without +inf.",
    trait="the subject is a bias",
    kinds=("bias",),
    drawn=drawn_sizes,
)
def bias_shape(case: Case) -> None:
    values = bias_of(case, *built(case)).values
    wrong = values.isnan() | values.isposinf()
    if wrong.any():
        head, query, key = (int(i) for i in wrong.nonzero()[0])
        got = values[head, query, key].item()
        where = f"at head {head}, query {query}, key {key}"
        raise Violation(f"bias: expected finite numbers or -inf, got {got} {where}; {int(wrong.sum())} such values")


@promises(
    "mask-shape",
    "The mask is a bool tensor of shape (L, S).",
    trait="the subject is a mask",
    kinds=("mask",),
    drawn=drawn_sizes,
)
def mask_shape(case: Case) -> None:
    mask_of(case, *built(case))


def nothing_hidden(traits: Traits) -> str | None:
    if traits.causal or traits.window is not None:
        return out_of_reach(_MOST)(traits)
    return "neither Traits.causal nor Traits.window says which keys may be seen"


def _sizes(traits: Traits) -> Mapping[str, Any]:
    return with_edge(traits, drawn_sizes(traits), _MOST)


@promises(
    "bias-visibility",
    "The bias is -inf where causality and window hide a key, and finite where a declared window shows it.",
    trait="Traits.causal or Traits.window is set",
    reason=nothing_hidden,
    kinds=("bias",),
    drawn=_sizes,
)
def bias_visibility(case: Case) -> None:
    layer, first, second = _built(case)
    values = bias_of(case, layer, first, second).values
    for head, seen in enumerate(~values.isneginf()):
        _assert_support(case, seen, first, second, f"bias of head {head}: a key with a bias other than -inf is visible")


@promises(
    "mask-support",
    "The mask hides what causality and window hide, and shows what a declared window or alignment shows.",
    trait="Traits.causal or Traits.window is set",
    reason=nothing_hidden,
    kinds=("mask",),
    drawn=_sizes,
)
def mask_support(case: Case) -> None:
    layer, first, second = _built(case)
    _assert_support(case, mask_of(case, layer, first, second), first, second, "mask")


def _built(case: Case) -> tuple[Layer, int, int]:
    """The subject and the sizes of this example, past the window where it is of its edge."""
    layer, first, second = built(case)
    if case.grid is not None:
        wide = map_beyond(case.subject.traits, _MOST) if case.example.get("reach") == "edge" else None
        return layer, *(wide or case.grid)
    edge = edge_length(case, _MOST)
    if edge is None:
        return layer, first, second
    return layer, min(first, edge) if case.subject.traits.alignment == "lower-right" else edge, edge


def _assert_support(case: Case, seen: Tensor, first: int, second: int, what: str) -> None:
    """Assert that nothing else is seen than declared.

    Where neither window nor alignment is declared, a subject may hide more: a sparse mask is causal too.
    """
    traits = case.subject.traits
    if not traits.causal and case.grid is None and traits.window is not None and traits.window % 2 == 0:
        raise NotApplicable(f"Traits.window is {traits.window}: an even number of keys has no one middle")
    if case.grid is not None and traits.shift and traits.window is not None and min(case.grid) <= traits.window:
        raise NotApplicable("whether a map within one window is shifted is a choice: Swin does not")
    expected = expected_support(traits, first, second)
    exact = traits.window is not None or traits.alignment is not None
    wrong = seen != expected if exact else seen & ~expected
    if not wrong.any():
        return
    query, key = (int(i) for i in wrong.nonzero()[0])
    words = ("hidden", "visible")
    want, got = words[bool(expected[query, key])], words[bool(seen[query, key])]
    sees = seen[query].nonzero().flatten().tolist()
    should = expected[query].nonzero().flatten().tolist()
    raise Violation(
        f"{what}\nquery {query}, key {key} for sizes ({first}, {second}): expected {want}, got {got}\n"
        f"  query {query} sees the keys {listed(sees)}, expected {listed(should)}; "
        f"{int(wrong.sum())} of {wrong.numel()} pairs wrong"
    )


def no_middle(traits: Traits) -> str | None:
    if traits.causal:
        return "Traits.causal is True, and a causal mask has no symmetry"
    if traits.window is None:
        return "Traits.window is not set"
    if traits.domain == "sequence" and traits.window % 2 == 0:
        return f"Traits.window is {traits.window}: an even number of keys has no one middle"
    return None


@promises(
    "mask-symmetry",
    "In a bidirectional window, a query sees a key just where the key's own query sees the query's key.",
    trait="Traits.window is set and Traits.causal is False",
    reason=no_middle,
    kinds=("mask",),
    drawn=drawn_sizes,
)
def mask_symmetry(case: Case) -> None:
    layer, first, second = built(case)
    if case.grid is None:
        second = first
    seen = mask_of(case, layer, first, second)
    wrong = seen & ~seen.mT
    if wrong.any():
        query, key = (int(i) for i in wrong.nonzero()[0])
        raise Violation(
            f"mask for sizes ({first}, {second}): token {query} sees token {key}, expected the reverse too, "
            f"got that {key} does not see {query}; {int(wrong.sum())} such pairs"
        )


def empty_rows_declared(traits: Traits) -> str | None:
    if traits.empty_row is None:
        return None
    return f"Traits.empty_row is {traits.empty_row!r}: rows without a key are expected"


@promises(
    "every-query-has-a-key",
    "With as many queries as keys, every query may attend to one key at least.",
    trait="Traits.empty_row is not declared",
    reason=empty_rows_declared,
    kinds=("bias", "mask"),
    drawn=drawn_sizes,
)
def every_query_has_a_key(case: Case) -> None:
    layer, first, second = built(case)
    if case.grid is None:
        second = first
    if case.subject.kind == "mask":
        seen = mask_of(case, layer, first, second)[None]
    else:
        seen = ~bias_of(case, layer, first, second).values.isneginf()
    empty = ~seen.any(-1)
    if empty.any():
        head, query = (int(i) for i in empty.nonzero()[0])
        where = f"query {query}" if case.subject.kind == "mask" else f"head {head}, query {query}"
        raise Violation(f"sizes ({first}, {second}), {where}: expected a key at least, got none ({empty.sum()} rows)")


def length_may_matter(traits: Traits) -> str | None:
    return None if traits.causal else "Traits.causal is False, and only a causal subject must not know the length"


@promises(
    "length-consistency",
    "A longer sequence changes nothing for the queries and keys of a shorter one.",
    trait="Traits.causal is True",
    reason=length_may_matter,
    kinds=("bias", "mask"),
    domains=("sequence",),
    drawn=drawn_sizes,
)
def length_consistency(case: Case) -> None:
    layer, first, second = built(case)
    longest = int(case.example["keys"]) if first == second else max(first, second)
    if case.subject.traits.alignment == "lower-right" and first != second:
        rows, columns = slice(second - first, second), slice(0, second)
    else:
        rows, columns = slice(0, first), slice(0, second)
        longest = max(longest, first)
    what = f"{case.subject.kind} for sizes ({first}, {second}), against its part of that for ({longest}, {longest})"
    if case.subject.kind == "mask":
        short, whole = mask_of(case, layer, first, second), mask_of(case, layer, longest, longest)
        assert_tolerance(short.double(), whole[rows, columns].double(), tolerance=0.0, what=what)
        return
    short_bias, whole_bias = bias_of(case, layer, first, second), bias_of(case, layer, longest, longest)
    tolerance = max(short_bias.tolerance, whole_bias.tolerance)
    part = whole_bias.values[:, rows, columns]
    # Relative to the largest of each row: under a softmax a constant of the whole row changes nothing.
    assert_tolerance(_from_largest(short_bias.values), _from_largest(part), tolerance=tolerance, what=what)


def _from_largest(values: Tensor) -> Tensor:
    largest = values.amax(-1, keepdim=True)
    return values - torch.where(largest.isfinite(), largest, torch.zeros_like(largest))


@promises(
    "calls-independent",
    "Other instances, built or called in between, and earlier calls with other sizes change no result.",
    trait="every bias, mask and gate must",
    kinds=("bias", "mask", "gate"),
    drawn=lambda traits: {} if traits.domain == "image" else {"keys": True},
)
def calls_independent(case: Case) -> None:
    with case.subject.isolated():
        alone = _result(case, case.raw(case.single))
    _use_others(case)
    layer = case.raw(case.single)
    got = _result(case, layer)
    tolerance = 32 * torch.finfo(torch.float32).eps * max(magnitude(alone), 1e-6)
    what = "result after other instances were used, against before"
    assert_tolerance(got, alone, tolerance=tolerance, what=what, nan_equal=True)
    with suppress(Violation):
        _call(case, layer, case.dim, 3)
    what = "result after a call with larger sizes, against before"
    assert_tolerance(_result(case, layer), alone, tolerance=tolerance, what=what, nan_equal=True)


def _result(case: Case, layer: Layer) -> Tensor:
    """What the subject returns on this example, in float64."""
    match case.subject.kind:
        case "mask":
            return mask_of(case, layer, *sizes(case)).double()
        case "bias":
            return bias_of(case, layer, *sizes(case)).values
        case _:
            out = case.invoke(layer, case.input(case.single))
            if not isinstance(out, Tensor):
                raise Violation(f"the gate returned {type(out).__name__}, expected a tensor")
            return out.detach().cpu().double()


def _use_others(case: Case) -> None:
    for dim, heads in (*OTHERS, (case.dim, case.heads)):
        # Whether those can be built is not the question here.
        with suppress(BuildError, Violation):
            seed = case.example["seed"] + 1
            other = case.subject.build(dim, heads, seed=seed, options=case.subject.options)
            _call(case, cast(other, case.single, case.device), dim, 1)


def _call(case: Case, layer: Layer, dim: int, longer: int) -> None:
    if case.subject.kind == "gate":
        shape = (case.example["batch"] + 1, case.length + longer, dim)
        x = make_tensor(shape, seed=case.example["seed"] + 1, dtype=case.single)
        case.invoke(layer, x.to(case.device))
    else:
        first, second = sizes(case)
        case.invoke(layer, first + longer, second + longer)
