"""The script that reproduces a counterexample."""

from __future__ import annotations

import ast
import functools
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from keyword import iskeyword
from numbers import Integral, Real
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from biases.testing.subject import Subject
from biases.traits import Decay, Traits

_FILL_IN = "from your_module import your_factory as make_layer  # the factory that was checked"
# Characters of a value that is to be filled in.
_LONGEST = 60


def how_to_import(make_layer: Callable[..., Any]) -> str:
    """Python that binds ``make_layer``, at most 5 lines: an import, to be filled in where no path leads to it.

    What a factory says of itself, in an attribute ``how_to_build``, comes first. A factory of the script being run is
    imported from a module named as that script.
    """
    own = getattr(make_layer, "how_to_build", None)
    if isinstance(own, str):
        return own
    if isinstance(make_layer, functools.partial):
        values = _Values("make_layer", "partial")
        given = [values.write(each, f"argument_{at}") for at, each in enumerate(make_layer.args)]
        given += [f"{name}={values.write(each, name)}" for name, each in make_layer.keywords.items()]
        bound = f"from functools import partial; make_layer = partial(make_layer, {', '.join(given)})"
        return "\n".join([how_to_import(make_layer.func), *values.lines(), bound])
    found = _import_of(make_layer, "make_layer")
    if found is None:
        return _FILL_IN
    statement, script = found
    return (
        f"# {script} is the script that was run; this imports it, so keep it on the path\n" if script else ""
    ) + statement


def _import_of(thing: Any, name: str) -> tuple[str, str] | None:
    """Python that binds ``name`` to a function or class, and the script being run where that defines it.

    ``None`` where no path leads to it.
    """
    module, path = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str) or not _leads_to(thing, module, path):
        return None
    script = ""
    if module in ("__main__", "__mp_main__"):
        module = script = _name_of_main(module)
    if not all(part.isidentifier() and not iskeyword(part) for part in module.split(".")):
        return None
    if "." in path:
        return f"import {module}; {name} = {module}.{path}", script
    return f"from {module} import {path}" + (f" as {name}" if name != path else ""), script


def _leads_to(thing: Any, module: str, path: str) -> bool:
    """Whether the dotted path, from the module on, ends in this very thing."""
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    # A bound method is made anew each time that it is looked up.
    return found is thing or (isinstance(found, MethodType) and found == thing)


def _name_of_main(module: str) -> str:
    """The name under which the script being run can be imported; empty if it has none."""
    spec, file = (getattr(sys.modules[module], name, None) for name in ("__spec__", "__file__"))
    if spec is not None:
        return str(spec.name)
    return Path(file).stem if file else ""


class _Values:
    """Values as Python: literals that are equal to them, else names that :meth:`lines` bind beforehand.

    Args:
        taken: names that are not to be bound.
    """

    def __init__(self, *taken: str) -> None:
        self._taken = set(taken)
        self._imports: list[str] = []
        self._scripts: set[str] = set()
        self._missing: list[tuple[str, str]] = []

    def lines(self) -> list[str]:
        """At most 2 lines: the imports, and what no path leads to, to be filled in."""
        note = "".join(f"  # {script} is the script that was run" for script in self._scripts if script)
        lines = ["; ".join(self._imports) + note] if self._imports else []
        if self._missing:
            names = ", ".join(name for name, _ in self._missing)
            lines.append(
                f"from your_module import {names}  # fill in: {'; '.join(': '.join(e) for e in self._missing)}"
            )
        return lines

    def write(self, value: Any, wish: str) -> str:
        """An expression for the value; ``wish`` is its name where it needs one and has none."""
        if isinstance(value, Traits | Decay):
            return self._dataclass(value)
        if isinstance(value, Real) and not isinstance(value, bool):
            exact: int | float = int(value) if isinstance(value, Integral) else float(value)
            if exact == value or exact != exact:
                return repr(exact) if math.isfinite(exact) else f'float("{exact}")'
        if type(value) in (list, tuple, set, frozenset):
            inner = ", ".join(self.write(each, wish) for each in value)
            name = "" if type(value) in (list, tuple) else type(value).__name__
            inner = f"[{inner}]" if type(value) is not tuple else f"({inner}{',' if len(value) == 1 else ''})"
            return f"{name}({inner})" if name else inner
        if type(value) is dict:
            return f"{{{', '.join(f'{self.write(k, wish)}: {self.write(v, wish)}' for k, v in value.items())}}}"
        # A repr and a comparison may raise whatever they like.
        with suppress(Exception):
            if (ast.literal_eval(repr(value)) == value) is True:
                return repr(value)
        return self._bound(value, wish)

    def _dataclass(self, value: Traits | Decay) -> str:
        """Those of its fields that are not what they are by default; all of a Decay."""
        given = {each.name: getattr(value, each.name) for each in fields(value)}
        if isinstance(value, Traits):
            default = Traits()
            given = {name: each for name, each in given.items() if each != getattr(default, name)}
        return f"{type(value).__name__}({', '.join(f'{name}={self.write(v, name)}' for name, v in given.items())})"

    def _bound(self, value: Any, wish: str) -> str:
        is_dtype = isinstance(value, torch.dtype)
        own = str(value).removeprefix("torch.") if is_dtype else getattr(value, "__name__", None)
        name = next((each for each in (own, wish) if isinstance(each, str) and _is_name(each)), "value")
        while name in self._taken:
            name += "_"
        found = (f"from torch import {own} as {name}", "") if is_dtype else _import_of(value, name)
        if found is None:
            text = type(value).__name__
            with suppress(Exception):
                text = " ".join(repr(value).split())
            self._missing.append((name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."))
        else:
            self._imports.append(found[0])
            self._scripts.add(found[1])
        self._taken.add(name)
        return name


def _is_name(text: str) -> bool:
    return text.isidentifier() and not iskeyword(text)


def reproduce(subject: Subject, property_name: str, example: Mapping[str, Any], how_to_build: str) -> str:
    """A script that fails as the check did; at most 15 lines where ``how_to_build`` has at most 9.

    What is not written as Python, and no path leads to, is a name that is left to be filled in.
    """
    values = _Values("make_layer", "example", "replay", "Traits", "Decay")
    traits = values.write(subject.traits, "traits")
    names = ["Traits", "replay"] if traits != "Traits()" else ["replay"]
    names += ["Decay"] if "Decay(" in traits else []
    arguments = ["make_layer", repr(property_name), "example"]
    arguments += [f"traits={traits}"] if traits != "Traits()" else []
    if subject.options:
        options = ", ".join(f"{name!r}: {values.write(each, name)}" for name, each in subject.options.items())
        arguments += [f"options={{{options}}}"]
    arguments += [f"kind={subject.kind!r}"] if subject.kind != "layer" else []
    arguments += [f"device={str(subject.device)!r}"] if subject.device.type != "cpu" else []
    arguments += [f"dtype={str(subject.dtype).removeprefix('torch.')!r}"] if subject.dtype else []
    return "\n".join(
        [
            f"from biases.testing import {', '.join(sorted(names))}",
            how_to_build.strip(),
            *values.lines(),
            "",
            f"example = {dict(example)!r}",
            f"replay({', '.join(arguments)})",
            "",
        ]
    )
