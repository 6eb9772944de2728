"""The fast path: the cheapest formulation that is equal to the specification, in O(L + S) memory.

:func:`formulate` decides, :func:`fused` runs. What the formulations are and why they are equal:

========== ==================================================================================================
sdpa       no bias: the stock fused kernel; a key gate that is not renormalised is folded into the values
key-bias   everything added to the logits depends on the key: :mod:`biases.backends.keybias`. A renormalised gate is
           the bias ``log g``, as ``A_ij g_j / sum_k A_ik g_k = softmax(s_ij + log g_j)``; causal ALiBi is
           ``m j``, as the row constant ``-m i`` cancels under the softmax
channels   a low-rank bias: more channels on queries and keys
toeplitz   a bias of the distance: reverse keys and values, ``j' = S - 1 - j``; then ``i - j = i + j' - (S - 1)``, so
           the mask is a Hankel matrix, which is a view of L + S - 1 numbers with strides (1, 1). Causal problems go
           by blocks of queries, each against the keys from the window of its first one up to its last one
mask       a boolean mask over pairs, handed to the stock kernel as it is
chunkwise  linear weights with causal exponential decay: :mod:`biases.backends.chunkwise`
tiles      everything else: :mod:`biases.backends.tiles`
========== ==================================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from biases.backends.chunkwise import chunkwise_retention
from biases.backends.keybias import extra_channels, key_bias_attention, pad_channels
from biases.backends.terms import DecayTerm, LinearTerm, LowRank, PairTerm, PerKey, Problem, Toeplitz
from biases.backends.tiles import cutter, tiled

# A causal Toeplitz problem in n blocks of queries does (n + 1) / 2 n of the work of the whole square; more blocks mean
# more and smaller calls. Measured on two cores, 1024 and 4096 tokens: 4 is best forward and backward.
CAUSAL_BLOCKS = 4
SMALLEST_BLOCK = 128


@dataclass
class Formulation:
    """How a problem will be run.

    Attributes:
        name: a name of the table in the module docstring.
        reason: why nothing cheaper would do.
        key_bias: sum of the per-key terms, (B or 1, H or 1, S).
        table: sum of the Toeplitz terms, (H or 1, L + S - 1).
        low_rank: low-rank terms.
        causal: the kernel applies the upper-left causal mask itself ("toeplitz": later keys are left out).
    """

    name: str
    reason: str = ""
    key_bias: Tensor | None = None
    table: Tensor | None = None
    low_rank: tuple[LowRank, ...] = ()
    causal: bool = False


def formulate(problem: Problem) -> Formulation:
    """Choose the formulation of ``problem``."""
    if problem.weights == "linear":
        return _formulate_linear(problem)
    if problem.weights == "sigmoid":
        return Formulation("tiles", "sigmoid weights have no row statistics to fuse")
    if problem.weights == "sigmoid-normalised":
        return Formulation("tiles", "row sums of sigmoids are not those of a softmax")
    if problem.dropout:
        return Formulation("tiles", "dropout on the weights draws a number for every pair")
    if problem.key_gate is not None and problem.key_gate.eps:
        return Formulation("tiles", "a gate with eps > 0 needs the sum of the gated weights")
    decay = problem.decay
    if decay is not None and decay.placement == "weights":
        return Formulation("tiles", "a decay after the softmax, not renormalised, needs the plain row sums")
    return _formulate_softmax(problem)


def _formulate_linear(problem: Problem) -> Formulation:
    plain = not (problem.biases or problem.mask is not None or problem.key_gate or problem.dropout)
    exponential = isinstance(problem.decay, LinearTerm) and not problem.decay.symmetric
    geometry = problem.geometry
    whole = geometry.causal and geometry.window is None and geometry.offset == 0 and geometry.L == geometry.S
    if plain and exponential and whole:
        return Formulation("chunkwise")
    return Formulation("tiles", "linear weights other than causal exponential decay over one whole sequence")


def _formulate_softmax(problem: Problem) -> Formulation:
    geometry, device = problem.geometry, problem.q.device
    half = problem.q.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else problem.q.dtype
    key_bias: Tensor | None = None
    table: Tensor | None = None
    low_rank: list[LowRank] = []
    for term in _logit_terms(problem):
        form = term.form(geometry, dtype, device, row_free=True)
        if isinstance(form, PerKey):
            key_bias = form.values if key_bias is None else key_bias + form.values
        elif isinstance(form, Toeplitz):
            table = form.table if table is None else table + form.table
        elif isinstance(form, LowRank):
            low_rank.append(form)
        else:
            return Formulation("tiles", f"{type(term).__name__} has no structured form here")
    gate = problem.key_gate
    if gate is not None and gate.renormalise:
        log = gate.log.to(dtype)
        key_bias = log if key_bias is None else key_bias + log
    if key_bias is not None:
        # Softmax sees differences only, and the kernels resolve small numbers better than large ones.
        top = key_bias.detach().amax(-1, keepdim=True)
        key_bias = key_bias - torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    if problem.keep is not None:
        key_bias = torch.zeros_like(problem.keep, dtype=dtype) if key_bias is None else key_bias
        key_bias = torch.where(problem.keep, key_bias, -torch.inf)

    native = geometry.causal and geometry.offset == 0 and geometry.window is None
    if problem.mask is not None:
        if key_bias is None and table is None and not low_rank and not geometry.causal:
            return Formulation("mask")
        return Formulation("tiles", "a mask over pairs together with a bias or causality")
    if geometry.causal and (not native or table is not None):
        distance = geometry.distances(device)
        table = distance.new_zeros((1, len(distance)), dtype=dtype) if table is None else table
        allowed = geometry.allowed(distance)
        table = table if allowed is None else table.masked_fill(~allowed, -torch.inf)
        native = False
    if table is not None:
        if table.requires_grad:
            return Formulation("tiles", "the fused kernel has no gradient for a learned Toeplitz bias")
        return Formulation("toeplitz", "", key_bias, table, tuple(low_rank), geometry.causal)
    if low_rank:
        return Formulation("channels", "", key_bias, None, tuple(low_rank), native)
    return Formulation("sdpa" if key_bias is None else "key-bias", "", key_bias, causal=native)


def _logit_terms(problem: Problem) -> tuple[PairTerm, ...]:
    decay: tuple[DecayTerm, ...] = () if problem.decay is None else (problem.decay,)
    return (*problem.biases, *decay)


def fused(problem: Problem) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv)."""
    plan = formulate(problem)
    if plan.name == "tiles":
        return tiled(problem)
    q, k, v, width = problem.q, problem.k, problem.v, problem.v.shape[-1]
    if plan.name == "chunkwise":
        gamma = torch.exp(-problem.decay.slopes)  # type: ignore[union-attr]
        return chunkwise_retention(q, k, v, gamma, scale=problem.scale)
    gate = problem.key_gate
    if gate is not None and not gate.renormalise:
        v = v * gate.log.exp().to(v.dtype)[..., None]
    if plan.name in ("toeplitz", "channels"):
        return _structured(q, k, v, plan, problem)[..., :width]

    # The kernels need one width for queries, keys and values; zero channels change nothing.
    common = max(q.shape[-1], width)
    q, k, v = (_row_contiguous(pad_channels(x, common)) for x in (q, k, v))
    if plan.name == "mask":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=problem.mask, scale=problem.scale)[..., :width]
    out = key_bias_attention(q, k, v, plan.key_bias, causal=plan.causal, scale=problem.scale)
    return out[..., :width]


def _structured(q: Tensor, k: Tensor, v: Tensor, plan: Formulation, problem: Problem) -> Tensor:
    """The formulations "toeplitz" and "channels"."""
    scale, table = problem.scale, plan.table
    # On other strides stock attention takes its dense path.
    q, k, v = (_row_contiguous(x) for x in (q, k, v))
    if table is not None:
        table = _without_negligible(table, plan, problem).contiguous()
    q, k, v = extra_channels(q, k, v, plan.key_bias, plan.low_rank, scale)
    if table is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=plan.causal, scale=scale)
    k, v = k.flip(2), v.flip(2)
    if not plan.causal:
        return _toeplitz_rows(q, k, v, table, 0, scale)
    L, S = q.shape[2], k.shape[2]
    window = problem.geometry.window
    block = _block(L, window)
    queries, keys_of, values_of = (cutter(x, block, window) for x in (q, k, v))
    outputs = []
    for start in range(0, L, block):
        rows = queries(slice(start, min(start + block, L)))
        first, last = problem.geometry.reach(start, min(start + block, L))
        if first == last:
            outputs.append(torch.zeros_like(rows[..., :1]).expand(-1, -1, -1, v.shape[-1]))
        else:
            keys = slice(S - last, S - first)
            outputs.append(_toeplitz_rows(rows, keys_of(keys), values_of(keys), table, start + keys.start, scale))
    return torch.cat(outputs, 2)


def _block(L: int, window: int | None) -> int:
    """Queries in a block of a causal Toeplitz problem."""
    quarter = -(-L // CAUSAL_BLOCKS)
    return max(SMALLEST_BLOCK, quarter if window is None else min(quarter, window))


@torch.no_grad()
def _without_negligible(table: Tensor, plan: Formulation, problem: Problem) -> Tensor:
    """``table`` with ``-inf`` where no weight can reach the rounding error of its row.

    A weight of 1e-40 is subnormal, and arithmetic on it makes the kernel's backward several times slower. By
    Cauchy-Schwarz no logit lies further than ``R = scale max|q| max|k|`` from zero, so a key whose bias is ``2 R + c``
    below that of the query's own key weighs at most ``exp(-c)`` of it. Only where every query has its own key among
    the keys, without other terms.
    """
    geometry = problem.geometry
    alone = plan.key_bias is None and not plan.low_rank
    if not alone or geometry.L != geometry.S or geometry.offset != 0:
        return table
    q, k = problem.q.to(table.dtype), problem.k.to(table.dtype)
    reach = problem.scale * q.norm(dim=-1).amax((0, 2)) * k.norm(dim=-1).amax((0, 2))
    margin = -2.0 * math.log(torch.finfo(table.dtype).eps)
    bound = table[:, geometry.S - 1] - 2.0 * reach - margin
    return torch.where(table < bound[:, None], -torch.inf, table)


def _toeplitz_rows(q: Tensor, k: Tensor, v: Tensor, table: Tensor, first: int, scale: float) -> Tensor:
    """Attention with the bias ``table[first + i + j']`` for query i and reversed key j'."""
    (batch, heads, L, _), S = q.shape, k.shape[2]
    hankel = table.as_strided((table.shape[0], L, S), (table.shape[1], 1, 1), first)
    mask = hankel[None].expand(batch, heads, L, S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _row_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
