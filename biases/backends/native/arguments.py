"""Calling the kernel with tensors."""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from biases._memory import keeper
from biases.backends.native import build
from biases.backends.native.structures import I64, Problem, Retention, Term

MODES = {"softmax": 0, "sigmoid": 1, "sigmoid-normalised": 2}
LOGITS, LOGARITHM, FACTOR = range(3)
MOST_TABLES = 8
#: queries that the kernel computes together
TILE = 64
# Below this many multiplications a second thread costs more than it does.
WORTH_THREADS = 1 << 18
# Sums of tables over all pairs are formed once and used for every example, where they are small and used often.
EXPANDED_PAIRS, EXPANDED_BATCH = 1 << 14, 4
# Parts of the gradient of the queries, each as large as the queries, that are held at once.
MOST_PARTS = 8
# Floats of working memory that a thread keeps from call to call.
MOST_REUSED = 1 << 19


@dataclass(frozen=True)
class Limits:
    """Constants of the compiled kernel: entries beside a table, keys of a chunk; OpenMP or not."""

    pad: int
    chunk: int
    threads: bool


@functools.cache
def kernel() -> tuple[ctypes.CDLL, Limits]:
    """The compiled kernel.

    Raises:
        BuildError: it cannot be built here.
    """
    found = build.library()
    values = (I64 * 7)()
    found.biases_limits(values)
    if (values[0], *values[3:6]) != (TILE, ctypes.sizeof(Problem), ctypes.sizeof(Term), ctypes.sizeof(Retention)):
        raise build.BuildError("the compiled kernel lays out its arguments otherwise than Python does")
    return found, Limits(values[1], values[2], bool(values[6]))


@dataclass(frozen=True)
class Index:
    """Which entry of a table belongs to a pair: ``table[row[i] - column[j]]``; both int32, (L,) and (S,)."""

    row: Tensor
    column: Tensor


@dataclass(frozen=True)
class Spec:
    """What of a problem is no tensor that gradients or batches pass through.

    Attributes:
        mode: a key of :data:`MODES`.
        scale: factor of q . k.
        offset: position of query 0 in the coordinates of the keys.
        causal, window: as in :class:`biases.backends.Geometry`.
        stages: of each table, where it joins.
        indices: of each table.
        direct: nothing saw how ``indices`` were made, so that they are no wrappers of a transform.
    """

    mode: str
    scale: float
    offset: int
    causal: bool
    window: int | None
    stages: tuple[int, ...] = ()
    indices: tuple[Index, ...] = ()
    direct: bool = False


@dataclass
class Operands:
    """Tensors of a problem, float32 on the CPU.

    Attributes:
        q: (B, H, L, D); k: (B, H, S, D); v: (B, H, S, Dv).
        key_bias, post_bias: (B, H, S), added to the logits and after the logarithm of the sigmoid.
        mask: (B' dividing B, 1 or H, L, S), bool, True = may attend; example b uses mask b mod B'.
        tables: (groups or 1, 1 or H, entries) each, where groups divides B and each serves as many examples in a row.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_bias: Tensor | None = None
    post_bias: Tensor | None = None
    mask: Tensor | None = None
    tables: list[Tensor] = field(default_factory=list)


def forward(spec: Spec, x: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, H, L, Dv), and row statistics that the backward needs, two of (B, H, L)."""
    call = _Call(spec, x)
    batch, heads, L, _ = x.q.shape
    out = output_like(x.q, x.v.shape[3])
    top, inverse = (x.q.new_empty(batch, heads, L) for _ in range(2))
    call.set_tensor("out", out)
    call.set_pointer("top", top)
    call.set_pointer("inverse", inverse)
    call.run(backward=False)
    return out, top, inverse


def backward(
    spec: Spec, x: Operands, grad: Tensor, out: Tensor, top: Tensor, inverse: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor]:
    """Gradients of q, k and v, then of those of key bias, post bias and tables that are ``wanted``, in this order."""
    call = _Call(spec, x, wanted[2:])
    grads = [output_like(part, part.shape[3]) for part in (x.q, x.k, x.v)]
    for name, tensor in zip("qkv", grads, strict=True):
        call.set_tensor(f"grad_{name}", tensor)
    call.set_tensor("grad_out", unit(grad))
    call.set_tensor("out", unit(out))
    call.set_pointer("top", top)
    call.set_pointer("inverse", inverse)
    for name, want in zip(("grad_key_bias", "grad_post_bias"), wanted, strict=False):
        if want:
            grads.append(x.q.new_empty(*x.k.shape[:3]))
            call.set_pointer(name, grads[-1])
    partial = call.run(backward=True)
    if partial is not None:
        torch.sum(partial, 0, out=grads[0])
    return grads + call.table_gradients()


def unit(x: Tensor) -> Tensor:
    """``x`` with adjacent channels."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def output_like(q: Tensor, width: int) -> Tensor:
    """An empty (B, H, L, width) with heads and queries in memory as in ``q``, and adjacent channels in any case."""
    batch, heads, L, _ = q.shape
    if q.stride(1) < q.stride(2):
        return q.new_empty(batch, L, heads, width).transpose(1, 2)
    return q.new_empty(batch, heads, L, width)


_reused = threading.local()


def working_space(floats: int) -> Tensor:
    """Memory for one call, kept by the thread if small: new pages cost as much as the attention of small windows."""
    if floats > MOST_REUSED:
        return torch.empty(floats, dtype=torch.float32, device="cpu")
    space: Tensor | None = getattr(_reused, "space", None)
    if space is None or space.numel() < floats:
        space = _reused.space = torch.empty(floats, dtype=torch.float32, device="cpu")
    return space


@keeper
def _release() -> None:
    _reused.__dict__.clear()


class _Call:
    """One call of the kernel. It holds the tensors whose addresses it passes."""

    def __init__(self, spec: Spec, x: Operands, table_grads: tuple[bool, ...] = ()) -> None:
        self.library, self.limits = kernel()
        self.held: list[Tensor] = []
        self.problem = problem = Problem()
        batch, heads, L, D = x.q.shape
        S, Dv = x.v.shape[2:]
        problem.batch, problem.heads, problem.L, problem.S, problem.D, problem.Dv = batch, heads, L, S, D, Dv
        problem.offset, problem.causal, problem.window = spec.offset, spec.causal, spec.window or 0
        problem.mode, problem.scale = MODES[spec.mode], spec.scale
        work = batch * heads * L * S * (D + Dv)
        threads = torch.get_num_threads() if self.limits.threads and work >= WORTH_THREADS else 1
        for name, tensor in zip("qkv", (x.q, x.k, x.v), strict=True):
            self.set_tensor(name, unit(tensor))
        for name, bias in (("key_bias", x.key_bias), ("post_bias", x.post_bias)):
            if bias is not None:
                self.set_tensor(name, unit(bias), axes=2)
        if x.mask is not None:
            mask = unit(x.mask)
            self.set_pointer("mask", mask)
            # A mask repeated without memory is one.
            problem.mask_batch = mask.shape[0] if mask.stride(0) else 1
            problem.mask_strides = mask.stride(0), mask.stride(1) if mask.shape[1] > 1 else 0, mask.stride(2)
        groups = max((table.shape[0] for table in x.tables), default=1)
        problem.per_group, problem.threads = batch // groups, threads
        problem.expand = groups == 1 and batch >= EXPANDED_BATCH and S * L <= EXPANDED_PAIRS
        self._set_tables(spec, x.tables, table_grads)

    def set_pointer(self, name: str, x: Tensor) -> None:
        self.held.append(x)
        setattr(self.problem, name, x.data_ptr())

    def set_tensor(self, name: str, x: Tensor, axes: int = 3) -> None:
        self.set_pointer(name, x)
        setattr(self.problem, f"{name}_strides", x.stride()[:axes])

    def _set_tables(self, spec: Spec, tables: list[Tensor], wanted: tuple[bool, ...]) -> None:
        self.grads: list[Tensor | None] = []
        self.terms = (Term * len(tables))()
        pad = self.limits.pad
        for at, (term, table, index) in enumerate(zip(self.terms, tables, spec.indices, strict=True)):
            padded = torch.nn.functional.pad(table, (pad, pad))
            want = bool(wanted) and wanted[at]
            grad = padded.new_zeros(self.problem.threads, *padded.shape) if want else None
            self.grads.append(grad)
            self.held += [padded, index.row, index.column]
            term.table, term.row, term.column = padded.data_ptr(), index.row.data_ptr(), index.column.data_ptr()
            term.grad = None if grad is None else grad.data_ptr()
            term.group_stride = padded.stride(0) if padded.shape[0] > 1 else 0
            term.head_stride = padded.stride(1) if padded.shape[1] > 1 else 0
            term.length, term.size, term.stage = padded.shape[2], padded.numel(), spec.stages[at]
        self.problem.terms = len(tables)
        self.problem.term = ctypes.addressof(self.terms)

    def run(self, *, backward: bool) -> Tensor | None:
        """Run the kernel; in the backward, where the keys are shared out, the parts of the gradient of the queries."""
        problem, partial = self.problem, None
        tasks = problem.batch * problem.heads
        most = min(MOST_PARTS, -(-problem.S // self.limits.chunk)) if backward else -(-problem.L // TILE)
        shared_out = tasks % problem.threads and tasks < 4 * problem.threads
        problem.parts = min(most, -(-4 * problem.threads // tasks)) if shared_out else 1
        if backward and problem.parts > 1:
            shape = (problem.parts, problem.batch, problem.heads, problem.L, problem.D)
            partial = torch.empty(shape, dtype=torch.float32, device="cpu")
            self.set_pointer("partial_q", partial)
        sizes = (I64(), I64())
        self.library.biases_sizes(ctypes.byref(problem), I64(backward), *map(ctypes.byref, sizes))
        shared, scratch = (size.value for size in sizes)
        space = working_space(shared + problem.threads * scratch)
        problem.shared, problem.scratch_size = space.data_ptr(), scratch
        problem.scratch = space.data_ptr() + 4 * shared
        run = self.library.biases_backward if backward else self.library.biases_forward
        run(ctypes.byref(problem))
        return partial

    def table_gradients(self) -> list[Tensor]:
        pad = self.limits.pad
        return [grad.sum(0)[..., pad:-pad].contiguous() for grad in self.grads if grad is not None]
