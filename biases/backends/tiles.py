"""Any attention problem in O(L + S) memory: the dense formulas on one tile of queries after another.

Nothing of a tile is kept for the backward pass; it is computed again. This is the fast path of what has no row
statistics that a fused kernel could share (sigmoid weights), of decays placed after the weights, of learned Toeplitz
biases, of biases without structure and of dropout. A tile visits only those keys that causality and window leave to any
of its queries, so that a window of w keys costs O(L (w + tile)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from biases.backends.reference import dense_weights
from biases.backends.terms import Problem

TILE = 128


def tiled(problem: Problem, tile: int = TILE) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv)."""
    q = problem.q
    compute = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    i, j = problem.geometry.positions(q.device)
    geometry = problem.geometry
    queries, keys_of, values_of = (cutter(x, tile, geometry.window) for x in (q, problem.k, problem.v))

    def one(start: int, stop: int) -> Tensor:
        first, last = geometry.reach(start, stop)
        # A row without keys is zero by its mask; one key keeps it in the graph.
        last = max(last, 1)
        rows, keys = slice(start, stop), slice(min(first, last - 1), last)
        weights = dense_weights(problem, queries(rows), keys_of(keys), i[rows], j[:, keys], compute, rows, keys)
        return (weights @ values_of(keys).to(compute)).to(q.dtype)

    bounds = [(start, min(start + tile, q.shape[2])) for start in range(0, q.shape[2], tile)]
    if len(bounds) == 1 or not torch.is_grad_enabled():
        outputs = [one(*bound) for bound in bounds]
    else:
        outputs = [checkpoint(one, *bound, use_reentrant=False) for bound in bounds]
    return torch.cat(outputs, 2)


def cutter(x: Tensor, tile: int, window: int | None) -> Callable[[slice], Tensor]:
    """A function from a slice of tokens to that part of ``x``, (B, H, T, D).

    The gradient of a slice is as large as the whole. Where a window makes parts small, they are joined from pieces of
    ``tile`` tokens, whose gradients are no larger than the parts.
    """
    if window is None:
        return lambda tokens: x[:, :, tokens]
    pieces = x.split(tile, 2)

    def cut(tokens: slice) -> Tensor:
        first = tokens.start // tile
        joined = torch.cat(pieces[first : (tokens.stop - 1) // tile + 1], 2)
        return joined[:, :, tokens.start - first * tile : tokens.stop - first * tile]

    return cut
