"""A subject under test: how it is built and made ready."""

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

from biases._checks import fail, one_of
from biases.testing.isolation import isolated, owners
from biases.testing.strategies import make_tensor
from biases.testing.views import KINDS, VIEWED, view
from biases.traits import Traits

Layer = Callable[..., Any]
# A width that the strategies do not draw, so that the probe fills no cache that an example would read.
_PROBE = (40, 5)


class Violation(AssertionError):
    """The subject broke the promise under test."""


class Raised(Violation):
    """The subject raised when it was called."""


class NotApplicable(Exception):
    """The promise cannot be put to this subject."""


class BuildError(Exception):
    """The factory raised, or what it returned cannot be made ready."""


class CastError(BuildError):
    """The layer raised when it was cast to a dtype, or moved to a device."""


@dataclass
class Subject:
    """A factory with what is said about it.

    Attributes:
        make_layer: ``make_layer(dim, heads, **options)`` returning what its kind says.
        traits: its promises.
        options: keyword arguments of the factory.
        kind: one of :data:`~biases.testing.views.KINDS`.
        forms: name -> another factory that must compute the same, its parameters being the same.
        device: where layers and inputs are put.
        dtype: precision of the checks that are about behaviour; ``None``: float64 where the subject takes it.
    """

    make_layer: Callable[..., Any]
    traits: Traits = field(default_factory=Traits)
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "layer"
    forms: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, list(KINDS))
        if self.dtype is not None and not self.dtype.is_floating_point:
            fail("dtype", "a floating dtype", self.dtype)
        self._precise: dict[tuple[int, int], torch.dtype] = {}

    @cached_property
    def _probed(self) -> tuple[list[type | ModuleType], bool]:
        """Whose state outlives one layer, and whether the factory makes a new layer each time."""
        with isolated(owners(self.make_layer)):
            try:
                first, second = (self.make_layer(*_PROBE, **self.options) for _ in range(2))
                apart = _apart(first, second)
            except Exception:
                return owners(self.make_layer), False
        return owners(self.make_layer, first), apart

    def isolated(self) -> AbstractContextManager[None]:
        """Keep what happens inside from outliving it."""
        return isolated(self._probed[0], device=self.device)

    def build(
        self,
        dim: int,
        heads: int,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        make: Callable[..., Any] | None = None,
    ) -> Layer:
        """What the factory, or one of its other forms, makes: in evaluation mode, its parameters drawn with ``seed``.

        Raises:
            BuildError: the factory raised, or returned something that cannot be called or made ready.
        """
        chosen = self.options if options is None else options
        factory = self.make_layer if make is None else make
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                layer = factory(dim, heads, **chosen)
            except Exception as error:
                call = ", ".join([str(dim), str(heads), *(f"{k}={v!r}" for k, v in chosen.items())])
                hint = "check a layer that needs other widths with widths=[(dim, heads)]"
                raise BuildError(f"make_layer({call}) raised {told(error)}; {hint}") from error
            if not callable(layer):
                raise BuildError(f"make_layer returned {type(layer).__name__}, expected {KINDS[self.kind]}")
            return self._ready(layer, dim, heads) if isinstance(layer, torch.nn.Module) else layer

    def seen_as_layer(self, raw: Layer, heads: int, grid: tuple[int, int] | None = None) -> Layer:
        """The view of :func:`biases.testing.views.view`."""
        return view(self.kind, self.traits.domain, raw, heads, grid)

    def _ready(self, layer: torch.nn.Module, dim: int, heads: int) -> torch.nn.Module:
        if not self._probed[1]:
            # A factory may hand out one layer again and again; the checks must not change it.
            with suppress(Exception):
                layer = copy.deepcopy(layer)
        try:
            layer.eval()
        except Exception as error:
            raise BuildError(f"the layer's eval() raised {told(error)}") from error
        if _lazy(layer) and self.kind in VIEWED:
            shape = (1, 2, dim)
            try:
                with torch.no_grad():
                    self.seen_as_layer(layer, heads)(make_tensor(shape))
            except Exception as error:
                what = f"the call on an input of shape {shape} that initialises the layer's lazy parameters"
                raise BuildError(f"{what} raised {told(error)}") from error
            if left := _lazy(layer):
                raise BuildError(
                    f"lazy parameters: expected them initialised by one call, still lazy: {', '.join(left)}"
                )
        return layer

    def precise(self, dim: int, heads: int) -> torch.dtype:
        """The dtype asked for; else float64 where the subject takes it, so that rounding is no fault; else float32.

        Raises:
            BuildError: it could not be built.
        """
        if self.dtype is not None:
            return self.dtype
        if (dim, heads) not in self._precise:
            self._precise[dim, heads] = self._probe_float64(dim, heads)
        return self._precise[dim, heads]

    def _probe_float64(self, dim: int, heads: int) -> torch.dtype:
        x = make_tensor((1, 2, dim), dtype=torch.float64).to(self.device)
        with self.isolated(), torch.no_grad():
            raw = self.build(dim, heads)
            try:
                layer = cast(raw, torch.float64, self.device)
                out = (self.seen_as_layer(layer, heads) if self.kind in VIEWED else layer)(x)
            except CastError:
                return torch.float32
            except Exception:
                return torch.float32
        return torch.float64 if isinstance(out, Tensor) and out.dtype == torch.float64 else torch.float32


def _apart(first: object, second: object) -> bool:
    """Whether two modules share no submodule, parameter or buffer."""
    if not (isinstance(first, torch.nn.Module) and isinstance(second, torch.nn.Module)):
        return first is not second

    def parts(module: torch.nn.Module) -> set[int]:
        return {id(each) for each in (*module.modules(), *module.parameters(), *module.buffers())}

    return not parts(first) & parts(second)


def _lazy(layer: torch.nn.Module) -> list[str]:
    """Names of the parameters and buffers that get their shape from the first call."""
    return [name for name, each in (*layer.named_parameters(), *layer.named_buffers()) if is_lazy(each)]


def cast(layer: Layer, dtype: torch.dtype, device: torch.device | str = "cpu") -> Layer:
    """The layer in ``dtype`` on ``device``, where it is a module.

    Raises:
        CastError: it raised.
    """
    if not isinstance(layer, torch.nn.Module):
        return layer
    try:
        layer = layer.to(dtype)
        return layer if torch.device(device).type == "cpu" else layer.to(device)
    except Exception as error:
        raise CastError(f"the layer's to({dtype}) raised {told(error)}") from error


def move_parameters(layer: torch.nn.Module, seed: int) -> None:
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
