"""The verdict on paired times: its arithmetic against scipy, and both its error rates on made-up noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgefuse.benchmarks.against import PLAN
from edgefuse.benchmarks.paired import LEAST_BLOCKS, MARGIN, compare, hodges_lehmann, signed_rank_p

BLOCKS, QUERIES = PLAN.blocks, PLAN.queries
DISTINCT = st.lists(st.integers(1, 10**6), min_size=3, max_size=40, unique=True)


def machine(random, factor):
    """Times of two sides on a machine that drifts, stalls and favours places in memory: ours, others [blocks, queries].

    20 ms a query. A random walk and a sine of 30 % are common to a pair; between its two queries the speed differs by
    an autocorrelated 11 %; 8 % of the queries stall for up to three times as long, in bursts; and each opening of a
    bundle is lucky or not by 2 %. `factor` is how much longer ours takes.
    """
    count = BLOCKS * QUERIES
    walk = np.cumsum(random.normal(0, 0.02, count)) + 0.3 * np.sin(np.arange(count) / random.uniform(5, 60))
    slots = 2 * count  # queries one after the other
    jitter = np.zeros(slots)
    for slot in range(1, slots):
        jitter[slot] = 0.7 * jitter[slot - 1] + random.normal(0, 0.08)
    stalled = np.repeat(random.random(slots // 4 + 1) < 0.08, 4)[:slots] * random.uniform(0, 3, slots)
    taken = 20 * np.exp(jitter) * (1 + stalled)
    first = random.integers(0, 2, count)  # which side goes first
    pairs = taken.reshape(count, 2)
    sides = np.where(first[:, None] == 0, pairs, pairs[:, ::-1]) * np.exp(walk)[:, None]  # [count, 2]
    luck = np.exp(random.normal(0, 0.02, (BLOCKS, 2)))
    ours, others = (sides[:, side].reshape(BLOCKS, QUERIES) * luck[:, side : side + 1] for side in (0, 1))
    return ours * factor, others


def verdicts(factor, repeats=200):
    random = np.random.default_rng(0)
    return [compare(*machine(random, factor)).verdict for _ in range(repeats)]


def least_to_reach(share, chance=0.99):
    """The true rate per comparison with which 19 of 20 comparisons, at least, come out right with such a chance."""
    rates = np.linspace(share, 1, 1001)
    return float(rates[np.argmax(stats.binom.sf(18, 20, rates) >= chance)])


def test_the_same_bundle_is_no_difference_nearly_always():
    found = verdicts(1.0)

    assert found.count("no difference") / len(found) >= least_to_reach(0.95)


def test_ten_percent_are_found_nearly_always():
    found = verdicts(1.1)

    assert found.count("slower") / len(found) >= least_to_reach(0.95)


def test_what_is_slower_one_way_is_faster_the_other_way():
    found = verdicts(1 / 1.1, repeats=50)

    assert found.count("faster") >= 49
    assert "slower" not in found


def test_a_difference_within_the_margin_is_none_however_sure_it_is():
    others = np.full((BLOCKS, QUERIES), 20.0)
    sure = np.random.default_rng(0).uniform(0.9999, 1.0001, others.shape)

    within, beyond = (
        compare(others * sure * (1 + MARGIN / 2), others),
        compare(others * sure * (1 + 2 * MARGIN), others),
    )

    assert within.interval[0] > 1
    assert within.p < 0.001
    assert within.verdict == "no difference"
    assert beyond.verdict == "slower"


def test_blocks_that_go_together_are_put_together():
    random = np.random.default_rng(1)
    walk = np.cumsum(random.normal(0, 0.05, 64))  # differs between the sides, so that pairing does not remove it
    others = np.full((64, QUERIES), 20.0)

    found = compare(others * np.exp(walk)[:, None], others)

    assert LEAST_BLOCKS <= found.blocks < 64
    assert compare(others * random.uniform(0.9, 1.1, (64, 1)), others).blocks == 64


def test_sides_that_slowly_drift_apart_and_back_are_not_called_different():
    """Serial correlation: a test that took 60 such blocks as independent would call it in a fifth of the cases."""
    random = np.random.default_rng(2)
    wrong = 0
    for _ in range(100):
        shift = np.zeros(60)
        for block in range(1, 60):
            shift[block] = 0.8 * shift[block - 1] + random.normal(0, 0.03)
        others = np.full((60, 1), 20.0)
        wrong += compare(others * np.exp(shift)[:, None], others).verdict != "no difference"

    assert wrong <= 10


def test_too_few_blocks_decide_nothing():
    with pytest.raises(ValueError, match="10 are the least"):
        compare(np.ones((9, 4)), np.ones((9, 4)))


def test_times_that_never_differ_are_no_difference():
    found = compare(np.ones((20, 4)), np.ones((20, 4)))

    assert (found.verdict, found.ratio, found.interval, found.p) == ("no difference", 1, (1, 1), 1)


@settings(max_examples=40)
@given(DISTINCT, st.integers(0, 2**40))
def test_p_is_that_of_scipy(sizes, signs):
    values = np.array([size if signs >> index & 1 else -size for index, size in enumerate(sizes)], float)

    assert signed_rank_p(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)


@settings(max_examples=40)
@given(DISTINCT, st.floats(0.5, 0.999))
def test_the_interval_holds_what_the_test_does_not_reject(sizes, confidence):
    values = np.array(sizes, float)
    centre, low, high = hodges_lehmann(values, confidence)

    assert low <= centre <= high
    assert centre == np.median([(one + other) / 2 for i, one in enumerate(values) for other in values[i:]])
    step = 0.25  # between two means, which are halves of whole numbers
    for edge, outside in ((low, -step), (high, step)):
        beyond = stats.wilcoxon(values - (edge + outside), method="exact").pvalue
        if math.isclose(beyond, 1 - confidence) or edge in (values.min(), values.max()):
            continue
        assert beyond <= 1 - confidence + 1e-12
        assert stats.wilcoxon(values - (edge - outside), method="exact").pvalue >= 1 - confidence - 1e-12
