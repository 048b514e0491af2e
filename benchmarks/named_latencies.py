"""The three latencies that a report names, each of which holds the one before: engine, host, sensor to decision."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.benchmarks.latency import HOST_STAGES, PERCENTILES, Timings, least_queries, summarise
from edgefuse.runtime.bundle import Bundle

LOOP_FILE = "loop.json"  # in the folder of the report
LOAD_PERCENT = 80  # of what the loop takes; at more, readings wait for the loop


def loop_command(bundle: Path, out: Path, *more: str) -> list[str]:
    """What measures the last of the three, for a report in the folder `out`."""
    return ["python", "benchmarks/loop.py", str(bundle), "--only", "load", "--out", str(out / LOOP_FILE), *more]


def name_latencies(bundle: Bundle, timings: Timings, part_sets: Sequence[str], out: Path) -> dict[str, Any]:
    """The three latencies from the stage times of the same queries, and from the loop's benchmark where it was run.

    Args:
        bundle: what was measured.
        timings: part set -> stage -> one time in ms per query.
        part_sets: those that are a speed.
        out: folder of the report, where `benchmarks/loop.py --out` may have left LOOP_FILE.

    Returns:
        {least_queries: {percentile: queries}, engine: {part set: summary}, host_end_to_end: {part set: summary},
        sensor_to_decision: {modality: summary} or {not_measured: why and how to get it}}.
    """
    return {
        "least_queries": {name: least_queries(percentile) for name, percentile in PERCENTILES.items()},
        "engine": {part_set: summarise(engine_ms(timings[part_set])) for part_set in part_sets},
        "host_end_to_end": {part_set: summarise(timings[part_set]["total"]) for part_set in part_sets},
        "sensor_to_decision": _sensor_to_decision(bundle, out),
    }


def engine_ms(stages: Mapping[str, Sequence[float]]) -> list[float]:
    """Time in the parts, of each query: what the host leaves of the total, as parts may run side by side."""
    return (np.array(stages["total"]) - np.sum([stages[stage] for stage in HOST_STAGES], axis=0)).tolist()  # [n]


def _sensor_to_decision(bundle: Bundle, out: Path) -> dict[str, Any]:
    """How old a reading is when it is decided on, in a real loop beside a real sensor thread."""
    path, command = out / LOOP_FILE, shlex.join(loop_command(bundle.folder, out))
    try:
        found = json.loads(path.read_bytes())
        loads, measured = found["details"]["load"], found["fingerprint"]
    except FileNotFoundError:
        return {"not_measured": f"no {path}; {command}, then bench again"}
    except (ValueError, KeyError, TypeError):
        return {"not_measured": f"{path} holds no loads of benchmarks/loop.py; {command}, then bench again"}
    if measured != bundle.fingerprint:
        return {"not_measured": f"{path} is of another bundle; {command}, then bench again"}
    return {modality: load[f"age_at_{LOAD_PERCENT}"] for modality, load in loads.items()}
