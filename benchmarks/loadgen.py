"""MLPerf's scenarios through its own LoadGen: single stream, multi stream, offline, and the accuracy of the same code.

LoadGen chooses the queries, times them and judges whether there were enough; what it says is read from its log.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.benchmarks.latency import PERCENTILES, least_queries, spread
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import MissingExtraError
from edgefuse.runtime.evaluate import score
from edgefuse.runtime.manifest import Example

MODULE = "edgefuse.benchmarks.loadgen_child"
ACCURACY, PERFORMANCE = "AccuracyOnly", "PerformanceOnly"
_MARK = ":::MLLOG "
_DEMANDS = {  # key of the log -> in words
    "result_min_duration_met": "duration",
    "result_min_queries_met": "queries",
    "early_stopping_met": "queries for the percentile",
}


@dataclass(frozen=True, slots=True)
class Load:
    """How long LoadGen asks."""

    queries: dict[str, int]  # scenario -> queries at least; Offline's one query is as long as `seconds` asks
    seconds: float  # of each scenario, at least
    samples: int | None  # examples at most, evenly spread, each once for the accuracy; None takes all
    note: str  # what it is worth


FULL = Load(
    # LoadGen tells the p99 of MultiStream from 662 queries on.
    {"SingleStream": 1024, "MultiStream": 662, "Offline": 1},
    seconds=60,
    samples=None,
    note="LoadGen's verdict on these settings; no MLPerf submission, which takes 600 s and MLPerf's own models",
)
QUICK = Load(
    {"SingleStream": 64, "MultiStream": 8, "Offline": 1},
    seconds=2,
    samples=100,
    note="A quick run: too short for a claim, and no MLPerf-valid run",
)


def ask(
    bundle: Bundle,
    part_set: str,
    examples: Sequence[Example],
    sensors: Sequence[str],
    load: Load,
    progress: Callable[[], None],
) -> dict[str, Any]:
    """Let LoadGen ask one part set, in a child process.

    Args:
        bundle: an open bundle.
        part_set: the parts that answer.
        examples: labelled, each with all of `sensors`; LoadGen draws its queries among them.
        sensors: what is given of each example.
        load: how long.
        progress: called after all of it.

    Returns:
        {part_set, note, accuracy: {accuracy, interval, n}, scenarios: {scenario: what `read_log` gives}}.

    Raises:
        MissingExtraError: mlcommons-loadgen is not installed.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise MissingExtraError("mlcommons-loadgen is not installed; pip install 'edgefuse[bench]' (Linux on x86-64)")
    examples = spread(examples, min(load.samples or len(examples), len(examples)))
    samples = [{sensor: getattr(example, sensor) for sensor in sensors} for example in examples]
    runs = [{"scenario": "SingleStream", "mode": ACCURACY, "queries": 1, "seconds": 0}]
    for scenario, queries in load.queries.items():
        runs.append({"scenario": scenario, "mode": PERFORMANCE, "queries": queries, "seconds": load.seconds})
    with tempfile.TemporaryDirectory() as folder:
        job = {"bundle": str(bundle.folder), "part_set": part_set, "samples": samples, "folder": folder, "runs": runs}
        subprocess.run([sys.executable, "-m", MODULE], input=json.dumps(job), text=True, check=True)
        logs = {
            scenario: (Path(folder) / f"{scenario}_{PERFORMANCE}_detail.txt").read_text() for scenario in load.queries
        }
        answers = json.loads((Path(folder) / f"SingleStream_{ACCURACY}_accuracy.json").read_bytes())
    progress()
    truth = [bundle.info.labels.index(example.label or "") for example in examples]
    right = np.array([label_number(answer["data"]) == truth[answer["qsl_idx"]] for answer in answers])
    return {
        "part_set": part_set,
        "note": load.note,
        "accuracy": score(right),
        "scenarios": {scenario: read_log(text) for scenario, text in logs.items()},
    }


def label_number(data: str) -> int:
    """The int32 that an answer is, from the hexadecimal bytes in LoadGen's accuracy log."""
    return int(np.frombuffer(bytes.fromhex(data), np.int32)[0])


def read_log(text: str) -> dict[str, Any]:
    """What LoadGen found in one performance run.

    Args:
        text: its detail log, lines of ":::MLLOG " and a JSON object.

    Returns:
        {loadgen, queries, min_queries, min_seconds, result: VALID or INVALID, unmet: LoadGen's demands that were not
        met}, and for Offline samples_per_s, else {mean_ms, p50_ms, p90_ms, p99_ms, guaranteed_ms} of the queries, each
        of 8 samples in MultiStream. A percentile that the queries do not support is None; `guaranteed_ms` is the early
        stopping estimate of the scenario's percentile at 99 % confidence, None where there were too few for it.
    """
    lines = (json.loads(line.removeprefix(_MARK)) for line in text.splitlines() if line.startswith(_MARK))
    said = {line["key"]: line["value"] for line in lines}
    queries = said["result_query_count"]
    found = {
        "loadgen": said["loadgen_version"],
        "queries": queries,
        "min_queries": said["effective_min_query_count"],
        "min_seconds": said["effective_min_duration_ms"] / 1000,
        "result": said["result_validity"],
        "unmet": [demand for key, demand in _DEMANDS.items() if not said[key]],
    }
    scenario = said["effective_scenario"]
    if scenario == "Offline":
        return {**found, "samples_per_s": said["result_samples_per_second"]}
    per_query, short = ("_per_query", "ms") if scenario == "MultiStream" else ("", "ss")
    for name, percentile in PERCENTILES.items():
        key = f"result_{percentile}.00_percentile{per_query}_latency_ns"
        found[name] = said[key] / 1e6 if queries >= least_queries(percentile) else None
    mean = said["result_mean_query_latency_ns" if per_query else "result_mean_latency_ns"]
    return {**found, "mean_ms": mean / 1e6, "guaranteed_ms": said[f"early_stopping_latency_{short}"] / 1e6 or None}
