"""The registry: where a bias declares itself, as data.

A bias's own module decorates a function with :func:`register`; :mod:`biases.zoo` imports all those modules and builds
from what they declared. This module knows none of them.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from biases._checks import fail, one_of
from biases.traits import Traits

KINDS = ("layer", "position", "model")


@dataclass(frozen=True)
class Variant:
    """One entry of the zoo.

    Attributes:
        name: kebab-case name.
        kind: ``"layer"``, ``"position"`` or ``"model"``.
        family: the folder it belongs to: ``"gates"``, ``"decays"``, ``"positions"``, ...
        summary: one line.
        make: for a layer, ``make(dim, heads, **options)`` returning the components of a
            :class:`~biases.layers.SelfAttention` by slot name, or a finished module.
        traits: the traits under the default options, or a function from the options to them.
        known_failures: property name -> reason, or a function from the options to that mapping.
        parameters: number of parameters that the bias adds, in words.
        notes: known problems of the source, one sentence each.
    """

    name: str
    kind: str
    family: str
    summary: str
    make: Callable[..., Any]
    traits_of: Callable[[Mapping[str, Any]], Traits]
    known_failures_of: Callable[[Mapping[str, Any]], Mapping[str, str]]
    parameters: str
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def traits(self) -> Traits:
        return self.traits_of(self.options)

    @property
    def known_failures(self) -> Mapping[str, str]:
        return self.known_failures_of(self.options)


VARIANTS: dict[str, Variant] = {}


def _always(value: Any) -> Callable[[Mapping[str, Any]], Any]:
    return lambda _options: value


def register(
    name: str,
    *,
    kind: str = "layer",
    family: str,
    summary: str,
    traits: Traits | Callable[[Mapping[str, Any]], Traits],
    parameters: str,
    known_failures: Mapping[str, str] | Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None,
    notes: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function or class into the registry; its parameters with defaults are the options, but for
    the ``backend`` of a layer, which whoever builds one chooses.

    Raises:
        ValueError: the name is taken, or the kind is unknown.
    """
    one_of(f"kind of {name!r}", kind, KINDS)
    if name in VARIANTS:
        fail("variant name", "a name not yet registered", repr(name))

    def enter(make: Callable[..., Any]) -> Callable[..., Any]:
        options = {
            parameter.name: parameter.default
            for parameter in inspect.signature(make).parameters.values()
            if parameter.default is not inspect.Parameter.empty and (kind, parameter.name) != ("layer", "backend")
        }
        failures: Mapping[str, str] | Callable[..., Mapping[str, str]] = known_failures or {}
        VARIANTS[name] = Variant(
            name=name,
            kind=kind,
            family=family,
            summary=summary,
            make=make,
            traits_of=traits if callable(traits) else _always(traits),
            known_failures_of=failures if callable(failures) else _always(failures),
            parameters=parameters,
            notes=notes,
            options=options,
        )
        return make

    return enter


def names(kind: str | None = None, domain: str | None = None) -> list[str]:
    """Registered names, sorted, of one kind (``"layer"``, ``"position"``, ``"model"``) or domain if given."""
    return sorted(
        name
        for name, variant in VARIANTS.items()
        if kind in (None, variant.kind) and domain in (None, variant.traits.domain)
    )


def get(name: str) -> Variant:
    """The variant called ``name``, with the options that the name carries.

    Raises:
        ValueError: unknown name (near ones are suggested) or option.
    """
    if not isinstance(name, str):
        fail("zoo name", "a string", type(name).__name__)
    base, options = parse_name(name)
    one_of("zoo name", base, sorted(VARIANTS))
    variant = VARIANTS[base]
    for option in options:
        one_of(f"option of {base}", option, sorted(variant.options))
    return replace(variant, name=name, options={**variant.options, **options}) if options else variant


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """``"ega[statistics=prefix,mixing=True]"`` -> ``("ega", {"statistics": "prefix", "mixing": True})``.

    Values may be Python literals, such as ``{'theta_shift': 'axis'}``, or names with options of their own.

    Raises:
        ValueError: brackets that are no list of options.
    """
    if "[" not in name:
        return name, {}
    base, _, inside = name.partition("[")
    if not inside.endswith("]"):
        fail("zoo name", "name[option=value, ...]", repr(name))
    options = {}
    for part in filter(None, (p.strip() for p in _split(name, inside[:-1]))):
        key, equals, value = (x.strip() for x in part.partition("="))
        if not (key and equals and value):
            fail(f"zoo name {name!r}", "option=value", repr(part))
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return base, options


CLOSING = {"[": "]", "(": ")", "{": "}"}


def _split(name: str, text: str) -> list[str]:
    """The parts of ``text`` between commas that stand outside brackets and quotes."""
    parts, awaited, quote = [""], list[str](), ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in CLOSING:
            awaited.append(CLOSING[character])
        elif character in CLOSING.values() and (not awaited or awaited.pop() != character):
            fail(f"zoo name {name!r}", "brackets in pairs", repr(character))
        if character == "," and not awaited and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if awaited or quote:
        fail(f"zoo name {name!r}", f"a closing {awaited[-1] if awaited and not quote else quote}", "none")
    return parts
