"""One example of a subject: building it, feeding it, calling it, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from biases.testing.strategies import make_tensor
from biases.testing.subject import (
    BuildError,
    Layer,
    NotApplicable,
    Raised,
    Subject,
    Violation,
    cast,
    move_parameters,
    told,
)
from biases.testing.views import KINDS, Misfit


@dataclass(frozen=True)
class Case:
    """One example: how to build the subject and its inputs.

    Attributes:
        subject: the factory with its promises.
        example: values drawn by :func:`biases.testing.strategies.examples`.
    """

    subject: Subject
    example: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """C."""
        return int(self.example["dim"])

    @property
    def heads(self) -> int:
        """H."""
        return int(self.example["heads"])

    @property
    def grid(self) -> tuple[int, int] | None:
        """(height, width) of a map; ``None`` for sequences."""
        return (self.example["height"], self.example["width"]) if "height" in self.example else None

    @property
    def length(self) -> int:
        """T: tokens of the sequence, or of the map."""
        return self.grid[0] * self.grid[1] if self.grid else int(self.example["length"])

    def longer(self, by: int) -> int:
        """``by`` tokens more, or as many as the subject takes."""
        return min(self.length + by, max(self.length, self.subject.traits.max_length or self.length + by))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, C)."""
        return self.example["batch"], self.length, self.dim

    @property
    def device(self) -> torch.device:
        return self.subject.device

    @property
    def precise(self) -> torch.dtype:
        """See :meth:`Subject.precise`."""
        return self.subject.precise(self.dim, self.heads)

    @property
    def single(self) -> torch.dtype:
        """The dtype asked for, else float32."""
        return self.subject.dtype or torch.float32

    def generator(self, purpose: int = 1) -> torch.Generator:
        """A generator of this example's own, another one for each purpose."""
        return torch.Generator().manual_seed(self.example["seed"] + 1_000_003 * purpose)

    def normal(self, like: Tensor, purpose: int = 1) -> Tensor:
        """Normal numbers of the shape, dtype and device of ``like``."""
        return torch.randn(like.shape, generator=self.generator(purpose), dtype=torch.float64).to(like)

    def raw(self, dtype: torch.dtype, *, seed_offset: int = 0, make: Any = None) -> Layer:
        """What the factory makes for this example, in ``dtype``; an offset gives it other parameters.

        Raises:
            BuildError: it could not be built, its parameters could not be moved, or (CastError) it could not be cast.
        """
        seed = self.example["seed"] + seed_offset
        layer = self.subject.build(self.dim, self.heads, seed=seed, make=make)
        if isinstance(layer, torch.nn.Module) and self.example["parameters"] == "moved":
            try:
                move_parameters(layer, seed)
            except Exception as error:
                raise BuildError(f"moving the layer's parameters in place raised {told(error)}") from error
        return cast(layer, dtype, self.device)

    def layer(self, dtype: torch.dtype, *, seed_offset: int = 0, make: Any = None) -> Layer:
        """The same, seen as a layer (B, T, C) -> (B, T, C)."""
        raw = self.raw(dtype, seed_offset=seed_offset, make=make)
        return self.subject.seen_as_layer(raw, self.heads, self.grid)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, purpose: int = 0) -> Tensor:
        """A tensor of this example's regime; another one for each purpose."""
        seed = self.example["seed"] + 1_000_003 * purpose
        return make_tensor(shape, self.example["regime"], seed, dtype).to(self.device)

    def input(self, dtype: torch.dtype, *, drawn_as: torch.dtype | None = None) -> Tensor:
        """The input (B, T, C); ``drawn_as`` rounds it to another dtype first."""
        source = drawn_as or dtype
        x = self.tensor(self.shape, source)
        return x.to(dtype) if source != dtype else x

    def invoke(self, layer: Layer, *inputs: Any, grad: bool = False, as_laid_out: bool = False, **keywords: Any) -> Any:
        """Call anything of the subject's, without gradients unless asked.

        Slices are made contiguous unless asked otherwise: that strides do not matter is a promise of its own.

        Raises:
            Violation: it raised (Raised), or returned what cannot be seen as a layer's output.
        """
        with torch.set_grad_enabled(grad):
            given = inputs if as_laid_out else [x.contiguous() if isinstance(x, Tensor) else x for x in inputs]
            try:
                return layer(*given, **keywords)
            except Misfit as error:
                raise Violation(str(error)) from error
            except (Exception, SystemExit) as error:
                forms = "; ".join(f"{tuple(x.shape)}, {x.dtype}" for x in inputs if isinstance(x, Tensor))
                asked = f"an input of shape {forms}" if forms else f"({', '.join(map(str, inputs))})"
                what = f"the {self.subject.kind} raised on {asked}"
                raise Raised(f"{what}: {told(error)}{_hint(error, self.subject)}") from error

    def call(self, layer: Layer, x: Tensor, *, grad: bool = False, as_laid_out: bool = False) -> Tensor:
        """Call the layer, and check the form of the result.

        Raises:
            Violation: the layer raised (Raised), or returned something else than a floating tensor of the shape of
                ``x``.
        """
        return self.check_form(self.invoke(layer, x, grad=grad, as_laid_out=as_laid_out), x)

    def check_form(self, out: Any, like: Tensor) -> Tensor:
        """``out``, where it is a floating tensor of the shape of ``like``.

        Raises:
            Violation: it is not.
        """
        if not isinstance(out, Tensor):
            hint = "; wrap the layer so that it returns the output alone" if isinstance(out, tuple) else ""
            what = f"the {self.subject.kind} returned {_describe(out)}"
            raise Violation(f"{what}, expected a tensor of the input's shape{hint}")
        if out.shape != like.shape:
            raise Violation(f"output: expected shape {tuple(like.shape)}, got {tuple(out.shape)}")
        if not out.is_floating_point():
            raise Violation(f"output: expected dtype {like.dtype}, got {out.dtype}")
        return out

    def run(self, dtype: torch.dtype) -> tuple[Layer, Tensor, Tensor]:
        """A new layer, the input and the output."""
        layer, x = self.layer(dtype), self.input(dtype)
        return layer, x, self.call(layer, x)

    def module(self, dtype: torch.dtype, *, seed_offset: int = 0) -> torch.nn.Module:
        """A new layer, where it is a module.

        Raises:
            NotApplicable: it is another callable.
        """
        layer = self.layer(dtype, seed_offset=seed_offset)
        if not isinstance(layer, torch.nn.Module):
            raise NotApplicable(f"the {self.subject.kind} is not a torch.nn.Module")
        return layer


def _hint(error: BaseException, subject: Subject) -> str:
    """What a wrong number of arguments suggests."""
    if not isinstance(error, TypeError) or "argument" not in str(error):
        return ""
    wanted = f"{KINDS[subject.kind]}, as what make_layer(dim, heads) returns"
    return f" (checked as a {subject.kind}: expected {wanted}; --as KIND, or kind=, says what else it is)"


def _describe(out: object) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of ({', '.join(type(each).__name__ for each in out)})"
    return type(out).__name__
