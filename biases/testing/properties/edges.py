"""Lengths that reach past the declared window: at shorter ones, a subject without any window keeps every promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.traits import Traits

# The longest sequence put to what computes attention; what makes masks and biases is cheaper.
AFFORDABLE = 600
# What a key leaves that is seen, and decays as fast as may be, is more.
NOTHING = 3e-24
NEAR = ("near", "near", "near")


def lengths_beyond(traits: Traits, most: int = AFFORDABLE) -> list[int]:
    """Up to three lengths at which a window hides a key from one query at least, each end of it inside the sequence."""
    if traits.window is None:
        return []
    first = traits.window + (1 if traits.causal else 2)
    most = min(most, traits.max_length or most)
    return [length for length in range(first, first + 3) if length <= most]


def map_beyond(traits: Traits, most: int = AFFORDABLE) -> tuple[int, int] | None:
    """The smallest square map on which windows hide pixels on both axes; ``None`` if it has more pixels than that."""
    if traits.window is None:
        return None
    # A map of one window on an axis, some implementations do not shift.
    side = traits.window + traits.shift + 1
    return (side, side) if side**2 <= min(most, traits.max_length or most) else None


def out_of_reach(most: int) -> Callable[[Traits], str | None]:
    """Why no sequence can be put to a subject that is longer than its window, as a function of the traits."""

    def reason(traits: Traits) -> str | None:
        if traits.window is None:
            return None
        if traits.domain == "image":
            if map_beyond(traits, most) is not None:
                return None
            return f"Traits.window is {traits.window}, and maps beyond it are checked up to {most} pixels"
        if lengths_beyond(traits, most):
            return None
        if traits.max_length is not None and traits.max_length <= traits.window:
            return f"Traits.max_length is {traits.max_length}: no sequence is longer than the window, {traits.window}"
        return f"Traits.window is {traits.window}, and what lies past it is checked up to {most} tokens"

    return reason


def with_edge(traits: Traits, inputs: Mapping[str, Any], most: int = AFFORDABLE) -> Mapping[str, Any]:
    """The inputs, and ``reach``: ``"edge"`` in a quarter of the examples, where one can be past the window."""
    beyond = map_beyond(traits, most) if traits.domain == "image" else lengths_beyond(traits, most)
    if not beyond:
        return inputs
    return {**inputs, "choices": {**inputs.get("choices", {}), "reach": (*NEAR, "edge")}}


def edge_length(case: Case, most: int = AFFORDABLE) -> int | None:
    """The length past the window that this example is of; ``None`` where it is of the drawn one."""
    beyond = lengths_beyond(case.subject.traits, most)
    if case.example.get("reach") != "edge" or not beyond:
        return None
    return beyond[case.length % len(beyond)]


def boundary(row: Tensor) -> list[int]:
    """The keys of one query, (S,) bool, that are next to an end of what it sees, two inside and one outside."""
    change = (row[1:] != row[:-1]).nonzero().flatten().tolist()
    near = {key for at in change for key in range(at - 1, at + 3) if 0 <= key < len(row)}
    return sorted(key for key in near if row[key] or any(0 <= key + by < len(row) and row[key + by] for by in (-1, 1)))


def unseen(influence: Tensor, expected: Tensor) -> Tensor:
    """Pairs that have to meet and do not, while the query does see a key next to that one: (L, S) bool.

    Where influence falls with distance, by whatever law, it falls below what numbers hold only after it was small.
    """
    clear = expected & (influence > 1e-3 / influence.shape[-1] * influence.amax())
    beside = torch.zeros_like(clear)
    beside[:, 1:] |= clear[:, :-1]
    beside[:, :-1] |= clear[:, 1:]
    return expected & ~(influence > NOTHING) & beside


def listed(keys: list[int]) -> str:
    """The keys, long runs shortened."""
    if len(keys) <= 16:
        return str(keys)
    ends = f"{', '.join(map(str, keys[:3]))}, ..., {', '.join(map(str, keys[-3:]))}"
    return f"[{ends}] ({len(keys)} keys)"
