"""The tables of README.md and docs/ are what the committed results say, and a changed number would be noticed."""

from __future__ import annotations

import json
import shutil

import pytest

from edgefuse.benchmarks.tables import RESULTS, ROOT, TABLES, rendered
from edgefuse.runtime.errors import OptionError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_of_a_page_are_what_the_results_say(page):
    text = page.read_text(encoding="utf-8")

    assert rendered(text) == text, "run `python benchmarks/tables.py`"


def test_every_table_stands_in_some_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)

    assert not [name for name in TABLES if f"<!-- table {name} -->" not in text]
    assert text.count("<!-- table ") == text.count("<!-- end -->")


@pytest.mark.parametrize(
    ("file", "path", "shown"),
    [
        ("reference.json", ("rows", 1, "measured"), "1,234"),
        ("quantizers.json", ("reference", "rows", "edgefuse INT8 as it chooses", "text", "kernels"), "1234 kernels"),
        ("cpu.json", ("inputs", "8 of 32 words", "OpenVINO FP32", "p50_ms"), "1234.0 ms"),
    ],
)
def test_a_number_that_changes_in_the_results_changes_in_the_readme(file, path, shown, tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    document = json.loads((tmp_path / "results" / file).read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = 1234
    (tmp_path / "results" / file).write_text(json.dumps(document))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    changed = rendered(readme, tmp_path / "results")

    assert shown not in readme
    assert shown in changed
    assert len(set(changed.splitlines()) - set(readme.splitlines())) == 1, "one row and no other"


def test_a_bar_that_is_missed_says_so(tmp_path):
    rows = [
        {"what": "kernels", "measured": 3, "asked": "<= 2"},
        {"what": "share", "measured": 0.96, "asked": ">= 0.95"},
        {"what": "verdict", "measured": "silent", "asked": "ok"},
    ]
    (tmp_path / "reference.json").write_text(json.dumps({"rows": rows, "parts": []}))

    table = rendered("<!-- table reference -->\n<!-- end -->", tmp_path)

    assert [line.split(" | ")[-1] for line in table.splitlines()[3:6]] == ["missed |", "reached |", "missed |"]


def test_what_was_not_measured_has_no_number(tmp_path):
    assert "Not measured yet" in rendered("<!-- table peers -->\n<!-- end -->", tmp_path)


def test_a_table_that_is_not_known_is_refused():
    with pytest.raises(OptionError, match="'nonsense'"):
        rendered("<!-- table nonsense -->\n<!-- end -->")
