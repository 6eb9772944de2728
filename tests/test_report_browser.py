"""The dashboard in a real browser: charts are drawn, nothing is logged, texts stay inert."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from test_report import ATTACK, sample_results

from biases.report import write

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
)
BROWSER = os.environ.get("BIASES_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser found, tried {', '.join(BROWSERS)}")


PROBE = """
const seen = {};
const colour = () => document.querySelector("#chart-0 .xtitle").style.fill;
document.querySelector('a.cell[aria-label="ega, future-independence: known failure"]').click();
const dialog = document.getElementById("evidence");
seen.open = dialog.open;
seen.evidence = dialog.textContent;
seen.copy = dialog.querySelectorAll("button.copy").length;
document.getElementById("evidence-close").click();
seen.closed = !dialog.open;
seen.before = colour();
document.getElementById("theme").click();
seen.theme = document.documentElement.dataset.theme;
seen.after = colour();
seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
const probe = document.createElement("output");
probe.textContent = JSON.stringify(seen);
document.body.append(probe);
"""


def _dump(page: Path, fragment: str = "") -> tuple[str, list[str]]:
    """The page's document after its scripts ran, without them, and what they logged."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [str(BROWSER), *FLAGS, profile, "--dump-dom", page.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S), logged


def _open(results: dict, folder: Path, fragment: str = "") -> tuple[str, list[str]]:
    return _dump(write(results, folder / "report.html"), fragment)


def test_every_chart_is_drawn_and_nothing_is_logged(tmp_path: Path) -> None:
    document, logged = _open(sample_results(), tmp_path)
    assert logged == []
    charts = re.findall(r'<div class="chart[^>]*id="chart-\d"', document)
    assert len(charts) == 5
    # Each chart is drawn in layers, of which at least two have this class.
    assert len(re.findall(r'<svg class="main-svg"', document)) >= 2 * len(charts)
    assert "could not be drawn" not in document
    assert "n = 6" in document


def test_an_attack_in_the_names_is_drawn_as_text(tmp_path: Path) -> None:
    results = sample_results()
    results["title"] = ATTACK
    results["bench"]["rows"][0]["name"] = ATTACK
    results["ablation"]["contrasts"][0]["name"] = ATTACK
    document, logged = _open(results, tmp_path)
    assert logged == []
    assert not re.search(r"<img|<b ", document)
    svg = "".join(re.findall(r"<svg.*?</svg>", document, re.S))
    assert "&lt;img" in svg


def test_an_empty_report_logs_nothing(tmp_path: Path) -> None:
    document, logged = _open({}, tmp_path)
    assert logged == []
    assert "main-svg" not in document
    assert "biases check all" in document


def test_cells_open_their_evidence_and_the_theme_reaches_the_charts(tmp_path: Path) -> None:
    page = write(sample_results(), tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    # The page's own policy would refuse the probe, as it should.
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html, count=1)
    page.write_text(html.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    document, logged = _dump(page)
    assert logged == []
    found = re.search(r"<output>(.*?)</output>", document, re.S)
    assert found is not None
    seen = json.loads(unescape(found[1]))
    assert seen["open"]
    assert seen["closed"]
    assert seen["copy"] == 1
    for part in ("The output at t does not change", "changed by 0.0417", "length=2", "replay(factory('ega')"):
        assert part in seen["evidence"]
    assert seen["theme"] in ("light", "dark")
    assert seen["before"] != seen["after"]
    assert not seen["wide"]


def test_a_script_that_the_page_does_not_own_is_refused(tmp_path: Path) -> None:
    page = write({}, tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    foreign = "<script>document.body.append('it ran')</script><img src=x onerror=\"document.body.append('it ran')\">"
    page.write_text(html.replace("</body>", f"{foreign}</body>"), encoding="utf-8")
    document, logged = _dump(page)
    assert "it ran" not in document.replace("append('it ran')", "")
    assert any("Content Security Policy" in line for line in logged)


def test_a_link_to_a_result_unfolds_it(tmp_path: Path) -> None:
    target = 'id="result-0"'
    opened = [_open(sample_results(), tmp_path, fragment)[0] for fragment in ("", "#result-0")]
    folded, unfolded = (document[: document.index(target)].rindex("<details") for document in opened)
    assert opened[0][folded:].startswith('<details class="result">')
    assert opened[1][unfolded:].startswith('<details class="result" open="">')
