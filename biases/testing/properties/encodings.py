"""Promises of positional encodings: callables (x, positions) -> x with the positions in it, (B, H, T, D).

Catalogue of published faults of this kind: xformers#779 (layout of cosines and sines). Those of rounding are in
:mod:`biases.testing.properties.encoding_precision`, those of tables that are kept in
:mod:`biases.testing.properties.encoding_tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.compare import assert_tolerance
from biases.testing.properties.base import magnitude, promises
from biases.testing.strategies import MODERATE
from biases.testing.subject import Layer, NotApplicable, Raised, Violation
from biases.traits import Traits

ENCODING = ("encoding",)
SEQUENCE = ("sequence",)
RELATIVE = "Traits.position is 'relative'"
_EPS32 = torch.finfo(torch.float32).eps
# Where tables commonly end, and where a table that ends begins anew: at powers of two.
_POWERS = tuple(range(5, 17))


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


def tolerance_of(out: Tensor, last: int) -> float:
    """The same for the result ``out``, in its own units."""
    return rounding(out.dtype, last) * magnitude(out)


@promises(
    "relative-shift",
    "Shifting the positions of a query and a key by the same amount does not change their product.",
    trait=RELATIVE,
    reason=not_relative,
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 8, choices={"shift": (1, 5, 300), "apart": tuple(2**power for power in _POWERS)}),
)
def relative_shift(case: Case) -> None:
    """Runs across powers of two, and tokens that stand far apart, which no run has."""
    layer = case.raw(case.precise)
    q, k = tokens(case, case.precise), tokens(case, case.precise, 1)
    room, run = reach(case, 10**6) - case.length + 1, count_from(case, 0)
    if room < 1:
        raise NotApplicable(f"Traits.max_length is {case.subject.traits.max_length}, which leaves no room for a shift")
    first = min(case.example["shift"], room)
    # Half of the powers an example, for the time that they take.
    starts = [2**power - case.length // 2 for power in _POWERS[case.example["seed"] % 2 :: 2]]
    here = products_at(case, layer, q, k, run)
    for start in (first, *(start for start in starts if start <= room)):
        try:
            there = products_at(case, layer, q, k, run + start)
        except NotApplicable:
            if start == first:
                raise
            return
        _assert_shifted(case, q, k, (here, run), (there, run + start))
    spread = _spread(case, min(case.example["apart"], room // 2))
    last = int(spread[-1])
    further = spread + 1 + case.example["seed"] % (reach(case, 2 * last) - last)
    with suppress(NotApplicable):
        here, there = (products_at(case, layer, q, k, positions) for positions in (spread, further))
        _assert_shifted(case, q, k, (here, spread), (there, further))


def _spread(case: Case, width: int) -> Tensor:
    """T positions in ascending order, 0 and T - 1 + ``width`` among them, (T,)."""
    gaps = torch.randint(width + 1, (case.length,), generator=case.generator(3)).sort().values
    gaps[0], gaps[-1] = 0, width
    return gaps.to(case.device) + count_from(case, 0)


def _assert_shifted(
    case: Case, q: Tensor, k: Tensor, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]
) -> None:
    """Assert that products are alike, each given with its positions."""
    tolerance = rounding(case.precise, int(there[1].max())) * product_size(q, k)
    what = f"products of queries and keys at positions {_told(there[1])}, against {_told(here[1])}"
    note = "an encoding that is another one beyond some position declares by Traits.max_length where"
    assert_tolerance(there[0], here[0], tolerance=tolerance, what=what, note=note)


def _told(positions: Tensor) -> str:
    listed = positions.tolist()
    run = listed == list(range(listed[0], listed[0] + len(listed)))
    return f"{listed[0]}..{listed[-1]}" if run else str(listed)


def products(case: Case, layer: Layer, q: Tensor, k: Tensor, start: int) -> Tensor:
    """Products of encoded queries and keys that stand at ``start``, ``start + 1``, ..., (B, H, T, T), float64."""
    return products_at(case, layer, q, k, count_from(case, start))


def products_at(case: Case, layer: Layer, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
    """The same at ``positions`` (T,)."""
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
    assert_tolerance(got, first, tolerance=tolerance_of(first, start + case.length), what=what)


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
        tolerance = tolerance_of(out, int(positions.max()))
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
    "One token at different positions, near or powers of two apart, has different encodings.",
    trait="Traits.position is 'relative' or 'absolute'",
    reason=lambda traits: (
        None if traits.position in ("relative", "absolute") else f"Traits.position is {traits.position!r}"
    ),
    kinds=ENCODING,
    domains=SEQUENCE,
    drawn=lengths(2, 12, among=("normal",), choices={"start": (0, 250, 4000)}),
)
def distinct_positions(case: Case) -> None:
    layer, dtype = case.raw(case.precise), case.precise
    start = max(0, reach(case, case.example["start"] + case.length) - case.length)
    x = tokens(case, dtype)[:1, :, :1].expand(-1, -1, case.length, -1).contiguous()
    runs = [count_from(case, start)]
    out = [_at_positions(case, layer, x, runs[0])]
    for far in (runs[0] + 2**power for power in _POWERS):
        if int(far[-1]) > reach(case, int(far[-1])):
            break
        try:
            out.append(_at_positions(case, layer, x, far))
        except NotApplicable:
            break
        runs.append(far)
    near, columns = torch.stack(out[:1]), torch.stack(out, 1)
    apart = [(each[:, :, None] - each[:, None]).abs().amax(-1) for each in (near, columns)]
    trained = isinstance(layer, torch.nn.Module) and any(True for _ in layer.parameters())
    if trained and case.example["parameters"] == "initial" and not any(each.any() for each in apart):
        raise NotApplicable("its parameters begin where all positions are alike")
    # Of one position twice, a dtype below float32 holds the same numbers.
    tolerance = 8 * min(_EPS32, torch.finfo(dtype).eps) * magnitude(*out)
    positions = torch.stack(runs)
    for distances, at in zip(apart, (positions[:1], positions.mT), strict=True):
        alike = (distances <= tolerance).triu(1).nonzero()
        if len(alike):
            row, i, j = alike[0].tolist()
            raise Violation(
                f"positions {int(at[row, i])} and {int(at[row, j])}: expected encodings that differ, got a difference "
                f"of {distances[row, i, j].item():.3g}; {len(alike)} such pairs among those of "
                f"{case.length} positions each from {', '.join(str(int(run[0])) for run in runs)} on"
            )


def _at_positions(case: Case, layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
    """The encodings of one token (1, H, T, D) at each position, (T, H D), float64."""
    return encode_far(case, layer, x, positions)[0].transpose(0, 1).flatten(1).double()


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
    tolerance = max(tolerance_of(each, case.length) for each in (out, x, table))
    assert_tolerance(out, x + table, tolerance=tolerance, what="encoding, against the token plus the encoding of zero")
