"""What is measured: a case, its inputs, and the check of its results against its specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from biases._checks import fail

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q, k, v, each (B, H, L, D), to (B, H, L, D)."""

DIRECTIONS = ("forward", "forward+backward")


@dataclass(frozen=True)
class Case:
    """One attention to measure, with what it must equal.

    Attributes:
        name: unique in a run; ``"floor"`` and ``"floor-causal"`` are taken.
        reference: the dense specification. It is given q, k, v in float64 and must return float64.
        run: the callable measured. What it closes over counts as an input and is not seen in the peak bytes.
        make: instead of ``run``: from q, k, v to the callable measured, for what is built once per shape.
            Building is not timed, but is seen in the peak bytes.
        low: dense formulas in the dtype of the inputs, whose rounding error sets the tolerance; ``reference``
            given the inputs as they are if ``None``, which will not do for one that converts them itself.
        causal: whether a query sees the keys up to its own only; chooses the floor.
        parameters: further leaf tensors with ``requires_grad`` whose gradients the backward is to compute
            too, in the case and in its reference, as those of a learned gate.

    Raises:
        ValueError: not exactly one of ``run`` and ``make``, or parameters that are no such tensors.
    """

    name: str
    reference: Attention
    run: Attention | None = None
    make: Callable[[Tensor, Tensor, Tensor], Attention] | None = None
    low: Attention | None = None
    causal: bool = False
    parameters: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if not all(p.is_leaf and p.requires_grad for p in self.parameters):
            fail(f"parameters of {self.name!r}", "leaf tensors with requires_grad", "another tensor")
        if (self.run is None) == (self.make is None):
            fail(f"case {self.name!r}", "one of run and make", "both" if self.run else "neither")

    def build(self, inputs: Inputs) -> Attention:
        """The callable measured."""
        if self.make is not None:
            return self.make(*inputs.qkv)
        assert self.run is not None
        return self.run


@dataclass(frozen=True)
class Inputs:
    """q, k, v and the gradient of the output, each (B, H, L, D); ``grad`` is ``None`` for forward only."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor | None = None

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def products(self) -> float:
        """Bound of ``|dO_i . v_j|``, by Cauchy-Schwarz; 0 without a gradient."""
        if self.grad is None:
            return 0.0
        return float(self.grad.detach().double().norm(dim=-1).max() * self.v.detach().double().norm(dim=-1).max())

    def double(self) -> Inputs:
        """The same numbers in float64."""
        q, k, v = (x.detach().double().requires_grad_(x.requires_grad) for x in self.qkv)
        return Inputs(q, k, v, None if self.grad is None else self.grad.double())

    def step(self, attention: Attention, parameters: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """One call: the output and, for forward+backward, the gradients by q, k, v and the parameters."""
        if self.grad is None:
            with torch.no_grad():
                return (attention(*self.qkv),)
        out = attention(*self.qkv)
        gradients = torch.autograd.grad(out, (*self.qkv, *parameters), self.grad.to(out.dtype))
        return (out.detach(), *gradients)


def draw(
    shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device, direction: str, seed: int
) -> Inputs:
    """Standard normal inputs, drawn on the CPU so that every device gets the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))
    if direction == "forward":
        return Inputs(q, k, v)
    return Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad)


def floor_case(name: str, *, causal: bool) -> Case:
    """Stock attention without a bias; it is its own specification and is not checked."""

    def stock(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return Case(name, reference=stock, run=stock, causal=causal)


def check(case: Case, inputs: Inputs) -> None:
    """Compare the case's output, and for forward+backward its gradients, with its specification.

    Raises:
        AssertionError: one of them is off by more than ``2 (max|low - ref64| + eps(dtype) max|ref64|)``; a gradient
            that passes through the logits is a difference of products dO . v and counts as large as they are.
        ValueError: the specification does not return float64, or ``low`` not the dtype of the inputs.
    """
    from biases.testing.compare import assert_within

    actual = inputs.step(case.build(inputs), case.parameters)
    low = inputs.step(case.low or case.reference, case.parameters)
    reference = inputs.double().step(case.reference, case.parameters)
    if reference[0].dtype != torch.float64:
        fail(f"reference of {case.name!r}", "a float64 result for float64 inputs", reference[0].dtype)
    if low[0].dtype != inputs.q.dtype:
        fail(f"low-precision result of {case.name!r}", f"{inputs.q.dtype}, as the inputs", low[0].dtype)
    names = ["output", *(f"gradient of {x}" for x in ("q", "k", "v"))]
    names += [f"gradient of parameter {i}" for i in range(len(case.parameters))]
    for what, got, wanted, rounded in zip(names[: len(actual)], actual, reference, low, strict=True):
        products = inputs.products if what.startswith("gradient") and what != "gradient of v" else 0.0
        assert_within(got, wanted.double(), rounded, what=what, magnitude=products)
