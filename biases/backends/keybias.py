"""Softmax attention with a bias of the key, in O(L + S) memory, with its gradient.

Two formulations of ``softmax(s_ij + b_j)``:

* on the CPU, the fused kernel with ``b`` as a mask of stride 0 over the queries, and an own backward: the kernel's
  backward returns ``dV_j = sum_i P_ij dO_i``; carrying ``delta_i = dO_i . O_i`` as one more channel of ``dO`` makes it
  return ``sum_i P_ij delta_i`` as well, so that ``db_j = dV_j . v_j - sum_i P_ij delta_i`` costs no L x S tensor;
* elsewhere, one more channel on the queries (1) and the keys (b / scale), over ``scaled_dot_product_attention``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from biases.backends.terms import LowRank

_CPU_FORWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_CPU_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
CHANNELS = 8


def pad_channels(x: Tensor, width: int) -> Tensor:
    """``x`` with zero channels appended up to ``width``."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def key_bias_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool, scale: float) -> Tensor:
    """``softmax(scale q k^T + bias)`` times ``v``.

    Args:
        q: (B, H, L, D); k: (B, H, S, D); v: (B, H, S, D).
        bias: (B or 1, H or 1, S), ``-inf`` excludes a key; ``None`` for none.
        causal: upper-left causal mask.
        scale: factor of q . k.

    Returns:
        (B, H, L, D).
    """
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    if q.device.type == "cpu" and _CPU_FORWARD is not None and _CPU_BACKWARD is not None:
        full = bias.expand(q.shape[0], q.shape[1], bias.shape[2])
        return _KeyBiasOnCPU.apply(q, k, v, full, causal, scale)[0]
    queries, keys, values = extra_channels(q, k, v, bias, (), scale)
    out = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=scale)
    return out[..., : v.shape[-1]]


class _KeyBiasOnCPU(torch.autograd.Function):
    """The fused CPU kernel with a stride-0 mask; see the module docstring for the backward."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        return _CPU_FORWARD(q, k, v, 0.0, causal, attn_mask=_as_mask(bias, q), scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.causal, ctx.scale = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        with_bias = ctx.needs_input_grad[3]
        grads = _KeyBiasOnCPUBackward.apply(grad, *ctx.saved_tensors, ctx.causal, ctx.scale, with_bias)
        return *grads[:3], grads[3] if with_bias else None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        outputs = _KeyBiasOnCPU.apply(*_fold(info.batch_size, in_dims, inputs))
        return _unfold(info.batch_size, outputs)


class _KeyBiasOnCPUBackward(torch.autograd.Function):
    """Gradients of queries, keys, values and, if asked for, bias; a function so that it can be vectorised over."""

    @staticmethod
    def forward(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
        with_bias: bool,
    ) -> tuple[Tensor, ...]:
        mask, D = _as_mask(bias, q), v.shape[-1]
        if not with_bias:
            grads = _CPU_BACKWARD(grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale)
            return *grads, torch.zeros_like(bias)
        delta = _parts((grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1, keepdim=True), grad.dtype)
        width = D + CHANNELS
        wide = pad_channels(torch.cat([grad, *delta], -1), width)
        padded = (pad_channels(x, width) for x in (q, k, v, out))
        dq, dk, dv = _CPU_BACKWARD(wide, *padded, lse, 0.0, causal, attn_mask=mask, scale=scale)
        received = (dv[..., :D].to(lse.dtype) * v.to(lse.dtype)).sum(-1)
        received = received - dv[..., D : D + len(delta)].to(lse.dtype).sum(-1)
        return dq[..., :D], dk[..., :D], dv[..., :D], received.to(bias.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "second derivatives need attend(..., backend='dense'), or biases.set_backend(module, 'dense') for a module"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        outputs = _KeyBiasOnCPUBackward.apply(*_fold(info.batch_size, in_dims, inputs))
        return _unfold(info.batch_size, outputs)


def _fold(size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """Inputs of a vectorised call with the vectorised axis folded into the batch."""
    folded = []
    for x, dim in zip(inputs, in_dims, strict=True):
        if isinstance(x, Tensor):
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x.flatten(0, 1)
        folded.append(x)
    return folded


def _unfold(size: int, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)


def _as_mask(bias: Tensor, q: Tensor) -> Tensor:
    """(B, H, S) as a mask (B, H, L, S) of stride 0; float32 beside half precision, else the dtype of ``q``."""
    dtype = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    return bias.to(dtype)[:, :, None, :].expand(-1, -1, q.shape[2], -1)


def extra_channels(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, low_rank: tuple[LowRank, ...], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with channels that add a key bias and low-rank terms to ``scale q . k``.

    In half precision every number is split into parts whose sum is exact, one channel each, so that the bias reaches
    the logits as accurately as float32 accumulation allows.
    """
    batch, heads, L, _ = q.shape
    S = k.shape[2]
    left, right = [q], [k]
    if bias is not None:
        for part in _parts(bias / scale, q.dtype):
            left.append(q.new_ones(1, 1, 1, 1).expand(batch, heads, L, 1))
            right.append(part[..., None].expand(batch, heads, S, 1))
    for term in low_rank:
        lefts, rights = _parts(term.left, q.dtype), _parts(term.right / scale, q.dtype)
        for order, a in enumerate(lefts):
            for b in rights[: len(rights) - order]:
                left.append(a.expand(batch, heads, L, -1))
                right.append(b.expand(batch, heads, S, -1))
    queries, keys = torch.cat(left, -1), torch.cat(right, -1)
    width = max(queries.shape[-1], v.shape[-1])
    width += -width % CHANNELS
    return pad_channels(queries, width), pad_channels(keys, width), pad_channels(v, width)


def _parts(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of ``dtype`` that sum to ``x``: one, or three for half precision."""
    if dtype not in (torch.float16, torch.bfloat16):
        return [x.to(dtype)]
    limit = torch.finfo(dtype).max
    parts, rest = [], x.float()
    for _ in range(3):
        # What exceeds the range goes on into the next part; infinities stay what they are, once.
        finite = torch.isfinite(rest)
        part = torch.where(finite, rest.clamp(-limit, limit), rest).to(dtype)
        parts.append(part)
        rest = torch.where(finite, rest - part.float(), torch.zeros_like(rest))
    return parts
