"""Pictures of the dashboard for the README: ``python benchmarks/screenshots.py``, of the committed results.

It writes ``docs/images/report.png`` (a desktop, light) and ``docs/images/report-phone.png`` (a phone, dark), with
Playwright and a Chromium that is on the path or that ``BIASES_BROWSER`` names. Exit code 1 where a page logs anything,
2 where there is no browser, or none that starts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import chdir
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).resolve().parent.parent
# As a script, Python looks for modules beside it and not in the checkout.
sys.path.insert(0, str(ROOT))

from benchmarks.browser import DESKTOP, PHONE, SECONDS, missing, running, visiting  # noqa: E402
from biases import cli  # noqa: E402

COLOURS = 128


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        name: file in ``docs/images``.
        section: the only one that is shown, by its id, or empty for all.
        device: that it is taken of: its window and pixels, as in Playwright's ``Browser.new_context``.
        theme: ``"light"`` or ``"dark"``.
    """

    name: str
    section: str
    device: dict[str, Any]
    theme: str


SHOTS = (
    Shot("report.png", "ablations", DESKTOP, "light"),
    Shot("report-phone.png", "gallery", PHONE, "dark"),
)


def wait_for_chart(chart: Locator) -> None:
    """Wait until a chart in the window or near it is drawn.

    Raises:
        AssertionError: it could not be, or was not in time.
    """
    from playwright.sync_api import expect

    failed = chart.and_(chart.page.locator(".failed-chart"))
    expect(chart.locator(".main-svg").or_(failed).first).to_be_visible(timeout=1000 * SECONDS)
    expect(failed).to_have_count(0)


def wait_for_charts(page: Page) -> None:
    """Wait until every chart in the window is drawn, as :func:`wait_for_chart` does."""
    height = (page.viewport_size or {})["height"]
    for chart in page.locator(".chart:visible").all():
        place = chart.bounding_box()
        if place and place["y"] < height and place["y"] + place["height"] > 0:
            wait_for_chart(chart)


def take(browser: Browser, page: Path, shot: Shot, target: Path) -> list[str]:
    """Photograph the window of ``page`` into ``target``, a PNG of few colours; what the page logged."""
    from PIL import Image

    with visiting(browser, page.as_uri(), color_scheme=shot.theme, **shot.device) as visit:
        if shot.section:
            visit.page.add_style_tag(content=f"main > section:not(#{shot.section}) {{ display: none }}")
        wait_for_charts(visit.page)
        visit.settle()
        picture = BytesIO(visit.page.screenshot(animations="disabled", timeout=1000 * SECONDS))
        with Image.open(picture) as whole:
            whole.convert("RGB").quantize(COLOURS).save(target, optimize=True)
        return visit.logged


def main(arguments: list[str] | None = None) -> int:
    """Render the committed results, or take a page that is there, and photograph it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="take this one instead of that of the committed results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    if reason := missing():
        print(f"screenshots: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        if options.page is None:
            page = Path(scratch, "report.html")
            Path(scratch, "benchmarks").symlink_to(ROOT / "benchmarks")
            # The page names its command: the README's, and not one with a folder of this run in it.
            with chdir(scratch):
                code = cli.main(["report", "benchmarks/results"])
            if code:
                return code
        else:
            page = options.page.resolve()
        try:
            with running() as browser:
                logged = [line for shot in SHOTS for line in take(browser, page, shot, out / shot.name)]
        except RuntimeError as error:
            print(f"screenshots: {error}", file=sys.stderr)
            return 2
    for line in logged:
        print(line, file=sys.stderr)
    return 1 if logged else 0


if __name__ == "__main__":
    sys.exit(main())
