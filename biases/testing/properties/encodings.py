"""Promises of positional encodings: callables (x, positions) -> x with the positions in it, (B, H, T, D).

Catalogue of published faults of this kind: xformers#779 (layout of cosines and sines), equinox 0.13.8 (a cache whose
key lacks the base). Those of rounding are in :mod:`biases.testing.properties.encoding_precision`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import magnitude, promises
from biases.testing.strategies import MODERATE
from biases.testing.subject import BuildError, Layer, NotApplicable, Raised, Violation, cast
from biases.traits import Traits

ENCODING = ("encoding",)
SEQUENCE = ("sequence",)
RELATIVE = "Traits.position is 'relative'"
_EPS32 = torch.finfo(torch.float32).eps


def not_relative(traits: Traits) -> str | None:
    if traits.position == "relative":
        return None
    return f"it needs a rotation of queries and keys, and Traits.position is {traits.position!r}"


def not_absolute(traits: Traits) -> str | None:
    if traits.position == "absolute":
        return None
    return f"it needs a table that is added, and Traits.position is {traits.position!r}"


def lengths(least: int, most: int, **inputs: Any) -> Callable[[Traits], Mapping[str, Any]]:
    """Inputs of :func:`~biases.testing.strategies.examples` with T in these bounds, and in ``Traits.max_length``."""

    def drawn(traits: Traits) -> Mapping[str, Any]:
        cap = traits.max_length or most
        return {"min_length": min(least, cap), "max_length": min(most, cap), **inputs}

    return drawn


def reach(case: Case, wish: int) -> int:
    """The position wished for, or the last that ``Traits.max_length`` leaves."""
    longest = case.subject.traits.max_length
    return wish if longest is None else min(wish, longest - 1)


def tokens(case: Case, dtype: torch.dtype, purpose: int = 0) -> Tensor:
    """Queries or keys, (B, H, T, D)."""
    shape = (case.shape[0], case.heads, case.length, case.dim // case.heads)
    return case.tensor(shape, dtype, purpose)


def count_from(case: Case, start: int, length: int | None = None) -> Tensor:
    """Positions ``start``, ``start + 1``, ..., (T,)."""
    return torch.arange(start, start + (length or case.length), device=case.device)


def encode(case: Case, layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
    """Call the encoding, and check the form of the result.

    Raises:
        Violation: it raised, or returned something else than a floating tensor of the shape of ``x``.
    """
    return case.check_form(case.invoke(layer, x, positions), x)


def encode_far(case: Case, layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
    """The same for positions that a table may not reach.

    Raises:
        NotApplicable: it raised, and does not declare how far it goes.
    """
    try:
        return encode(case, layer, x, positions)
    except Raised as error:
        if case.subject.traits.max_length is not None:
            raise
        what = f"it does not take position {int(positions.max())} (Traits.max_length says how far it goes): {error}"
        raise NotApplicable(what) from error


def rounding(dtype: torch.dtype, last: int) -> float:
    """What rounding moves an encoding by, in units of its largest value.

    8 roundings of the result in ``dtype``, and 8 of a phase of ``last`` radians in float32, which is what the widely
    used encodings compute their phases in whatever the dtype of the input.
    """
    return 8 * torch.finfo(dtype).eps + 8 * _EPS32 * (1 + last)


def _tolerance(out: Tensor, last: int) -> float:
    return rounding(out.dtype, last) * magnitude(out)


@promises(
    "relative-shift",
    "Shifting the positions of a query and a key by the same amount does not change their product.",
    trait=RELATIVE,
    reason=not_relative,
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, choices={"shift": (1, 5, 300)}),
)
def relative_shift(case: Case) -> None:
    layer = case.raw(case.precise)
    q, k = tokens(case, case.precise), tokens(case, case.precise, 1)
    shift = min(case.example["shift"], reach(case, 10**6) - case.length + 1)
    if shift < 1:
        raise NotApplicable(f"Traits.max_length is {case.subject.traits.max_length}, which leaves no room for a shift")
    here = products(case, layer, q, k, 0)
    there = products(case, layer, q, k, shift)
    tolerance = rounding(case.precise, case.length + shift) * product_size(q, k)
    what = f"products of queries and keys at positions {shift}..{shift + case.length - 1}, against 0.."
    assert_tolerance(there, here, tolerance=tolerance, what=what)


def products(case: Case, layer: Layer, q: Tensor, k: Tensor, start: int) -> Tensor:
    """Products of encoded queries and keys that stand at ``start``, ``start + 1``, ..., (B, H, T, T), float64."""
    positions = count_from(case, start)
    encoded = (encode_far(case, layer, x, positions).double() for x in (q, k))
    return next(encoded) @ next(encoded).mT


def product_size(q: Tensor, k: Tensor) -> float:
    """The largest value that a product of a query and a key can have."""
    return magnitude(q.double().norm(dim=-1)) * magnitude(k.double().norm(dim=-1))


@promises(
    "norm-preservation",
    "A token has the same norm at every position.",
    trait=RELATIVE,
    reason=not_relative,
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, choices={"start": (1, 300)}),
)
def norm_preservation(case: Case) -> None:
    """Against position 0: a rotation may be scaled by one number, as that of YaRN is."""
    layer, x = case.raw(case.precise), tokens(case, case.precise)
    start = max(0, reach(case, case.example["start"] + case.length) - case.length)
    first = encode(case, layer, x, torch.zeros_like(count_from(case, 0))).norm(dim=-1)
    got = encode_far(case, layer, x, count_from(case, start)).norm(dim=-1)
    what = f"norms of the tokens at positions {start}..{start + case.length - 1}, against position 0"
    assert_tolerance(got, first, tolerance=_tolerance(first, start + case.length), what=what)


@promises(
    "positions-respected",
    "The encoding of a token depends on its own position only, whatever stands before it and beside it.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 6, among=MODERATE, choices={"order": ("offset", "permuted", "repeated", "gaps")}),
)
def positions_respected(case: Case) -> None:
    layer, x = case.raw(case.precise), tokens(case, case.precise)
    positions = _ordered(case)
    out = encode(case, layer, x, positions)
    for at in range(case.length):
        alone = encode(case, layer, x[:, :, at : at + 1].contiguous(), positions[at : at + 1])
        what = f"token {at} of those at positions {positions.tolist()}, against the same token alone"
        tolerance = _tolerance(out, int(positions.max()))
        assert_tolerance(out[:, :, at : at + 1], alone, tolerance=tolerance, what=what)


def _ordered(case: Case) -> Tensor:
    length, last = case.length, reach(case, 4 * case.length)
    match case.example["order"]:
        case "offset":
            positions = torch.arange(length) + max(0, last + 1 - length)
        case "permuted":
            positions = torch.randperm(length, generator=case.generator())
        case "repeated":
            positions = torch.randint(last + 1, (length,), generator=case.generator())
            positions[-1] = positions[0]
        case _:
            positions = torch.randint(last + 1, (length,), generator=case.generator()).sort().values
    return positions.to(case.device)


@promises(
    "distinct-positions",
    "One token at different positions has different encodings.",
    trait="Traits.position is 'relative' or 'absolute'",
    reason=lambda traits: (
        None if traits.position in ("relative", "absolute") else f"Traits.position is {traits.position!r}"
    ),
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 12, among=("normal",), choices={"start": (0, 250, 4000)}),
)
def distinct_positions(case: Case) -> None:
    layer = case.raw(case.precise)
    start = max(0, reach(case, case.example["start"] + case.length) - case.length)
    x = tokens(case, case.precise)[:1, :, :1].expand(-1, -1, case.length, -1).contiguous()
    out = encode_far(case, layer, x, count_from(case, start))[0].transpose(0, 1).flatten(1).double()
    apart = (out[:, None] - out).abs().amax(-1)
    trained = isinstance(layer, torch.nn.Module) and any(True for _ in layer.parameters())
    if trained and case.example["parameters"] == "initial" and not apart.any():
        raise NotApplicable("its parameters begin where all positions are alike")
    alike = (apart <= 8 * torch.finfo(case.precise).eps * magnitude(out)).triu(1).nonzero()
    if len(alike):
        first, second = (start + int(at) for at in alike[0])
        others = f"{len(alike)} such pairs at positions {start}..{start + case.length - 1}"
        off = apart[alike[0][0], alike[0][1]].item()
        text = (
            f"positions {first} and {second}: expected encodings that differ, got a difference of {off:.3g}; {others}"
        )
        raise Violation(text)


@promises(
    "absolute-added",
    "What is added to a token depends on its position, and not on the token.",
    trait="Traits.position is 'absolute'",
    reason=not_absolute,
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(1, 8),
)
def absolute_added(case: Case) -> None:
    layer, x = case.raw(case.precise), tokens(case, case.precise)
    positions = count_from(case, 0)
    table = encode(case, layer, torch.zeros_like(x), positions)
    out = encode(case, layer, x, positions)
    tolerance = max(_tolerance(each, case.length) for each in (out, x, table))
    assert_tolerance(out, x + table, tolerance=tolerance, what="encoding, against the token plus the encoding of zero")


@promises(
    "table-growth",
    "An encoding does not depend on the positions and dtypes that it was asked for before.",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, among=MODERATE),
)
def table_growth(case: Case) -> None:
    x, positions = tokens(case, case.precise), count_from(case, 0)
    with case.subject.isolated():
        alone = encode(case, case.raw(case.precise), x, positions)
    far = count_from(case, max(0, reach(case, 500) + 1 - case.length))
    before = {
        "one position": (x[:, :, :1].contiguous(), positions[:1]),
        "larger positions": (x, far),
        "a bfloat16 input": (x.to(torch.bfloat16), positions),
        "the same positions, reversed": (x, positions.flip(0)),
    }
    for name, inputs in before.items():
        with case.subject.isolated():
            layer = case.raw(case.precise)
            # Whether it takes that call is not the question here.
            with suppress(Violation):
                encode(case, layer, *inputs)
            out = encode(case, layer, x, positions)
        what = f"encoding after a call for {name}, against before"
        assert_tolerance(out, alone, tolerance=_tolerance(alone, case.length), what=what)


@promises(
    "instance-isolation",
    "Another encoding, with another base or another such option, does not change this one.",
    trait="its factory takes a base, or another option that is a number",
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, among=MODERATE),
)
def instance_isolation(case: Case) -> None:
    others = _other_options(case)
    if not others:
        raise NotApplicable("its factory has no option that is a number, so that none can be built otherwise")
    x, positions = tokens(case, case.precise), count_from(case, 0)
    with case.subject.isolated():
        alone = encode(case, case.raw(case.precise), x, positions)

    def use_others() -> None:
        for options in others:
            # Whether those work is not the question here.
            with suppress(BuildError, Violation):
                raw = case.subject.build(case.dim, case.heads, seed=case.example["seed"], options=options)
                encode(case, cast(raw, case.precise, case.device), x, positions)

    use_others()
    layer = case.raw(case.precise)
    tolerance, changed = _tolerance(alone, case.length), f"with {', '.join(map(str, others))}"
    what = f"encoding after others {changed} were used, against before"
    assert_tolerance(encode(case, layer, x, positions), alone, tolerance=tolerance, what=what)
    use_others()
    assert_tolerance(encode(case, layer, x, positions), alone, tolerance=tolerance, what=f"second {what}")


def _other_options(case: Case) -> list[dict[str, Any]]:
    """Options that differ from the subject's in one number, which sets a scale: a float, or one named for a base."""
    given = dict(case.subject.options)
    numbers = dict(given)
    with suppress(TypeError, ValueError):
        named = inspect.signature(case.subject.make_layer).parameters
        numbers = {name: each.default for name, each in named.items()} | given
    return [
        {**given, name: type(value)(value / 100) or value + 1}
        for name, value in numbers.items()
        if isinstance(value, float) or (type(value) is int and any(word in name.lower() for word in ("base", "theta")))
    ]
