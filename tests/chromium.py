"""A real Chromium for the tests of pages, at the size of a phone or a desk, light or dark.

Tests are skipped where it is missing; with EDGEFUSE_CONFORMANCE=require in the environment they fail instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE, DESK = (360, 740), (1280, 900)
SCHEMES = ("light", "dark")

# How many texts are seen, and [text, ratio, least] of each that WCAG 2.1 AA refuses: texts by 1.4.3, borders by 1.4.11.
CONTRAST = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]);
function backdrop(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    const [r, g, b, a = 1] = channels(getComputedStyle(at).backgroundColor);
    layers.push([r, g, b, a]);
    if (a === 1) break;
  }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
}
const linear = value => value / 255 <= .04045 ? value / 255 / 12.92 : ((value / 255 + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
function ratio(front, back) {
  const [r, g, b, a = 1] = channels(front);
  const [high, low] = [light(over([r, g, b, a], back)), light(back)].sort((x, y) => y - x);
  return (high + .05) / (low + .05);
}
const found = [];
let looked = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
  if (!text || !element.checkVisibility() || element.closest("script, style, .heard")) continue;
  looked += 1;
  const style = getComputedStyle(element), size = parseFloat(style.fontSize);
  const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
  const seen = ratio(style.color, backdrop(element));
  if (seen < least) found.push([text, seen, least]);
}
for (const input of document.querySelectorAll("input")) {
  const seen = ratio(getComputedStyle(input).borderTopColor, backdrop(input.parentElement));
  if (seen < 3) found.push([`border of ${input.id}`, seen, 3]);
}
return [looked, found];
"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if BROWSER is None or DRIVER is None:
        refuse = pytest.fail if os.environ.get("EDGEFUSE_CONFORMANCE") == "require" else pytest.skip
        refuse("Chromium is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def show(browser: webdriver.Chrome, size: tuple[int, int], scheme: str) -> None:
    """As a screen of this size, in CSS pixels, of somebody who prefers this scheme."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def keep(page: webdriver.Chrome, name: str, tmp_path: Path) -> None:
    """A screenshot, in EDGEFUSE_SCREENSHOTS where that is set, for people to look at."""
    folder = Path(os.environ.get("EDGEFUSE_SCREENSHOTS", tmp_path))
    assert page.save_screenshot(str(folder / name))
