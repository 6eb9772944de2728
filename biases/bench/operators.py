"""Operators: the calls of ``attend`` that a layer makes, run by themselves, beside stock attention, and checked.

A call is checked on rows: on all of its queries where the dense weights are small, otherwise on a sample. The gradient
that reaches the output is zero outside those rows, so that every gradient, too, is that of the rows alone, and the
specification needs the weights of no others. The fast path runs at full size in either case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from biases._calls import Call
from biases._checks import fail
from biases.attention import _problem, attend, formulation
from biases.backends import Formulation, PairTerm, Problem
from biases.backends.reference import dense_weights

SEEN_BY_PROBLEM = ("bias", "key_gate", "weights", "decay", "mask", "causal", "window", "alignment", "dropout", "scale")
# Numbers in the dense weights of the rows checked: 64 MiB in float64.
LARGEST_DENSE = 1 << 23
BLOCKS, FEWEST_ROWS = 8, 16


@dataclass(frozen=True, eq=False)
class Operator:
    """One call of ``attend``, with tensors of its own.

    Attributes:
        q, k, v: leaves, (B, H, L, D), (B, G, S, D) and (B, G, S, Dv), in the strides they were recorded with.
        options: of ``attend``, the backend aside; what carried gradients in them is a leaf of ``learned``.
        learned: gate logits, tables, slopes.
        grad: gradient of the output, (B, H, L, Dv); ``None`` for forward only.
        function: called with q, k, v and the options.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, Any]
    learned: tuple[Tensor, ...]
    grad: Tensor | None
    function: Callable[..., Tensor] = attend

    @classmethod
    def of(
        cls,
        call: Call,
        *,
        seed: int | None,
        dtype: torch.dtype | None = None,
        function: Callable[..., Tensor] = attend,
    ) -> Operator:
        """The call with leaves of the same numbers, in ``dtype`` if given. They require gradients where these are
        enabled now.

        Args:
            call: as recorded.
            seed: of a standard normal gradient of the output; ``None`` for forward only.
        """
        made = _Leaves(dtype)
        (q, k, v), options = call
        q, k, v = (made.leaf(x) for x in (q, k, v))
        first = len(made.found)
        fresh = {name: made.within(options[name]) for name in SEEN_BY_PROBLEM if name in options}
        grad = None
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            grad = torch.randn((*q.shape[:3], v.shape[3]), generator=generator).to(q)
        return cls(q, k, v, fresh, tuple(made.found[first:]), grad, function)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gradients are taken by: q, k, v and what is learned."""
        return (self.q, self.k, self.v, *self.learned)

    @property
    def causal(self) -> bool:
        return bool(self.options.get("causal", False))

    @property
    def problem(self) -> Problem:
        usual: dict[str, Any] = {
            **dict.fromkeys(SEEN_BY_PROBLEM),
            "weights": "softmax",
            "causal": False,
            "dropout": 0.0,
        }
        return _problem(self.q, self.k, self.v, **{**usual, **self.options})

    @property
    def formulation(self) -> Formulation:
        """What ``backend="auto"`` does with it."""
        return formulation(self.q, self.k, self.v, **self.options)

    def run(self) -> tuple[Tensor, ...]:
        """The output, and for forward+backward the gradients by :attr:`leaves`."""
        if self.grad is None:
            with torch.no_grad():
                return (self.function(self.q, self.k, self.v, **self.options),)
        out = self.function(self.q, self.k, self.v, **self.options)
        return (out.detach(), *torch.autograd.grad(out, self.leaves, self.grad))

    def floor(self) -> Operator:
        """Stock attention without a bias on the same shapes, every query head having keys and values of its own."""
        group = self.q.shape[1] // self.k.shape[1]
        k, v = (x.detach().repeat_interleave(group, 1) if group > 1 else x for x in (self.k, self.v))
        made = _Leaves(None)
        q, k, v = (made.leaf(x) for x in (self.q, k, v))
        return Operator(q, k, v, {"causal": self.causal, "scale": self.options.get("scale")}, (), self.grad, stock)

    def flops(self) -> int:
        """Of the matrix products of dense attention over the pairs that causality leaves; backward has five of them,
        the logits being computed again."""
        (batch, heads, length, width), (keys, out) = self.q.shape, self.v.shape[2:]
        pairs = length * (length + 1) // 2 if self.causal and length == keys else length * keys
        forward = 2 * pairs * (width + out)
        backward = 2 * pairs * (3 * width + 2 * out) if self.grad is not None else 0
        return batch * heads * (forward + backward)

    def traffic(self) -> int:
        """Bytes of what must be read and written at least once: inputs, output and gradients."""
        inputs = sum(x.nbytes for x in self.leaves)
        out = self.q.shape[:3].numel() * self.v.shape[3] * self.q.element_size()
        return inputs + out if self.grad is None else 3 * inputs + 3 * out


def stock(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None, **ignored: Any
) -> Tensor:
    """Stock attention in place of ``attend``: what makes it a bias is ignored."""
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


class _Leaves:
    """Copies in which every tensor that carries a gradient is a leaf; one tensor in two places stays one."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype, self.found = dtype, list[Tensor]()
        self._of: dict[int, Tensor] = {}
        # Objects are told by their address, which must not be given to another while this one is known.
        self._alive = list[object]()

    def leaf(self, x: Tensor) -> Tensor:
        if id(x) not in self._of:
            self._alive.append(x)
            # Detached, not cloned: strides, stride 0 among them, are part of what a formulation sees.
            self._of[id(x)] = x.detach().to(self.dtype or x.dtype).requires_grad_(torch.is_grad_enabled())
            self.found.append(self._of[id(x)])
        return self._of[id(x)]

    def within(self, value: Any) -> Any:
        """``value`` with such leaves inside."""
        if isinstance(value, Tensor):
            return self.leaf(value) if value.requires_grad else value
        if isinstance(value, tuple | list):
            return type(value)(self.within(each) for each in value)
        if isinstance(value, PairTerm) or (is_dataclass(value) and not isinstance(value, type)):
            fresh = copy.copy(value)
            for name, each in vars(value).items():
                object.__setattr__(fresh, name, self.within(each))
            return fresh
        return value


def rows_checked(operator: Operator) -> Tensor | None:
    """The queries that a check compares, ascending; ``None``: all. A sample has the first and the last ones, where
    masks and windows end, and blocks between."""
    batch, heads, length = operator.q.shape[:3]
    keys = operator.k.shape[2]
    affordable = max(FEWEST_ROWS, LARGEST_DENSE // (batch * heads * keys))
    if affordable >= length:
        return None
    size = max(1, affordable // BLOCKS)
    starts = torch.linspace(0, length - size, BLOCKS).long()
    return (starts[:, None] + torch.arange(size)).flatten().unique().to(operator.q.device)


def check(operator: Operator, call: Call, what: str, *, seed: int | None) -> None:
    """Compare output and gradients with the float64 specification of the same call.

    Raises:
        AssertionError: one is off by more than ``2 (max|low - ref64| + eps(dtype) max|ref64|)``, where ``low`` is the
            specification in the dtype of the inputs; a gradient that passes through the logits is a difference of
            products dO . v, and counts as large as they are.
    """
    rows = rows_checked(operator)
    if operator.grad is not None and rows is not None:
        kept = torch.zeros_like(operator.grad)
        kept[:, :, rows] = operator.grad[:, :, rows]
        operator = replace(operator, grad=kept)
    actual = operator.run()
    actual = actual if rows is None else (actual[0][:, :, rows], *actual[1:])
    grad = None if operator.grad is None else operator.grad if rows is None else operator.grad[:, :, rows]
    low = _specified(Operator.of(call, seed=seed), rows, grad, operator.q.dtype)
    reference = _specified(Operator.of(call, seed=seed, dtype=torch.float64), rows, grad, torch.float64)
    _compare(operator, actual, reference, low, what)


def check_function(operator: Operator, reference: Callable[..., Tensor], low: Callable[..., Tensor], what: str) -> None:
    """Compare output and gradients of all queries with a specification that is a function of q, k and v.

    Args:
        operator: what is compared.
        reference: the specification, given q, k, v in float64.
        low: an honest computation in the dtype of the inputs.
        what: name of it, for the messages.

    Raises:
        AssertionError: as by :func:`check`.
        ValueError: ``reference`` or ``low`` returns another dtype than it was given.
    """

    def specified(function: Callable[..., Tensor], dtype: torch.dtype, which: str) -> tuple[Tensor, ...]:
        def in_dtype(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = function(q, k, v)
            if out.dtype != dtype:
                fail(f"{which} of {what!r}", f"{dtype}, as its inputs", out.dtype)
            return out

        grad = None if operator.grad is None else operator.grad.to(dtype)
        with torch.set_grad_enabled(grad is not None):
            inputs = (operator.q, operator.k, operator.v)
            made = Operator.of((inputs, {}), seed=None, dtype=dtype, function=in_dtype)
        return replace(made, learned=operator.learned, grad=grad).run()

    actual = operator.run()
    rounded = specified(low, operator.q.dtype, "low-precision result")
    # What a function closes over, and the gradients by it, keep their dtype.
    exact = [each.double() for each in specified(reference, torch.float64, "reference")]
    _compare(operator, actual, exact, rounded, what)


def _compare(
    operator: Operator, actual: Sequence[Tensor], reference: Sequence[Tensor], low: Sequence[Tensor], what: str
) -> None:
    """The rule of :func:`check` for what :meth:`Operator.run` returns."""
    from biases.testing.compare import assert_within

    names = ["output", *(f"gradient of {x}" for x in ("q", "k", "v"))]
    names += [f"gradient of learned tensor {n}" for n in range(len(operator.learned))]
    # One tensor in two places gets the sum of their gradients.
    products, shared = 0.0, operator.v is operator.q or operator.v is operator.k
    if operator.grad is not None:
        products = float(operator.grad.double().norm(dim=-1).max() * operator.v.detach().double().norm(dim=-1).max())
    for name, got, wanted, rounded in zip(names[: len(actual)], actual, reference, low, strict=True):
        cancels = name.startswith("gradient") and (name != "gradient of v" or shared)
        # Products are rounded as the inputs are, whatever dtype a gate keeps its numbers in.
        coarser = torch.finfo(operator.q.dtype).eps / torch.finfo(rounded.dtype).eps
        assert_within(got, wanted, rounded, what=f"{what}: {name}", magnitude=products * coarser if cancels else 0.0)


def _specified(operator: Operator, rows: Tensor | None, grad: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Output of the rows and, with a gradient, those by the leaves: by the dense formulas in ``dtype``."""
    with torch.set_grad_enabled(grad is not None):
        problem = operator.problem
        i, j = problem.geometry.positions(problem.q.device)
        if rows is not None:
            mask = None if problem.mask is None else problem.mask[:, :, rows]
            problem, i = replace(problem, q=problem.q[:, :, rows], mask=mask), i[rows]
        out = dense_weights(problem, problem.q, problem.k, i, j, dtype) @ problem.v.to(dtype)
    if grad is None:
        return (out,)
    return (out.detach(), *torch.autograd.grad(out, operator.leaves, grad.to(dtype)))


def tensors_bytes(results: Sequence[Any]) -> int:
    """Bytes of the tensors returned."""
    return sum(x.nbytes for x in results if isinstance(x, Tensor))
