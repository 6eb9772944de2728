"""The dashboard in a real browser: charts are drawn, nothing is logged, texts stay inert."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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


def _open(results: dict, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and what they logged."""
    page = write(results, folder / "report.html")
    command = [
        str(BROWSER),
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        *flags,
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S), logged


def test_every_chart_is_drawn_and_nothing_is_logged(tmp_path: Path) -> None:
    document, logged = _open(sample_results(), tmp_path)
    assert logged == []
    charts = re.findall(r'<div class="chart[^>]*id="chart-\d"', document)
    assert len(charts) == 5
    # plotly draws each chart as two layers of the same class.
    assert len(re.findall(r'<svg class="main-svg"', document)) >= 2 * len(charts)
    assert "could not be drawn" not in document
    assert "n = 5" in document


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
