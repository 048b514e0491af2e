"""The plan audit on the report page: what the sidecars hold, escaped, and a word where they hold nothing."""

from __future__ import annotations

from typing import Any

import pytest

from edgefuse.benchmarks import markup
from edgefuse.benchmarks.explained import TITLE, plan_audit
from edgefuse.benchmarks.report import render
from tests.test_report import HOSTILE, Page, make_report

SHARES = {"macs": 2_500_000, "share": 1.0, "int8": 0.75, "fp16": 0.25, "fp32": 0.0, "not_found": 0.0, "asked": 0.875}
COPIES = {"cause": "reformat", "kernel": "k", "kernels": 1, "mend": "move the transpose"}


def audit_of(**changes: Any) -> dict[str, Any]:
    """An audit as optimize/audit.py makes it, its node names hostile."""
    return {
        "headline": f"kernels: 3, touching {HOSTILE}",
        "kernels": 3,
        "bytes_touched": 5000,
        "macs": {"linear": SHARES, "all": SHARES},
        "attention": {"expected": 2, "fused": 1, "missing": [HOSTILE]},
        "causes": {"reformat": {"kernels": 2, "bytes": 3000, "mend": "move the transpose"}},
        "findings": [{**COPIES, "node": "small", "bytes": 1000}, {**COPIES, "node": f"large {HOSTILE}", "bytes": 2000}],
        "streams": {"0": {"kernels": 3, "bytes": 5000}},
        "largest": [{"kernel": f"k{i}", "node": f"n{i}", "reads": "Int8", "bytes": 4000 - i} for i in range(8)],
        **changes,
    }


def section(*audits: dict[str, Any] | None) -> tuple[str, str]:
    """The section of a report with one engine for each audit: its HTML and its text."""
    engines = [{"target": "tensorrt-rtx", "part": f"part{i}", "audit": audit} for i, audit in enumerate(audits)]
    html = markup.section(plan_audit({"engines": engines}))
    return html, Page(html).text


def test_the_headline_stands_first_and_the_tables_say_why() -> None:
    html, text = section(audit_of())
    assert text.index("kernels: 3, touching") < text.index("In what the products run")
    for figure in ("2.5", "75.00", "87.50", "1 of 2", "3.00 kB", "move the transpose"):
        assert figure in text
    assert "tensorrt-rtx part0" in text
    assert HOSTILE in text
    assert "<script" not in html
    assert "<img" not in html


def test_the_node_that_costs_most_is_named() -> None:
    _, text = section(audit_of())
    assert f"large {HOSTILE}" in text
    assert "small" not in text


def test_each_engine_has_its_rows_and_a_mend_stands_once() -> None:
    _, text = section(audit_of(), audit_of())
    assert text.count("move the transpose") == 1
    assert text.count("part1") == text.count("part0") > 4
    assert "n2" in text
    assert "n3" not in text


def test_open_sizes_and_nothing_to_mend_make_a_page() -> None:
    alone = {"attention": {"expected": 0, "fused": 0, "missing": []}, "causes": {}, "findings": []}
    html, text = section(audit_of(**alone, macs={}, largest=[]))
    assert "kernels: 3" in text
    assert "Attentions" not in html
    unknown = {**COPIES, "node": "open", "bytes": None}
    _, text = section(audit_of(causes={"reformat": {"kernels": 1, "bytes": None, "mend": "m"}}, findings=[unknown]))
    assert "open" in text


@pytest.mark.parametrize("audit", [None, {}, {"headline": "of another version"}])
def test_engines_without_an_audit_are_said_to_have_none(audit: dict[str, Any] | None) -> None:
    _, text = section(audit)
    assert "No engine of this bundle has an audit" in text
    assert "of another version" not in text


def test_the_page_has_the_section() -> None:
    report = make_report()
    assert "No engine of this bundle has an audit" in Page(render(report)).text
    report["engines"][0]["audit"] = audit_of()
    page = Page(render(report))
    assert TITLE in page.text
    assert "In what the products run" in page.text
