"""How soon a page is there, by the clock of a real Chromium."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgefuse.benchmarks import page_opens
from tests.chromium import BROWSER, DRIVER

needs_chromium = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="Chromium is missing")
BUSY = """<p>slow</p><svg class="plot"></svg><script>
const begun = performance.now();
while (performance.now() - begun < 150);
</script>"""


@needs_chromium
def test_what_a_page_does_before_it_is_there_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    page.write_text(BUSY)
    monkeypatch.setattr(page_opens, "OPENINGS", 2)
    monkeypatch.setattr(sys, "argv", ["page_opens.py", str(page)])
    page_opens.main()
    told = json.loads(capsys.readouterr().out)
    assert (told["bytes"], told["plots"], told["openings"]) == (len(BUSY), 1, 2)
    assert 150 <= told["loaded_ms"]["median"] <= told["loaded_ms"]["worst"] < 10_000
    assert 0 < told["painted_ms"]["median"] <= told["painted_ms"]["worst"]


@pytest.mark.parametrize("is_there", [True, False])
def test_without_a_page_or_a_browser_it_ends_with_one_line(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    if is_there:
        page.touch()
        monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["page_opens.py", str(page)])
    with pytest.raises(SystemExit, match="Chromium is missing: apt-get" if is_there else r"page\.html"):
        page_opens.main()
