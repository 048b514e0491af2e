"""Decisions: the line that tells one, and the benchmark of what one costs beyond its parts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgefuse.benchmarks import decision as bench
from edgefuse.runtime.decision import Decision

DECISION = Decision(
    t_ms=12.34567,
    label="yes",
    confidence=0.987654,
    weights={"image": 1 / 3, "text": 2 / 3},
    presence={"image": True, "text": True},
    age_ms={"image": 1.23456, "text": 2000.0},
    skew_ms=1998.76544,
    stages_ms={"head": 0.0712345, "total": 0.2},
    dropped={"image": 3, "text": 0},
    probabilities=(0.987654, 0.012346),
)


def test_a_line_tells_all_but_the_probabilities_and_no_more_digits_than_mean_something():
    assert json.loads(json.dumps(DECISION.document())) == {
        "t_ms": 12.346,
        "label": "yes",
        "confidence": 0.9877,
        "weights": {"image": 0.3333, "text": 0.6667},
        "presence": {"image": True, "text": True},
        "age_ms": {"image": 1.235, "text": 2000.0},
        "skew_ms": 1998.765,
        "stages_ms": {"head": 0.071, "total": 0.2},
        "dropped": {"image": 3, "text": 0},
    }


def test_both_sides_of_the_benchmark_are_first_equally_often():
    order = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    ours, theirs = bench._pairs(lambda: side("loop"), lambda: side("bare"), 4)

    assert order == ["loop", "bare", "bare", "loop"] * 2
    assert (ours, theirs) == ([1.0, 4.0, 5.0, 8.0], [2.0, 3.0, 6.0, 7.0])


@pytest.mark.parametrize(("apart_us", "is_kept"), [(79.0, True), (81.0, False)])
def test_the_overhead_is_the_median_round_against_50_us_and_3_percent(apart_us, is_kept):
    """Bare 1 ms: 80 us are allowed."""
    rounds = [([1e-3 + apart * 1e-6] * 9, [1e-3] * 9) for apart in (apart_us, 0.0, 500.0)]

    told = bench._summary(rounds)

    assert told["overhead_us"] == pytest.approx(apart_us)
    assert told["overhead_range_us"] == pytest.approx([0.0, 500.0])
    assert told["allowed_us"] == pytest.approx(80.0)
    assert told["overhead_is_kept"] is is_kept


@pytest.mark.parametrize(("slowest_ms", "is_kept"), [(2.19, True), (2.21, False)])
def test_the_p99_may_be_a_fifth_and_a_millisecond_above_the_median(slowest_ms, is_kept):
    told = bench._summary([([1e-3] * 50 + [slowest_ms * 1e-3] * 2, [1e-3] * 52)])

    assert told["allowed_p99_ms"] == pytest.approx(2.2)
    assert told["loop_p99_ms"] == pytest.approx(slowest_ms)
    assert told["p99_is_kept"] is is_kept


def test_the_benchmark_decides_and_its_last_line_is_json(tiny, tmp_path):
    command = [sys.executable, bench.__file__, tiny.bundle, "--rounds", "2", "--json"]

    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()

    told = json.loads(lines[-1])
    assert told["decisions"] == 2 * bench.PAIRS
    assert 0 < told["loop_p50_ms"] <= told["loop_p99_ms"]
    assert lines[1].split() == ["p50", "ms", "p99", "ms"]
    assert not list(tmp_path.iterdir())
