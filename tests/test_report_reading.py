"""The dashboard in a real browser, read otherwise than with a mouse at a desk: by keyboard, on a phone, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from report_pages import sample_results

from benchmarks.browser import DESKTOP, PHONE, SECONDS, missing, running, visiting
from benchmarks.screenshots import wait_for_charts
from biases.report import write

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.slow
expect.set_options(timeout=1000 * SECONDS)

# What paper would show: the unfolded charts that are not drawn, the widest that is, and the colour of its words.
PAPER = """() => {
  const open = [...document.querySelectorAll('.chart')].filter(chart => !chart.closest('details:not([open])'));
  const ink = document.querySelector('#chart-0 .xtitle');
  window.onPaper = {
    charts: open.length,
    missing: open.filter(chart => !chart.querySelector('.main-svg')).length,
    widest: Math.max(...open.map(chart => chart.querySelector('.main-svg')?.getBoundingClientRect().width ?? 0)),
    ink: ink && getComputedStyle(ink).fill,
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(sample_results(), tmp_path_factory.mktemp("page") / "report.html")


def focused(tab: Tab) -> str:
    return str(tab.evaluate("() => document.activeElement.getAttribute('aria-label')"))


def test_the_matrix_is_one_stop_and_the_arrows_move_in_it(browser: Browser, page: Path) -> None:
    with visiting(browser, page.as_uri()) as visit:
        tab = visit.page
        matrix = tab.get_by_role("grid")
        expect(matrix.locator("a.cell")).to_have_count(48)
        expect(matrix.locator("a.cell[tabindex='0']")).to_have_count(1)
        tab.get_by_role("region", name="Matrix of subjects and properties").focus()
        tab.keyboard.press("Tab")
        # What failed comes first.
        assert focused(tab) == "swat, float64-agreement: failed"
        for key, label in (
            ("ArrowRight", "swat, future-independence: passed"),
            ("ArrowDown", "ega, future-independence: known failure"),
            ("ArrowLeft", "ega, float64-agreement: passed"),
            ("ArrowLeft", "ega, float64-agreement: passed"),
            ("End", "ega, batch-independence: passed"),
            ("Home", "ega, float64-agreement: passed"),
            ("ArrowUp", "swat, float64-agreement: failed"),
        ):
            tab.keyboard.press(key)
            assert focused(tab) == label
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("dialog")).to_contain_text("output[0, 2, 5] is 1.0021")
        tab.keyboard.press("Escape")
        assert focused(tab) == "swat, float64-agreement: failed"
        tab.keyboard.press("Tab")
        expect(tab.locator("a.cell:focus")).to_have_count(0)


def test_the_matrix_is_narrowed_by_name_and_to_what_went_wrong(browser: Browser, page: Path) -> None:
    with visiting(browser, page.as_uri()) as visit:
        tab = visit.page
        cells, evidence = tab.locator("a.cell:visible"), tab.locator(".evidence .result:visible")
        expect(tab.locator(".sieved")).to_have_text("8 subjects, 6 properties")
        tab.get_by_role("combobox", name="Show").select_option("wrong")
        expect(tab.locator(".sieved")).to_have_text("2 subjects, 3 properties")
        expect(cells).to_have_count(6)
        expect(evidence).to_have_count(3)
        search = tab.get_by_label("Subject or property")
        search.fill("ega")
        expect(tab.locator(".sieved")).to_have_text("1 subject, 2 properties")
        expect(evidence).to_have_count(2)
        # Of properties, as no subject has it.
        tab.get_by_role("combobox", name="Show").select_option("")
        search.fill("float64")
        expect(tab.locator(".sieved")).to_have_text("8 subjects, 1 property")
        expect(tab.locator("a.cell[tabindex='0']:visible")).to_have_count(1)
        search.fill("nothing of this name")
        expect(cells).to_have_count(0)
        search.fill("")
        expect(cells).to_have_count(48)


def test_tables_keep_their_first_column_and_say_that_they_scroll(browser: Browser, page: Path) -> None:
    with visiting(browser, page.as_uri(), **PHONE) as visit:
        tab = visit.page
        for name in ("Table of measurements", "Table of effects"):
            region = tab.get_by_role("region", name=name)
            region.scroll_into_view_if_needed()
            expect(region.locator("xpath=preceding-sibling::p[1]")).to_have_text("Scroll sideways for more →")
            expect(region.locator("xpath=preceding-sibling::p[1]")).to_be_visible()
            moved = region.evaluate("""region => {
              region.scrollLeft = 150;
              const first = region.querySelector("tbody th[scope='row']").getBoundingClientRect();
              return [region.scrollLeft, first.left - region.getBoundingClientRect().left, first.width];
            }""")
            assert moved[0] == 150
            assert abs(moved[1]) < 1
            assert moved[2] < 0.5 * PHONE["viewport"]["width"]
    with visiting(browser, page.as_uri()) as visit:
        hint = visit.page.get_by_role("region", name="Matrix of subjects and properties")
        expect(hint.locator("xpath=preceding-sibling::p[1]")).to_be_hidden()


def test_on_paper_everything_unfolded_is_drawn_in_the_light_palette(browser: Browser, page: Path) -> None:
    # Pages are printed by a browser without a window alone, as this one is.
    with visiting(browser, page.as_uri(), **DESKTOP, color_scheme="dark") as visit:
        tab = visit.page
        wait_for_charts(tab)
        tab.evaluate(f"() => addEventListener('beforeprint', {PAPER})")
        pages = tab.pdf(format="A4")
        assert pages.startswith(b"%PDF")
        paper = tab.evaluate("() => window.onPaper")
        assert paper["charts"] >= 7
        assert paper["missing"] == 0
        assert 0 < paper["widest"] <= 640
        assert paper["ink"] == "rgb(27, 32, 38)"
        # The screen has its theme back, and its charts too.
        expect(tab.locator("body")).to_have_css("color", "rgb(231, 234, 238)")
        tab.locator("#chart-0").scroll_into_view_if_needed()
        expect(tab.locator("#chart-0 .xtitle")).to_have_css("fill", "rgb(231, 234, 238)")
        tab.emulate_media(media="print", color_scheme="dark")
        expect(tab.locator("body")).to_have_css("color", "rgb(27, 32, 38)")
        expect(tab.locator(".scroll").first).to_have_css("overflow-x", "visible")
        expect(tab.locator(".exports").first).to_be_hidden()
