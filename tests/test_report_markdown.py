"""The report as Markdown: verdicts first, the figures of the page, and nothing a user chose becomes markup."""

from __future__ import annotations

import re
from html import escape

import pytest

from edgefuse.benchmarks.gpu_peaks import DEVICES
from edgefuse.benchmarks.limits import LABEL
from edgefuse.benchmarks.markdown import code, table, text
from edgefuse.benchmarks.report import render, sections
from edgefuse.benchmarks.report_markdown import render_markdown
from tests.test_report import HOSTILE, make_report


@pytest.fixture(scope="module")
def markdown():
    return render_markdown(make_report())


def test_the_verdicts_come_first(markdown):
    first_table = markdown.index("| what | measured | good | verdict | how |")

    assert first_table < markdown.index("gate 99 % passed") < markdown.index("0.75 s") < markdown.index("\n## ")


def test_every_row_of_a_table_has_as_many_cells_as_its_head(markdown):
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)

    assert len(blocks) >= 7
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_what_a_bundle_says_is_text(markdown):
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)

    assert HOSTILE in markdown, "a command is shown as it is, in a block of code"
    assert "<script" not in prose
    assert "<img" not in prose
    assert "&lt;script" in prose
    assert "\\$money\\$" in prose


def test_combinations_and_ceilings_are_told_as_on_the_page(markdown):
    combinations = markdown.split("## Accuracy with latency")[1].split("\n## ")[0]
    ceilings = markdown.split("## Ceilings")[1].split("\n## ")[0]

    assert combinations.count("| image ") == 4
    assert combinations.count("| yes |") == 2
    assert ceilings.count(f"| {LABEL} |") == len(DEVICES) + 1
    assert "12.3 | 45.6 |" in ceilings


def test_every_section_of_tables_and_sentences_stands_on_the_page_and_in_the_markdown():
    report = make_report()
    html, markdown = render(report), render_markdown(report)

    for section in filter(None, sections(report).values()):
        assert f"<h2>{escape(section.title)}</h2>" in html
        assert f"## {text(section.title)}\n" in markdown


def test_the_parity_ledger_tells_what_lost_most_and_what_fp16_cannot_hold(markdown):
    ledger = markdown.split("## Parity ledger")[1].split("\n## ")[0]

    assert "- Lost most: fp16-&gt;int8 of" in ledger or "- Lost most: fp16->int8 of" in ledger
    assert "| 43.2 | 0.01 | 0.999990 | exact | 99.50 | 98.76 |" in ledger
    assert "reaches 7e+04; beside FP16's largest number: overflows." in ledger
    assert "audio" not in ledger, "it fits"


def test_a_hop_that_loses_every_value_is_not_called_exact():
    report = make_report()
    report["parity"]["hops"][0] |= {"sqnr_db": None, "not_finite": 12}

    assert "| text | 12 not finite |" in render_markdown(report)


def test_bad_news_and_a_quick_run_are_told():
    report = make_report(cpu_factor=2.0, retention=0.98)
    report["quick"] = True

    told = render_markdown(report)

    assert "| no | gate 99 % missed |" in told
    assert "| no | slower than fp32 |" in told
    assert "- A quick run" in told


def test_a_bundle_that_has_only_fp32_parts_makes_a_report():
    report = make_report()
    for key in ("part_sets", "stages", "distribution_ms", "memory", "size", "accuracy"):
        report[key] = {"fp32": report[key]["fp32"]}
    report["scenarios"] = {name: {"fp32": sets["fp32"]} for name, sets in report["scenarios"].items()}
    report["engines"] = []

    assert "None in this bundle" in render_markdown(report)


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("a|b\nc", "a\\|b c"),
        ("<= 5 & <b>", "<= 5 &amp; &lt;b>"),
        ("*x* [y](z)", "\\*x\\* \\[y\\](z)"),
        ("a_b", "a\\_b"),
    ],
)
def test_a_cell_is_one_line_of_text(value, escaped):
    assert text(value) == escaped
    assert table(("head",), [(value,)]) == f"| head |\n| --- |\n| {escaped} |\n"


def test_a_fence_is_longer_than_any_in_the_command():
    assert code("echo ```` x").splitlines() == ["`````", "echo ```` x", "`````"]
