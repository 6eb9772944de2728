"""Any attention problem in O(L + S) memory: the dense formulas on one tile of queries after another.

Nothing of a tile is kept for the backward pass; it is computed again. This is the fast path of what has no row
statistics that a fused kernel could share (sigmoid weights), of decays placed after the weights, of learned Toeplitz
biases, of biases without structure and of dropout.
"""

from __future__ import annotations

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
    S, offset = problem.geometry.S, problem.geometry.offset

    def one(start: int, stop: int) -> Tensor:
        seen = min(S, max(1, stop + offset)) if problem.geometry.causal else S
        keys = slice(0, seen)
        weights = dense_weights(
            problem, q[:, :, start:stop], i[start:stop], j[:, keys], compute, slice(start, stop), keys
        )
        return (weights @ problem.v[:, :, keys].to(compute)).to(q.dtype)

    bounds = [(start, min(start + tile, q.shape[2])) for start in range(0, q.shape[2], tile)]
    if len(bounds) == 1 or not torch.is_grad_enabled():
        outputs = [one(*bound) for bound in bounds]
    else:
        outputs = [checkpoint(one, *bound, use_reentrant=False) for bound in bounds]
    return torch.cat(outputs, 2)
