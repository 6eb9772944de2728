"""Retention: linear attention with exponential decay (RetNet, arXiv 2307.08621; RMT, arXiv 2309.11523 Eq. 1-2).

Three forms of one function, ``o_n = scale sum_{m <= n} gamma^(n - m) (q_n . k_m) v_m``:

* parallel: ``(Q K^T . D) V`` with ``D_nm = gamma^(n - m)`` for n >= m, else 0;
* recurrent: ``S_n = gamma S_{n-1} + k_n^T v_n``, ``o_n = q_n S_n``;
* chunkwise: the fast path, with the factor ``gamma^(B - 1 - j)`` on the keys that the first version of the RetNet paper
  lacks (see :mod:`biases.backends.chunkwise`).

The layer follows torchscale: rates ``1 - 2^(-5 - h)``, queries and keys rotated, an RMS norm without parameters over
each head, and a swish gate before the output projection. torchscale also divides the rows of D and of the scores by
positive numbers; the head norm removes any such factor (up to its epsilon), so they are left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biases._checks import fail, rank
from biases.backends.chunkwise import CHUNK, chunkwise_retention
from biases.decays.exponential import ExponentialDecay, retnet_log_rates
from biases.gates.output import HeadNorm, OutputGate
from biases.positions.rotary import Rotary
from biases.registry import register
from biases.traits import Decay, Traits


def retention_parallel(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, *, scale: float | None = None) -> Tensor:
    """The parallel form, O(L^2). q, k: (B, H, L, D), v: (B, H, L, Dv), gamma: (H,) -> (B, H, L, Dv)."""
    scale = _check(q, k, v, gamma, scale)
    step = torch.arange(q.shape[2], device=q.device)
    distance = step[:, None] - step
    power = gamma.to(q).view(-1, 1, 1) ** distance.clamp(min=0)
    decay = torch.where(distance >= 0, power, power.new_zeros(()))
    return (scale * (q @ k.mT) * decay) @ v


def retention_recurrent(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, *, scale: float | None = None) -> Tensor:
    """The recurrent form, one token after another. Shapes as :func:`retention_parallel`."""
    scale = _check(q, k, v, gamma, scale)
    carry = gamma.to(q).view(1, -1, 1, 1)
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    outputs = []
    for n in range(q.shape[2]):
        state = carry * state + k[:, :, n, :, None] * v[:, :, n, None, :]
        outputs.append(scale * (q[:, :, n, None, :] @ state))
    return torch.cat(outputs, 2)


def retention_chunkwise(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, *, scale: float | None = None, chunk: int = CHUNK
) -> Tensor:
    """The chunkwise form, for any chunk length. Shapes as :func:`retention_parallel`."""
    scale = _check(q, k, v, gamma, scale)
    if not isinstance(chunk, int) or chunk < 1:
        fail("retention chunk", "an integer of at least 1", chunk)
    return chunkwise_retention(q, k, v, gamma, scale=scale, chunk=chunk)


def _check(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, scale: float | None) -> float:
    rank("retention q", q, "B H L D")
    if k.shape != q.shape:
        fail("retention k", f"shape {tuple(q.shape)}, as q", tuple(k.shape))
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        fail("retention v", f"shape ({', '.join(map(str, q.shape[:3]))}, Dv)", tuple(v.shape))
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype or x.device != q.device:
            fail(f"retention {name}", f"{q.dtype} on {q.device}, as q", f"{x.dtype} on {x.device}")
    if q.shape[2] < 1:
        fail("retention q", "at least one token", tuple(q.shape))
    rank("retention gamma", gamma, "H")
    if gamma.shape[0] != q.shape[1]:
        fail("retention gamma", f"one rate for each of {q.shape[1]} heads", gamma.shape[0])
    if not bool(((gamma >= 0) & (gamma <= 1)).all()):
        fail("retention gamma", "rates in [0, 1]", gamma.tolist())
    if scale is None:
        return 1.0 / math.sqrt(q.shape[3])
    if not math.isfinite(scale):
        fail("retention scale", "a finite number", scale)
    return scale


@register(
    "retention",
    family="decays",
    summary="linear attention with exponential decay, rotated, normed by head, swish gate",
    traits=Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        normalisation="none",
        empty_row="zero",
        decay=Decay("exponential", "past", "state"),
        position="relative",
        memory="linear",
        fast_path="chunkwise",
        published="2307.08621; parallel form 2309.11523 Eq. 1-2",
    ),
    parameters="dim^2 (swish gate)",
    notes=("Chunkwise equals parallel only with the factor that the first version of the RetNet paper lacks.",),
)
def retention(dim: int, heads: int, *, rotate: bool = True) -> dict[str, object]:
    head_dim = dim // heads
    return {
        "causal": True,
        "weights": "linear",
        "decay": ExponentialDecay(retnet_log_rates(heads), placement="weights"),
        "rotary": Rotary(head_dim) if rotate else None,
        "head_norm": HeadNorm(),
        "output_gate": OutputGate(dim, heads, activation="silu", bias=False),
    }
