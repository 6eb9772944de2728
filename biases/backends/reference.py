"""The specification: dense attention, transcribed from the equations. Slow, L x S, and in float64 unless told
otherwise.

With logits ``s_ij = scale q_i . k_j + bias_ij`` (+ log decay where it is placed before the weights):

    softmax             A_ij = exp(s_ij) / sum_k exp(s_ik)          rows without a key are zero
    sigmoid             A_ij = sigma(s_ij) = 1 / (1 + exp(-s_ij))   SWAT, arXiv 2502.18845 Eq. 3
    sigmoid-normalised  A_ij = sigma(s_ij) / sum_k sigma(s_ik)      the same, with rows that sum to 1
    linear              A_ij = s_ij                                 retention, arXiv 2309.11523 Eq. 2

over the keys that causality, window and mask leave (all others weigh exactly 0), then decay placed after the weights,
dropout, the key gate with its renormalisation (EGA, arXiv 2605.21842 Eq. 4), and the product with the values, in this
order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from biases.backends.terms import Problem


def reference(problem: Problem, dtype: torch.dtype = torch.float64) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv), computed in ``dtype`` and returned in the dtype of the queries."""
    i, j = problem.geometry.positions(problem.q.device)
    weights = dense_weights(problem, problem.q, problem.k, i, j, dtype)
    return (weights @ problem.v.to(dtype)).to(problem.q.dtype)


def dense_weights(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    i: Tensor,
    j: Tensor,
    dtype: torch.dtype,
    rows: slice = slice(None),
    keys: slice = slice(None),
) -> Tensor:
    """What multiplies the values, for some of the queries and some of the keys: (B, H, l, s).

    Args:
        problem: the whole problem.
        q: the queries, (B, H, l, D), at positions ``i``, (l, 1).
        k: the keys, (B, H, s, D), at positions ``j``, (1, s).
        dtype: that of the arithmetic and of the result.
        rows, keys: the same queries and keys, in the coordinates of ``problem.mask`` and ``problem.keep``.
    """
    logits = problem.scale * (q.to(dtype) @ k.to(dtype).mT)
    for term in problem.biases:
        logits = logits + term.values(i, j, dtype)
    decay = problem.decay
    if decay is not None and decay.placement == "logits":
        logits = logits + decay.values(i, j, dtype)

    weights = _decayed(problem, logits, _allowed(problem, i, j, rows, keys), i, j)
    if problem.dropout:
        weights = torch.dropout(weights, problem.dropout, train=True)
    gate = problem.key_gate
    if gate is not None:
        log = gate.log[:, :, None, keys].to(dtype)
        weights = _renormalised(weights, log, gate.eps) if gate.renormalise else weights * log.exp()
    return weights


def _allowed(problem: Problem, i: Tensor, j: Tensor, rows: slice, keys: slice) -> Tensor | None:
    """Pairs that may attend, broadcastable to (B, H, l, s)."""
    parts = []
    placed = problem.geometry.allowed(i - j)
    if placed is not None:
        parts.append(placed[None, None])
    if problem.keep is not None:
        parts.append(problem.keep[:, :, None, keys])
    if problem.mask is not None:
        parts.append(problem.mask[:, :, rows, keys])
    if not parts:
        return None
    allowed = parts[0]
    for part in parts[1:]:
        allowed = allowed & part
    return allowed


def _decayed(problem: Problem, logits: Tensor, allowed: Tensor | None, i: Tensor, j: Tensor) -> Tensor:
    """Weights, with a decay that is placed after them."""
    decay, kind = problem.decay, problem.weights
    if decay is None or decay.placement == "logits":
        return _weights(kind, logits, allowed)
    log = decay.values(i, j, logits.dtype)
    if decay.placement == "weights":
        return _weights(kind, logits, allowed) * log.exp()
    if kind == "sigmoid-normalised":
        # The first row sum cancels; without it no factor underflows before the other has made up for it.
        return _softmax(F.logsigmoid(logits) + log, allowed)
    return _renormalised(_weights(kind, logits, allowed), log)


def _weights(kind: str, logits: Tensor, allowed: Tensor | None) -> Tensor:
    if kind == "softmax":
        return _softmax(logits, allowed)
    if kind == "sigmoid-normalised":
        # In logarithms, as all sigmoids of a row may underflow.
        return _softmax(F.logsigmoid(logits), allowed)
    weights = torch.sigmoid(logits) if kind == "sigmoid" else logits
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)


def _softmax(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the allowed keys; a row without any is zero and has a zero gradient."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    top = logits.detach().amax(-1, keepdim=True)
    weights = torch.exp(logits - torch.where(torch.isfinite(top), top, torch.zeros_like(top)))
    return _divide(weights, weights.sum(-1, keepdim=True))


def _renormalised(weights: Tensor, log: Tensor, eps: float = 0.0) -> Tensor:
    """``w_ij g_ij / (sum_k w_ik g_ik + eps)`` with ``g = exp(log)``.

    Without eps any factor of a row cancels, so the largest multiplier that meets a weight is made 1: a row whose
    multipliers all underflow keeps its limit.
    """
    if eps:
        gated = weights * log.exp()
        return _divide(gated, gated.sum(-1, keepdim=True) + eps)
    top = torch.where(weights > 0, log, -torch.inf).detach().amax(-1, keepdim=True)
    gated = weights * (log - torch.where(torch.isfinite(top), top, torch.zeros_like(top))).clamp(max=0.0).exp()
    return _divide(gated, gated.sum(-1, keepdim=True))


def _divide(weights: Tensor, total: Tensor) -> Tensor:
    """``weights / total``, zero where the total is zero."""
    empty = total == 0
    return torch.where(empty, torch.zeros_like(weights), weights / total.masked_fill(empty, 1.0))
