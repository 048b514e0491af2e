"""How soon a page is there in a real Chromium: `python benchmarks/page_opens.py report/index.html`.

Prints its size and, over openings from nothing cached, the median and the worst time until it is painted first and
until it is loaded, by the browser's own clock (Navigation Timing, Paint Timing). Needs chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

OPENINGS = 11
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
CLOCK = """
const page = performance.getEntriesByType("navigation")[0];
const painted = performance.getEntriesByName("first-contentful-paint")[0];
return [painted ? painted.startTime : null, page.loadEventEnd, document.querySelectorAll("svg.plot").length];
"""


def page_opens(page: Path) -> dict[str, Any]:
    """{bytes, plots, openings, painted_ms, loaded_ms}; the times are {median, worst}.

    Raises:
        FileNotFoundError: `page` or Chromium is not there.
    """
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise FileNotFoundError("Chromium is missing: apt-get install chromium chromium-driver")
    size = page.stat().st_size
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    found = []
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        for _ in range(OPENINGS):
            chrome.get("about:blank")
            chrome.execute_cdp_cmd("Network.clearBrowserCache", {})
            chrome.get(page.resolve().as_uri())
            WebDriverWait(chrome, 10).until(lambda chrome: chrome.execute_script(CLOCK)[0] is not None)
            found.append(chrome.execute_script(CLOCK))
    painted, loaded, plots = zip(*found, strict=True)
    times = {name: _told(values) for name, values in (("painted_ms", painted), ("loaded_ms", loaded))}
    return {"bytes": size, "plots": plots[0], "openings": OPENINGS, **times}


def _told(values: tuple[float, ...]) -> dict[str, float]:
    return {"median": statistics.median(values), "worst": max(values)}


def main() -> None:
    """Print it as a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("page", type=Path, help="an HTML file")
    try:
        print(json.dumps(page_opens(parser.parse_args().page)))
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
