"""Keep examples from influencing one another: random states, and state that classes and modules share.

A layer that keeps a cache on its class answers differently from the second example on. Restoring that state
after every example makes each of them reproducible alone, and lets a property compare a layer used first with
a layer used later.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import numpy
import torch

_FOREIGN = ("torch", "numpy", "builtins", "abc", "typing", "functools", "collections", "types", "enum")
_NOT_DATA = (FunctionType, classmethod, staticmethod, property, type, ModuleType, functools.partial)


def owners(*objects: object) -> list[type | ModuleType]:
    """The classes of the objects (and of the submodules of modules) and the modules that define them.

    Those of torch, numpy and the standard library's basics are left out.
    """
    found: dict[type | ModuleType, None] = {}
    for each in objects:
        parts = list(each.modules()) if isinstance(each, torch.nn.Module) else [each]
        for part in parts:
            kinds = part.__mro__ if isinstance(part, type) else type(part).__mro__
            names = [kind.__module__ for kind in kinds]
            found.update((kind, None) for kind in kinds if not _foreign(kind.__module__))
            names.append(getattr(part, "__module__", None) or "")
            modules = (sys.modules.get(name) for name in names if not _foreign(name))
            found.update((module, None) for module in modules if module is not None)
    return list(found)


@contextmanager
def isolated(shared: list[type | ModuleType], seed: int = 0, device: torch.device | None = None) -> Iterator[None]:
    """Run with seeded global generators, the device's included; afterwards put these and the state of ``shared`` back.

    Shared state is: what a class binds, with the contents of its dicts, lists and sets; in a module, dicts, lists and
    sets with ``cache`` in their name; and every :func:`functools.lru_cache`, which is emptied before and after.
    """
    states = [(owner, name, value, _copy(value)) for owner in shared for name, value in _data(owner)]
    python, legacy = random.getstate(), numpy.random.get_state()
    _clear_caches(shared)
    try:
        cuda = device is not None and device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if cuda else []):
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(legacy)
        _clear_caches(shared)
        _restore(shared, states)


def _foreign(name: str) -> bool:
    return not name or any(name == root or name.startswith(root + ".") for root in _FOREIGN)


def _data(owner: type | ModuleType) -> list[tuple[str, Any]]:
    pairs = [(name, value) for name, value in vars(owner).items() if not name.startswith("__")]
    if isinstance(owner, ModuleType):
        return [(n, v) for n, v in pairs if "cache" in n.lower() and isinstance(v, dict | list | set)]
    return [(n, v) for n, v in pairs if not isinstance(v, _NOT_DATA) and not hasattr(v, "__get__")]


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list | set) else value


def _restore(shared: list[type | ModuleType], states: list[tuple[type | ModuleType, str, Any, Any]]) -> None:
    saved = {(id(owner), name) for owner, name, _, _ in states}
    for owner in shared:
        if isinstance(owner, type):
            for name, _ in _data(owner):
                if (id(owner), name) not in saved:
                    delattr(owner, name)
    for owner, name, value, contents in states:
        if vars(owner).get(name) is not value:
            setattr(owner, name, value)
        if isinstance(value, dict | set):
            value.clear()
            value.update(contents)
        elif isinstance(value, list):
            value[:] = contents


def _clear_caches(shared: list[type | ModuleType]) -> None:
    for owner in shared:
        for value in list(vars(owner).values()):
            clear: Callable[[], None] | None = getattr(value, "cache_clear", None)
            if clear is not None and not isinstance(value, type):
                clear()
