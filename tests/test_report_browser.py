"""The dashboard in a real browser: charts are drawn, nothing is logged, texts stay inert."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from html import unescape
from pathlib import Path

import pytest
from report_pages import ATTACK, Page, full_results, sample_results

from benchmarks.screenshots import BROWSERS, FLAGS, Shot, find_browser, take
from biases.report import write

BROWSER = find_browser()

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"no browser found, tried {', '.join(BROWSERS)}"),
    pytest.mark.slow,
]


PROBE = """
const seen = {}, saved = [];
const dialog = document.getElementById("evidence");
const colour = () => document.querySelector("#chart-0 .xtitle")?.style.fill;
const unfolded = () => document.querySelectorAll(".card[open] .js-plotly-plot").length;
function until(holds, then, left = 200) {
  if (holds() || !left) then();
  else setTimeout(() => until(holds, then, left - 1), 100);
}
function act() {
  document.querySelector('a.cell[aria-label="ega, future-independence: known failure"]').click();
  seen.open = dialog.open;
  seen.evidence = dialog.textContent;
  seen.copy = dialog.querySelectorAll("button.copy").length;
  document.getElementById("evidence-close").click();
  document.querySelector('a.cell[aria-label="alibi, future-independence: passed"]').click();
  seen.promise = dialog.textContent;
  document.getElementById("evidence-close").click();
  seen.closed = !dialog.open;
  const verdict = document.querySelector('select[data-filter="verdict"]');
  verdict.value = "fails";
  verdict.dispatchEvent(new Event("change", { bubbles: true }));
  seen.claims = [...document.querySelectorAll(".claim")].filter(claim => claim.checkVisibility()).length;
  seen.filtered = document.querySelector(".filtered").textContent;
  seen.folded = document.querySelectorAll(".card .main-svg").length;
  document.querySelector(".card").open = true;
  HTMLAnchorElement.prototype.click = function () { saved.push([this.download, this.href.slice(0, 22)]); };
  for (const format of ["png", "svg", "json"]) document.querySelector(`.export[data-format=${format}]`).click();
  seen.before = colour();
  document.getElementById("theme").click();
  seen.theme = document.documentElement.dataset.theme;
  seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  until(() => saved.length === 3 && unfolded() === 3 && colour() !== seen.before, told);
}
function told() {
  const probe = document.createElement("output");
  probe.id = "probe";
  probe.textContent = JSON.stringify({ ...seen, saved, after: colour(), unfolded: unfolded() });
  document.body.append(probe);
}
until(colour, act);
"""


def _dump(page: Path, fragment: str = "") -> tuple[str, list[str]]:
    """The page's document after its scripts ran, without them, and what they logged."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    # Charts are drawn when they come near the window, which here is as high as the page.
    command = [str(BROWSER), *FLAGS, profile, "--window-size=1280,30000", "--dump-dom", page.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S), logged


def _open(results: dict, folder: Path, fragment: str = "") -> tuple[str, list[str]]:
    return _dump(write(results, folder / "report.html"), fragment)


def test_every_chart_is_drawn_and_nothing_is_logged(tmp_path: Path) -> None:
    page = write(full_results(), tmp_path / "report.html")
    # Charts in closed folds wait until they are seen.
    page.write_text(page.read_text(encoding="utf-8").replace("<details", "<details open"), encoding="utf-8")
    document, logged = _dump(page)
    assert logged == []
    charts = re.findall(r'<div class="chart([^"]*)" id="chart-\d+"', document)
    assert len(charts) == len(Page(page.read_text(encoding="utf-8")).figures()) > 20
    assert all("js-plotly-plot" in classes for classes in charts)
    # Each chart is drawn in layers, of which at least two have this class.
    assert len(re.findall(r'<svg class="main-svg"', document)) >= 2 * len(charts)
    assert "This chart could not be drawn" not in document
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
    more = {name: full_results()[name] for name in ("claims", "gallery")}
    page = write(sample_results() | more, tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    # The page's own policy would refuse the probe, as it should; all else is done under it.
    allowed = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{allowed}' ", 1)
    page.write_text(html.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    document, logged = _dump(page)
    assert logged == []
    found = re.search(r'<output id="probe">(.*?)</output>', document, re.S)
    assert found is not None
    seen = json.loads(unescape(found[1]))
    assert seen["open"]
    assert seen["closed"]
    assert seen["copy"] == 1
    for part in ("The output at t does not change", "changed by 0.0417", "length=2", "replay(factory('ega')"):
        assert part in seen["evidence"]
    assert "The output at t does not change with any input after t.25 examples, 210 ms" in seen["promise"]
    assert (seen["claims"], seen["filtered"]) == (1, "1 of 3")
    saved = dict(seen["saved"])
    assert saved["forward-time-against-the-floor.png"] == "data:image/png;base64,"
    assert saved["forward-time-against-the-floor.json"].startswith("blob:")
    assert saved["forward-time-against-the-floor.svg"].startswith("data:image/svg+xml,")
    assert seen["theme"] in ("light", "dark")
    assert None not in (seen["before"], seen["after"])
    assert seen["before"] != seen["after"]
    assert not seen["wide"]
    # Charts in a closed fold are drawn when it is opened.
    assert (seen["folded"], seen["unfolded"]) == (0, 3)


def test_a_script_that_the_page_does_not_own_is_refused(tmp_path: Path) -> None:
    page = write({}, tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    foreign = "<script>document.body.append('it ran')</script><img src=x onerror=\"document.body.append('it ran')\">"
    page.write_text(html.replace("</body>", f"{foreign}</body>"), encoding="utf-8")
    document, logged = _dump(page)
    assert "it ran" not in document.replace("append('it ran')", "")
    assert any("Content Security Policy" in line for line in logged)


def test_a_link_to_a_result_unfolds_it(tmp_path: Path) -> None:
    target = 'id="result-0-9"'
    results = {"verification": sample_results()["verification"]}
    opened = [_open(results, tmp_path, fragment)[0] for fragment in ("", "#result-0-9")]
    folded, unfolded = (document[: document.index(target)].rindex("<details") for document in opened)
    assert opened[0][folded:].startswith('<details class="result">')
    assert opened[1][unfolded:].startswith('<details class="result" open="">')


@pytest.mark.slow
def test_pictures_of_a_section_have_the_size_and_theme_that_were_asked_for(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    page, target = write(sample_results(), tmp_path / "report.html"), tmp_path / "picture.png"
    assert take(page, Shot("picture.png", "ablations", 390, 600, "dark", 2), target, str(BROWSER)) == []
    with image.open(target) as picture:
        assert picture.size == (780, 1200)
        assert max(picture.convert("RGB").getpixel((2, 2))) < 40
