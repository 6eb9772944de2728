"""Sphinx: the pages of this folder, and the reference, made of docstrings. `make docs` builds into build/docs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import get_node_source

sys.path.insert(0, str(Path(__file__).parent.parent))

import biases

project = "biases"
author = "the authors of attention-biases"
release = version = biases.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinxarg.ext"]
html_theme = "furo"
html_title = f"biases {release}"
html_favicon = "images/favicon.svg"
html_show_copyright = False
smartquotes = False
nitpicky = True
# Imported for types only, or raised by what is not in the reference and named without its module.
nitpick_ignore = [
    ("py:class", "Console"),
    ("py:class", "SearchStrategy"),
    ("py:class", "Table"),
    ("py:exc", "BuildError"),
    ("py:exc", "NotApplicable"),
]

myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
# Several names may share one line of a docstring, as in "a, b: names of arms".
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", parsable)
    app.connect("missing-reference", resolve)


def parsable(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """The signature without defaults such as ``<factory>`` and ``<function ...>``, which are no Python."""
    return signature and re.sub(r"<(?:[^<>]|<[^<>]*>)*>", "...", signature), returned


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement) -> Any:
    """What a role or a type names, where its address in the reference is another one.

    A link if it is documented under another name, plain text if it exists and is not documented, here or in another
    package; ``None``, which is a warning, if there is no such thing.
    """
    if node["refdomain"] != "py":
        return None
    origin = re.search(r"docstring of ([\w.]+)", get_node_source(node) or "")
    found = _named(node["reftarget"], [node.get("py:module") or "", *(_parents(origin[1]) if origin else ())])
    if found is None:
        return None
    domain = env.get_domain("py")
    name = _documented(domain).get(id(found))
    return text if name is None else domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)


@cache
def _documented(domain: PythonDomain) -> dict[int, str]:
    """What the reference has an entry of, and its address."""
    return {id(_located(name)): name for name in domain.objects}


def _parents(name: str) -> list[str]:
    """The class, if any, and the modules that ``name`` is in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _named(target: str, places: Iterable[str]) -> object | None:
    """What ``target`` names by itself or in one of these classes and modules."""
    names = [target, *(f"{place}.{target}" for place in places if place)]
    return next((found for name in names if (found := _located(name)) is not None), None)


@cache
def _located(name: str) -> object | None:
    try:
        return locate(name)
    except ErrorDuringImport:
        return None
