"""``attend_decomposed``: attention over a map as one pass along its rows and one along its columns.

RMT (arXiv 2309.11523 Eq. 6): the first pass replaces the values, the second attends over its result. Both use the same
queries and keys, so that the weight of pixel (i', j') for the query at (i, j) is, width first,

    E[(i, j), (i', j')] = A^H_j[i, i'] A^W_i'[j, j']

where the row pass of row i' uses the query that stands at (i', j), not the one at (i, j): in general this is not
attention over the whole map, whatever the decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from biases._checks import boolean, fail, one_of, rank
from biases.attention import attend, pair_weights
from biases.backends import DecayTerm, PairTerm

ORDERS = ("width-first", "height-first")
Terms = PairTerm | tuple[PairTerm, ...]
Masks = tuple[Tensor | None, Tensor | None]
Rotation = Callable[[Tensor], Tensor]


def attend_decomposed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Terms = (),
    weights: str = "softmax",
    decay: DecayTerm | None = None,
    masks: Masks = (None, None),
    rotation: Rotation | None = None,
    order: str = "width-first",
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend along the rows of a map, then along its columns.

    Args:
        q, k: (B, heads, H, W, D); v: (B, heads, H, W, Dv).
        bias: terms of the distance along an axis, such as ``ALiBi(...)``, added to the logits of both passes.
        weights: ``"softmax"``, ``"sigmoid"``, ... as for :func:`biases.attend`, for both passes.
        decay: decay with the distance along an axis, for both passes; its ``placement`` says where it acts.
        masks: along the columns, (B' , H, H), and along the rows, (B', W, W), with B' dividing B (windows of one map
            follow one another in the batch), True = may attend; ``None`` for no mask.
        rotation: (B, heads, T, D) -> the same, applied to queries and keys along the axis of each pass.
        order: ``"width-first"`` (along the rows first, as RMT) or ``"height-first"``.
        scale: factor of q . k, default ``1 / sqrt(D)``.
        backend: see :func:`biases.attend`; ``"reference"`` forms the weights E over pairs of pixels in float64.

    Returns:
        (B, heads, H, W, Dv), in the dtype of ``q``. Beyond in- and output it holds O(H W (H + W)) numbers a head at
        most, but for ``backend="reference"``.

    Raises:
        ValueError: shapes or options that do not fit, stating expected and got.
    """
    passes = _passes(q, k, v, bias, weights, decay, masks, rotation, order, scale)
    if backend == "reference":
        effective = _effective(passes, order)
        return (effective @ v.to(torch.float64).flatten(2, 3)).to(q.dtype).unflatten(2, v.shape[2:4])
    out = v
    for each in passes:
        out = each.unfold(attend(each.q, each.k, each.fold(out), backend=backend, **each.options))
    return out


def decomposed_weights(
    q: Tensor,
    k: Tensor,
    *,
    bias: Terms = (),
    weights: str = "softmax",
    decay: DecayTerm | None = None,
    masks: Masks = (None, None),
    rotation: Rotation | None = None,
    order: str = "width-first",
    scale: float | None = None,
) -> Tensor:
    """The weights E that :func:`attend_decomposed` amounts to, over pairs of pixels in raster order: (B, heads, H W,
    H W), float64."""
    return _effective(_passes(q, k, k, bias, weights, decay, masks, rotation, order, scale), order)


class _Pass:
    """Attention along one axis: the other axis is folded into the batch."""

    def __init__(self, axis: str, q: Tensor, k: Tensor, mask: Tensor | None, rotation: Rotation | None) -> None:
        self.axis, self.batch = axis, q.shape[0]
        self.q, self.k = self.fold(q), self.fold(k)
        if rotation is not None:
            self.q, self.k = rotation(self.q), rotation(self.k)
        self.lines = self.q.shape[0] // max(self.batch, 1)
        self.mask = self._mask(mask)
        self.options: dict[str, Any] = {}

    def fold(self, x: Tensor) -> Tensor:
        """(B, heads, H, W, D) -> (B * lines, heads, T, D), lines being the rows or the columns."""
        line_first = (0, 2, 1, 3, 4) if self.axis == "width" else (0, 3, 1, 2, 4)
        return x.permute(line_first).flatten(0, 1)

    def unfold(self, x: Tensor) -> Tensor:
        """Undo :meth:`fold`."""
        back = (0, 2, 1, 3, 4) if self.axis == "width" else (0, 2, 3, 1, 4)
        return x.unflatten(0, (self.batch, self.lines)).permute(back)

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        length, what = self.q.shape[2], f"attend_decomposed mask along the {self.axis}"
        boolean(what, mask)
        if mask.ndim != 3 or tuple(mask.shape[1:]) != (length, length) or self.batch % max(mask.shape[0], 1):
            fail(what, f"shape (B', {length}, {length}) with B' dividing {self.batch}", tuple(mask.shape))
        if mask.shape[0] > 1:
            mask = mask.repeat(self.batch // mask.shape[0], 1, 1).repeat_interleave(self.lines, 0)
        return mask[:, None]

    def weights(self) -> Tensor:
        """(B, heads, lines, T, T), float64."""
        dense = pair_weights(self.q, self.k, **self.options)
        return dense.unflatten(0, (self.batch, self.lines)).transpose(1, 2)


def _passes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Terms,
    weights: str,
    decay: DecayTerm | None,
    masks: Masks,
    rotation: Rotation | None,
    order: str,
    scale: float | None,
) -> list[_Pass]:
    one_of("attend_decomposed order", order, ORDERS)
    for name, x in (("q", q), ("k", k), ("v", v)):
        rank(f"attend_decomposed {name}", x, "B heads H W D")
        if x.shape[:4] != q.shape[:4]:
            fail(f"attend_decomposed {name}", f"shape {tuple(q.shape[:4])} and a width, as q", tuple(x.shape))
    scale = 1.0 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale
    axes = ("width", "height") if order == "width-first" else ("height", "width")
    mask_of = dict(zip(("height", "width"), masks, strict=True))
    passes = []
    for axis in axes:
        each = _Pass(axis, q, k, mask_of[axis], rotation)
        each.options = {"bias": bias, "weights": weights, "decay": decay, "mask": each.mask, "scale": scale}
        passes.append(each)
    return passes


def _effective(passes: list[_Pass], order: str) -> Tensor:
    first, second = (each.weights() for each in passes)
    # first: rows i', (B, n, H, j, j'); second: columns j, (B, n, W, i, i'); or the other way round.
    formula = "bnjic,bncjd->bnijcd" if order == "width-first" else "bnijd,bndic->bnijcd"
    return torch.einsum(formula, second, first).flatten(4, 5).flatten(2, 3)
