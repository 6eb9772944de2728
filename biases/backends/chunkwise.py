"""Linear attention with exponential decay, chunk by chunk: the fast path of retention.

Chunkwise recurrence (RetNet; arXiv 2309.11523 Eq. 1-2 give the parallel form), chunk length B, j from 0:

    o_[i] = (Q K^T . D) V + (Q R_{i-1}) xi,     xi_j   = gamma^(j + 1)
    R_i   = K^T (V zeta) + gamma^B R_{i-1},     zeta_j = gamma^(B - 1 - j)

The factor zeta is missing from the first version of the RetNet paper; without it the chunkwise form is not equal to the
parallel one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
GROUP = 64


def chunkwise_retention(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, *, scale: float, chunk: int = CHUNK) -> Tensor:
    """``o_i = scale sum_{j <= i} gamma^(i - j) (q_i . k_j) v_j`` in O(L) memory.

    Args:
        q, k: (B, H, L, D).
        v: (B, H, L, Dv).
        gamma: decay of each head, (H,), in [0, 1]; may carry gradients.
        scale: factor of q . k.
        chunk: tokens a chunk.

    Returns:
        (B, H, L, Dv).
    """
    heads, length = q.shape[1:3]
    compute = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    chunk = min(chunk, length)
    padding = -length % chunk
    queries, keys, values = (_chunks(x.to(compute), chunk, padding) for x in (q, k, v))
    g = gamma.to(device=q.device, dtype=compute).view(heads, 1, 1)
    step = torch.arange(chunk, device=q.device)
    # A power for each distance, of which row i of the matrix is the piece that starts at distance i.
    by_distance = scale * _powers(g[:, 0], torch.arange(chunk - 1, -chunk, -1, device=q.device))
    inside = by_distance.unfold(1, chunk, 1).flip(1)
    scores = queries @ keys.mT
    # New pages cost as much as the arithmetic at a thousand tokens. A learned rate needs the scores for its gradient.
    scores = scores * inside[:, None] if inside.requires_grad else scores.mul_(inside[:, None])
    out = scores @ values
    if out.shape[2] > 1:
        added = (keys * (g ** (chunk - 1 - step[:, None]))[:, None]).mT @ values
        states = _states(added, g, chunk)
        decayed = queries * (scale * g ** (step[:, None] + 1))[:, None]
        whole = out.flatten(0, 2).baddbmm_(decayed.flatten(0, 2), states.flatten(0, 2))
        out = whole.view(out.shape)
    return out.flatten(2, 3)[:, :, :length].to(v.dtype)


def _states(added: Tensor, g: Tensor, chunk: int) -> Tensor:
    """``R_{i-1}`` for every chunk i from what the chunks add, both (B, H, chunks, D, Dv).

    A group of chunks at a time, ``R_{i-1} = gamma^(B i) R + sum_{j < i} gamma^(B (i - 1 - j)) added_j`` with R the
    state before the group, as one matrix product: fewer and larger steps than chunk by chunk.
    """
    size = min(GROUP, added.shape[2])
    index = torch.arange(size + 1, device=added.device)
    within = _powers(g, chunk * (index[:, None] - 1 - index[:-1]))
    before = _powers(g, chunk * index[:, None])
    parts = added.flatten(3).split(size, 2)
    groups, state = list[Tensor](), None
    for number, part in enumerate(parts, 1):
        count = part.shape[2]
        # The state after the last group is nobody's.
        rows = count + (number < len(parts))
        sums = within[:, :rows, :count] @ part
        sums = sums if state is None else sums + before[:, :rows] * state
        groups.append(sums[:, :, :count])
        state = sums[:, :, -1:]
    states = groups[0] if len(groups) == 1 else torch.cat(groups, 2)
    return states.unflatten(3, added.shape[3:])


def _chunks(x: Tensor, chunk: int, padding: int) -> Tensor:
    """(B, H, L, D) -> (B, H, chunks, ``chunk``, D)."""
    # The products would copy another layout, each for itself.
    return (F.pad(x, (0, 0, 0, padding)) if padding else x).contiguous().unflatten(2, (-1, chunk))


def _powers(g: Tensor, exponent: Tensor) -> Tensor:
    """``g^exponent``, 0 where the exponent is negative: (H, *exponent.shape)."""
    return torch.where(exponent >= 0, g ** exponent.clamp(min=0), g.new_zeros(()))
