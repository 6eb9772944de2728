"""Attention by tiles of queries: what stock kernels do not fuse, in O(L + S) memory.

With logits ``s_ij = q_i . k_j + key_bias_j + sum_t table_t[i, j]`` the weights are those of the mode, times a table
where a factor is placed after them; ``sigmoid-normalised`` is the softmax of ``log sigma(s) + post_bias + tables``. A
table of the distance is read through a view: queries come in reverse, ``i' = L - 1 - i``, so that ``i - j`` falls with
``i' + j`` and a tile of the reversed table is a Hankel matrix, with strides (1, 1). Gradients are those of
:mod:`biases.backends.tile_gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from biases.backends.geometry import Geometry

TILE = 128
# Numbers of the pairs of a tile. A tile that the cache of a core holds is passed over several times.
PAIRS = 2**18
LOGITS, LOGARITHM, FACTOR = "logits", "logarithm", "factor"


@dataclass(frozen=True)
class Index:
    """Where a table is read, and what is done with it.

    Attributes:
        stage: ``LOGITS``, ``LOGARITHM`` (added to the logarithm of a sigmoid) or ``FACTOR`` (multiplies the weights).
        row: of each query, in reverse order, (L,); ``None`` for a table of the distance.
        column: of each key, (S,); query i' and key j have ``table[row[i'] - column[j]]``.
    """

    stage: str
    row: Tensor | None = None
    column: Tensor | None = None


@dataclass(frozen=True)
class Spec:
    """What is computed: all that has no gradient.

    Attributes:
        mode: one of :data:`biases.backends.terms.WEIGHTS`.
        geometry: lengths, alignment, causality.
        heads: number of heads H.
        indices: of each table.
        keep: keys that may be attended, (B H, S), or ``None``.
        mask: pairs that may attend, (B or 1, H or 1, L, S), queries in their own order, or ``None``.
    """

    mode: str
    geometry: Geometry
    heads: int
    indices: tuple[Index, ...]
    keep: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True)
class Operands:
    """The tensors that may carry gradients.

    Attributes:
        q: (B H, L, D), scaled, in reverse order; k: (B H, S, D); v: (B H, S, Dv).
        key_bias: added to the logits, (B H, S), or ``None``.
        post_bias: added to the logarithm of a sigmoid, (B H, S), or ``None``.
        tables: (H, entries); of the distance: (H, L + S - 1), the largest distance first. Factors are no logarithms.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_bias: Tensor | None
    post_bias: Tensor | None
    tables: tuple[Tensor, ...]


@dataclass(frozen=True)
class Tile:
    """Some queries (in reverse order), the keys in their reach, and some heads of some examples."""

    rows: slice
    keys: slice
    heads: slice
    group: slice

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Examples, heads, queries, keys."""
        heads = _length(self.heads)
        return _length(self.group) // heads, heads, _length(self.rows), _length(self.keys)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def tiles(spec: Spec, batch: int) -> Iterator[Tile]:
    """All tiles that hold a pair."""
    geometry, H = spec.geometry, spec.heads
    for start in range(0, geometry.L, TILE):
        stop = min(start + TILE, geometry.L)
        first, last = geometry.reach(geometry.L - stop, geometry.L - start)
        if first == last:
            continue
        most = max(1, PAIRS // ((stop - start) * (last - first)))
        rows, keys = slice(start, stop), slice(first, last)
        if most >= H:
            step = H * (most // H)
            for begin in range(0, batch * H, step):
                yield Tile(rows, keys, slice(0, H), slice(begin, min(begin + step, batch * H)))
            continue
        for head in range(0, H, most):
            heads = slice(head, min(head + most, H))
            for example in range(0, batch * H, H):
                yield Tile(rows, keys, heads, slice(example + heads.start, example + heads.stop))


def forward(spec: Spec, operands: Operands) -> Tensor:
    """The output, (B H, L, Dv), queries in reverse order."""
    q, v = operands.q, operands.v
    out = q.new_zeros(*q.shape[:2], v.shape[2])
    for tile in tiles(spec, q.shape[0] // spec.heads):
        weights, _ = weights_of(spec, operands, tile)
        factor = factor_of(spec, operands, tile)
        if factor is not None:
            weights = times(weights, factor, in_place=not torch.is_grad_enabled())
        out[tile.group, tile.rows] = weights @ v[tile.group, tile.keys]
    return out


def times(weights: Tensor, factor: Tensor, *, in_place: bool = False) -> Tensor:
    """Weights (b h, l, s) times (h, l, s)."""
    full = weights.unflatten(0, (-1, factor.shape[0]))
    full = full.mul_(factor) if in_place else full * factor
    return without_subnormal(full.flatten(0, 1))


def without_subnormal(x: Tensor) -> Tensor:
    """``x`` without numbers that are subnormal or whose products would be: processors are slow with them by an order of
    magnitude."""
    return F.hardshrink(x, _negligible(x.dtype))


def _negligible(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny / torch.finfo(dtype).eps


def weights_of(spec: Spec, operands: Operands, tile: Tile) -> tuple[Tensor, Tensor | None]:
    """Weights before any factor, and the logits if they are needed for the gradient: (b h, l, s)."""
    logits = exclude(spec, _logits(spec, operands, tile), tile)
    if spec.mode == "softmax":
        return _softmax(logits), None
    if spec.mode == "sigmoid":
        return logits.sigmoid_(), None
    if spec.mode == "linear":
        return logits, None
    added = _sum_of(spec, operands, tile, LOGARITHM, operands.post_bias)
    log = _logsigmoid(logits)
    return _softmax(log if added is None else log.unflatten(0, tile.shape[:2]).add_(added).flatten(0, 1)), logits


def _logits(spec: Spec, operands: Operands, tile: Tile) -> Tensor:
    queries, keys = operands.q[tile.group, tile.rows], operands.k[tile.group, tile.keys].mT
    added = _sum_of(spec, operands, tile, LOGITS, operands.key_bias)
    if added is None:
        return queries @ keys
    return torch.baddbmm(added.expand(tile.shape).flatten(0, 1), queries, keys)


def _sum_of(spec: Spec, operands: Operands, tile: Tile, stage: str, bias: Tensor | None) -> Tensor | None:
    """What a stage adds, broadcastable to (b, h, l, s)."""
    total = None if bias is None else bias[tile.group, None, tile.keys].unflatten(0, tile.shape[:2])
    for index, table in zip(spec.indices, operands.tables, strict=True):
        if index.stage == stage:
            part = _read(index, table, tile)
            total = part if total is None else total + part
    return total


def factor_of(spec: Spec, operands: Operands, tile: Tile) -> Tensor | None:
    for index, table in zip(spec.indices, operands.tables, strict=True):
        if index.stage == FACTOR:
            return _read(index, table, tile)
    return None


def _read(index: Index, table: Tensor, tile: Tile) -> Tensor:
    """The part of a table, (h, l, s)."""
    if index.row is None:
        first = tile.rows.start + tile.keys.start
        _, _, rows, keys = tile.shape
        return table[tile.heads, first : first + rows + keys - 1].unfold(1, keys, 1)
    return table[tile.heads].index_select(1, places(index, tile)).unflatten(1, tile.shape[2:])


def places(index: Index, tile: Tile) -> Tensor:
    assert index.row is not None
    assert index.column is not None
    return (index.row[tile.rows, None] - index.column[tile.keys]).flatten()


def exclude(spec: Spec, logits: Tensor, tile: Tile) -> Tensor:
    """Logits in place, with ``-inf`` (0 for linear weights, which are the logits) where a pair may not attend."""
    nothing, geometry = 0.0 if spec.mode == "linear" else -torch.inf, spec.geometry
    rows = slice(geometry.L - tile.rows.stop, geometry.L - tile.rows.start)
    for part in _edges(geometry, rows, tile.keys):
        i = torch.arange(rows.stop - 1, rows.start - 1, -1, device=logits.device)[:, None] + geometry.offset
        allowed = geometry.allowed(i - torch.arange(part.start, part.stop, device=logits.device))
        if allowed is not None:
            inner = slice(part.start - tile.keys.start, part.stop - tile.keys.start)
            logits[:, :, inner].masked_fill_(~allowed, nothing)
    if spec.keep is not None:
        logits.masked_fill_(~spec.keep[tile.group, None, tile.keys], nothing)
    if spec.mask is not None:
        batch, heads = spec.mask.shape[:2]
        example = tile.group.start // spec.heads
        examples = slice(example, example + tile.shape[0]) if batch > 1 else slice(None)
        allowed = spec.mask[examples, tile.heads if heads > 1 else slice(None), rows, tile.keys].flip(2)
        logits.unflatten(0, tile.shape[:2]).masked_fill_(~allowed, nothing)
    return logits


def _edges(geometry: Geometry, rows: slice, keys: slice) -> list[slice]:
    """The keys that causality or a window allow to some but not to all of the queries ``rows``, in their own order."""
    if not geometry.causal:
        return []
    # Keys from ``later`` on are after the first query; those before ``inside`` are too far back for the last one.
    later = max(keys.start, rows.start + geometry.offset + 1)
    window = geometry.window
    inside = keys.start if window is None else min(keys.stop, rows.stop + geometry.offset - window)
    if inside >= later:
        return [keys]
    return [part for part in (slice(keys.start, inside), slice(later, keys.stop)) if part.start < part.stop]


def _logsigmoid(x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return F.logsigmoid(x)
    # A quarter of the time of logsigmoid. Where the sigmoid underflows, its logarithm is x to the last digit.
    return torch.minimum(x, torch.sigmoid(x).clamp_min_(torch.finfo(x.dtype).tiny).log_())


def _softmax(logits: Tensor) -> Tensor:
    """Softmax, in place where no gradient is recorded, without what is next to subnormal; a row of ``-inf`` is zero."""
    top = logits.detach().amax(-1, keepdim=True)
    recorded = torch.is_grad_enabled()
    below = logits.sub_(top.masked_fill_(top == -torch.inf, 0.0))
    weights = F.threshold(below, math.log(_negligible(logits.dtype)), -torch.inf, inplace=not recorded).exp_()
    total = weights.sum(-1, keepdim=True)
    total = total.masked_fill(total == 0, 1.0)
    return weights / total if recorded else weights.div_(total)
