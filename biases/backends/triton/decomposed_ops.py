"""The operators of :mod:`biases.backends.triton.decomposed`: one forward kernel, and one or two backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biases.backends.triton import memory
from biases.backends.triton.blocks import padded, places, precision
from biases.backends.triton.decomposed_backward import backward_columns, backward_rows
from biases.backends.triton.decomposed_kernels import forward

# Pixels of a tile, by bytes of a number: without tensor cores a larger one of float32 does not fit into registers.
TILES = {2: 64, 4: 32}
_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? inside, Tensor? between, Tensor? outside, Tensor? first, Tensor? second, "
    "float scale, str kind"
)


def tile_of(pixels: int, longest: int, most: int) -> int:
    """Pixels that a program holds: all of a map if they are few, and never less than a side."""
    return max(padded(longest), min(most, padded(pixels)))


def _settings(q: Tensor, v: Tensor, across: int, along: int) -> dict[str, Any]:
    """Keyword arguments that all kernels take, where a program owns lines of ``across`` pixels, ``along`` in a map."""
    pixels = tile_of(across * along, max(across, along), TILES[q.element_size()])
    group = min(pixels // across, along)
    widest = max(q.shape[-1], v.shape[-1])
    return {
        "ROWS": q.shape[2],
        "COLUMNS": q.shape[3],
        "GROUP": group,
        "PROGRAMS": -(-along // group),
        "PIXELS": pixels,
        "D": q.shape[-1],
        "DV": v.shape[-1],
        "WIDTH": padded(q.shape[-1]),
        "V_WIDTH": padded(v.shape[-1]),
        "PRECISION": precision(q.dtype),
        # The accumulators of wider heads take the registers of twice the warps.
        "num_warps": 8 if widest * q.element_size() > 128 else 4,
        # All loops are a few tiles long: there is nothing to gain by prefetching many.
        "num_stages": 1,
    }


def _empty_map(like: Tensor, width: int) -> Tensor:
    """(B, heads, H, W, ``width``) whose heads lie side by side, as the layers join them."""
    batch, heads, height, columns = like.shape[:4]
    return memory.empty(like, (batch, height, columns, heads, width)).permute(0, 3, 1, 2, 4)


@torch.library.custom_op("biases::decomposed", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _decomposed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor | None,
    between: Tensor | None,
    outside: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    scale: float,
    kind: str,
) -> Tensor:
    batch, heads = q.shape[:2]
    out = _empty_map(q, v.shape[-1])
    settings = _settings(q, v, q.shape[2], q.shape[3])
    with memory.on(q):
        forward[(batch * heads * settings["PROGRAMS"],)](
            *(q, k, v, out, inside, between, outside, first, second),
            *(x.stride() for x in (q, k, v, out)),
            *(scale, heads, _masks(first, second), kind),
            **settings,
        )
    return out


def _masks(first: Tensor | None, second: Tensor | None) -> tuple[int, int]:
    """How many masks each pass has."""
    return 1 if first is None else len(first), 1 if second is None else len(second)


@_decomposed.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    return _empty_map(q, v.shape[-1])


@torch.library.custom_op(
    "biases::decomposed_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, bool[] wanted) -> Tensor[]",
)
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor | None,
    between: Tensor | None,
    outside: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    scale: float,
    kind: str,
    wanted: list[bool],
) -> list[Tensor]:
    """Gradients of queries, keys and values, then of the slopes of three places: those not ``wanted`` are empty."""
    batch, heads, height, width = q.shape[:4]
    settings = _settings(q, v, height, width)
    programs = batch * heads * settings["PROGRAMS"]
    dq, dk, dv = (_empty_map(x, x.shape[-1]) for x in (q, k, v))
    # The second kernel is needed where a row is not one program's.
    lines = (batch, heads, height * width if settings["PROGRAMS"] > 1 else 0)
    dk_second = memory.empty(k, (*lines, k.shape[-1]), torch.float32)
    dy = memory.empty(v, (*lines, v.shape[-1]), v.dtype)
    lse, deltas = (memory.empty(q, lines, torch.float32) for _ in range(2))
    sums = [memory.empty(q, (2, programs if each else 0), torch.float32) for each in wanted]
    slopes = (inside, between, outside)
    options = (scale, heads, _masks(first, second), kind)
    with memory.on(q):
        backward_columns[(programs,)](
            *(q, k, v, grad, dq, dk, dv, dk_second, dy, lse, deltas, *sums, *slopes, first, second),
            *(x.stride() for x in (q, k, v, grad, dq, dk, dv)),
            *options,
            places(*wanted),
            **settings,
        )
        if settings["PROGRAMS"] > 1:
            settings = _settings(q, v, width, height)
            backward_rows[(batch * heads * settings["PROGRAMS"],)](
                *(q, k, v, dk, dv, dk_second, dy, lse, deltas, *slopes, first),
                *(x.stride() for x in (q, k, v, dk, dv)),
                *options,
                **settings,
            )
    found = [x.view(2, batch, heads, -1).sum((1, 3), dtype=torch.float64).float() if x.numel() else x for x in sums]
    return [dq, dk, dv, *found]


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> list[Tensor]:
    slopes = [q.new_empty((2, q.shape[1] if each else 0), dtype=torch.float32) for each in others[-1]]
    return [*(_empty_map(x, x.shape[-1]) for x in (q, k, v)), *slopes]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[3:6])
    found = torch.ops.biases.decomposed_backward(grad, *ctx.saved_tensors, *ctx.options, wanted)
    slopes = [x if each else None for x, each in zip(found[3:], wanted, strict=True)]
    return (*found[:3], *slopes, None, None, *(None,) * len(ctx.options))


_decomposed.register_autograd(_gradients, setup_context=_setup_context)
