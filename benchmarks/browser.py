"""Pages in the Chromium of this machine, driven by Playwright, with everything that they log and ask for.

None is downloaded: it is the one that ``BIASES_BROWSER`` names, or the first of :data:`BROWSERS` on the path.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserType, Dialog, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60.0
"""After which anything that is waited for is an error, the browser's start included."""
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 1100}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


@dataclass
class Visit:
    """A page that is open.

    Attributes:
        page: Playwright's.
        logged: messages on its console, errors that nothing caught, requests that failed and boxes of ``alert`` and
            its kin, as they came.
        requests: addresses that it asked for, its own first, without fragments; none that lie inside it, as those of
            ``data:`` and ``blob:`` do.
    """

    page: Page
    logged: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, address: str) -> None:
        if not address.startswith(("blob:", "data:")):
            self.requests.append(address.partition("#")[0])

    def dismiss(self, dialog: Dialog) -> None:
        self.logged.append(f"{dialog.type}: {dialog.message}")
        dialog.dismiss()

    def settle(self) -> None:
        """Let the page run what it has put off to its next frame, and hear what it logged until then."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")


def find_browser() -> str | None:
    """The browser of ``BIASES_BROWSER``, or the first of :data:`BROWSERS` on the path."""
    return os.environ.get("BIASES_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


def missing() -> str | None:
    """What there has to be installed before a page can be opened, or nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    if find_browser() is None:
        return f"no browser found, tried {', '.join(BROWSERS)}; BIASES_BROWSER names another"
    return None


def launch(kind: BrowserType, path: str, seconds: float = SECONDS) -> Browser:
    """Start the Chromium at ``path``, without a window, drawing as on a machine without a GPU.

    Raises:
        RuntimeError: it did not start within ``seconds``.
    """
    from playwright.sync_api import Error

    try:
        return kind.launch(executable_path=path, args=["--disable-gpu"], timeout=1000 * seconds)
    except Error as error:
        raise RuntimeError(f"{path}: expected a Chromium that starts, got {error.message}") from error


@contextmanager
def running() -> Iterator[Browser]:
    """The browser of :func:`find_browser`, started; until it is left, the thread has a running event loop.

    Raises:
        RuntimeError: it is missing, or did not start.
    """
    if reason := missing():
        raise RuntimeError(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright.chromium, str(find_browser()))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Browser, address: str, **device: Any) -> Iterator[Visit]:
    """Open ``address`` with nothing remembered from other visits; ``device`` is as in ``Browser.new_context``."""
    context = browser.new_context(**{"reduced_motion": "reduce", **DESKTOP, **device})
    try:
        context.set_default_timeout(1000 * SECONDS)
        visit = Visit(context.new_page())
        context.on("console", lambda message: visit.logged.append(f"{message.type}: {message.text}"))
        context.on("weberror", lambda thrown: visit.logged.append(f"thrown: {thrown.error}"))
        context.on("requestfailed", lambda request: visit.logged.append(f"failed: {request.url}: {request.failure}"))
        context.on("dialog", visit.dismiss)
        context.on("request", lambda request: visit.ask(request.url))
        visit.page.on("websocket", lambda socket: visit.ask(socket.url))
        visit.page.goto(address)
        yield visit
    finally:
        context.close()
