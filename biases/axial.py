"""``attend_decomposed``: attention over a map as one pass along its rows and one along its columns.

RMT (arXiv 2309.11523 Eq. 6): the first pass replaces the values, the second attends over its result. Both use the same
queries and keys, so that the weight of pixel (i', j') for the query at (i, j) is, width first,

    E[(i, j), (i', j')] = A^H_j[i, i'] A^W_i'[j, j']

where the row pass of row i' uses the query that stands at (i', j), not the one at (i, j): in general this is not
attention over the whole map, whatever the decay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from biases._calls import MAPS, STAND_IN
from biases._checks import boolean, fail, one_of, rank
from biases.attention import BACKENDS, _problem, attend, pair_weights, terms
from biases.backends import DecayTerm, PairTerm, choice

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
        masks: along the columns, (B', H, H), and along the rows, (B', W, W), True = may attend; ``None`` for no mask.
            B' divides B, and the masks are used in turn: map b takes mask b mod B', so that the windows of one image
            follow one another in the batch (:meth:`biases.windows.Windows.axis_masks`).
        rotation: (B, heads, T, D) -> the same, applied to queries and keys along the axis of each pass.
        order: ``"width-first"`` (along the rows first, as RMT) or ``"height-first"``.
        scale: factor of q . k, default ``1 / sqrt(D)``.
        backend: see :func:`biases.attend`; ``"reference"`` forms the weights E over pairs of pixels in float64. With
            ``"triton"`` maps go through both passes in one kernel (:mod:`biases.backends.triton.decomposed`) where it
            can run them, with ``"auto"`` where :func:`biases.backends.choice.one_kernel` says so.

    Returns:
        (B, heads, H, W, Dv), in the dtype of ``q``. Beyond in- and output it holds O(H W (H + W)) numbers a head at
        most, but for ``backend="reference"``.

    Raises:
        ValueError: shapes or options that do not fit, stating expected and got.
    """
    one_of("backend", backend, BACKENDS)
    if not torch.compiler.is_compiling() and (seen := MAPS.get()) is not None:
        given = {"biases": terms(bias), "weights": weights, "decay": decay, "masks": masks}
        seen.append(((q, k, v), {**given, "rotated": rotation is not None}))
    if backend == "triton" or (backend == "auto" and isinstance(q, Tensor) and q.is_cuda):
        whole = _in_one_kernel(q, k, v, bias, weights, decay, masks, rotation, order, scale, backend)
        if whole is not None:
            return whole
    passes = _passes(q, k, v, bias, weights, decay, masks, rotation, order, scale)
    if backend == "reference":
        effective = _effective(passes, order)
        return (effective @ v.to(torch.float64).flatten(2, 3)).to(q.dtype).unflatten(2, v.shape[2:4])
    out = v
    for each in passes:
        out = each.attend(out, backend)
    return out


# Kernels of this process that did not compile, and are not tried again.
_broken: set[tuple[Any, ...]] = set()


def _in_one_kernel(
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
    backend: str,
) -> Tensor | None:
    """Both passes in one kernel; ``None`` where it cannot run them, or where calls of ``attend`` are being counted."""
    _check(q, k, v, masks, rotation, order)
    if not torch.compiler.is_compiling() and STAND_IN.get() is not None:
        return None
    if q.numel() == 0 or v.numel() == 0 or (backend == "auto" and not choice.one_kernel(q, k, v)):
        return None
    row, _ = (
        _problem(a, b, c, bias, None, weights, decay, None, False, None, None, 0.0, scale)
        for a, b, c in ((x.select(axis, 0) for x in (q, k, v)) for axis in (2, 3))
    )
    from biases.backends.triton import decomposed

    given: dict[str, Any] = {"biases": row.biases, "weights": weights, "decay": decay}
    kernel = (q.dtype, *q.shape[2:], v.shape[-1], weights)
    if kernel in _broken or decomposed.why_not(q, k, v, masks=masks, rotated=rotation is not None, **given) is not None:
        return None
    try:
        return decomposed.run(q, k, v, masks=masks, order=order, scale=row.scale, **given)
    except Exception as error:
        if backend != "auto" or type(error).__module__.partition(".")[0] != "triton":
            raise
        _broken.add(kernel)
        what = f"attend_decomposed: the Triton kernel failed to compile, two passes are used: {error}"
        warnings.warn(what, RuntimeWarning, stacklevel=3)
        return None


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
    """The weights E that :func:`attend_decomposed` amounts to, the specification: dense, for small maps.

    Returns:
        (B, heads, H W, H W), float64: queries, then keys, both in raster order.

    Raises:
        ValueError: as :func:`attend_decomposed`.
    """
    return _effective(_passes(q, k, k, bias, weights, decay, masks, rotation, order, scale), order)


@dataclass(frozen=True)
class _Pass:
    """Attention along one axis, the other axis being folded into the batch.

    Attributes:
        axis: ``"width"`` (along the rows) or ``"height"`` (along the columns).
        batch, lines: number of maps, and of rows or columns in one.
        q, k: (``batch * lines``, heads, T, D), T being the length of a line.
        options: of :func:`biases.attend`.
    """

    axis: str
    batch: int
    lines: int
    q: Tensor
    k: Tensor
    options: dict[str, Any]

    def attend(self, v: Tensor, backend: str) -> Tensor:
        """(B, heads, H, W, Dv) -> the same."""
        out = attend(self.q, self.k, _fold(v, self.axis), backend=backend, **self.options)
        back = (0, 2, 1, 3, 4) if self.axis == "width" else (0, 2, 3, 1, 4)
        return out.unflatten(0, (self.batch, self.lines)).permute(back)

    def weights(self) -> Tensor:
        """(B, heads, lines, T, T), float64."""
        dense = pair_weights(self.q, self.k, **self.options)
        return dense.unflatten(0, (self.batch, self.lines)).transpose(1, 2)


def _fold(x: Tensor, axis: str) -> Tensor:
    """(B, heads, H, W, D) -> (B * lines, heads, T, D), lines being the rows or the columns."""
    line_first = (0, 2, 1, 3, 4) if axis == "width" else (0, 3, 1, 2, 4)
    return x.permute(line_first).flatten(0, 1)


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
    _check(q, k, v, masks, rotation, order)
    mask_of = dict(zip(("height", "width"), masks, strict=True))
    batch, _, height, width, _ = q.shape
    passes = []
    for axis in ("width", "height") if order == "width-first" else ("height", "width"):
        lines = height if axis == "width" else width
        mask = _mask(mask_of[axis], batch, lines)
        options = {"bias": bias, "weights": weights, "decay": decay, "mask": mask, "scale": scale}
        folded = [_fold(x, axis) for x in (q, k)]
        q_line, k_line = folded if rotation is None else (rotation(x) for x in folded)
        passes.append(_Pass(axis, batch, lines, q_line, k_line, options))
    return passes


def _check(q: Tensor, k: Tensor, v: Tensor, masks: Masks, rotation: Rotation | None, order: str) -> None:
    one_of("attend_decomposed order", order, ORDERS)
    for name, x in (("q", q), ("k", k), ("v", v)):
        rank(f"attend_decomposed {name}", x, "B heads H W D")
        if x.shape[:4] != q.shape[:4]:
            fail(f"attend_decomposed {name}", f"shape {tuple(q.shape[:4])} and a width, as q", tuple(x.shape))
        if x.dtype != q.dtype or x.device != q.device:
            fail(f"attend_decomposed {name}", f"{q.dtype} on {q.device}, as q", f"{x.dtype} on {x.device}")
    if k.shape[-1] != q.shape[-1]:
        fail("attend_decomposed k", f"width {q.shape[-1]}, as q", k.shape[-1])
    if not isinstance(masks, tuple) or len(masks) != 2:
        fail("attend_decomposed masks", "a pair: along the columns, along the rows", type(masks).__name__)
    if rotation is not None and not callable(rotation):
        fail("attend_decomposed rotation", "None or a function of (B, heads, T, D)", type(rotation).__name__)
    for axis, mask, length in zip(("height", "width"), masks, q.shape[2:4], strict=True):
        if mask is not None:
            _check_mask(mask, axis, q.shape[0], length)


def _check_mask(mask: Tensor, axis: str, batch: int, length: int) -> None:
    what = f"attend_decomposed mask along the {axis}"
    boolean(what, mask)
    if mask.ndim != 3 or tuple(mask.shape[1:]) != (length, length) or not len(mask) or batch % len(mask):
        fail(what, f"shape (B', {length}, {length}) with B' dividing {batch}", tuple(mask.shape))


def _mask(mask: Tensor | None, batch: int, lines: int) -> Tensor | None:
    """(B', T, T) -> (B * lines, 1, T, T), or (1, 1, T, T) where all lines have one mask."""
    if mask is None:
        return None
    if len(mask) > 1:
        mask = mask.repeat(batch // len(mask), 1, 1).repeat_interleave(lines, 0)
    return mask[:, None]


def _effective(passes: list[_Pass], order: str) -> Tensor:
    first, second = (each.weights() for each in passes)
    # first: rows i', (B, n, H, j, j'); second: columns j, (B, n, W, i, i'); or the other way round.
    formula = "bnjic,bncjd->bnijcd" if order == "width-first" else "bnijd,bndic->bnijcd"
    return torch.einsum(formula, second, first).flatten(4, 5).flatten(2, 3)
