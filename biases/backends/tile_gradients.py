"""Gradients of attention by tiles of queries: every tile is computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from biases.backends.tile_attention import (
    FACTOR,
    LOGARITHM,
    LOGITS,
    Operands,
    Spec,
    Tile,
    exclude,
    factor_of,
    forward,
    places,
    tiles,
    times,
    weights_of,
)


class TileAttention(torch.autograd.Function):
    """spec, q, k, v, key_bias, post_bias, tables -> output; see :class:`Operands` for the shapes."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, *tensors: Any) -> Tensor:
        ctx.spec = spec
        ctx.save_for_backward(*tensors)
        return forward(spec, _operands(tensors))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operands, wanted, device = _operands(ctx.saved_tensors), ctx.needs_input_grad[1:], grad.device.type
        within = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if within else nullcontext():
            if torch.is_grad_enabled() or _batched(grad):
                return None, *_differentiable(ctx.spec, operands, grad, wanted)
            return None, *_Backward(ctx.spec, operands, wanted).run(grad)


def transformed() -> bool:
    """Whether ``torch.func`` transforms the call; where this torch does not tell, it may."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or bool(active())


def _batched(grad: Tensor) -> bool:
    """Whether the backward pass is vectorised over."""
    functorch = getattr(torch._C, "_functorch", None)
    checks = (getattr(functorch, name, None) for name in ("is_batchedtensor", "is_legacy_batchedtensor"))
    return any(bool(check(grad)) for check in checks if check is not None)


def _operands(tensors: tuple[Any, ...]) -> Operands:
    q, k, v, key_bias, post_bias, *tables = tensors
    return Operands(q, k, v, key_bias, post_bias, tuple(tables))


def _inputs(operands: Operands) -> tuple[Any, ...]:
    return operands.q, operands.k, operands.v, operands.key_bias, operands.post_bias, *operands.tables


def _differentiable(spec: Spec, operands: Operands, grad: Tensor, wanted: Sequence[bool]) -> Iterator[Tensor | None]:
    """Gradients by autograd, which have gradients themselves and may be vectorised over; not in O(L + S) memory."""
    create = torch.is_grad_enabled()
    asked = [x for x, want in zip(_inputs(operands), wanted, strict=True) if want]
    with torch.enable_grad():
        out = forward(spec, operands)
    found = iter(torch.autograd.grad(out, asked, grad, create_graph=create, materialize_grads=True))
    return (next(found) if want else None for want in wanted)


class _Backward:
    """Gradients of the wanted ones among q, k, v, key_bias, post_bias and the tables, tile by tile."""

    def __init__(self, spec: Spec, operands: Operands, wanted: Sequence[bool]) -> None:
        self.spec, self.operands = spec, operands
        inputs = zip(_inputs(operands), wanted, strict=True)
        self.grads: list[Tensor | None] = [x.new_zeros(x.shape) if want else None for x, want in inputs]

    def run(self, grad: Tensor) -> list[Tensor | None]:
        batch = grad.shape[0] // self.spec.heads
        for tile in tiles(self.spec, batch):
            self.add(tile, grad[tile.group, tile.rows])
        return self.grads

    def add(self, tile: Tile, grad: Tensor) -> None:
        spec, operands = self.spec, self.operands
        dq, dk, dv, dkey = self.grads[:4]
        weights, logits = weights_of(spec, operands, tile)
        factor = factor_of(spec, operands, tile)
        after = weights if factor is None else times(weights, factor)
        if dv is not None:
            dv[tile.group, tile.keys].baddbmm_(after.mT, grad)
        if all(x is None for place, x in enumerate(self.grads) if place != 2):
            return
        slope = grad @ operands.v[tile.group, tile.keys].mT
        if factor is not None:
            self._add_to_tables(tile, FACTOR, slope, weights)
        if spec.mode == "sigmoid":
            slope.mul_(after)
            slope.addcmul_(slope, weights, value=-1.0)
        else:
            if factor is not None:
                slope.unflatten(0, tile.shape[:2]).mul_(factor)
            slope = self._through_weights(tile, slope, weights, logits)
        self._add_to_tables(tile, LOGITS, slope)
        if dkey is not None:
            dkey[tile.group, tile.keys] += slope.sum(1)
        if dq is not None:
            dq[tile.group, tile.rows] = slope @ operands.k[tile.group, tile.keys]
        if dk is not None:
            dk[tile.group, tile.keys].baddbmm_(slope.mT, operands.q[tile.group, tile.rows])

    def _through_weights(self, tile: Tile, slope: Tensor, weights: Tensor, logits: Tensor | None) -> Tensor:
        """The gradient of the logits, from that of the weights before any factor."""
        mode, dpost = self.spec.mode, self.grads[4]
        if mode == "linear":
            return exclude(self.spec, slope, tile)
        slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype)
        if logits is None:
            return slope
        self._add_to_tables(tile, LOGARITHM, slope)
        if dpost is not None:
            dpost[tile.group, tile.keys] += slope.sum(1)
        return slope.mul_(logits.neg_().sigmoid_())

    def _add_to_tables(self, tile: Tile, stage: str, slope: Tensor, by: Tensor | None = None) -> None:
        wanted = zip(self.spec.indices, self.grads[5:], strict=True)
        grads = [(index, grad) for index, grad in wanted if index.stage == stage and grad is not None]
        if not grads:
            return
        full = (slope if by is None else slope * by).unflatten(0, tile.shape[:2]).sum(0)
        for index, grad in grads:
            if index.row is None:
                first = tile.rows.start + tile.keys.start
                sums = _antidiagonals(full)
                grad[tile.heads, first : first + sums.shape[1]] += sums
            else:
                grad[tile.heads].index_add_(1, places(index, tile), full.flatten(1))


def _antidiagonals(x: Tensor) -> Tensor:
    """Sums of (h, l, s) over the pairs of equal ``i + j``: (h, l + s - 1)."""
    heads, rows, keys = x.shape
    # A row of l + s numbers, read as one of l + s - 1, begins one further right than the row before it.
    padded = F.pad(x, (0, rows)).flatten(1)[:, : rows * (rows + keys - 1)]
    return padded.view(heads, rows, rows + keys - 1).sum(1)
