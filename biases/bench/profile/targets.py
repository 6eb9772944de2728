"""What is profiled: a name of the zoo, or a factory of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from biases import zoo
from biases._checks import fail, one_of
from biases.bench.machine import facts
from biases.bench.passes import run_layer
from biases.bench.table import size
from biases.bench.workloads import Setting, has_own_heads, prepare
from biases.registry import get
from biases.testing.targets import is_factory, load_factory, parse_traits

LEVELS_OF = {"layer": ("layer", "operator"), "position": ("model", "training"), "model": ("model", "training")}
"""Kind of a name of the zoo -> its levels, as of :mod:`biases.bench.workloads`; the first is the usual one."""


@dataclass(frozen=True, eq=False)
class Target:
    """Something to profile.

    Attributes:
        name: as given.
        level: of :data:`biases.bench.workloads.LEVELS`; ``"layer"`` for a factory.
        configuration: what it was built and is run with, as plain values.
        device: where it runs.
        run: one pass.
    """

    name: str
    level: str
    configuration: Mapping[str, Any]
    device: str
    run: Callable[[], object]


def level_of(name: str, level: str | None = None) -> str:
    """The level at which ``name`` is profiled: ``level``, or the usual one.

    Raises:
        ValueError: unknown name, or a level that it does not have.
    """
    levels = ("layer",) if is_factory(name) else LEVELS_OF[get(name).kind]
    if level is not None:
        one_of(f"level of {name!r}", level, levels)
    return level or levels[0]


def find(
    name: str,
    setting: Setting,
    *,
    level: str | None = None,
    backend: str = "auto",
    options: Mapping[str, Any] | None = None,
    traits: Iterable[str] = (),
) -> Target:
    """Build what ``name`` names.

    Args:
        name: of the zoo, options included, a position being profiled inside ``char-gpt``; or ``module:factory``, which
            is called as ``factory(dim, heads, **options)`` and returns a layer, (B, T, C) -> the same, or, where the
            trait ``domain`` is ``"image"``, (B, H, W, C) -> the same.
        setting: what it is run at.
        level: see :func:`level_of`.
        backend: of ``attend``, for names of the zoo.
        options, traits: of a factory; traits as ``name=value``.

    Raises:
        ValueError: unknown names, or a setting, options or a level that do not fit.
    """
    level = level_of(name, level)
    _check_room(setting)
    if is_factory(name):
        if backend != "auto":
            fail(f"backend of {name!r}", "none, a factory chooses its own", backend)
        given, declared = dict(options or {}), list(traits)
        plain = {
            option: value if isinstance(value, int | float | str) else repr(value) for option, value in given.items()
        }
        configuration = {**setting.as_dict(), "options": plain, "traits": declared}
        return Target(name, level, configuration, str(setting.device), _own(name, setting, given, declared))
    for what, unused in (("options", options), ("traits", list(traits))):
        if unused:
            fail(f"{what} of {name!r}", "none, a name of the zoo carries its own", unused)
    zoo.trial(name)
    inside = f"char-gpt[position={name}]" if get(name).kind == "position" else name
    workload = prepare(level, inside, setting, backend=backend)
    configuration = {**setting.as_dict(), "backend": backend}
    if has_own_heads(level, inside):
        del configuration["heads"], configuration["head_dim"]
    return Target(name, level, configuration, str(setting.device), workload.run)


def _check_room(setting: Setting) -> None:
    """Refuse an input that alone is more than the memory; so large that its size is no number of C, torch raises
    whatever it meets first.

    Raises:
        ValueError: it is.
    """
    taken = setting.batch * setting.length * setting.dim * setting.torch_dtype.itemsize
    room = facts()["cuda_memory_bytes" if str(setting.device).startswith("cuda") else "memory_bytes"]
    if room is not None and taken > room:
        fail(_sizes(setting), f"an input within the {size(room)} of memory", size(taken))


@contextmanager
def memory_refused(setting: Setting) -> Iterator[None]:
    """A request for memory that is refused is the fault of the setting.

    Raises:
        ValueError: one was.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        fail(_sizes(setting), "what fits into the memory", str(error).splitlines()[0])


def _sizes(setting: Setting) -> str:
    return f"batch {setting.batch}, length {setting.length}, width {setting.dim}"


class _Layer(nn.Module):
    """Whatever a factory returns, its errors and its output being told by its name."""

    def __init__(self, target: str, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.target, self.inner = target, inner

    def forward(self, x: Tensor) -> Tensor:
        try:
            out = self.inner(x)
        except Exception as error:
            _failed(self.target, error)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            fail(f"output of {self.target!r}", f"a tensor of shape {tuple(x.shape)}, as its input", got)
        return out


def _own(target: str, setting: Setting, options: dict[str, Any], traits: list[str]) -> Callable[[], object]:
    from biases.bench.modules import _seeded

    make = load_factory(target)
    one_of(f"kind of {target!r}", getattr(make, "kind", "layer"), ("layer",))
    image = parse_traits(traits, getattr(make, "traits", None)).domain == "image"
    try:
        layer = _seeded(setting, lambda: _Layer(target, make(setting.dim, setting.heads, **options)))
    except Exception as error:
        called = ", ".join([str(setting.dim), str(setting.heads), *(f"{k}={v!r}" for k, v in options.items())])
        fail(f"{target}({called})", "a layer", f"{type(error).__name__}: {error}")
    x = setting.draw(setting.batch, *((setting.side, setting.side) if image else (setting.length,)), setting.dim)
    once = run_layer(layer.eval(), x, setting)

    def run() -> object:
        try:
            return once()
        except ValueError:
            raise
        except Exception as error:
            # Of its backward: torch's, or that of a function of its own.
            _failed(target, error)

    return run


def _failed(target: str, error: Exception) -> NoReturn:
    fail(f"call of {target!r}", "one without an error", f"{type(error).__name__}: {error}")
