"""``biases report``: its arguments, and what it writes and shows."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from biases._exit_codes import NOTHING, OK
from biases.report.serve import LOOPBACK

FILE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases report``."""
    what = "result files and folders, recognised by content (default: what runs/ and benchmarks/results/ hold here)"
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=what)
    parser.add_argument("--out", default=FILE, metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--title", default="Attention biases", metavar="T", help="of the page (default: %(default)s)")
    parser.add_argument("--no-gallery", action="store_true", help="leave out the pictures of the zoo")
    parser.add_argument("--serve", action="store_true", help="then serve the page until interrupted")
    parser.add_argument("--host", default=LOOPBACK, metavar="H", help="to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="P", help="0 for any (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """``biases report [INPUT...]``: returns the exit code, 3 where there are no results to show.

    Raises:
        ValueError: an input that cannot be used, a page that cannot be written there, an address that is taken.
    """
    from biases.report.inputs import gather, gather_defaults
    from biases.report.page import check_target, write
    from biases.report.serve import server

    # What can be refused is refused before the work.
    check_target(options.out)
    listening = server(Path(options.out), options.host, options.port) if options.serve else None
    found = gather(options.inputs) if options.inputs else gather_defaults(Path.cwd())
    page = write(
        {
            "title": options.title,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": _command(options),
            "versions": versions(),
            "skipped": [f"{path}: {why}" for path, why in found.skipped],
            **found.sections,
            **zoo(pictures=not options.no_gallery),
        },
        options.out,
    )
    counts = {section: len(parts) for section, parts in found.sections.items()}
    told = {"schema": 1, "file": str(page), "bytes": page.stat().st_size, "sections": counts}
    told["skipped"] = [{"path": path, "why": why} for path, why in found.skipped]
    _show(told, options.json)
    if listening is not None:
        _say(f"serving http://{options.host}:{listening.server_port}/ until Ctrl-C")
        with listening:
            try:
                listening.serve_forever()
            except KeyboardInterrupt:
                _say("stopped")
    return OK if counts else NOTHING


def zoo(*, pictures: bool = True) -> dict[str, Any]:
    """The sections that come from the package itself: ``zoo`` and ``gallery``, with progress on standard error."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from biases import zoo as variants
    from biases.report.pictures import pictures as draw

    found: dict[str, Any] = {"zoo": variants.table()}
    if pictures:
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("gallery", total=None)

            def advance(done: int, total: int, name: str) -> None:
                bars.update(task, description=name, completed=done, total=total)

            found["gallery"] = draw(advance)
    return found


def versions() -> dict[str, str]:
    """Of what made the page."""
    import torch

    import biases

    return {"python": platform.python_version(), "torch": torch.__version__, "biases": biases.__version__}


def _command(options: argparse.Namespace) -> str:
    return " ".join(["biases report", *options.inputs])


def _show(told: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(told, indent=1), flush=True)
        return
    from rich.console import Console

    console = Console(highlight=False)
    for each in told["skipped"]:
        console.print(f"skipped {each['path']}: {each['why']}", style="dim", markup=False, soft_wrap=True)
    shown = ", ".join(f"{count} of {section}" for section, count in told["sections"].items())
    console.print(f"results: {shown or 'none found; the page says which commands make them'}", markup=False)
    console.print(f"{told['file']}: {told['bytes'] / 1e6:.2f} MB", markup=False, soft_wrap=True)


def _say(what: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(what, markup=False, soft_wrap=True)
