"""The report in a real Chromium: it asks for nothing, draws every plot, and can be read and reached by everybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from edgefuse.benchmarks.report import render
from tests.chromium import CONTRAST, DESK, PHONE, SCHEMES, keep, show
from tests.test_report import make_report

# Of each plot: width and height as laid out, and how many of its marks lie in it and have a colour.
DRAWN = """
return [...document.querySelectorAll("svg.plot")].map(svg => {
  const box = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll("path, use, text")].filter(mark => {
    const {left, right, top, bottom} = mark.getBoundingClientRect(), style = getComputedStyle(mark);
    const inside = left >= box.left - 1 && right <= box.right + 1 && top >= box.top - 1 && bottom <= box.bottom + 1;
    return inside && (right > left || bottom > top) && (style.fill !== "none" || style.stroke !== "none");
  });
  return [box.width, box.height, marks.length, svg.getAttribute("role"), svg.getAttribute("aria-label")];
});
"""


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """The report as a file; the browser must have complained of nothing in the end."""
    path = tmp_path / "index.html"
    path.write_text(render(make_report()), encoding="utf-8")
    show(browser, DESK, "light")
    browser.get_log("browser")
    browser.get(path.as_uri())
    yield browser
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    browser.get("about:blank")
    assert complaints == []


def test_it_asks_for_no_other_file(page: webdriver.Chrome) -> None:
    assert page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_every_plot_is_drawn_and_says_what_it_shows(page: webdriver.Chrome, size: tuple[int, int]) -> None:
    show(page, size, "light")
    plots = page.execute_script(DRAWN)
    assert len(plots) == page.execute_script("return document.querySelectorAll('figure').length") >= 4
    for width, height, marks, role, label in plots:
        assert 200 < width <= size[0]
        assert height > 80
        assert marks > 10
        assert (role, bool(label)) == ("img", True)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_it_fits_and_can_be_read(page: webdriver.Chrome, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:
    show(page, size, scheme)
    looked, refused = page.execute_script(CONTRAST)
    keep(page, f"report_{scheme}_{size[0]}.png", tmp_path)
    assert looked > 100
    assert refused == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0], "it scrolls sideways"


def test_the_plots_change_their_colours_with_the_scheme(page: webdriver.Chrome) -> None:
    colours = []
    for scheme in SCHEMES:
        show(page, DESK, scheme)
        colours.append(page.execute_script("return getComputedStyle(document.querySelector('svg.plot text')).fill"))
    assert colours[0] != colours[1]


def test_a_keyboard_reaches_all_that_scrolls(page: webdriver.Chrome) -> None:
    show(page, PHONE, "light")
    names = [region.accessible_name for region in page.find_elements(By.CSS_SELECTOR, ".scroll")]
    reached = []
    for _ in names:
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.switch_to.active_element.accessible_name)
    assert reached == names
    assert all(names)
    table = page.find_elements(By.CSS_SELECTOR, ".scroll")[0]
    page.execute_script("arguments[0].focus()", table)
    table.send_keys(Keys.ARROW_RIGHT)
    WebDriverWait(page, 30).until(lambda _: page.execute_script("return arguments[0].scrollLeft", table) > 0)


def test_headings_come_in_order_and_verdicts_first(page: webdriver.Chrome) -> None:
    levels = page.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert levels[0] == "H1"
    assert "H1" not in levels[1:]
    first = page.find_elements(By.CSS_SELECTOR, "article.card, section.block")[0]
    assert "card" in first.get_attribute("class")


def test_on_paper_it_is_black_on_white_and_nothing_is_cut_off(page: webdriver.Chrome) -> None:
    show(page, (794, 1123), "dark")  # A4 at 96 dots an inch
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ground, ink, hidden = page.execute_script("""
        const style = getComputedStyle(document.body);
        const cut = [...document.querySelectorAll(".scroll")].filter(e => getComputedStyle(e).overflowX === "auto" &&
            e.scrollWidth > e.clientWidth + 1);
        return [style.backgroundColor, style.color, cut.length];""")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert (ground, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert hidden == 0
