"""Linear weights with exponential decay, chunk by chunk, as an operator of torch: the kernel of ``retention.hpp``.

With ``f(a, b, c)_i = scale sum_{j <= i} gamma^(i - j) (a_i . b_j) c_j`` and ``r``, the same over ``j >= i`` with
``gamma^(j - i)``, the gradients of ``f(q, k, v)`` are ``f(do, v, k)``, ``r(v, do, q)`` and ``r(k, q, do)``, and those
of ``r`` the same with ``f`` and ``r`` swapped: one operator for every derivative, of any order. The kernel runs ``r``
as ``f`` of the tokens in reverse order, by strides that go back.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from biases.backends.native import arguments, ops, structures
from biases.backends.native.arguments import TILE
from biases.backends.native.structures import I64

# Queries that the kernel multiplies by keys of their chunk up to the last that any of them sees.
ROWS = 16

_library = torch.library.Library("biases", "FRAGMENT")
_library.define("native_retention(Tensor q, Tensor k, Tensor v, Tensor gamma, float scale, bool reverse) -> Tensor")


def retention(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, *, scale: float, reverse: bool = False) -> Tensor:
    """``o_i = scale sum_{j <= i} gamma^(i - j) (q_i . k_j) v_j``, with gradients of everything but ``gamma``.

    Args:
        q, k: (B, H, L, D), float32 on the CPU, in any layout; channels that are not adjacent are copied.
        v: (B, H, L, Dv), the same.
        gamma: (B, H), float64, in [0, 1]; rounded to float32 its powers would be off by 1e-4 after 4096 tokens.
        scale: factor of q . k.
        reverse: over ``j >= i``, with ``gamma^(j - i)``.

    Returns:
        (B, H, L, Dv).
    """
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, gamma))
    if asked or ops.transformed():
        out: Tensor = _Retention.apply(scale, reverse, q, k, v, gamma)
        return out
    return _run(scale, reverse, q, k, v, gamma)


def _run(scale: float, reverse: bool, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    if ops.direct((q, k, v, gamma)):
        return _call(q, k, v, gamma, scale, reverse)
    out: Tensor = torch.ops.biases.native_retention(q, k, v, gamma, scale, reverse)
    return out


class _Retention(torch.autograd.Function):
    """scale, reverse, q, k, v, gamma -> output."""

    @staticmethod
    def forward(scale: float, reverse: bool, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
        return _run(scale, reverse, q, k, v, gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.scale, ctx.reverse, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gamma = ctx.saved_tensors
        *needs, learned = ctx.needs_input_grad[2:]
        if learned:
            raise NotImplementedError("gradients of a rate of decay need attend(..., backend='fused')")
        # Dynamo passes an unused context to functions within a backward; what it traces is not vectorised over here.
        run = _run if torch.compiler.is_compiling() else _Retention.apply
        same, other = ctx.reverse, not ctx.reverse
        calls = ((same, grad, v, k), (other, v, grad, q), (other, k, q, grad))
        grads = (run(ctx.scale, *call, gamma) if need else None for need, call in zip(needs, calls, strict=True))
        return None, None, *grads, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], scale: float, reverse: bool, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        folded = (ops.fold(info.batch_size, x, dim) for x, dim in zip(tensors, in_dims[2:], strict=True))
        out: Tensor = _Retention.apply(scale, reverse, *folded)
        return out.unflatten(0, (info.batch_size, -1)), 0


def _call(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, scale: float, reverse: bool) -> Tensor:
    library, limits = arguments.kernel()
    (batch, heads, L, D), Dv = q.shape, v.shape[3]
    out = arguments.output_like(q, Dv)
    problem = structures.Retention(batch=batch, heads=heads, L=L, D=D, Dv=Dv, scale=scale)
    tensors = {name: arguments.unit(x) for name, x in (("q", q), ("k", k), ("v", v), ("out", out))}
    for name, x in tensors.items():
        of_batch, of_head, of_token = x.stride()[:3]
        first = (L - 1) * of_token if reverse else 0
        setattr(problem, name, x.data_ptr() + first * x.element_size())
        setattr(problem, f"{name}_strides", (of_batch, of_head, -of_token if reverse else of_token))
    problem.gamma, problem.gamma_strides = gamma.data_ptr(), gamma.stride()
    tasks, chunks = batch * heads, -(-L // TILE)
    work = tasks * L * (TILE * (D + Dv) // 2 + 2 * D * Dv)
    threads = torch.get_num_threads() if limits.threads and work >= arguments.WORTH_THREADS else 1
    problem.threads, problem.parts = threads, min(chunks, max(1, threads // tasks))
    sizes = (I64(), I64())
    library.biases_retention_sizes(ctypes.byref(problem), *map(ctypes.byref, sizes))
    shared, scratch = (size.value for size in sizes)
    space = arguments.working_space(shared + threads * scratch)
    problem.shared, problem.scratch_size = space.data_ptr(), scratch
    problem.scratch = space.data_ptr() + 4 * shared
    library.biases_retention(ctypes.byref(problem))
    return out


def _fake(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, scale: float, reverse: bool) -> Tensor:
    return arguments.output_like(q, v.shape[3])


_library.impl("native_retention", _call, "CPU")
torch.library.register_fake("biases::native_retention", _fake, lib=_library)


@register_flop_formula(torch.ops.biases.native_retention)
def _flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    batch, heads, L, D = q
    last = L % TILE or min(L, TILE)
    pairs = (L - last) // TILE * _pairs(TILE) + _pairs(last)
    # States are made of all chunks but the last, and used by all but the first.
    tokens = (L - last) + (L - min(L, TILE))
    return 2 * batch * heads * (pairs * (D + v[3]) + tokens * D * v[3])


def _pairs(tokens: int) -> int:
    """Pairs of a query and a key that are multiplied within a chunk."""
    return sum(min(ROWS, tokens - start) * min(start + ROWS, tokens) for start in range(0, tokens, ROWS))
