"""A layer under test, and one example of it: building, feeding, calling, in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from biases.testing.isolation import isolated, owners
from biases.testing.strategies import make_tensor
from biases.traits import Traits

Layer = Callable[[Tensor], Tensor]
# A width that the strategies do not draw, so that the probe fills no cache that an example would read.
_PROBE = (40, 5)


class Violation(AssertionError):
    """The layer broke the promise under test."""


class Raised(Violation):
    """The layer raised when it was called."""


class NotApplicable(Exception):
    """The promise cannot be put to this layer."""


class BuildError(Exception):
    """The factory raised, or what it returned cannot be made ready."""


class CastError(BuildError):
    """The layer raised when it was cast to a dtype."""


@dataclass
class Subject:
    """A factory with what is said about it.

    Attributes:
        make_layer: ``make_layer(dim, heads, **options)`` returning a callable (B, T, C) -> (B, T, C).
        traits: its promises.
        options: keyword arguments of the factory.
    """

    make_layer: Callable[..., Any]
    traits: Traits = field(default_factory=Traits)
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def shared(self) -> list[type | ModuleType]:
        """Whose state outlives one layer: see :func:`biases.testing.isolation.isolated`."""
        with isolated(owners(self.make_layer)):
            try:
                layer = self.make_layer(*_PROBE, **self.options)
            except Exception:
                return owners(self.make_layer)
        return owners(self.make_layer, layer)

    def isolated(self) -> AbstractContextManager[None]:
        """Keep what happens inside from outliving it."""
        return isolated(self.shared)

    def build(self, dim: int, heads: int, *, seed: int = 0, options: Mapping[str, Any] | None = None) -> Layer:
        """A new layer in evaluation mode, its parameters drawn with ``seed``; lazy ones are initialised.

        Raises:
            BuildError: the factory raised, or returned something that cannot be called or made ready.
        """
        chosen = self.options if options is None else options
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                layer = self.make_layer(dim, heads, **chosen)
            except Exception as error:
                call = ", ".join([str(dim), str(heads), *(f"{k}={v!r}" for k, v in chosen.items())])
                hint = "check a layer that needs other widths with widths=[(dim, heads)]"
                raise BuildError(f"make_layer({call}) raised {told(error)}; {hint}") from error
            if not callable(layer):
                raise BuildError(f"make_layer returned {type(layer).__name__}, expected a callable")
            return _ready(layer, dim) if isinstance(layer, torch.nn.Module) else layer


def _ready(layer: torch.nn.Module, dim: int) -> torch.nn.Module:
    # A factory may hand out one layer again and again; the checks must not change it.
    with suppress(Exception):
        layer = copy.deepcopy(layer)
    try:
        layer.eval()
    except Exception as error:
        raise BuildError(f"the layer's eval() raised {told(error)}") from error
    if _lazy(layer):
        shape = (1, 2, dim)
        try:
            with torch.no_grad():
                layer(make_tensor(shape))
        except Exception as error:
            what = f"the call on an input of shape {shape} that initialises the layer's lazy parameters"
            raise BuildError(f"{what} raised {told(error)}") from error
        if left := _lazy(layer):
            raise BuildError(f"lazy parameters: expected them initialised by one call, still lazy: {', '.join(left)}")
    return layer


def _lazy(layer: torch.nn.Module) -> list[str]:
    """Names of the parameters and buffers that get their shape from the first call."""
    return [name for name, each in (*layer.named_parameters(), *layer.named_buffers()) if is_lazy(each)]


def cast(layer: Layer, dtype: torch.dtype) -> Layer:
    """The layer in ``dtype``, where it is a module.

    Raises:
        CastError: it raised.
    """
    if not isinstance(layer, torch.nn.Module):
        return layer
    try:
        return layer.to(dtype)
    except Exception as error:
        raise CastError(f"the layer's to({dtype}) raised {told(error)}") from error


@dataclass(frozen=True)
class Case:
    """One example: how to build the layer and its input.

    Attributes:
        subject: the layer's factory.
        example: values drawn by :func:`biases.testing.strategies.examples`.
    """

    subject: Subject
    example: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, C)."""
        return self.example["batch"], self.example["length"], self.example["dim"]

    @cached_property
    def precise(self) -> torch.dtype:
        """float64 where the layer takes it, so that rounding is not mistaken for a fault; else float32."""
        x = make_tensor((1, 2, self.example["dim"]), dtype=torch.float64)
        with self.subject.isolated(), torch.no_grad():
            try:
                out = self.layer(torch.float64)(x)
            except CastError:
                return torch.float32
            except BuildError:
                raise
            except Exception:
                return torch.float32
        return torch.float64 if isinstance(out, Tensor) and out.dtype == torch.float64 else torch.float32

    def generator(self, purpose: int = 1) -> torch.Generator:
        """A generator of this example's own, another one for each purpose."""
        return torch.Generator().manual_seed(self.example["seed"] + 1_000_003 * purpose)

    def layer(self, dtype: torch.dtype, *, seed_offset: int = 0) -> Layer:
        """A new layer of this example, cast to ``dtype``; an offset gives it other parameters.

        Raises:
            BuildError: it could not be built, its parameters could not be moved, or (CastError) it could not be cast.
        """
        seed = self.example["seed"] + seed_offset
        layer = self.subject.build(self.example["dim"], self.example["heads"], seed=seed)
        if isinstance(layer, torch.nn.Module) and self.example["parameters"] == "moved":
            try:
                _move(layer, seed)
            except Exception as error:
                raise BuildError(f"moving the layer's parameters in place raised {told(error)}") from error
        return cast(layer, dtype)

    def input(self, dtype: torch.dtype, *, drawn_as: torch.dtype | None = None) -> Tensor:
        """The input (B, T, C); ``drawn_as`` rounds it to another dtype first."""
        source = drawn_as or dtype
        x = make_tensor(self.shape, self.example["regime"], self.example["seed"], source)
        return x.to(dtype) if source != dtype else x

    def call(self, layer: Layer, x: Tensor, *, grad: bool = False) -> Tensor:
        """Call the layer, without gradients unless asked, and check the form of the result.

        Raises:
            Violation: the layer raised (Raised), or returned something else than a floating tensor of the shape of
                ``x``.
        """
        with torch.set_grad_enabled(grad):
            try:
                out = layer(x)
            except Exception as error:
                form = f"{tuple(x.shape)}, {x.dtype}"
                raise Raised(f"the layer raised on an input of shape {form}: {told(error)}") from error
        if not isinstance(out, Tensor):
            hint = "; wrap the layer so that it returns the output alone" if isinstance(out, tuple) else ""
            raise Violation(f"the layer returned {_describe(out)}, expected a tensor of the input's shape{hint}")
        if out.shape != x.shape:
            raise Violation(f"output: expected shape {tuple(x.shape)}, got {tuple(out.shape)}")
        if not out.is_floating_point():
            raise Violation(f"output: expected dtype {x.dtype}, got {out.dtype}")
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
            raise NotApplicable("the layer is not a torch.nn.Module")
        return layer


def _move(layer: torch.nn.Module, seed: int) -> None:
    """Move parameters by up to half of themselves, and zeros by up to 0.5; signs are kept."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.is_floating_point():
                by = torch.rand(parameter.shape, generator=generator, dtype=torch.float64).to(parameter) - 0.5
                parameter.add_(by * torch.where(parameter == 0, torch.ones_like(parameter), parameter))


def told(error: BaseException) -> str:
    """Type and message."""
    return f"{type(error).__name__}: {error}"


def _describe(out: object) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of ({', '.join(type(each).__name__ for each in out)})"
    return type(out).__name__
