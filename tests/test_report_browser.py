"""The dashboard in a real browser: charts are drawn, nothing is logged or fetched, texts stay inert."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from report_pages import ATTACK, Page, claims, full_results, gallery, sample_results

from benchmarks.browser import PHONE, SECONDS, Visit, launch, missing, running, visiting
from benchmarks.screenshots import Shot, take, wait_for_chart, wait_for_charts
from biases.report import write

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

from playwright.sync_api import Browser, Locator, expect
from playwright.sync_api import Page as Tab

expect.set_options(timeout=1000 * SECONDS)

# How many series a chart shows: a line, a set of bars or a heatmap each.
SERIES = "chart => chart.querySelectorAll('.scatterlayer > .trace, .barlayer > .trace, .heatmaplayer > .hm').length"
# What is beyond the sides of the window, without what an element scrolls, what a chart clips at its axes, groups that
# draw nothing themselves, and what plotly measures texts in.
BEYOND = """width => [...document.body.querySelectorAll('*')].filter(each => {
  const place = each.getBoundingClientRect();
  return each.checkVisibility() && place.width > 1 && (place.left < -0.5 || place.right > width + 0.5)
    && each.tagName !== 'g' && !each.closest('.scroll, .skip, .overplot, #js-plotly-tester');
}).map(each => each.outerHTML.slice(0, 200))"""
# Size of the smallest words in what matches; exponents are spans inside them.
SMALLEST = """those => Math.min(...[...document.querySelectorAll(those)]
  .filter(each => each.checkVisibility() && [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .map(each => parseFloat(getComputedStyle(each).fontSize)))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of the module and not of the session: other tests of the thread may need an event loop of their own."""
    with running() as browser:
        yield browser


@contextmanager
def quiet(browser: Browser, path: Path, fragment: str = "", **device) -> Iterator[Visit]:
    """A visit of a file that logs nothing and asks for nothing but itself."""
    with visiting(browser, path.as_uri() + fragment, **device) as visit:
        yield visit
        visit.settle()
        assert visit.logged == []
        assert visit.requests == [path.as_uri()]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything, and an attack in its names."""
    results = full_results()
    results["title"] = ATTACK
    results["bench"]["rows"][0]["name"] = ATTACK
    results["ablation"][0]["contrasts"][0]["name"] = ATTACK
    return write(results, tmp_path_factory.mktemp("full") / "report.html")


@pytest.fixture(scope="module")
def desk(browser: Browser, full: Path) -> Iterator[Visit]:
    with quiet(browser, full) as visit:
        yield visit


@pytest.fixture
def tab(desk: Visit) -> Iterator[Tab]:
    """A page for several tests: to start the library of the charts takes longer than most of them."""
    yield desk.page
    desk.settle()
    logged = desk.logged.copy()
    desk.logged.clear()
    assert logged == []


def draw(chart: Locator) -> None:
    """Bring a chart into the window, as a reader does, and wait for it."""
    chart.scroll_into_view_if_needed()
    wait_for_chart(chart)


def unfold(tab: Tab) -> None:
    """Click on every fold, the outer ones first."""
    folds = tab.locator("details:not([open])")
    for left in range(folds.count(), 0, -1):
        folds.first.locator("summary").first.click()
        expect(folds).to_have_count(left - 1)


def expect_theme(tab: Tab, dark: bool) -> None:
    """The page's ground and words have the theme's colours, and those of its first chart too."""
    light, black = "rgb(247, 248, 249)", "rgb(17, 20, 24)"
    pale, ink = "rgb(231, 234, 238)", "rgb(27, 32, 38)"
    draw(tab.locator("#chart-0"))
    expect(tab.locator("body")).to_have_css("background-color", black if dark else light)
    expect(tab.locator("body")).to_have_css("color", pale if dark else ink)
    expect(tab.locator("#chart-0 .xtitle")).to_have_css("fill", pale if dark else ink)


def test_an_attack_in_the_names_is_drawn_as_text(tab: Tab) -> None:
    for chart in tab.locator("#benchmarks .chart:visible, #ablations .chart:visible").all():
        draw(chart)
    expect(tab.locator("h1")).to_have_text(ATTACK)
    expect(tab.locator("img:not(.thumbnail), b")).to_have_count(0)
    expect(tab.locator("script", has_text=re.compile(r"^alert\(1\)$"))).to_have_count(0)
    for section in ("#benchmarks", "#ablations"):
        expect(tab.locator(f"{section} svg text", has_text="<img").first).to_be_visible()


def test_an_empty_report_has_no_chart(browser: Browser, tmp_path: Path) -> None:
    with quiet(browser, write({}, tmp_path / "report.html")) as visit:
        tab = visit.page
        expect(tab.locator("main")).to_contain_text("biases check all")
        expect(tab.locator(".chart, .main-svg")).to_have_count(0)


def test_cells_open_their_evidence(browser: Browser, tmp_path: Path) -> None:
    path = write({"verification": sample_results()["verification"]}, tmp_path / "report.html")
    with quiet(browser, path, permissions=["clipboard-read", "clipboard-write"]) as visit:
        tab, evidence = visit.page, visit.page.get_by_role("dialog")
        expect(evidence).to_be_hidden()
        tab.get_by_role("link", name="ega, future-independence: known failure").click()
        for part in ("The output at t does not change", "changed by 0.0417", "length=2", "replay(factory('ega')"):
            expect(evidence).to_contain_text(part)
        evidence.get_by_role("button", name="Copy").click()
        expect(evidence.get_by_role("button", name="Copied")).to_have_count(1)
        assert "replay(factory('ega')" in tab.evaluate("() => navigator.clipboard.readText()")
        evidence.get_by_role("button", name="Close").click()
        expect(evidence).to_be_hidden()
        tab.get_by_role("link", name="alibi, future-independence: passed").click()
        expect(evidence).to_contain_text("The output at t does not change with any input after t.")
        expect(evidence).to_contain_text("25 examples, 210 ms")
        tab.keyboard.press("Escape")
        expect(evidence).to_be_hidden()


def test_a_link_to_a_result_unfolds_it(browser: Browser, tmp_path: Path) -> None:
    path = write({"verification": sample_results()["verification"]}, tmp_path / "report.html")
    with quiet(browser, path, "#result-0-9") as visit:
        unfolded = visit.page.locator("details.result[open] > .result-body")
        expect(unfolded).to_have_count(1)
        expect(visit.page.locator("#result-0-9")).to_be_in_viewport()
        visit.page.evaluate("() => { location.hash = 'result-0-47' }")
        expect(unfolded).to_have_count(2)
        expect(visit.page.locator("#result-0-47")).to_be_in_viewport()


def test_claims_are_filtered(tab: Tab) -> None:
    shown, verdict = tab.locator(".claim:visible"), tab.locator("select[data-filter=verdict]")
    expect(shown).to_have_count(3)
    verdict.select_option("fails")
    expect(shown).to_have_count(1)
    expect(tab.locator(".filtered")).to_have_text("1 of 3")
    verdict.select_option("")
    expect(shown).to_have_count(3)
    expect(tab.locator(".filtered")).to_have_text("3 of 3")


def test_a_chart_is_exported(tab: Tab, tmp_path: Path) -> None:
    saved, chart = {}, tab.locator("#chart-0")
    draw(chart)
    for format in ("png", "svg", "json"):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=f"Export Time against the floor as {format.upper()}").click()
        assert download.value.suggested_filename == f"float32-forward-time-against-the-floor.{format}"
        download.value.save_as(tmp_path / format)
        saved[format] = (tmp_path / format).read_bytes()
    assert saved["png"].startswith(b"\x89PNG\r\n")
    assert "float32, forward: Time against the floor" in "".join(ElementTree.fromstring(saved["svg"]).itertext())
    figure = json.loads(saved["json"])
    assert len(figure["data"]) == chart.evaluate(SERIES) > 0
    assert figure["layout"]["width"] == 900


def test_the_theme_reaches_the_charts(tab: Tab) -> None:
    expect_theme(tab, dark=False)
    tab.get_by_role("button", name="theme").click()
    expect_theme(tab, dark=True)
    tab.get_by_role("button", name="theme").click()
    expect_theme(tab, dark=False)


def test_every_chart_is_drawn_when_it_comes_near_or_is_unfolded(tab: Tab, full: Path) -> None:
    figures, charts = Page(full.read_text(encoding="utf-8")).figures(), tab.locator(".chart")
    expect(charts).to_have_count(len(figures))
    assert len(figures) > 20
    tab.locator(".card").first.scroll_into_view_if_needed()
    wait_for_charts(tab)
    folded = tab.locator("details:not([open]) .chart")
    expect(folded).not_to_have_count(0)
    expect(folded.locator(".main-svg")).to_have_count(0)
    unfold(tab)
    for chart in charts.all():
        draw(chart)
    shown = {chart.get_attribute("id"): chart.evaluate(SERIES) for chart in charts.all()}
    assert shown == {name: len(figure["data"]) for name, figure in figures.items()}
    expect(tab.locator(".failed-chart")).to_have_count(0)
    expect(tab.locator("body")).to_contain_text("n = 6")
    root = "document.documentElement"
    assert tab.evaluate(f"() => {root}.scrollWidth <= {root}.clientWidth")


def test_a_script_that_the_page_does_not_own_is_refused(browser: Browser, tmp_path: Path) -> None:
    path, elsewhere = write({}, tmp_path / "report.html"), "http://127.0.0.1:9/"
    html = path.read_text(encoding="utf-8")
    foreign = f"""<script>document.body.append('it ran')</script><script src="{elsewhere}script"></script>
    <img src="{elsewhere}picture"><img src=x onerror="document.body.append('it ran')">"""
    path.write_text(html.replace("</body>", f"{foreign}</body>"), encoding="utf-8")
    with visiting(browser, path.as_uri()) as visit:
        visit.settle()
        expect(visit.page.locator("body")).not_to_contain_text("it ran")
        assert sum("Content Security Policy" in line for line in visit.logged) >= 4
    # Without the policy all of it happens, and is seen.
    path.write_text(re.sub("<meta http-equiv.*?>", "", path.read_text(encoding="utf-8")), encoding="utf-8")
    with visiting(browser, path.as_uri()) as visit:
        visit.settle()
        expect(visit.page.locator("body")).to_contain_text(re.compile("it ran.*it ran", re.DOTALL))
        assert {f"{elsewhere}script", f"{elsewhere}picture"} <= set(visit.requests)
        assert any(elsewhere in line for line in visit.logged)


def test_a_phone_in_the_dark_shows_every_section(browser: Browser, tmp_path: Path) -> None:
    path = write(sample_results() | {"claims": claims(), "gallery": gallery()[:1]}, tmp_path / "report.html")
    with quiet(browser, path, color_scheme="dark", **PHONE) as visit:
        tab = visit.page
        wait_for_charts(tab)
        for link in tab.get_by_role("navigation").get_by_role("link").all():
            section = tab.locator(str(link.get_attribute("href")))
            link.tap()
            expect(section.get_by_role("heading").first).to_be_in_viewport()
            wait_for_charts(tab)
        tab.get_by_role("link", name="ega, future-independence: known failure").tap()
        expect(tab.get_by_role("dialog")).to_contain_text("changed by 0.0417")
        tab.get_by_role("button", name="Close").tap()
        unfold(tab)
        for chart in tab.locator(".chart").all():
            draw(chart)
        assert tab.evaluate(BEYOND, PHONE["viewport"]["width"]) == []
        assert tab.evaluate("() => document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
        assert tab.evaluate(SMALLEST, "main :not(.chart *), header *") >= 12
        assert tab.evaluate(SMALLEST, ".chart text") >= 10
        expect_theme(tab, dark=True)
        # The device turns to its light theme, and the page with it.
        tab.emulate_media(color_scheme="light")
        expect_theme(tab, dark=False)


def test_pictures_of_a_section_have_the_size_and_theme_that_were_asked_for(browser: Browser, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    # Without charts, whose library takes two seconds to start.
    results = {"verification": sample_results()["verification"]}
    page, target = write(results, tmp_path / "report.html"), tmp_path / "picture.png"
    assert take(browser, page, Shot("picture.png", "verification", PHONE, "dark"), target) == []
    with image.open(target) as picture:
        assert picture.size == (780, 1688)
        assert max(picture.convert("RGB").getpixel((2, 2))) < 40


@pytest.mark.parametrize(
    ("script", "reason"), [("echo no usable sandbox >&2; exit 1", "no usable sandbox"), ("sleep 60", "Timeout")]
)
def test_a_browser_that_does_not_start_is_told(browser: Browser, tmp_path: Path, script: str, reason: str) -> None:
    path = tmp_path / "chromium"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    with pytest.raises(RuntimeError, match=f"(?s)expected a Chromium that starts.*{reason}"):
        launch(browser.browser_type, str(path), seconds=2)
