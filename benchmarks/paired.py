"""Is one of two things slower? A verdict on paired times that holds on a noisy machine.

Times are compared within pairs that were taken one right after the other, in random order: what slows the machine down
for longer than a pair is common to both and leaves their ratio alone. A median over each block of pairs puts bursts
aside. The blocks, each with both sides opened anew, are the units of the test, so what a luckier place in memory gives
is part of the noise and not of the verdict; and where neighbouring blocks still go together, they are put together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99  # of the interval: two part sets in twenty repeats are forty chances to be wrong
MARGIN = 0.03  # a ratio nearer to 1 is no difference that matters, however sure it is
LEAST_BLOCKS = 10  # so that an interval of 99 % exists (from 8 on) and one odd block does not decide

Verdict = Literal["faster", "slower", "no difference"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two sides differ over some blocks of pairs."""

    verdict: Verdict  # of our side
    ratio: float  # our time / the other's
    interval: tuple[float, float]  # of the ratio, at CONFIDENCE
    p: float  # of Wilcoxon's signed-rank test, two-sided, that the ratio is 1
    blocks: int  # that the test stands on, after dependent neighbours were put together
    queries: int  # pairs in a block, before that


def compare(ours_ms: Floats, others_ms: Floats) -> Comparison:
    """The verdict on paired times.

    Args:
        ours_ms, others_ms: [blocks, queries], in the order in which they were taken; at least LEAST_BLOCKS blocks.

    Raises:
        ValueError: fewer blocks.
    """
    if len(ours_ms) < LEAST_BLOCKS:
        raise ValueError(f"{len(ours_ms)} blocks; {LEAST_BLOCKS} are the least that decide")
    medians = np.median(np.log(ours_ms / others_ms), axis=1)  # [blocks]
    medians = _independent(medians)
    centre, low, high = hodges_lehmann(medians, CONFIDENCE)
    ratio, interval = math.exp(centre), (math.exp(low), math.exp(high))
    return Comparison(
        _verdict(ratio, interval), ratio, interval, signed_rank_p(medians), len(medians), ours_ms.shape[1]
    )


def _verdict(ratio: float, interval: tuple[float, float]) -> Verdict:
    if interval[0] > 1 and ratio > 1 + MARGIN:
        return "slower"
    if interval[1] < 1 and ratio < 1 / (1 + MARGIN):
        return "faster"
    return "no difference"


def _independent(values: Floats) -> Floats:
    """Means of neighbours, as few of them at a time as make the lag-1 correlation insignificant.

    Anderson (1942, Annals of Mathematical Statistics 13:1): for independent values it is about normal around -1/n with
    a variance of 1/n, so more than 1.645/sqrt(n) - 1/n is a positive one, at 5 %.
    """
    while len(values) >= 2 * LEAST_BLOCKS and _lag_1(values) > 1.645 / math.sqrt(len(values)) - 1 / len(values):
        values = values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return values


def _lag_1(values: Floats) -> float:
    deviations = values - values.mean()
    power = float(deviations @ deviations)
    return float(deviations[:-1] @ deviations[1:]) / power if power else 0.0


def hodges_lehmann(values: Floats, confidence: float) -> tuple[float, float, float]:
    """The pseudomedian of symmetric values [n] and its exact interval, the inverse of Wilcoxon's signed-rank test.

    The median of all means of two values, each with itself too, and the order statistics of these means beyond which
    the test rejects (Hollander & Wolfe, Nonparametric Statistical Methods, 3.2 and 3.3). Where `n` is too small for the
    confidence it reaches from end to end.
    """
    first, second = np.triu_indices(len(values))
    means = np.sort((values[first] + values[second]) / 2)  # [n (n + 1) / 2]
    below = np.cumsum(_rank_sum_distribution(len(values)))  # P(T <= t)
    cut = int(np.searchsorted(below, (1 - confidence) / 2, side="right"))  # the least t with P(T <= t) > alpha / 2
    cut = max(cut, 1)
    return float(np.median(means)), float(means[cut - 1]), float(means[len(means) - cut])


def signed_rank_p(values: Floats) -> float:
    """The two-sided p of Wilcoxon's signed-rank test that values [n] lie around 0; exact where no two are alike.

    Values of 0 say nothing and are left out, as Wilcoxon (1945) did.
    """
    values = values[values != 0]
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    total = len(values) * (len(values) + 1) // 2
    positive = int(ranks[values > 0].sum())
    below = np.cumsum(_rank_sum_distribution(len(values)))
    return float(min(1.0, 2 * below[min(positive, total - positive)]))


@cache
def _rank_sum_distribution(n: int) -> Floats:
    """P(T = t) for t in 0..n (n + 1) / 2: the sum of those of the ranks 1..n that a fair coin picks."""
    chances = np.ones(1)
    for rank in range(1, n + 1):
        with_rank = np.concatenate([np.zeros(rank), chances])
        chances = (np.pad(chances, (0, rank)) + with_rank) / 2
    return chances
