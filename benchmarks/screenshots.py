"""Pictures of the dashboard for the README: ``python benchmarks/screenshots.py``, of the committed results.

It writes ``docs/images/report.png`` (a desktop, light) and ``docs/images/report-phone.png`` (a phone, dark), with a
Chromium that it finds on the path or that ``BIASES_BROWSER`` names. Exit code 2 where there is none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# As a script, Python looks for modules beside it and not in the checkout.
sys.path.insert(0, str(ROOT))

from biases import cli  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    # Charts are drawn one after another: what is asked for is shown when they have come to rest.
    "--virtual-time-budget=60000",
)
SECONDS = 600
LEAST_WIDTH = 500
"""Of a window."""


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        name: file in ``docs/images``.
        section: the only one that is shown, by its id, or empty for all.
        width, height: of the window, in CSS pixels.
        theme: ``"light"`` or ``"dark"``.
        scale: pixels of the picture for one of the window.
    """

    name: str
    section: str
    width: int
    height: int
    theme: str
    scale: int = 1


SHOTS = (
    Shot("report.png", "ablations", 1280, 1100, "light"),
    Shot("report-phone.png", "gallery", 390, 844, "dark", 2),
)


def find_browser() -> str | None:
    """The browser of ``BIASES_BROWSER``, or the first of :data:`BROWSERS` on the path."""
    return os.environ.get("BIASES_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


def take(page: Path, shot: Shot, target: Path, browser: str) -> list[str]:
    """Photograph ``page``; what it logged.

    Raises:
        RuntimeError: the browser took no picture.
    """
    with tempfile.TemporaryDirectory() as scratch:
        themed, frame = Path(scratch, "page.html"), Path(scratch, "frame.html")
        html = page.read_text(encoding="utf-8")
        if shot.section:
            # Without the others instead of scrolled to: what is far below is not always painted.
            html = html.replace("</style>", f"main > section:not(#{shot.section}) {{ display: none }}\n</style>", 1)
        themed.write_text(html.replace('<html lang="en">', f'<html lang="en" data-theme="{shot.theme}">', 1), "utf-8")
        # A browser's window has a least width, an element inside it has none.
        size = f'width="{shot.width}" height="{shot.height}"'
        style = "<style>body { margin: 0 } iframe { border: 0; display: block }</style>"
        source = escape(themed.as_uri())
        frame.write_text(f'<!DOCTYPE html>{style}<iframe src="{source}" {size}></iframe>', "utf-8")
        command = [browser, *FLAGS, "--hide-scrollbars", f"--user-data-dir={scratch}/profile"]
        command += [f"--window-size={max(shot.width, LEAST_WIDTH)},{shot.height}"]
        picture = Path(scratch, "picture.png")
        command += [f"--force-device-scale-factor={shot.scale}", f"--screenshot={picture}", frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if not picture.exists():
            raise RuntimeError(f"{browser}: expected a picture, got exit code {done.returncode}: {done.stderr[-500:]}")
        _crop(picture, target, shot.width * shot.scale)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def _crop(picture: Path, target: Path, width: int) -> None:
    from PIL import Image

    with Image.open(picture) as whole:
        whole.crop((0, 0, width, whole.height)).convert("RGB").quantize(128).save(target, optimize=True)


def main(arguments: list[str] | None = None) -> int:
    """Render the committed results, or take a page that is there, and photograph it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="take this one instead of that of the committed results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    browser = find_browser()
    if browser is None:
        print(f"screenshots: no browser found, tried {', '.join(BROWSERS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        page = options.page
        if page is None:
            page = Path(scratch, "report.html")
            os.chdir(ROOT)
            if code := cli.main(["report", "benchmarks/results", "--out", str(page)]):
                return code
        logged = [line for shot in SHOTS for line in take(page, shot, options.out / shot.name, browser)]
    for line in logged:
        print(line, file=sys.stderr)
    return 1 if logged else 0


if __name__ == "__main__":
    sys.exit(main())
