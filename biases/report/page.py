"""Rendering: one HTML file with its styles, scripts and data inside, which asks the network for nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases._files import write_atomically
from biases.report import ablation, bench, text, verification

MAX_BYTES = 6_000_000
TEXT_LIMITS = (20_000, 4_000, 1_000, 200)
COMMANDS = {
    "verification": "biases check all",
    "bench": "biases bench",
    "ablation": "biases ablate SPEC.toml",
    "zoo": "biases list",
}
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


def render(results: Mapping[str, Any]) -> str:
    """One self-contained HTML page.

    Args:
        results: plain JSON-ready values: ``title``, ``created``, ``command``, ``machine``, ``versions``,
            ``verification`` (``results``), ``bench`` (``config``, ``rows``, ``floor``), ``ablation``
            (``config``, ``factors``, ``arms``, ``contrasts``, ``interaction``), ``zoo`` and ``missing``
            (section -> why it is not there). Anything may be missing; such a section says which command makes
            it. ``verification``, ``bench`` and ``ablation`` may name the ``command`` and ``file`` that they
            come from. Losses are in nats per character, memory in bytes, times in seconds.

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
    for limit in TEXT_LIMITS:
        page = _page(results, limit)
        if len(page.encode()) < MAX_BYTES:
            break
    else:
        fail("size of the page", f"under {MAX_BYTES} bytes", f"{len(page.encode())}: report fewer results")
    return page


def write(results: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Render to ``path``, atomically: a reader sees the old file or the new one, never a part.

    Raises:
        ValueError: as :func:`render`, or the folder does not exist, or ``path`` is a folder.
        OSError: the file cannot be written; an existing one is left as it was.
    """
    target = Path(path)
    if target.is_dir():
        fail("report path", "a file name", f"the folder {str(target)!r}")
    if not target.parent.is_dir():
        fail("report path", "a file in an existing folder", f"{str(target)!r}")
    write_atomically(target, render(results).encode())
    return target


def _page(results: Mapping[str, Any], limit: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("biases.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plotly, app = _plotly(), _asset("app.js")
    context = _context(results, limit)
    page = environment.get_template("page.html.j2").render(
        **context,
        style=_raw(_asset("style.css")),
        plotly=_raw(plotly),
        app=_raw(app),
        figures_json=_raw(_json(context["figures"])),
        script_hashes=[_hash(plotly), _hash(app)],
    )
    # A lone surrogate, which a counterexample may hold, has no UTF-8 form.
    return page.encode("utf-8", "replace").decode()


def _context(results: Mapping[str, Any], limit: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "verification": verification.view(text.section(results, "verification"), limit),
        "bench": bench.view(text.section(results, "bench")),
        "ablation": ablation.view(text.section(results, "ablation")),
        "zoo": [_zoo_row(raw) for raw in text.rows(results, "zoo")],
    }
    missing = text.section(results, "missing")
    figures: dict[str, Any] = {}

    def figure(spec: Any) -> dict[str, Any]:
        """Enter a figure into the page's data; its number is its element's name."""
        name = f"chart-{len(figures)}"
        figures[name] = spec
        return {"id": name, "height": spec["layout"]["height"]}

    charts = {
        "bench": [(title, about, figure(spec)) for title, about, spec in shown["bench"]["figures"]],
        **{key: figure(shown["ablation"][key]) if shown["ablation"][key] else None for key in _ABLATION_FIGURES},
    }
    return {
        **shown,
        "charts": charts,
        "figures": figures,
        "title": text.words(results.get("title") or "Attention biases"),
        "created": text.words(results.get("created")),
        "command": text.words(results.get("command") or "biases report"),
        "machine": text.facts(text.section(results, "machine")),
        "versions": text.facts(text.section(results, "versions")),
        "findings": [
            *verification.findings(shown["verification"]),
            *bench.findings(shown["bench"]),
            *ablation.findings(shown["ablation"]),
        ],
        "sources": {name: _source(results, name) for name in COMMANDS},
        "empty": {name: (text.words(missing.get(name) or ""), made) for name, made in COMMANDS.items()},
        "dash": text.DASH,
    }


_ABLATION_FIGURES = ("curves", "forest", "interaction")


def _source(results: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The command, and the file or nothing, that a section comes from."""
    part = results.get(name)
    part = part if isinstance(part, Mapping) else {}
    command = part.get("command") or results.get("command") or COMMANDS[name]
    return str(command), "" if part.get("file") is None else str(part["file"])


def _zoo_row(raw: Mapping[str, Any]) -> dict[str, Any]:
    paper = text.words(raw.get("paper"))
    identifier = ARXIV.search(paper)
    traits = raw.get("traits")
    if isinstance(traits, Mapping):
        stated = [(str(k), v) for k, v in traits.items() if k not in _ELSEWHERE]
        declared = [(key, value) for key, value in stated if value not in (None, False, [], ())]
        shown = [key if value is True else f"{key}: {_trait(value)}" for key, value in declared]
    else:
        shown = [] if traits is None else [text.words(traits)]
    return {
        **{key: text.words(raw.get(key)) for key in ("name", "family", "summary", "fast_path")},
        "paper": paper,
        "link": f"https://arxiv.org/abs/{identifier[0]}" if identifier else "",
        "traits": shown,
    }


_ELSEWHERE = ("fast_path", "published")


def _trait(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(text.words(v) for v in value.values())
    if isinstance(value, list | tuple):
        return ", ".join(text.words(v) for v in value)
    return text.words(value)


def _raw(value: str) -> Any:
    from markupsafe import Markup

    return Markup(value)


def _json(value: object) -> str:
    """JSON that cannot end the script element which holds it."""
    plain = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    """The script's digest for the content security policy: nothing but these scripts may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _asset(name: str) -> str:
    return resources.files("biases.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # A browser reads CRLF as LF before it takes the digest.
    return get_plotlyjs().replace("\r\n", "\n")
