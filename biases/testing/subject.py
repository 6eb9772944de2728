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

from biases.testing.isolation import isolated, owners
from biases.testing.strategies import make_tensor
from biases.traits import Traits

Layer = Callable[[Tensor], Tensor]
# A width that the strategies do not draw, so that the probe fills no cache that an example would read.
_PROBE = (40, 5)


class Violation(AssertionError):
    """The layer broke the promise under test."""


class NotApplicable(Exception):
    """The promise cannot be put to this layer."""


class BuildError(Exception):
    """The factory raised."""


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
        """A new layer in evaluation mode, its parameters drawn with ``seed``.

        Raises:
            BuildError: the factory raised, or returned something that cannot be called.
        """
        chosen = self.options if options is None else options
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                layer = self.make_layer(dim, heads, **chosen)
            except Exception as error:
                call = ", ".join([str(dim), str(heads), *(f"{k}={v!r}" for k, v in chosen.items())])
                raise BuildError(f"make_layer({call}) raised {type(error).__name__}: {error}") from error
        if not callable(layer):
            raise BuildError(f"make_layer returned {type(layer).__name__}, expected a callable")
        if not isinstance(layer, torch.nn.Module):
            return layer
        # A factory may hand out one layer again and again; the checks must not change it.
        with suppress(RuntimeError):
            layer = copy.deepcopy(layer)
        return layer.eval()


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
            except BuildError:
                raise
            except Exception:
                return torch.float32
        return torch.float64 if isinstance(out, Tensor) and out.dtype == torch.float64 else torch.float32

    def generator(self, purpose: int = 1) -> torch.Generator:
        """A generator of this example's own, another one for each purpose."""
        return torch.Generator().manual_seed(self.example["seed"] + 1_000_003 * purpose)

    def layer(self, dtype: torch.dtype, *, seed_offset: int = 0) -> Layer:
        """A new layer of this example, cast to ``dtype``; an offset gives it other parameters."""
        seed = self.example["seed"] + seed_offset
        layer = self.subject.build(self.example["dim"], self.example["heads"], seed=seed)
        if isinstance(layer, torch.nn.Module):
            if self.example["parameters"] == "moved":
                _move(layer, seed)
            layer = layer.to(dtype)
        return layer

    def input(self, dtype: torch.dtype, *, drawn_as: torch.dtype | None = None) -> Tensor:
        """The input (B, T, C); ``drawn_as`` rounds it to another dtype first."""
        source = drawn_as or dtype
        x = make_tensor(self.shape, self.example["regime"], self.example["seed"], source)
        return x.to(dtype) if source != dtype else x

    def call(self, layer: Layer, x: Tensor, *, grad: bool = False) -> Tensor:
        """Call the layer, without gradients unless asked, and check the form of the result.

        Raises:
            Violation: the layer raised, or returned something else than a tensor of the shape of ``x``.
        """
        with torch.set_grad_enabled(grad):
            try:
                out = layer(x)
            except Exception as error:
                got = f"{type(error).__name__}: {error}"
                form = f"{tuple(x.shape)}, {x.dtype}"
                raise Violation(f"the layer raised on an input of shape {form}: {got}") from error
        if not isinstance(out, Tensor):
            hint = "; wrap the layer so that it returns the output alone" if isinstance(out, tuple) else ""
            raise Violation(f"the layer returned {_describe(out)}, expected a tensor of the input's shape{hint}")
        if out.shape != x.shape:
            raise Violation(f"output: expected shape {tuple(x.shape)}, got {tuple(out.shape)}")
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


def _describe(out: object) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of ({', '.join(type(each).__name__ for each in out)})"
    return type(out).__name__
