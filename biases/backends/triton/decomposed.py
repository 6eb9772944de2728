"""Attention along the rows and then along the columns of a small map, in one kernel.

The plain formulation is two attentions, of sequences far shorter than a block of a flash kernel, with a result between
them that is written and read again. Here a program holds whole columns of one map on the chip, or all of it.

What is expected beside two calls of flash attention on the same rows and columns (counted, not measured; half
precision). Bytes: queries, keys, values and output once instead of twice, where one program holds the map. Products: a
map of up to 64 pixels takes four of 64 x 64 by the head width; flash attention takes two of a padded block for every
row and every column. A map of 256 pixels takes ten of that size in each of its four programs, over ten times the pairs
that count. Exponentials: one for each pair of those blocks, and a reciprocal for sigmoids or one more for decays after
the weights; at 256 pixels they are likely to take longer than the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from biases.backends.geometry import Geometry
from biases.backends.terms import DecayTerm, LinearTerm, PairTerm
from biases.backends.transforms import tensors, wrapped
from biases.backends.triton import TRANSFORMED, why_no_kernels
from biases.backends.triton.plan import plan_terms, why_no_plan

LONGEST = 32
MOST_PIXELS = 256
WIDEST = 128

Masks = tuple[Tensor | None, Tensor | None]


def why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    biases: Sequence[PairTerm],
    weights: str,
    decay: DecayTerm | None,
    masks: Masks = (None, None),
    rotated: bool = False,
) -> str | None:
    """Why :func:`run` cannot compute this; ``None`` if it can.

    Args:
        q, k: (B, heads, H, W, D); v: (B, heads, H, W, Dv).
        biases, weights, decay, masks: see :func:`biases.axial.attend_decomposed`.
        rotated: whether queries and keys are turned along the axis of each pass.
    """
    height, width = q.shape[2:4]
    if max(height, width) > LONGEST or height * width > MOST_PIXELS:
        limit = f"{MOST_PIXELS} pixels with sides of at most {LONGEST}"
        return f"a map of {height} x {width}: one program holds no more than {limit}"
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        return f"a head is wider than {WIDEST}"
    if rotated:
        return "each pass has queries and keys of its own, turned along its axis"
    for term in biases:
        if not isinstance(term, LinearTerm):
            return f"{type(term).__name__} is not linear in the distance"
    if isinstance(decay, LinearTerm) and not decay.symmetric:
        return "a decay of the past alone"
    reason = why_no_plan(weights, biases, decay, None, Geometry(1, 1))
    if reason is not None:
        return reason
    if not torch.compiler.is_compiling() and any(wrapped(x) for x in tensors((q, k, v, *masks, *biases, decay))):
        return TRANSFORMED
    return why_no_kernels(q)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    biases: Sequence[PairTerm],
    weights: str,
    decay: DecayTerm | None,
    masks: Masks,
    order: str,
    scale: float,
) -> Tensor:
    """The output of :func:`biases.axial.attend_decomposed`, (B, heads, H, W, Dv), for arguments that it has checked.

    Raises:
        ValueError: the kernels cannot run it, saying why.
    """
    reason = why_not(q, k, v, biases=biases, weights=weights, decay=decay, masks=masks)
    if reason is not None:
        raise ValueError(f"backend 'triton': {reason}")
    form = plan_terms(weights, biases, decay, None, q.shape[1], q.device)
    second, first = (None if mask is None else pack(mask) for mask in masks)
    if order == "height-first":
        q, k, v = (x.transpose(2, 3) for x in (q, k, v))
        first, second = second, first
    from biases.backends.triton import decomposed_ops  # noqa: F401

    slopes = (form.inside, form.between, form.outside)
    out = torch.ops.biases.decomposed(q, k, v, *slopes, first, second, scale, form.kind)
    return out.transpose(2, 3) if order == "height-first" else out


def pack(mask: Tensor) -> Tensor:
    """(B', T, T) booleans, T <= 32, as one number a row whose bit j is column j: (B', T), int32."""
    bits = torch.arange(mask.shape[-1], device=mask.device)
    return (mask.to(torch.int64) << bits).sum(-1).to(torch.int32)
