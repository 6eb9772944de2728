"""Validation shared by every module: errors state what was expected and what was got."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor


def fail(what: str, expected: object, got: object) -> NoReturn:
    """Raise the project's one form of ``ValueError``."""
    raise ValueError(f"{what}: expected {expected}, got {got}")


def one_of(what: str, value: object, choices: Iterable[object]) -> None:
    """Check that ``value`` is one of ``choices``; a near miss is suggested."""
    allowed = list(choices)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), [str(c) for c in allowed], n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        fail(what, "one of " + ", ".join(repr(c) for c in allowed), f"{value!r}{hint}")


def positive_int(what: str, value: object) -> int:
    """Check for an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        fail(what, "an integer of at least 1", repr(value))
    return value


def divides(what: str, dim: object, heads: object) -> int:
    """Check that ``heads`` divides the width ``dim``; return the head dimension."""
    dim_, heads_ = positive_int(f"{what} dim", dim), positive_int(f"{what} heads", heads)
    if dim_ % heads_:
        fail(f"{what} dim", f"a multiple of heads={heads_}", dim_)
    return dim_ // heads_


def even(what: str, value: object) -> int:
    """Check for a positive even integer."""
    number = positive_int(what, value)
    if number % 2:
        fail(what, "an even integer", number)
    return number


def rank(what: str, x: object, axes: str) -> Tensor:
    """Check for a floating tensor whose axes are named by the letters of ``axes``, as in ``"B T C"``."""
    names = axes.split()
    if not isinstance(x, Tensor):
        fail(what, f"a tensor of shape ({', '.join(names)})", type(x).__name__)
    if x.ndim != len(names):
        fail(what, f"shape ({', '.join(names)}), {len(names)} axes", f"{tuple(x.shape)}, {x.ndim} axes")
    if not x.is_floating_point():
        fail(f"{what} dtype", "a floating dtype", x.dtype)
    return x


def boolean(what: str, x: object) -> Tensor:
    """Check for a boolean tensor (True = may attend)."""
    if not isinstance(x, Tensor) or x.dtype != torch.bool:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        fail(what, "a boolean tensor, True = may attend", got)
    return x


def feature_map(what: str, x: object, dim: int) -> Tensor:
    """Check for maps (B, H, W, C) of width C = ``dim`` with at least one pixel."""
    maps = rank(what, x, "B H W C")
    if maps.shape[-1] != dim:
        fail(what, f"width {dim}", maps.shape[-1])
    if maps.shape[1] < 1 or maps.shape[2] < 1:
        fail(what, "at least one pixel", tuple(maps.shape))
    return maps
