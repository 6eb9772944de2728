"""The structured forms of a term of an attention problem: what a fast path uses instead of L x S numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PerKey:
    """A number for each key, (B or 1, H or 1, S)."""

    values: Tensor


@dataclass(frozen=True)
class Toeplitz:
    """A number for each distance, (H or 1, L + S - 1), in the order of :meth:`Geometry.distances`."""

    table: Tensor


@dataclass(frozen=True)
class LowRank:
    """``left @ right.mT`` with left (H or 1, L, r) and right (H or 1, S, r)."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class RelativeTable:
    """A number for each relative position: query ``i`` and key ``j`` have ``table[:, row[i] - column[j]]``.

    Attributes:
        table: (H or 1, entries); may carry gradients.
        row: of each query, int32, (L,).
        column: of each key, int32, (S,).
        key: what ``row`` and ``column`` were made from; tables with the same key may be added up.
    """

    table: Tensor
    row: Tensor
    column: Tensor
    key: tuple[object, ...]


Form = PerKey | Toeplitz | LowRank | RelativeTable
