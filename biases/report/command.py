"""``biases report``: its arguments, and what it writes and shows."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from biases._checks import fail
from biases._exit_codes import NOTHING, OK
from biases._files import is_stream, writable_file, write_atomically
from biases.report import sources
from biases.report.serve import LOOPBACK

FILE = "report.html"
LONGEST = 400
"""Characters of a reason on the terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases report``."""
    what = (
        "result files and folders, recognised by content (default: what runs/ and benchmarks/results/ hold here, and "
    )
    what += "the package's own studies)"
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=what)
    parser.add_argument("--out", default=FILE, metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--title", default="Attention biases", metavar="T", help="of the page (default: %(default)s)")
    parser.add_argument("--no-gallery", action="store_true", help="leave out the pictures of the zoo")
    parser.add_argument("--serve", action="store_true", help="then serve the page until interrupted")
    parser.add_argument("--host", default=LOOPBACK, metavar="H", help="to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="P", help="0 for any (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """``biases report [INPUT...]``: returns the exit code, 3 where there are no results to show: the studies that come
    with the package are none.

    Raises:
        ValueError: an input that cannot be used, a page that cannot be written there, an address that is taken.
    """
    from biases.report.inputs import DEFAULTS, gather, gather_defaults
    from biases.report.page import render
    from biases.report.serve import server

    # What can be refused is refused before the work.
    writable_file("--out", options.out)
    if options.serve and is_stream(options.out):
        fail("--out with --serve", "a file, to serve it from", options.out)
    created = _created()
    listening = server(Path(options.out), options.host, options.port) if options.serve else None
    found = gather(options.inputs) if options.inputs else gather_defaults(Path())
    counts, packaged = found.counts(), found.counts(packaged=True)
    page = render(
        {
            "title": options.title,
            "created": created,
            "command": sources.invocation("biases report", add_arguments, vars(options)),
            "versions": versions(),
            "notice": "" if counts else _nothing(DEFAULTS, bool(packaged)),
            "skipped": [f"{path}: {why}" for path, why in found.skipped],
            **found.sections,
            **zoo(pictures=not options.no_gallery),
        }
    ).encode()
    beside = _is_output(options.out)
    write_atomically(Path(options.out), page)
    told = {"schema": 1, "file": str(Path(options.out)), "bytes": len(page), "sections": counts, "packaged": packaged}
    told["skipped"] = [{"path": path, "why": why} for path, why in found.skipped]
    _show(told, options.json, sys.stderr if beside else sys.stdout)
    if listening is not None:
        _say(f"serving http://{options.host}:{listening.server_port}/ until Ctrl-C")
        with listening:
            try:
                listening.serve_forever()
            except KeyboardInterrupt:
                _say("stopped")
    return OK if counts else NOTHING


def _nothing(folders: Sequence[str], packaged: bool) -> str:
    """The notice of a page without results."""
    where = " and ".join(f"{folder}/" for folder in folders)
    rest = "the package's own studies and the gallery of its layers" if packaged else "the gallery of the layers"
    return f"No results were found: {where} of the working directory hold none. What is shown is {rest}."


def _created() -> str:
    """The time of the page in UTC: now, or what ``SOURCE_DATE_EPOCH`` says, so that a page can be built again.

    Raises:
        ValueError: that is no time.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now(UTC).isoformat(timespec="seconds")
    try:
        return datetime.fromtimestamp(int(epoch), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        fail("SOURCE_DATE_EPOCH", "whole seconds since 1970", repr(epoch))


def _is_output(path: str) -> bool:
    """Whether a page that is written to ``path`` goes where this process prints."""
    try:
        return is_stream(path) and os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:
        return False


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


def _show(told: Mapping[str, Any], as_json: bool, stream: TextIO) -> None:
    if as_json:
        print(json.dumps(told, indent=1), file=stream, flush=True)
        return
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    for each in told["skipped"]:
        why = textwrap.shorten(each["why"], LONGEST, placeholder=" … (the page has all of it)")
        console.print(f"skipped {each['path']}: {why}", style="dim", markup=False, soft_wrap=True)
    shown = ", ".join(f"{count} of {section}" for section, count in told["sections"].items())
    console.print(f"results: {shown or 'none found; the page says which commands make them'}", markup=False)
    for section, count in told["packaged"].items():
        console.print(f"of the package itself: {count} of {section}", markup=False)
    console.print(f"{told['file']}: {told['bytes'] / 1e6:.2f} MB", markup=False, soft_wrap=True)


def _say(what: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(what, markup=False, soft_wrap=True)
