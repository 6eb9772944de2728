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
from typing import Any

from biases._checks import fail
from biases._files import write_atomically
from biases.report import ablation, bench, claims, gallery, history, text, verification

MAX_BYTES = 6_000_000
TEXT_LIMITS = (20_000, 4_000, 1_000, 200)
DIGITS = 5
"""Significant ones of every number of a figure."""
COMMANDS = {
    "verification": ("biases check all --json > check.json", "biases report check.json"),
    "bench": ("biases bench --out bench.json", "biases report bench.json"),
    "history": ("asv run", "biases report benchmarks/results/asv"),
    "ablation": ("biases ablate SPEC.toml --out runs/NAME", "biases report runs/NAME"),
    "claims": ("biases claims --json > claims.json", "biases report claims.json"),
    "gallery": ("biases report", ""),
}
"""Section -> the command that makes its results, and the one that then shows them."""


def render(results: Mapping[str, Any]) -> str:
    """One self-contained HTML page.

    Args:
        results: plain JSON-ready values: ``title``, ``created``, ``command``, ``machine``, ``versions``, the sections,
            ``missing`` (section -> why it is not there) and ``skipped`` (lines about inputs that were passed over).
            ``verification``, ``bench``, ``history``, ``ablation`` and ``claims`` are each one mapping or a list of
            them, in the forms that the ``view`` functions of their modules take; each may have a ``title`` and name
            the ``command`` and ``file`` that it comes from. ``zoo`` and ``gallery`` are as
            :func:`biases.report.gallery.view` takes them. Anything may be missing; such a section says which command
            makes it. Memory is in bytes, times in seconds.

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
    target = check_target(path)
    write_atomically(target, render(results).encode())
    return target


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path of a page that can be written.

    Raises:
        ValueError: the folder does not exist, or ``path`` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        fail("report path", "a file name", f"the folder {str(target)!r}")
    if not target.parent.is_dir():
        fail("report path", "a file in an existing folder", f"{str(target)!r}")
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
    context = _context(results, limit)
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


def _context(results: Mapping[str, Any], limit: int) -> dict[str, Any]:
    figures = Figures()
    views = {
        "verification": lambda part, index: verification.view(part, limit, f"result-{index}"),
        "bench": lambda part, _: bench.view(part),
        "history": lambda part, _: history.view(part),
        "ablation": lambda part, _: ablation.view(part),
        "claims": lambda part, index: claims.view(part, limit, f"claim-{index}"),
    }
    shown = {
        name: [
            {**view(part, index), "source": _source(results, part, name), "title": _title(part)}
            for index, part in enumerate(text.parts(results, name))
        ]
        for name, view in views.items()
    }
    told = {
        "verification": verification.findings,
        "bench": bench.findings,
        "history": history.findings,
        "ablation": ablation.findings,
        "claims": claims.findings,
    }
    missing = text.section(results, "missing")
    return {
        **shown,
        "gallery": gallery.view(results),
        "figures": figures,
        "add": figures.add,
        "title": text.words(results.get("title") or "Attention biases"),
        "created": text.words(results.get("created")),
        "command": text.words(results.get("command") or "biases report"),
        "machine": text.facts(text.section(results, "machine")),
        "versions": text.facts(text.section(results, "versions")),
        "skipped": [text.words(line) for line in results.get("skipped") or []],
        "findings": [
            (name, part["title"] or (part["source"][1] if len(parts) > 1 else ""), found)
            for name, parts in shown.items()
            for part in parts
            if (found := told[name](part))
        ],
        "empty": {name: (text.words(missing.get(name) or ""), *made) for name, made in COMMANDS.items()},
        "zoo_source": (str(results.get("command") or "biases list"), ""),
        "dash": text.DASH,
    }


def _title(part: Mapping[str, Any]) -> str:
    return "" if part.get("title") is None else str(part["title"])


def _source(results: Mapping[str, Any], part: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The command, and the file or nothing, that a part of a section comes from."""
    command = part.get("command") or results.get("command") or COMMANDS[name][0]
    return str(command), "" if part.get("file") is None else str(part["file"])


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
