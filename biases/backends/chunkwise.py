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
    batch, heads, length, _ = q.shape
    compute = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    chunk = min(chunk, length)
    padding = -length % chunk
    queries, keys, values = (
        F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, chunk))
        for x in (q.to(compute) * scale, k.to(compute), v.to(compute))
    )
    g = gamma.to(device=q.device, dtype=compute).view(heads, 1, 1)
    step = torch.arange(chunk, device=q.device)
    distance = step[:, None] - step
    inside = torch.where(distance >= 0, g ** distance.clamp(min=0), g.new_zeros(()))
    out = ((queries @ keys.mT) * inside[:, None]) @ values

    added = (keys * (g ** (chunk - 1 - step[:, None]))[:, None]).mT @ values
    carry = (g**chunk)[None]
    state = added.new_zeros(batch, heads, *added.shape[-2:])
    states = [state]
    for index in range(added.shape[2] - 1):
        state = carry * state + added[:, :, index]
        states.append(state)
    out = out + (queries @ torch.stack(states, 2)) * (g ** (step[:, None] + 1))[:, None]
    return out.flatten(2, 3)[:, :, :length].to(v.dtype)
