"""What every adapter returns: a factory with its kind, its promises and how to build it anew."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import FunctionType
from typing import Any

from biases._checks import fail
from biases.traits import Traits


def how_to_install(package: str) -> str:
    """The command that brings a package; timm stands apart, as its torchvision may bring another torch."""
    extra = "timm" if package.partition(".")[0] == "timm" else "peers"
    return f"pip install 'attention-biases[{extra}]'"


class Adapter:
    """A factory ``make(dim, heads, **options)`` with what is said about it.

    Attributes:
        kind: what the factory returns: ``"layer"``, ``"operator"``, ``"encoding"``, ``"decoder"``, ``"slopes"``,
            ``"bias"`` or ``"mask"``.
        traits: what that promises, as its library's documentation or code says.
        how_to_build: Python that binds ``make_layer`` to this factory.
        package: the package that must be installed.
        known_failures: property name -> reason, for the promises that the library does break.
        forms: name -> another factory of the same computation, to which the results are compared.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *,
        kind: str,
        traits: Traits,
        how_to_build: str,
        package: str = "torch",
        known_failures: Mapping[str, str] | None = None,
    ) -> None:
        self._make = make
        self.kind = kind
        self.traits = traits
        self.how_to_build = how_to_build
        self.package = package
        self.known_failures = dict(known_failures or {})
        self.forms: dict[str, Adapter] = {}
        self.__name__ = how_to_build.rpartition(" as make_layer")[0].rpartition(" ")[2] or "subject"

    def __call__(self, dim: int, heads: int, **options: Any) -> Any:
        return self._make(dim, heads, **options)

    def __repr__(self) -> str:
        return f"<{self.kind} of {self.package}: {self.__name__}>"

    def named(self, module: str, name: str, *, known_failures: Mapping[str, str] | None = None) -> Adapter:
        """The same factory, that a script finds as ``name`` in ``biases.testing.adapters.<module>``."""
        return Adapter(
            self._make,
            kind=self.kind,
            traits=self.traits,
            how_to_build=f"from biases.testing.adapters.{module} import {name} as make_layer",
            package=self.package,
            known_failures=known_failures,
        )


def fetch(what: Any) -> Any:
    """``what`` itself, or, where it is a text ``"module:name"``, what is found there.

    Raises:
        ModuleNotFoundError: its package is not installed.
        ValueError: it is installed and has no such name.
    """
    if not isinstance(what, str):
        return what
    module_name, _, name = what.partition(":")
    package = module_name.partition(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"{module_name} is needed for this subject: {how_to_install(module_name)}", name=error.name
        ) from error
    if not hasattr(module, name):
        fail(f"{module_name}", f"a version that has {name}", getattr(sys.modules[package], "__version__", "another"))
    return getattr(module, name)


def package_of(*parts: Any) -> str:
    """The package of the first part that comes from one: a class, a function or a text ``"module:name"``."""
    for part in parts:
        module = part if isinstance(part, str) else getattr(part, "__module__", None)
        if module:
            return str(module).partition(":")[0].partition(".")[0]
    return "torch"


def script(adapter: str, call: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """Python that binds ``make_layer = adapter.call(...)``, with the imports that it needs; ``None`` is left out."""
    imports: dict[str, dict[str, None]] = {"biases.testing.adapters": {adapter: None}}
    notes: list[str] = []
    given = [_expression(each, imports, notes) for each in arguments]
    given += [f"{key}={_expression(each, imports, notes)}" for key, each in keywords.items() if each is not None]
    lines = [f"from {module} import {', '.join(names)}" for module, names in imports.items()]
    return "\n".join([*lines, *notes, f"make_layer = {adapter}.{call}({', '.join(given)})"])


def _expression(value: Any, imports: dict[str, dict[str, None]], notes: list[str]) -> str:
    if isinstance(value, Traits):
        default = Traits()
        told = {f.name: getattr(value, f.name) for f in fields(value)}
        told = {name: each for name, each in told.items() if each != getattr(default, name)}
        imports.setdefault("biases.testing", {}).update(
            dict.fromkeys(["Decay", "Traits"] if value.decay else ["Traits"])
        )
        return f"Traits({', '.join(f'{name}={each!r}' for name, each in told.items())})"
    if not isinstance(value, type | FunctionType):
        return repr(value)
    module, name = value.__module__, value.__qualname__
    if name.isidentifier() and getattr(sys.modules.get(module), name, None) is value and module != "__main__":
        imports.setdefault(module, {})[name] = None
        return name
    notes.append(f"# {value.__name__} cannot be imported: bind it here")
    return value.__name__


def takes(function: Callable[..., Any]) -> frozenset[str]:
    """Names of the parameters that a function or a class takes."""
    return frozenset(inspect.signature(function).parameters)


def pick(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a function takes by name."""
    names = takes(function)
    return {name: value for name, value in offered.items() if name in names}


def output_of(result: Any) -> Any:
    """The output, where a module returns weights or a cache beside it."""
    return result[0] if isinstance(result, tuple) else result
