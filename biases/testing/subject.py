"""A subject under test: how it is built and made ready."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from biases._checks import fail, one_of
from biases.testing.isolation import isolated, owners
from biases.testing.strategies import make_tensor
from biases.testing.views import KINDS, VIEWED, view, with_mask
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


@dataclass(frozen=True)
class _Probe:
    """What two layers of one factory tell about it.

    Attributes:
        shared: whose state outlives one layer.
        apart: whether it makes a new layer each time.
        repeatable: whether the same seeds give the same parameters.
    """

    shared: list[type | ModuleType]
    apart: bool
    repeatable: bool


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
        self._first: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def _probed(self) -> _Probe:
        made = []
        with isolated(owners(self.make_layer)):
            try:
                for _ in range(2):
                    with seeded(0, self.device):
                        made.append(self.make_layer(*_PROBE, **self.options))
                first, second = made
                return _Probe(owners(self.make_layer, first), _apart(first, second), _alike(first, second))
            except (Exception, SystemExit):
                return _Probe(owners(self.make_layer), apart=False, repeatable=True)

    def isolated(self) -> AbstractContextManager[None]:
        """Keep what happens inside from outliving it."""
        return isolated(self._probed.shared, device=self.device)

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
        with seeded(seed, self.device):
            try:
                layer = self._made(factory, dim, heads, chosen)
            except (Exception, SystemExit) as error:
                call = ", ".join([str(dim), str(heads), *(f"{k}={v!r}" for k, v in chosen.items())])
                hint = "check a layer that needs other widths with widths=[(dim, heads)]"
                if isinstance(error, TypeError) and "argument" in str(error):
                    hint = (
                        "expected make_layer(dim, heads); a plain function is checked with --as KIND or by kinds.KIND"
                    )
                raise BuildError(f"make_layer({call}) raised {told(error)}; {hint}") from error
            if not callable(layer):
                raise BuildError(f"make_layer returned {type(layer).__name__}, expected {KINDS[self.kind]}")
            if isinstance(layer, torch.nn.Module):
                layer = self._ready(layer, dim, heads)
            return with_mask(self.kind, layer, self.traits.mask)

    def _made(self, factory: Callable[..., Any], dim: int, heads: int, options: Mapping[str, Any]) -> Any:
        """A new layer; a copy of the first where the factory draws parameters that no seed repeats."""
        if self._probed.repeatable:
            return factory(dim, heads, **options)
        key = (factory, dim, heads, repr(sorted(options.items())))
        if key not in self._first:
            self._first[key] = factory(dim, heads, **options)
        return copy.deepcopy(self._first[key])

    def seen_as_layer(self, raw: Layer, heads: int, grid: tuple[int, int] | None = None) -> Layer:
        """The view of :func:`biases.testing.views.view`."""
        return view(self.kind, self.traits.domain, raw, heads, grid)

    def _ready(self, layer: torch.nn.Module, dim: int, heads: int) -> torch.nn.Module:
        if not self._probed.apart and self._probed.repeatable:
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


def _alike(first: object, second: object) -> bool:
    """Whether two modules hold the same numbers."""
    if not (isinstance(first, torch.nn.Module) and isinstance(second, torch.nn.Module)):
        return True
    pairs = zip((*first.parameters(), *first.buffers()), (*second.parameters(), *second.buffers()), strict=False)
    return all(
        is_lazy(a) or (a.shape == b.shape and torch.equal(a.isnan(), b.isnan()) and _same(a, b)) for a, b in pairs
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | a.isnan()).all())


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global generators of torch, its device, numpy and Python seeded, and put back afterwards."""
    python, legacy = random.getstate(), numpy.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(legacy)


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
        layer = layer._apply(_converter(dtype)) if _holds_complex(layer) else layer.to(dtype)
        return layer if torch.device(device).type == "cpu" else layer.to(device)
    except Exception as error:
        raise CastError(f"the layer's to({dtype}) raised {told(error)}") from error


def _holds_complex(layer: torch.nn.Module) -> bool:
    try:
        return any(each.is_complex() for each in (*layer.parameters(), *layer.buffers()))
    except Exception:
        return False


def _converter(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """As ``Module.to`` converts, except that it would drop the imaginary parts of tables of phases."""
    matching = torch.complex128 if dtype == torch.float64 else torch.complex64

    def convert(each: Tensor) -> Tensor:
        if each.is_complex():
            return each.to(matching)
        return each.to(dtype) if each.is_floating_point() else each

    return convert


def move_parameters(layer: torch.nn.Module, seed: int) -> None:
    """Move parameters that are trained by up to half of themselves, and zeros by up to 0.5; signs are kept."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.is_floating_point() and parameter.requires_grad:
                by = torch.rand(parameter.shape, generator=generator, dtype=torch.float64).to(parameter) - 0.5
                parameter.add_(by * torch.where(parameter == 0, torch.ones_like(parameter), parameter))


def told(error: BaseException) -> str:
    """Type and message."""
    return f"{type(error).__name__}: {error}"
