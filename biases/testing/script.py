"""The script that reproduces a counterexample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from biases.testing.subject import Subject
from biases.traits import Traits


def how_to_import(make_layer: Callable[..., Any]) -> str:
    """A line that binds ``make_layer``: an import, to be filled in where it has no importable name."""
    module, name = getattr(make_layer, "__module__", None), getattr(make_layer, "__qualname__", "")
    if module and module != "__main__" and name.isidentifier() and inspect.getmodule(make_layer) is not None:
        return f"from {module} import {name} as make_layer"
    return "from your_module import your_factory as make_layer  # the factory that was checked"


def reproduce(subject: Subject, property_name: str, example: Mapping[str, Any], how_to_build: str) -> str:
    """A script that fails as the check did; at most 15 lines where ``how_to_build`` has at most 3."""
    traits = _traits(subject.traits)
    names = ["Traits", "replay"] if traits != "Traits()" else ["replay"]
    names += ["Decay"] if "Decay(" in traits else []
    arguments = ["make_layer", repr(property_name), "example"]
    arguments += [f"traits={traits}"] if traits != "Traits()" else []
    arguments += [f"options={dict(subject.options)!r}"] if subject.options else []
    return "\n".join(
        [
            f"from biases.testing import {', '.join(sorted(names))}",
            how_to_build.strip(),
            "",
            f"example = {dict(example)!r}",
            f"replay({', '.join(arguments)})",
            "",
        ]
    )


def _traits(traits: Traits) -> str:
    default = Traits()
    changed = {f.name: getattr(traits, f.name) for f in fields(traits)}
    changed = {name: value for name, value in changed.items() if value != getattr(default, name)}
    return f"Traits({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
