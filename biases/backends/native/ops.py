"""The kernel as operators of torch, with gradients and ``torch.func.vmap``.

Operators (``torch.ops.biases``) are what ``torch.compile`` and fake tensors need: opaque calls with known shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from biases._cache import intercepted
from biases.backends.geometry import Geometry
from biases.backends.native import arguments
from biases.backends.native.arguments import Index, Operands, Spec

_SPEC = "Tensor[] rows, Tensor[] columns, int[] stages, str mode, float scale, int offset, bool causal, int window"
_OPERANDS = "Tensor q, Tensor k, Tensor v, Tensor? key_bias, Tensor? post_bias, Tensor? mask, Tensor[] tables"
_library = torch.library.Library("biases", "DEF")
_library.define(f"native_forward({_OPERANDS}, {_SPEC}) -> (Tensor, Tensor, Tensor)")
_library.define(
    "native_backward(Tensor grad, Tensor out, Tensor top, Tensor inverse, bool[] wanted, "
    f"{_OPERANDS}, {_SPEC}) -> Tensor[]"
)
Packed = tuple[list[Tensor], list[Tensor], list[int], str, float, int, bool, int]


def _pack(spec: Spec) -> Packed:
    rows, columns = [index.row for index in spec.indices], [index.column for index in spec.indices]
    return rows, columns, list(spec.stages), spec.mode, spec.scale, spec.offset, spec.causal, spec.window or 0


def _unpack(
    rows: list[Tensor],
    columns: list[Tensor],
    stages: list[int],
    mode: str,
    scale: float,
    offset: int,
    causal: bool,
    window: int,
) -> Spec:
    indices = tuple(Index(*pair) for pair in zip(rows, columns, strict=True))
    return Spec(mode, scale, offset, causal, window or None, tuple(stages), indices)


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    key_bias, post_bias, mask, tables = rest[:4]
    return arguments.forward(_unpack(*rest[4:]), Operands(q, k, v, key_bias, post_bias, mask, tables))


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    out = arguments.output_like(q, v.shape[3])
    return out, q.new_empty(q.shape[:3]), q.new_empty(q.shape[:3])


def _backward(grad: Tensor, out: Tensor, top: Tensor, inverse: Tensor, wanted: list[bool], *rest: Any) -> list[Tensor]:
    q, k, v, key_bias, post_bias, mask, tables = rest[:7]
    operands = Operands(q, k, v, key_bias, post_bias, mask, tables)
    return arguments.backward(_unpack(*rest[7:]), operands, grad, out, top, inverse, tuple(wanted))


def _fake_backward(
    grad: Tensor, out: Tensor, top: Tensor, inverse: Tensor, wanted: list[bool], *rest: Any
) -> list[Tensor]:
    q, k, v, key_bias, post_bias, _, tables = rest[:7]
    of = [part for part, want in zip((key_bias, post_bias, *tables), wanted, strict=True) if want]
    operands = [arguments.output_like(part, part.shape[3]) for part in (q, k, v)]
    return operands + [part.new_empty(part.shape) for part in of]


_library.impl("native_forward", _forward, "CPU")
_library.impl("native_backward", _backward, "CPU")
torch.library.register_fake("biases::native_forward", _fake_forward, lib=_library)
torch.library.register_fake("biases::native_backward", _fake_backward, lib=_library)


def _pairs(q: Any, k: Any, offset: int, causal: bool, window: int) -> int:
    """Pairs of a query and a key that causality and window leave to the tiles of queries, of all examples and heads."""
    geometry = Geometry(q[2], k[2], offset, causal, window or None)
    bounds = [(start, min(start + arguments.TILE, q[2])) for start in range(0, q[2], arguments.TILE)]
    reach = ((stop - start, *geometry.reach(start, stop)) for start, stop in bounds)
    return q[0] * q[1] * sum(queries * (last - first) for queries, first, last in reach)


@register_flop_formula(torch.ops.biases.native_forward)
def _forward_flops(q: Any, k: Any, v: Any, *rest: Any, **_: Any) -> int:
    return 2 * (q[3] + v[3]) * _pairs(q, k, *rest[-3:])


@register_flop_formula(torch.ops.biases.native_backward)
def _backward_flops(*arguments_: Any, **_: Any) -> int:
    q, k, v = arguments_[5:8]
    return 2 * (3 * q[3] + 2 * v[3]) * _pairs(q, k, *arguments_[-3:])


def attention(
    spec: Spec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None = None,
    post_bias: Tensor | None = None,
    mask: Tensor | None = None,
    tables: tuple[Tensor, ...] = (),
) -> Tensor:
    """The output, (B, H, L, Dv), with gradients of everything but the mask; see :class:`Operands` for the shapes."""
    tensors = (q, k, v, key_bias, post_bias, *tables)
    asked = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if not (asked or transformed()):
        # The machinery of gradients costs as much as the attention of a small window.
        return _run_forward(spec, q, k, v, key_bias, post_bias, mask, *tables)[0]
    return _Attention.apply(spec, q, k, v, key_bias, post_bias, mask, *tables)[0]


def transformed() -> bool:
    """Whether ``torch.func`` transforms the call; where this torch does not tell, it may."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or active()


class _Attention(torch.autograd.Function):
    """spec, q, k, v, key_bias, post_bias, mask, tables -> output, row statistics."""

    @staticmethod
    def forward(spec: Spec, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _run_forward(spec, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, *tensors = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        *tensors, out, top, inverse = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        wanted = (*needs[3:5], *needs[6:])
        # Dynamo passes an unused context to functions within a backward; what it traces is not vectorised over here.
        run = _run_backward if torch.compiler.is_compiling() else _AttentionBackward.apply
        found = iter(run(ctx.spec, wanted, grad, out, top, inverse, *tensors))
        grads = [next(found) for _ in range(3)]
        biases = [next(found) if want else None for want in wanted]
        return None, *grads, *biases[:2], None, *biases[2:]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], spec: Spec, *inputs: Any) -> tuple[Any, Any]:
        folded = _fold_operands(info.batch_size, in_dims[1:], inputs)
        return _unfold(info.batch_size, _Attention.apply(spec, *folded))


def direct(tensors: tuple[Any, ...]) -> bool:
    """Whether nothing but the kernel would see the call of an operator, which costs as much as a few small windows."""
    return not intercepted() and all(x is None or type(x) in (Tensor, torch.nn.Parameter) for x in tensors)


def _run_forward(spec: Spec, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, key_bias, post_bias, mask, *tables = inputs
    if spec.direct and direct(inputs):
        return arguments.forward(spec, Operands(q, k, v, key_bias, post_bias, mask, tables))
    return torch.ops.biases.native_forward(q, k, v, key_bias, post_bias, mask, tables, *_pack(spec))


def _run_backward(spec: Spec, wanted: tuple[bool, ...], *inputs: Any) -> tuple[Tensor, ...]:
    head, operands, tables = inputs[:4], inputs[4:10], list(inputs[10:])
    if spec.direct and direct(inputs):
        (grad, out, top, inverse), (q, k, v, key_bias, post_bias, mask) = head, operands
        x = Operands(q, k, v, key_bias, post_bias, mask, tables)
        return tuple(arguments.backward(spec, x, grad, out, top, inverse, wanted))
    return tuple(torch.ops.biases.native_backward(*head, list(wanted), *operands, tables, *_pack(spec)))


class _AttentionBackward(torch.autograd.Function):
    """spec, wanted, grad, output, row statistics, operands -> gradients; a function, to be vectorised over."""

    @staticmethod
    def forward(spec: Spec, wanted: tuple[bool, ...], *inputs: Any) -> tuple[Tensor, ...]:
        return _run_backward(spec, wanted, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "second derivatives need attend(..., backend='dense'), or biases.set_backend(module, 'dense') for a module"
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], spec: Spec, wanted: tuple[bool, ...], *inputs: Any
    ) -> tuple[Any, Any]:
        size, dims = info.batch_size, in_dims[2:]
        head = [fold(size, x, dim) for x, dim in zip(inputs[:4], dims[:4], strict=True)]
        folded = _fold_operands(size, dims[4:], inputs[4:])
        return _unfold(size, _AttentionBackward.apply(spec, wanted, *head, *folded))


def fold(size: int, x: Tensor, dim: int | None) -> Tensor:
    """``x`` with the vectorised axis, made where it has none, folded into the first."""
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def _fold_operands(size: int, dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """Operands of a vectorised call: the vectorised axis becomes part of the batch, and a group of the tables."""
    *operands, mask = inputs[:6]
    folded: list[Any] = [None if x is None else fold(size, x, dim) for x, dim in zip(operands, dims[:5], strict=True)]
    if mask is not None and dims[5] is not None:
        mask = mask.movedim(dims[5], 0)
        # Masks are used in turn, so each of the vectorised axis has to have one for each example.
        mask = mask.repeat(1, folded[0].shape[0] // size // mask.shape[1], 1, 1, 1).flatten(0, 1)
    tables = [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(inputs[6:], dims[6:], strict=True)
    ]
    groups = max((x.shape[1] for x in tables), default=1)
    return [*folded, mask, *(x.expand(-1, groups, -1, -1).flatten(0, 1) for x in tables)]


def _unfold(size: int, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)
