"""The engines of a bundle on this machine's GPU: the queries of the CPU, whether answers are right, build by build."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgefuse.benchmarks.experiments import edgefuse
from edgefuse.benchmarks.latency import Timings, summarise, time_interleaved
from edgefuse.benchmarks.named_latencies import engine_ms
from edgefuse.runtime.backend import Backend
from edgefuse.runtime.backends import open_backend
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.engines import ENGINE_TARGETS, Sidecar, read_sidecar
from edgefuse.runtime.errors import BackendError, BundleError, EdgefuseError, EngineError, MissingExtraError
from edgefuse.runtime.evaluate import encode_examples, right_from_all, wilson
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Predictor

Progress = Callable[[str, int], Callable[[], None]]  # begins a phase of so many steps; what it returns follows each


@dataclass(frozen=True, slots=True)
class Asked:
    """What the engines are asked."""

    queries: Sequence[Example]  # timed one after the other, batch 1
    sensors: Sequence[str]  # of them
    warmup: int  # of the queries, not counted
    lines: Sequence[Example]  # labelled, for the accuracy
    builds: int  # of each engine once more, from nothing


def targets_of(bundle: Bundle) -> list[str]:
    """The targets that the bundle has engines of."""
    return [target for target in ENGINE_TARGETS if any(bundle.folder.glob(f"engines/{target}/*.engine"))]


def measure_engines(bundle: Bundle, asked: Asked, progress: Progress) -> dict[str, Any]:
    """What the GPU does with each target that the bundle has engines of.

    Args:
        bundle: an open bundle.
        asked: queries and lines.
        progress: begins a phase.

    Returns:
        {target: {engine, host_end_to_end: summaries in ms, stages: {stage: summary}, accuracy: {accuracy, interval, n},
        builds}}, or {target: {not_measured: why}} where there is no GPU, no TensorRT, or an engine that does not fit;
        `builds` is {p50_ms: [of each build], spread: largest / smallest - 1}, {not_measured: why} where one failed, and
        None where none was asked for.
    """
    found: dict[str, Any] = {}
    for target in targets_of(bundle):
        try:
            found[target] = _measure(bundle, target, asked, progress)
        except (BackendError, BundleError, EngineError, MissingExtraError) as error:
            found[target] = {"not_measured": str(error)}
    return found


def _measure(bundle: Bundle, target: str, asked: Asked, progress: Progress) -> dict[str, Any]:
    with open_backend(bundle, target) as backend:
        backend.load(HEAD)  # refuse before a bar is shown
        stages = _times(bundle, backend, asked, progress(f"speed, {target}", len(asked.queries)))
        answered = right_from_all(encode_examples(Predictor(bundle, backend), asked.lines), asked.lines)
    right, n = int(answered.right.sum()), len(answered.right)
    return {
        "engine": summarise(engine_ms(stages)),
        "host_end_to_end": summarise(stages["total"]),
        "stages": {stage: summarise(times) for stage, times in stages.items()},
        "accuracy": {"accuracy": right / n, "interval": list(wilson(right, n)), "n": n},
        "builds": _builds(bundle, target, asked, progress) if asked.builds else None,
    }


def _times(bundle: Bundle, backend: Backend, asked: Asked, step: Callable[[], None]) -> dict[str, list[float]]:
    """Stage -> one time in ms per query."""
    predictors = {backend.name: Predictor(bundle, backend)}
    timings: Timings = time_interleaved(predictors, asked.queries, asked.sensors, asked.warmup, step)
    return timings[backend.name]


def _builds(bundle: Bundle, target: str, asked: Asked, progress: Progress) -> dict[str, Any]:
    try:
        found = [_built_again(bundle, target, asked, progress) for _ in range(asked.builds)]
    except EdgefuseError as error:  # what was measured before is worth keeping
        return {"not_measured": str(error)}
    return {"p50_ms": found, "spread": max(found) / min(found) - 1}


def _built_again(bundle: Bundle, target: str, asked: Asked, progress: Progress) -> float:
    """The median time in the engines, in ms, of a build that knows of no other: neither engine nor timing cache."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / bundle.folder.name
        shutil.copytree(bundle.folder, copy, ignore=shutil.ignore_patterns("engines"))
        edgefuse("build", str(copy), "--target", target, *as_before(read_sidecar(bundle.folder, target, HEAD)))
        again = Bundle.open(copy)
        with open_backend(again, target) as backend:
            step = progress(f"another build, {target}", len(asked.queries))
            return statistics.median(engine_ms(_times(again, backend, asked, step)))


def as_before(sidecar: Sidecar | None) -> list[str]:
    """The options of `edgefuse build` that the engines were built with."""
    if sidecar is None:
        return []
    level = sidecar.optimization_level
    sms = [f"--sm={sm}" for sm in sidecar.sm] if sidecar.target == "tensorrt-rtx" else []
    return [f"--max-batch={sidecar.batch[2]}", *sms, *([] if level is None else [f"--optimization-level={level}"])]
