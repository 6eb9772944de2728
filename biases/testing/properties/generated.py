"""Calling what makes a bias or a mask out of sizes, and the form of what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from biases.testing.case import Case
from biases.testing.properties.base import magnitude
from biases.testing.subject import Layer, Violation
from biases.traits import Traits


@dataclass(frozen=True)
class Bias:
    """What a bias returned.

    Attributes:
        values: (H, L, S), float64 on the CPU.
        eps: of the dtype that was returned, at least that of float32.
        heads: how many heads were returned: H, or 1 where all have the same.
    """

    values: Tensor
    eps: float
    heads: int

    @property
    def tolerance(self) -> float:
        """32 roundings of the largest finite value, or of 1: logarithms of weights near 1 are off by that much."""
        return 32 * self.eps * max(magnitude(self.values), 1.0)


def drawn_sizes(traits: Traits) -> Mapping[str, Any]:
    """Sizes that reach beyond the declared window, as far as that is cheap."""
    window = traits.window or 1
    if traits.domain == "image":
        return {"max_length": min(max(24, (window + 3) ** 2), 100)}
    most = min(max(12, window + 3), 64, traits.max_length or 64)
    return {"max_length": most, "keys": True}


def sizes(case: Case) -> tuple[int, int]:
    """(L, S), or (height, width); L = S where no alignment is declared, and L <= S where it is lower-right."""
    if case.grid is not None:
        return case.grid
    alignment = case.subject.traits.alignment
    queries, keys = case.length, int(case.example.get("keys", case.length))
    if alignment is None:
        return queries, queries
    return (min(queries, keys), max(queries, keys)) if alignment == "lower-right" else (queries, keys)


def pairs_of(case: Case, first: int, second: int) -> tuple[int, int]:
    """How many queries and keys there are."""
    return (first, second) if case.grid is None else (first * second, first * second)


def bias_of(case: Case, layer: Layer, first: int, second: int) -> Bias:
    """What the bias returns for these sizes.

    Raises:
        Violation: it raised, or returned something else than a floating tensor that broadcasts to (H, L, S).
    """
    out = case.invoke(layer, first, second)
    if not isinstance(out, Tensor) or not out.is_floating_point():
        got = f"{out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise Violation(f"bias for sizes ({first}, {second}): expected a floating tensor, got {got}")
    eps = max(torch.finfo(out.dtype).eps, torch.finfo(torch.float32).eps)
    shape = (case.heads, *pairs_of(case, first, second))
    values = _broadcast(case, out, shape, first, second).double()
    return Bias(values, eps, out.shape[-3] if out.ndim > 2 else 1)


def mask_of(case: Case, layer: Layer, first: int, second: int) -> Tensor:
    """What the mask returns for these sizes: (L, S), bool, on the CPU.

    Raises:
        Violation: it raised, or returned something else than a bool tensor of that shape.
    """
    out = case.invoke(layer, first, second)
    if not isinstance(out, Tensor) or out.dtype != torch.bool:
        got = f"{out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise Violation(f"mask for sizes ({first}, {second}): expected a bool tensor, True = may attend, got {got}")
    return _broadcast(case, out, pairs_of(case, first, second), first, second)


def _broadcast(case: Case, out: Tensor, shape: tuple[int, ...], first: int, second: int) -> Tensor:
    """``out`` in ``shape``; leading axes of 1 beyond it are dropped."""
    out, got = out.detach().cpu(), tuple(out.shape)
    while out.ndim > len(shape) and out.shape[0] == 1:
        out = out[0]
    try:
        return out.expand(shape)
    except RuntimeError:
        what = f"{case.subject.kind} for sizes ({first}, {second})"
        raise Violation(f"{what}: expected a shape that broadcasts to {shape}, got {got}") from None


def built(case: Case) -> tuple[Layer, int, int]:
    """The subject and the sizes of this example."""
    return case.raw(case.single), *sizes(case)
