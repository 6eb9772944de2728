"""Attention over pairs in Triton: sigmoid weights, row-normalised ones, linear biases, decays before or after them.

What is expected beside flash attention of the same shapes (counted, not measured). Bytes: the same, plus 4 bytes for
each number of a key bias. Matrix products: the same two forward, and seven in place of five backward, as the gradients
by queries and by keys are two kernels which both form the logits and ``dO . v``. Exponentials and divisions, which on
an H100 take about as long as the products at width 64: a softmax has one exponential a pair, a sigmoid one and a
reciprocal, a softmax of log-sigmoids three and a logarithm; decays and biases cost multiplications and additions, save
on the diagonal, where a decay after the weights is one more exponential. Sigmoids have no running maximum, and so
nothing to rescale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biases.backends.terms import Problem
from biases.backends.triton import memory
from biases.backends.triton.blocks import Blocks, blocks, padded, places, precision
from biases.backends.triton.pairwise_kernels import backward_queries, forward
from biases.backends.triton.pairwise_keys import backward_keys
from biases.backends.triton.plan import SIGMOID, plan

_TERMS = "Tensor? inside, Tensor? between, Tensor? outside, Tensor? key_inside, Tensor? key_between"
_OPTIONS = "float scale, str kind, bool causal, int window, int offset"


def run(problem: Problem) -> Tensor:
    """The output of ``problem``, (B, H, L, Dv); :func:`biases.backends.triton.why_not` must be ``None``."""
    q, k, v, geometry = problem.q, problem.k, problem.v, problem.geometry
    form = plan(problem)
    if form.values is not None:
        v = (v * form.values[..., None]).to(v.dtype)
    batch, heads, keys = k.shape[:3]
    numbers = (None if x is None else x.expand(batch, heads, keys) for x in (form.key_inside, form.key_between))
    window = 0 if geometry.window is None else geometry.window
    options = (problem.scale, form.kind, form.causal, window, geometry.offset)
    out, _ = torch.ops.biases.pairwise(q, k, v, form.inside, form.between, form.outside, *numbers, *options)
    return out


def _settings(q: Tensor, v: Tensor, chosen: Blocks) -> dict[str, Any]:
    """Keyword arguments that all kernels take."""
    return {
        "QUERIES": chosen.queries,
        "KEYS": chosen.keys,
        "D": q.shape[-1],
        "DV": v.shape[-1],
        "WIDTH": padded(q.shape[-1]),
        "V_WIDTH": padded(v.shape[-1]),
        "PRECISION": precision(q.dtype),
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
    }


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if x is None else x.stride()


@torch.library.custom_op(
    "biases::pairwise",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_TERMS}, {_OPTIONS}) -> (Tensor, Tensor)",
)
def _pairwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor | None,
    between: Tensor | None,
    outside: Tensor | None,
    key_inside: Tensor | None,
    key_between: Tensor | None,
    scale: float,
    kind: str,
    causal: bool,
    window: int,
    offset: int,
) -> tuple[Tensor, Tensor]:
    (batch, heads, queries, width), keys = q.shape, k.shape[2]
    out = memory.empty(q, (batch, heads, queries, v.shape[-1]))
    lse = memory.empty(q, (batch, heads, queries if kind != SIGMOID else 0), torch.float32)
    chosen = blocks("forward", max(width, v.shape[-1]), q.element_size())
    grid = (-(-queries // chosen.queries) * batch * heads,)
    with memory.on(q):
        forward[grid](
            *(q, k, v, out, lse, inside, between, outside, key_inside, key_between),
            *(x.stride() for x in (q, k, v, out)),
            *(_strides(x) for x in (key_inside, key_between)),
            *(scale, heads, queries, keys, offset, window, kind, causal, window > 0),
            places(key_inside, key_between),
            **_settings(q, v, chosen),
        )
    return out, lse


@_pairwise.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    kind = others[6]
    out = q.new_empty((*q.shape[:3], v.shape[-1]))
    lse = q.new_empty((*q.shape[:2], q.shape[2] if kind != SIGMOID else 0), dtype=torch.float32)
    return out, lse


@torch.library.custom_op(
    "biases::pairwise_backward",
    mutates_args=(),
    schema=(
        f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_TERMS}, {_OPTIONS}, bool[] wanted)"
        " -> Tensor[]"
    ),
)
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    inside: Tensor | None,
    between: Tensor | None,
    outside: Tensor | None,
    key_inside: Tensor | None,
    key_between: Tensor | None,
    scale: float,
    kind: str,
    causal: bool,
    window: int,
    offset: int,
    wanted: list[bool],
) -> list[Tensor]:
    """Gradients of queries, keys and values, then of the five terms: those that are not ``wanted`` are empty."""
    (batch, heads, queries, width), keys = q.shape, k.shape[2]
    chosen = blocks("queries", max(width, v.shape[-1]), q.element_size())
    programs = -(-queries // chosen.queries) * batch * heads
    dq, dk, dv = memory.empty(q, q.shape), memory.empty(k, k.shape), memory.empty(v, v.shape)
    deltas = memory.empty(q, lse.shape, torch.float32)
    sums = [memory.empty(q, (2, programs if each else 0), torch.float32) for each in wanted[:3]]
    numbers = [memory.empty(q, (batch, heads, keys if each else 0), torch.float32) for each in wanted[3:]]
    terms = (inside, between, outside, key_inside, key_between)
    key_strides = [_strides(x) for x in (key_inside, key_between)]
    with_keys = places(key_inside, key_between)
    common = (scale, heads, queries, keys, offset, window, kind, causal, window > 0, with_keys)
    with memory.on(q):
        backward_queries[(programs,)](
            *(q, k, v, out, grad, dq, lse, deltas, *sums, *terms),
            *(x.stride() for x in (q, k, v, out, grad, dq)),
            *key_strides,
            *common,
            places(*wanted[:3]),
            **_settings(q, v, chosen),
        )
        chosen = blocks("keys", max(width, v.shape[-1]), q.element_size())
        backward_keys[(-(-keys // chosen.keys) * batch * heads,)](
            *(q, k, v, grad, dk, dv, lse, deltas, *numbers, *terms),
            *(x.stride() for x in (q, k, v, grad, dk, dv)),
            *key_strides,
            *common,
            places(*wanted[3:]),
            **_settings(q, v, chosen),
        )
    # The programs of a head follow one another; double precision, as there are as many as there are blocks.
    slopes = [x.view(2, batch, heads, -1).sum((1, 3), dtype=torch.float64).float() if x.numel() else x for x in sums]
    return [dq, dk, dv, *slopes, *numbers]


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> list[Tensor]:
    wanted, (batch, heads, keys) = others[-1], k.shape[:3]
    like = [x.new_empty(x.shape) for x in (q, k, v)]
    slopes = [q.new_empty((2, heads if each else 0), dtype=torch.float32) for each in wanted[:3]]
    numbers = [q.new_empty((batch, heads, keys if each else 0), dtype=torch.float32) for each in wanted[3:]]
    return [*like, *slopes, *numbers]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:8])
    ctx.options = inputs[8:]


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[3:8])
    found = torch.ops.biases.pairwise_backward(grad, *ctx.saved_tensors, *ctx.options, wanted)
    terms = [x if each else None for x, each in zip(found[3:], wanted, strict=True)]
    return (*found[:3], *terms, *(None,) * len(ctx.options))


_pairwise.register_autograd(_gradients, setup_context=_setup_context)
