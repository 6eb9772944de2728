"""What the command line is given: a factory by its path, traits as text, a file of known failures."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from biases._checks import fail, one_of
from biases.traits import Decay, Traits


def is_factory(target: str) -> bool:
    """Whether it is ``module:factory``, and not a name of the zoo, whose options may hold a colon."""
    return ":" in target.partition("[")[0]


def load_factory(target: str) -> Callable[..., Any]:
    """The factory at ``module:factory``; the current folder is on the path, as under ``python -m``.

    Raises:
        ValueError: another form, no such module or attribute (near ones are suggested), or it cannot be called.
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        fail("target", "module:factory", repr(target))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # Whatever the module does when imported, it is the target that is unusable.
        fail(f"module of {target!r}", "one that can be imported from here", f"{type(error).__name__}: {error}")
    for part in path.split("."):
        if not hasattr(found, part):
            one_of(f"attribute {part!r} of {target!r}", part, [name for name in dir(found) if name[0] != "_"])
        found = getattr(found, part)
    if not callable(found):
        fail(f"target {target!r}", "a callable factory(dim, heads, **options)", type(found).__name__)
    return found


def parse_traits(pairs: Iterable[str], base: Traits | None = None) -> Traits:
    """Traits from ``name=value`` texts over ``base``; a decay is ``decay=kind,monotone_in,placement``,
    or with its rule of rates, ``decay=linear,past,logits,alibi``; several masks or equivariances are apart by commas.

    Raises:
        ValueError: another form, unknown trait or value.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not (name and equals and text):
            fail("trait", "name=value", repr(pair))
        one_of("trait", name, [f.name for f in fields(Traits)])
        changes[name] = _value(name, text)
    return (base or Traits()).but(**changes)


def parse_widths(texts: Iterable[str]) -> list[tuple[int, int]]:
    """``(dim, heads)`` from ``dim:heads`` texts.

    Raises:
        ValueError: another form.
    """
    widths = []
    for text in texts:
        dim, _, heads = text.partition(":")
        if not (dim.isdecimal() and heads.isdecimal()):
            fail("--widths", "dim:heads, as in 64:4", repr(text))
        widths.append((int(dim), int(heads)))
    return widths


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments of a factory from ``name=value`` texts; what is no Python literal is taken as text.

    Raises:
        ValueError: another form.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not (name.isidentifier() and equals):
            fail("--option", "name=value", repr(pair))
        options[name] = _literal(text)
    return options


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _value(name: str, text: str) -> Any:
    if name == "decay":
        parts = [part.strip() for part in text.split(",")]
        if len(parts) not in (3, 4):
            fail("trait decay", "kind,monotone_in,placement or kind,monotone_in,placement,rates", repr(text))
        return Decay(*parts)
    if name in ("equivariant_to", "mask") and text[0] not in "([":
        return tuple(part.strip() for part in text.split(","))
    words = {"true": True, "false": False, "none": None if name != "normalisation" and name != "position" else "none"}
    if text.lower() in words:
        return words[text.lower()]
    return _literal(text)


def read_known_failures(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """Known failures by subject and property, from a TOML file::

        ["mypkg.attention:make_layer"]
        future-independence = "normalises over the window, issue 12"

    Raises:
        ValueError: no such file, no TOML, or another structure; the file and the entry are named.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"known failures {str(path)!r}", "a readable file", error.strerror or str(error))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"known failures {str(path)!r}", "TOML", str(error))
    for subject, entries in content.items():
        if not isinstance(entries, Mapping):
            fail(f"{path}: {subject!r}", "a table of property = reason", type(entries).__name__)
        for name, reason in entries.items():
            if not isinstance(reason, str) or not reason.strip():
                fail(f"{path}: {subject!r}: {name!r}", "a reason in words", repr(reason))
    return content
