"""What FlexAttention adds to a score: functions ``(score, b, h, q_idx, kv_idx) -> score`` out of the terms.

``b``, ``h``, ``q_idx`` and ``kv_idx`` are integer tensors without axes; ``q_idx`` counts queries, so that the query
stands at position ``q_idx + offset`` of the keys. The generated kernel inlines such a function: it may do arithmetic
and read captured tensors at an index, each tensor that carries gradients at one place only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from biases.backends.geometry import Geometry
from biases.backends.streams import capturing, finished
from biases.backends.terms import Form, PairTerm, PerKey, RelativeTable, ScoreMod, Toeplitz


def carries_gradient(x: Tensor) -> bool:
    """Whether the gradient by ``x`` will be asked for.

    FlexAttention adds it up by atomic operations, one a pair: all of a head at one address where a number a head is
    read, which serialises them, and spread over a table where a table is read.
    """
    return x.requires_grad and torch.is_grad_enabled()


def learned(term: PairTerm) -> bool:
    """Whether any tensor of ``term`` carries gradients."""
    parts = vars(term).values()
    return any(carries_gradient(x) if isinstance(x, Tensor) else isinstance(x, PairTerm) and learned(x) for x in parts)


# A term made on the CPU would be copied to the device, and the device waited for, at every call.
_copies: Any = WeakTensorKeyDictionary()


def on_device(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``x`` on ``device`` in ``dtype``; the copy of a tensor without gradient is kept for as long as the tensor."""
    plain = torch.compiler.is_compiling() or x.requires_grad or x.is_inference()
    if plain or x.device == device:
        return x.to(device, dtype)
    kept = _copies.setdefault(x, {})
    version, copy = kept.get((device, dtype), (None, x))
    if version != x._version:
        # What is made in inference mode could not be used in training later.
        with torch.inference_mode(False):
            copy = x.to(device, dtype)
        if type(copy) is Tensor and not capturing(device):
            finished(device)
            kept[device, dtype] = (x._version, copy)
    return copy


def from_form(form: Form, geometry: Geometry) -> ScoreMod:
    """The function that adds a structured form."""
    if isinstance(form, PerKey):
        return _per_key(form.values)
    if isinstance(form, Toeplitz):
        return _table(form.table, geometry.S - 1)
    if isinstance(form, RelativeTable):
        return _relative(form.table, form.row, form.column)
    return _low_rank(form.left, form.right)


def _per_key(values: Tensor) -> ScoreMod:
    batched, by_head = values.shape[0] > 1, values.shape[1] > 1
    values = values if batched else values[0]
    values = values if by_head else values.select(-2, 0)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if batched and by_head:
            return score + values[b, h, kv_idx]
        if batched:
            return score + values[b, kv_idx]
        return score + (values[h, kv_idx] if by_head else values[kv_idx])

    return score_mod


def _table(table: Tensor, middle: int) -> ScoreMod:
    """``table[h, q_idx - kv_idx + middle]``."""
    by_head = table.shape[0] > 1
    table = table if by_head else table[0]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        place = q_idx - kv_idx + middle
        return score + (table[h, place] if by_head else table[place])

    return score_mod


def _relative(table: Tensor, row: Tensor, column: Tensor) -> ScoreMod:
    """``table[h, row[q_idx] - column[kv_idx]]``."""
    by_head = table.shape[0] > 1
    table = table if by_head else table[0]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        place = row[q_idx] - column[kv_idx]
        return score + (table[h, place] if by_head else table[place])

    return score_mod


def _low_rank(left: Tensor, right: Tensor) -> ScoreMod:
    by_head = left.shape[0] > 1
    left, right = (x if by_head else x[0] for x in (left, right))
    columns = list(zip(left.unbind(-1), right.unbind(-1), strict=True))

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        for a, c in columns:
            score = score + (a[h, q_idx] * c[h, kv_idx] if by_head else a[q_idx] * c[kv_idx])
        return score

    return score_mod


def linear(slopes: Tensor, geometry: Geometry, *, symmetric: bool) -> ScoreMod:
    """``-slopes[h] (i - j)``, or of the absolute distance; ``slopes`` (H,)."""
    offset = geometry.offset

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        distance = q_idx + offset - kv_idx
        return score - slopes[h] * (distance.abs() if symmetric else distance)

    return score_mod


def past_only(score_mod: ScoreMod, geometry: Geometry) -> ScoreMod:
    """``score_mod``, and ``-inf`` for keys after the query."""
    offset = geometry.offset

    def only(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        past = q_idx + offset >= kv_idx
        return torch.where(past, score_mod(score, b, h, q_idx, kv_idx), -torch.inf)

    return only


def manhattan(log_rates: Tensor, width: int) -> ScoreMod:
    """``log_rates[h] (|dy| + |dx|)`` over pixels in raster order; ``log_rates`` (H,).

    Rows and columns are those of one query or key, not of a pair, so that the divisions cost nothing beside the scores.
    """

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        down, across = q_idx // width - kv_idx // width, q_idx % width - kv_idx % width
        return score + log_rates[h] * (down.abs() + across.abs())

    return score_mod
