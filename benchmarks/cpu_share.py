"""How much of what this CPU can do its parts reach: FLOPs of each over its latency, against peaks of the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil

from edgefuse.benchmarks.cpu_peaks import measure_peaks
from edgefuse.benchmarks.latency import summarise
from edgefuse.benchmarks.limits import attainable, intensity
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.bundle import Bundle

WARMUP = 5  # runs of each part that are not counted
NOTES = (
    "FLOPs are those of the products in the fp32 part, whatever a rewrite saved; shares are of the median latency",
    "bytes are inputs, weights and outputs once, as from memory; a small part stays in the cache between runs, and may "
    "then reach more than its roofline, of which only the peak bounds it",
)
_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}


def cpu_shares(bundle: Bundle, works: Mapping[str, Mapping[str, Mapping[str, Any]]], runs: int) -> dict[str, Any]:
    """Measure peaks and parts on this CPU, with one thread and with one per core as `bench` runs them.

    Args:
        bundle: an open bundle.
        works: part set -> part -> {flops, bytes}, as optimize/work.py counts them.
        runs: of each part and number of threads; they take turns.

    Returns:
        {peaks: {threads: {fp32_flops, int8_flops, stream_bytes}}, parts: [{part_set, part, precision, threads, flops,
        bytes, intensity, latency: {n, mean_ms, p50_ms, ..}, flops_per_s, share_of_peak, share_of_roofline}], notes};
        shares are of the median latency, and None where the part multiplies nothing.

    Raises:
        BundleError: a part is missing, altered or refused by ONNX Runtime.
    """
    counts = sorted({1, _cores()})
    peaks: dict[int, dict[str, float]] = {}
    for threads in counts:  # what fewer threads reach, more could have left to them
        less = list(peaks.values())
        peaks[threads] = {
            name: max([rate, *(peak[name] for peak in less)]) for name, rate in measure_peaks(threads).items()
        }
    keys = [(name, part, threads) for name, parts in works.items() for part in parts for threads in counts]
    sessions = {key: open_session(bundle.part(*key[:2]), threads=key[2]) for key in keys}
    feeds = {key: _feed(session) for key, session in sessions.items()}
    times_ms: dict[tuple[str, str, int], list[float]] = {key: [] for key in keys}
    for turn in range(WARMUP + runs):
        for key, session in sessions.items():
            started = time.perf_counter()
            session.run(None, feeds[key])
            if turn >= WARMUP:
                times_ms[key].append((time.perf_counter() - started) * 1e3)
    rows = []
    for (name, part, threads), times in times_ms.items():
        precision = bundle.part_info(name, part).precision
        told = {"part_set": name, "part": part, "precision": precision, "threads": threads, **works[name][part]}
        latency = summarise(times)
        rows.append({**told, "latency": latency, **_reached(told, latency["p50_ms"], peaks[threads])})
    return {"peaks": {str(threads): peak for threads, peak in peaks.items()}, "parts": rows, "notes": list(NOTES)}


def _reached(told: Mapping[str, Any], p50_ms: float, peaks: Mapping[str, float]) -> dict[str, float | None]:
    flops, moved = told["flops"], told["bytes"]
    if not flops or not moved:
        return dict.fromkeys(("intensity", "flops_per_s", "share_of_peak", "share_of_roofline"))
    peak = peaks["int8_flops" if "int8" in told["precision"] else "fp32_flops"]
    rate = flops / p50_ms * 1e3
    roof = attainable(peak, peaks["stream_bytes"], intensity(flops, moved))
    shares = {"share_of_peak": rate / peak, "share_of_roofline": rate / roof}
    return {"intensity": intensity(flops, moved), "flops_per_s": rate, **shares}


def _cores() -> int:
    """Physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def _feed(session: Any) -> Tensors:
    """One example for a part: noise, but ones for ids, masks and presence, so that nothing is padding or missing."""
    random, feed = np.random.default_rng(0), {}
    for value in session.get_inputs():
        shape, kind = [dim if isinstance(dim, int) else 1 for dim in value.shape], _TYPES[value.type]
        if kind is np.uint8:
            feed[value.name] = random.integers(0, 256, shape, kind)
        elif kind is np.int32 or value.name == "presence":
            feed[value.name] = np.ones(shape, kind)
        else:
            feed[value.name] = random.uniform(-0.1, 0.1, shape).astype(kind)
    return feed
