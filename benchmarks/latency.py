"""Latency at batch 1: part sets interleaved query by query, percentiles, and paired ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.bundle import PART_SETS, Bundle
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.evaluate import subsets
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Predictor

HOST_STAGES = ("decode", "preprocess")  # those of a query that no part runs
PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99}

JUDGES = ("trt",)  # part sets made for another machine: run here for their accuracy only

Key = TypeVar("Key", bound=Hashable)  # what is told apart: a part set, a combination of them
Timings = dict[str, dict[str, list[float]]]  # part set -> stage -> one time in ms per query


def part_sets(bundle: Bundle) -> list[str]:
    """The part sets that a bundle has, the reference first."""
    return [part_set for part_set in PART_SETS if part_set in bundle.info.parts]


def fast_sets(bundle: Bundle) -> list[str]:
    """Those of `part_sets` whose time says something here, the fastest by design last."""
    return [part_set for part_set in part_sets(bundle) if part_set not in JUDGES]


def pools_by_sensors(examples: Sequence[Example], modalities: Sequence[str]) -> dict[str, list[Example]]:
    """For each subset of the modalities that some example has entirely, as "image+text", those that have it.

    Small subsets come first, so the last one is the fullest.

    Raises:
        ManifestError: no example has a sensor of the model.
    """
    pools = {}
    for subset in subsets(modalities):
        pool = [example for example in examples if set(subset) <= set(example.sensors)]
        if pool:
            pools["+".join(subset)] = pool
    if not pools:
        raise ManifestError(f"no line has a sensor of this model; it takes: {', '.join(modalities)}")
    return pools


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples at even distances, or all of them again and again where there are fewer."""
    n = len(examples)
    return [examples[index * n // count if count < n else index % n] for index in range(count)]


def least_queries(percentile: int) -> int:
    """Queries needed before one of them lies beyond `percentile`: 2 for the median, 10 for p90, 100 for p99.

    A floor for stating the figure at all; MLPerf asks for 270 336 queries to guarantee a p99 with 99 % confidence.
    """
    return math.ceil(100 / (100 - percentile))


def time_interleaved(
    predictors: Mapping[Key, Predictor],
    examples: Sequence[Example],
    sensors: Sequence[str],
    warmup: int,
    progress: Callable[[], None],
) -> dict[Key, dict[str, list[float]]]:
    """Answer every example once with every part set, and keep the stage times of all but the first `warmup` examples.

    A query goes to each part set in turn before the next query begins, and each goes first equally often, so that a
    machine that slows down or warms up does the same to all of them. `progress` is called after each example.
    """
    timings: dict[Key, dict[str, list[float]]] = {part_set: {} for part_set in predictors}
    order = list(predictors)
    for index, example in enumerate(examples):
        inputs: dict[str, Any] = {sensor: getattr(example, sensor) for sensor in sensors}
        for part_set in order:
            stages_ms = predictors[part_set].predict(**inputs).stages_ms
            if index >= warmup:
                for stage, time_ms in stages_ms.items():
                    timings[part_set].setdefault(stage, []).append(time_ms)
        order.append(order.pop(0))
        progress()
    return timings


def summarise(times_ms: Sequence[float]) -> dict[str, Any]:
    """{n, mean_ms, p50_ms, p90_ms, p99_ms}; a percentile that `n` queries cannot support is None."""
    n = len(times_ms)
    summary: dict[str, Any] = {"n": n, "mean_ms": round(float(np.mean(times_ms)), 4)}
    for name, percentile in PERCENTILES.items():
        enough = n >= least_queries(percentile)
        summary[name] = round(float(np.percentile(times_ms, percentile)), 4) if enough else None
    return summary


def distribution(times_ms: Sequence[float]) -> list[float]:
    """Percentiles 0, 1, .. 100 of the times: enough to draw them, small enough to keep."""
    return [round(float(value), 4) for value in np.percentile(times_ms, np.arange(101))]


def speedup(reference_ms: Sequence[float], candidate_ms: Sequence[float]) -> dict[str, Any]:
    """How many times faster the candidate answered the same queries: {median, interval, n} of the paired ratios."""
    ratios = np.asarray(reference_ms) / np.asarray(candidate_ms)
    return {"median": round(float(np.median(ratios)), 4), "interval": median_interval(ratios), "n": len(ratios)}


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """The 95 % interval of a median: [low, high].

    It lies between the order statistics of ranks n/2 - 1.96 sqrt(n)/2 and 1 + n/2 + 1.96 sqrt(n)/2 (Conover, Practical
    Nonparametric Statistics, 3.2: binomial, whatever the distribution, queries taken as independent).
    """
    ordered, n = np.sort(values), len(values)
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(math.floor(n / 2 - half) - 1, 0), min(math.ceil(n / 2 + half), n - 1)  # counted from 0
    return [round(float(ordered[low]), 4), round(float(ordered[high]), 4)]


def speed(timings: Mapping[str, Timings], fullest: str, fast: Sequence[str], reference: str) -> dict[str, Any]:
    """The `fullest` subset of sensors stage by stage, and the total of every subset.

    Args:
        timings: subset of sensors -> its times.
        fullest: the subset with every sensor.
        fast: part sets that are a speed.
        reference: the part set that speedups are told against.

    Returns:
        {sensors, stages: {part set: {stage: summary}}, distribution_ms, scenarios: {subset: {part set: summary}}}.
    """
    scenarios = {}
    for name, times in timings.items():
        total = {part_set: times[part_set]["total"] for part_set in fast}
        scenarios[name] = {part_set: summarise(total[part_set]) for part_set in fast}
        for part_set in fast:
            if part_set != reference:
                scenarios[name][part_set]["speedup"] = speedup(total[reference], total[part_set])
    every = timings[fullest]
    return {
        "sensors": fullest,
        "stages": {
            part_set: {stage: summarise(each) for stage, each in stages.items()} for part_set, stages in every.items()
        },
        "distribution_ms": {part_set: distribution(every[part_set]["total"]) for part_set in fast},
        "scenarios": scenarios,
    }
