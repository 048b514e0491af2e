"""The page of the manifest's checker: the worst come first, nothing is loaded, and no name becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgefuse.train.data_check import check
from tests.test_data_check import picture, sound
from tests.train_fixtures import write_manifest


class Page(HTMLParser):
    """The tags of a page and what they point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_shows_the_worst_first_and_loads_nothing(tmp_path: Path) -> None:
    rows = [
        {"image": picture(tmp_path / f"{n}.png", seed=n), "audio": sound(tmp_path / f"{n}.wav", 0.5)} for n in range(40)
    ]
    rows.append({"image": picture(tmp_path / "grey.png", 7), "audio": sound(tmp_path / "zero.wav", 0.0)})
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows.append({"image": "cut.png"})
    rows = [{**row, "label": "<script>alert(1)</script>", "text": "<img src=x>"} for row in rows]
    check(write_manifest(tmp_path / "m.jsonl", rows), tmp_path / "out" / "page.html")
    text = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("figure") == 2 * 24
    assert page.tags.count("img") == 2 * 24 - 1  # the one that cannot be read has no picture
    assert {source.partition(";")[0] for source in page.sources} == {"data:image/png"}
    assert "script" not in page.tags
    assert text.index("grey.png<") < text.index("0.png</small>")
    assert "http" not in text


@pytest.mark.parametrize("name", ["sounds <b>&amp;.png"])
def test_names_of_files_are_escaped(tmp_path: Path, name: str) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", [{"image": picture(tmp_path / name, 3), "label": "a"}])
    check(manifest, tmp_path / "page.html")
    assert "b" not in Page((tmp_path / "page.html").read_text(encoding="utf-8")).tags
