"""Rendering: one HTML file with its styles, scripts and data inside, which asks the network for nothing."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import math
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from biases._checks import fail
from biases._files import writable_file, write_atomically
from biases.report import gallery, sources, text
from biases.report.sections import SECTIONS, View

MAX_BYTES = 6_000_000
TEXT_LIMITS = (20_000, 4_000, 1_000, 200, 50)
DIGITS = 5
"""Significant ones of every number of a figure."""
COMMANDS = {
    **{name: (section.made_by, section.shown_by) for name, section in SECTIONS.items()},
    "gallery": ("biases report", ""),
}
"""Section -> the command that makes its results, and the one that then shows them."""
FILLED = {
    "verification": (("verification",), ("results",)),
    "benchmarks": (("bench", "history"), ("rows", "series")),
    "ablations": (("ablation",), ("arms", "contrasts")),
    "claims": (("claims",), ("rows",)),
    "gallery": (("gallery",), ("families", "zoo")),
}
"""Section of the page -> the results that it shows, and what of their views it needs one of."""


class Source(NamedTuple):
    """Where a part of a section comes from.

    Attributes:
        command: the command that makes it.
        file: or folder that holds it; empty where there is none.
        exact: whether the command alone makes it; else it was a run of that command with other arguments.
    """

    command: str
    file: str = ""
    exact: bool = True


def render(results: Mapping[str, Any]) -> str:
    """One self-contained HTML page.

    Args:
        results: plain JSON-ready values: ``title``, ``created``, ``command``, ``machine``, ``versions``, ``notice`` (a
            sentence at the head of the overview), the sections, ``missing`` (section -> why it is not there) and
            ``skipped`` (lines about inputs that were passed over). ``verification``, ``bench``, ``history``,
            ``ablation`` and ``claims`` are each one mapping or a list of them, in the forms that the ``view``
            functions of their modules take; each may have a ``title`` and ``remarks`` (sentences below it), and name
            the ``command`` and ``file`` that it comes from; ``exact`` is false where that command was run with other
            arguments. ``zoo`` and ``gallery`` are as :func:`biases.report.gallery.view` takes them. Anything may be
            missing; such a section says which command makes it. Memory is in bytes, times in seconds.

    Returns:
        The page, under :data:`MAX_BYTES` in UTF-8. Long messages are cut and say so, the shorter the more
        of them there are.

    Raises:
        ValueError: a value has the wrong type, a status is unknown, or the page is too large even when cut.
        ImportError: jinja2 or plotly is not installed (the extra ``report``).
    """
    if not isinstance(results, Mapping):
        fail("results", "a mapping", type(results).__name__)
    page = ""
    uncut = _views(results, TEXT_LIMITS[0])
    for limit in TEXT_LIMITS:
        page = _page(results, uncut if limit == TEXT_LIMITS[0] else uncut | _views(results, limit, cut=True), limit)
        if len(page.encode()) < MAX_BYTES:
            break
    else:
        fail("size of the page", f"under {MAX_BYTES} bytes", f"{len(page.encode())}: report fewer results")
    return page


def write(results: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Render to ``path``, atomically: a reader sees the old file or the new one, never a part. Its folder is made.

    Raises:
        ValueError: as :func:`render`, or ``path`` cannot be written.
        OSError: the file can no longer be written; an existing one is left as it was.
    """
    target = Path(path)
    writable_file("report path", target)
    write_atomically(target, render(results).encode())
    return target


def _page(results: Mapping[str, Any], shown: Mapping[str, list[View]], limit: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("biases.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context = _context(results, shown, limit)
    scripts = [_asset("charts.js"), _asset("app.js")]
    # The body enters its figures into the context.
    body = environment.get_template("body.html.j2").render(**context)
    plotly, digest = _plotly() if context["figures"] else ("", "")
    page = environment.get_template("page.html.j2").render(
        **context,
        body=_raw(body),
        style=_raw(_asset("style.css")),
        plotly=_raw(plotly),
        scripts=[_raw(script) for script in scripts],
        figures_json=_raw(_json(context["figures"])),
        script_hashes=[*map(_hash, scripts), *filter(None, [digest])],
    )
    # A lone surrogate, which a counterexample may hold, has no UTF-8 form.
    return page.encode("utf-8", "replace").decode()


class Figures(dict[str, Any]):
    """The page's figures by the name of their element."""

    def add(self, spec: Mapping[str, Any], title: str) -> dict[str, Any]:
        """Enter a figure; what the template needs of it."""
        name = f"chart-{len(self)}"
        self[name] = {**spec, "title": text.label(title, 60)}
        return {"id": name, "height": spec["layout"]["height"]}


def _views(results: Mapping[str, Any], limit: int, *, cut: bool = False) -> dict[str, list[View]]:
    """Section -> what its template shows of each part; with ``cut``, of those sections alone that cut texts."""
    return {
        name: [
            {
                **section.view(part, limit, index),
                "source": _source(results, part, name),
                "title": _title(part),
                "origin": sources.origin(part),
                "remarks": [text.words(remark) for remark in part.get("remarks") or []],
            }
            for index, part in enumerate(text.parts(results, name))
        ]
        for name, section in SECTIONS.items()
        if section.cuts or not cut
    }


def _context(results: Mapping[str, Any], shown: Mapping[str, list[View]], limit: int) -> dict[str, Any]:
    figures = Figures()
    missing = text.section(results, "missing")
    pictures = gallery.view(results)
    return {
        **shown,
        "gallery": pictures,
        "order": _order({**shown, "gallery": [pictures]}),
        "figures": figures,
        "add": figures.add,
        "title": text.words(results.get("title") or "Attention biases"),
        "created": text.words(results.get("created")),
        "command": text.words(results.get("command") or "biases report"),
        "machine": text.facts(text.section(results, "machine")),
        "versions": text.facts(text.section(results, "versions")),
        "notice": str(results.get("notice") or ""),
        "skipped": [text.cut(line, limit) for line in results.get("skipped") or []],
        "findings": [
            (name, part["title"] or (part.get("heading") or part["source"].file if len(parts) > 1 else ""), found)
            for name, parts in shown.items()
            for part in parts
            if (found := SECTIONS[name].findings(part))
        ],
        "empty": {name: (text.words(missing.get(name) or ""), *made) for name, made in COMMANDS.items()},
        "zoo_source": Source(str(results.get("command") or "biases list")),
        "dash": text.DASH,
        "plural": text.plural,
    }


def _order(shown: Mapping[str, list[View]]) -> list[str]:
    """The sections as the page has them: those that have something to show, then those that say how to make it."""
    there = {
        name: any(part.get(key) for source in sources for part in shown[source] for key in keys)
        for name, (sources, keys) in FILLED.items()
    }
    return ["overview", *sorted(there, key=lambda name: not there[name])]


def _title(part: Mapping[str, Any]) -> str:
    return "" if part.get("title") is None else str(part["title"])


def _source(results: Mapping[str, Any], part: Mapping[str, Any], name: str) -> Source:
    command = part.get("command") or results.get("command") or COMMANDS[name][0]
    file = "" if part.get("file") is None else str(part["file"])
    return Source(str(command), file, part.get("exact") is not False)


def _raw(value: str) -> Any:
    from markupsafe import Markup

    return Markup(value)


def _json(value: object) -> str:
    """JSON that cannot end the script element which holds it, with numbers as long as a figure can show."""
    plain = json.dumps(_short(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _short(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value


def _hash(script: str) -> str:
    """The script's digest for the content security policy: nothing but these scripts may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _asset(name: str) -> str:
    return resources.files("biases.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> tuple[str, str]:
    """plotly.js, compressed and in base64 as it would be most of the page, and the digest of the script itself."""
    from plotly.offline import get_plotlyjs

    # A browser reads CRLF as LF before it takes the digest.
    script = get_plotlyjs().replace("\r\n", "\n")
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode(), _hash(script)
