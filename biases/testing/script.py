"""The script that reproduces a counterexample."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from keyword import iskeyword
from pathlib import Path
from types import MethodType
from typing import Any

from biases.testing.subject import Subject
from biases.traits import Traits

_FILL_IN = "from your_module import your_factory as make_layer  # the factory that was checked"


def how_to_import(make_layer: Callable[..., Any]) -> str:
    """Python that binds ``make_layer``, at most 3 lines: an import, to be filled in where no path leads to it.

    What a factory says of itself, in an attribute ``how_to_build``, comes first. A factory of the script being run is
    imported from a module named as that script.
    """
    own = getattr(make_layer, "how_to_build", None)
    if isinstance(own, str):
        return own
    if isinstance(make_layer, functools.partial):
        given = [repr(each) for each in make_layer.args] + [f"{k}={v!r}" for k, v in make_layer.keywords.items()]
        bound = f"from functools import partial; make_layer = partial(make_layer, {', '.join(given)})"
        return f"{how_to_import(make_layer.func)}\n{bound}"
    module, path = getattr(make_layer, "__module__", None), getattr(make_layer, "__qualname__", "")
    if not isinstance(module, str) or not _leads_to(make_layer, module, path):
        return _FILL_IN
    note = ""
    if module in ("__main__", "__mp_main__"):
        module = _name_of_main(module)
        note = f"# {module} is the script that was run; this imports it, so keep it on the path\n"
    if not all(part.isidentifier() and not iskeyword(part) for part in module.split(".")):
        return _FILL_IN
    if "." in path:
        return f"{note}import {module}; make_layer = {module}.{path}"
    return f"{note}from {module} import {path} as make_layer"


def _leads_to(make_layer: Callable[..., Any], module: str, path: str) -> bool:
    """Whether the dotted path, from the module on, ends in this very factory."""
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    # A bound method is made anew each time that it is looked up.
    return found is make_layer or (isinstance(found, MethodType) and found == make_layer)


def _name_of_main(module: str) -> str:
    """The name under which the script being run can be imported; empty if it has none."""
    spec, file = (getattr(sys.modules[module], name, None) for name in ("__spec__", "__file__"))
    if spec is not None:
        return str(spec.name)
    return Path(file).stem if file else ""


def reproduce(subject: Subject, property_name: str, example: Mapping[str, Any], how_to_build: str) -> str:
    """A script that fails as the check did; at most 15 lines where ``how_to_build`` has at most 3."""
    traits = _traits(subject.traits)
    names = ["Traits", "replay"] if traits != "Traits()" else ["replay"]
    names += ["Decay"] if "Decay(" in traits else []
    arguments = ["make_layer", repr(property_name), "example"]
    arguments += [f"traits={traits}"] if traits != "Traits()" else []
    arguments += [f"options={dict(subject.options)!r}"] if subject.options else []
    arguments += [f"kind={subject.kind!r}"] if subject.kind != "layer" else []
    arguments += [f"device={str(subject.device)!r}"] if subject.device.type != "cpu" else []
    arguments += [f"dtype={str(subject.dtype).removeprefix('torch.')!r}"] if subject.dtype else []
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
