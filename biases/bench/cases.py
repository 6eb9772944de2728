"""An attention of one's own to measure, and what it must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from biases._checks import fail

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q, k, v, each (B, H, L, D), to (B, H, L, D)."""

DIRECTIONS = ("forward", "forward+backward")


@dataclass(frozen=True)
class Case:
    """One attention to measure, with what it must equal.

    Attributes:
        name: unique among the cases measured together.
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

    def build(self, q: Tensor, k: Tensor, v: Tensor) -> Attention:
        """The callable measured."""
        if self.make is not None:
            return self.make(q, k, v)
        assert self.run is not None
        return self.run
