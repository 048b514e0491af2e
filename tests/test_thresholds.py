"""--fail-on: every threshold that is well formed reads as what it says, and everything else is a usage error."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.benchmarks.thresholds import Threshold, broken, parse
from edgefuse.runtime.errors import UsageError

NAMES = ["cpu.p50_ms", "fp32.p99_ms", "tensorrt-rtx.p50_ms", "retention", "slower"]
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
BLANK = st.sampled_from(["", " ", "  ", "\t"])
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.sampled_from(NAMES[:3]), st.sampled_from(list(OPERATORS)), FINITE, FINITE, BLANK, BLANK)
def test_a_threshold_breaks_where_its_comparison_holds(name, comparison, limit, value, before, after):
    threshold = parse(f"{before}{name}{after}{comparison}{before}{limit!r}{after}", NAMES)

    assert (threshold.name, threshold.comparison, threshold.limit) == (name, comparison, limit)
    assert bool(broken([threshold], {name: value})) == OPERATORS[comparison](value, limit)


def refusal(text):
    """What is said where an expression cannot be used, else None."""
    try:
        parse(text, NAMES)
    except UsageError as error:
        return str(error)
    return None


WORDS = st.lists(st.sampled_from([*NAMES, *OPERATORS, "=", "1", ".5", "e", "-", " ", "\n"]), max_size=6).map("".join)


@given(st.text(max_size=30) | WORDS)
def test_whatever_cannot_be_read_is_a_usage_error_of_one_line(text):
    said = refusal(text)

    assert said is None or (said.startswith("--fail-on ") and "\n" not in said)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "cannot be read"),
        ("cpu.p50_ms=20", "cannot be read"),
        ("cpu.p50_ms>", "cannot be read"),
        ("cpu.p50_ms>nan", "cannot be read"),
        ("cpu.p50_ms>1e", "cannot be read"),
        ("cpu.p50_ms>20 and slower", "cannot be read"),
        ("__import__('os')", "cannot be read"),
        ("20<cpu.p50_ms", "cannot be read"),
        ("cpu.p5_ms>20", "no figure 'cpu.p5_ms' in this report; it has: cpu.p50_ms, "),
        ("cpu.p50_ms", "needs a limit, as in cpu.p50_ms>20"),
        ("slower>1", "slower stands alone"),
    ],
)
def test_what_is_wrong_with_an_expression_is_said(text, what):
    with pytest.raises(UsageError, match="--fail-on ") as error:
        parse(text, NAMES)

    assert what in str(error.value)


def test_slower_than_nothing_asks_for_another_report():
    with pytest.raises(UsageError, match="add --against"):
        parse("slower", NAMES[:3])


def test_slower_breaks_where_a_part_set_is_and_says_by_how_much():
    slower = parse(" slower ", NAMES)

    assert broken([slower], {"slower": ""}) == []
    assert broken([slower], {"slower": "cpu, 1.100 times"}) == ["--fail-on ' slower ': cpu, 1.100 times"]


def test_a_figure_that_was_not_measured_breaks_every_threshold():
    assert broken([parse("fp32.p99_ms>20", NAMES)], {"fp32.p99_ms": None}) == [
        "--fail-on 'fp32.p99_ms>20': fp32.p99_ms was not measured"
    ]


def test_each_broken_threshold_has_its_own_line():
    thresholds = [Threshold("a>1", "a", ">", 1), Threshold("a>3", "a", ">", 3), Threshold("b<=2", "b", "<=", 2)]

    assert broken(thresholds, {"a": 2, "b": 2.0}) == ["--fail-on 'a>1': a is 2", "--fail-on 'b<=2': b is 2"]
