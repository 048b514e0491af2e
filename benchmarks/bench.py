"""Measures a bundle on this machine's CPU, batch 1, and writes report.json, report.md and index.html.

edgefuse bench runs/demo/bundle --out runs/demo/report [--quick] [--manifest data.jsonl]
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edgefuse.benchmarks import footprint
from edgefuse.benchmarks.accuracy import REFERENCE, judge
from edgefuse.benchmarks.environment import describe_environment
from edgefuse.benchmarks.latency import (
    Timings,
    distribution,
    pools_by_sensors,
    speedup,
    spread,
    summarise,
    time_interleaved,
)
from edgefuse.benchmarks.report import JUDGE, render
from edgefuse.benchmarks.report_markdown import render_markdown
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, PART_SETS, Bundle
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.predictor import Predictor

SCHEMA = 1  # of report.json
SPLIT = "test"
GATE = 0.99  # share of the fp32 accuracy to keep, where the bundle does not say (MLPerf's for edge models)
JUDGES = ("trt",)  # part sets made for another machine: run here for their accuracy only
_ONLY_DRAWN = ("distribution_ms", "commands")  # in report.json, but not worth printing


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    queries: int  # with every sensor; MLPerf's single stream asks for 1024 at least
    scenario_queries: int  # with each smaller subset of sensors
    warmup_queries: int  # answered before each of them, and not counted
    memory_runs: int  # fresh processes per part set
    cold_starts: int  # fresh processes
    accuracy_limit: int | None  # examples at most, evenly spread; None takes the whole split


FULL = Effort(1024, 256, 32, memory_runs=3, cold_starts=5, accuracy_limit=None)
QUICK = Effort(200, 100, 10, memory_runs=1, cold_starts=3, accuracy_limit=500)


def bench(bundle_folder: Path, out: Path, *, manifest: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Measure speed, memory, size and accuracy of every part set of a bundle and write the report.

    Args:
        bundle_folder: the bundle.
        out: folder for report.json, report.md and index.html, made if need be.
        manifest: labelled data with lines of split "test"; None takes that of the training, as the lineage says.
        quick: measure less.

    Returns:
        What report.json holds, {stages, scenarios, memory, cold_start, size, accuracy, engines, environment, ...},
        without what only the drawings need, and the path of the page.

    Raises:
        BundleError, ManifestError: the bundle, the manifest or a file that it names cannot be used.
    """
    effort = QUICK if quick else FULL
    bundle = Bundle.open(bundle_folder)
    bundle.part_info(REFERENCE, HEAD)  # nothing can be judged without the reference
    manifest = _manifest(bundle, manifest)
    examples = read_manifest(manifest, split=SPLIT, labels=bundle.info.labels)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)  # before minutes are spent on what could then not be written
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        report = {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "quick": quick,
            **_about(bundle, effort, manifest),
            **_measure(bundle, examples, effort, progress),
        }
    report["commands"] = _commands(report, bundle.folder, out)
    write_atomic(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    write_atomic(out / "report.md", render_markdown(report).encode())
    write_atomic(out / "index.html", render(report).encode())
    printed = {key: value for key, value in report.items() if key not in _ONLY_DRAWN}
    return {**printed, "page": str(out / "index.html")}


def _manifest(bundle: Bundle, given: Path | None) -> Path:
    if given is not None:
        return given
    path = Path(str(bundle.info.lineage.get("manifest", "")))
    if not path.is_file():
        raise ManifestError(
            f"{bundle.folder} was trained on {str(path)!r}, which is not here; name one with --manifest"
        )
    return path


def _part_sets(bundle: Bundle) -> list[str]:
    """The part sets that the bundle has, the reference first."""
    return [part_set for part_set in PART_SETS if part_set in bundle.info.parts]


def _about(bundle: Bundle, effort: Effort, manifest: Path) -> dict[str, Any]:
    """What was measured, and how."""
    info = bundle.info
    asked = info.lineage.get("quantize", {})
    return {
        "gate": asked.get("gate", GATE),
        "bundle": {"name": info.name, "labels": len(info.labels), "lineage": info.lineage, "quality": info.quality},
        "part_sets": {
            part_set: {
                "role": JUDGE if part_set in JUDGES else "speed",
                "precision": {part: about.precision for part, about in info.parts[part_set].items()},
            }
            for part_set in _part_sets(bundle)
        },
        "settings": {
            **asdict(effort),
            "backend": "ONNX Runtime, CPU, batch 1, sessions that do not spin",
            "threads": "ONNX Runtime's default, one per physical core",
            "order": "every query goes to each part set in turn; each part set is first equally often",
            "percentiles": "stated from 2 (p50), 10 (p90) and 100 (p99) queries on",
            "manifest": str(manifest),
            "split": SPLIT,
        },
    }


def _measure(bundle: Bundle, examples: Sequence[Example], effort: Effort, progress: Progress) -> dict[str, Any]:
    def phase(name: str, steps: int) -> Callable[[], None]:
        return partial(progress.advance, progress.add_task(name, total=steps))

    environment = describe_environment()  # first: its load is that of the others, not ours
    sets = _part_sets(bundle)
    fast = [part_set for part_set in sets if part_set not in JUDGES]
    pools = pools_by_sensors(examples, bundle.info.modalities)
    fullest = list(pools)[-1]
    timings: dict[str, Timings] = {}
    with ExitStack() as opened:
        predictors = {name: Predictor(bundle, opened.enter_context(OnnxBackend(bundle, name))) for name in sets}
        for name, pool in pools.items():
            asked = {part_set: predictors[part_set] for part_set in (sets if name == fullest else fast)}
            count = effort.warmup_queries + (effort.queries if name == fullest else effort.scenario_queries)
            queries, step = spread(pool, count), phase(f"speed, {name}", count)
            timings[name] = time_interleaved(asked, queries, name.split("+"), effort.warmup_queries, step)
        limit = min(effort.accuracy_limit or len(examples), len(examples))
        accuracy = judge(predictors, spread(examples, limit), phase("accuracy", len(sets)))
    inputs = {sensor: getattr(pools[fullest][0], sensor) for sensor in fullest.split("+")}
    step = phase("memory", len(fast) * effort.memory_runs)
    memory = {name: footprint.memory(bundle, name, inputs, effort.memory_runs, step) for name in fast}
    first = footprint.cold_start(bundle, inputs, effort.cold_starts, phase("first answer", effort.cold_starts))
    return {
        **_speed(timings, fullest, fast),
        "memory": memory,
        "cold_start": first,
        "size": footprint.sizes(bundle, sets),
        "accuracy": accuracy,
        "engines": footprint.engines(bundle),
        "environment": environment,
        "example": inputs,
    }


def _speed(timings: Mapping[str, Timings], fullest: str, fast: Sequence[str]) -> dict[str, Any]:
    """The fullest subset of sensors stage by stage, and the total of every subset."""
    scenarios = {}
    for name, times in timings.items():
        total = {part_set: times[part_set]["total"] for part_set in fast}
        scenarios[name] = {part_set: summarise(total[part_set]) for part_set in fast}
        for part_set in fast:
            if part_set != REFERENCE:
                scenarios[name][part_set]["speedup"] = speedup(total[REFERENCE], total[part_set])
    every = timings[fullest]
    return {
        "sensors": fullest,
        "stages": {
            part_set: {stage: summarise(each) for stage, each in stages.items()} for part_set, stages in every.items()
        },
        "distribution_ms": {part_set: distribution(every[part_set]["total"]) for part_set in fast},
        "scenarios": scenarios,
    }


def _commands(report: Mapping[str, Any], folder: Path, out: Path) -> list[tuple[str, str]]:
    """Which command prints which figure."""
    manifest, limit = report["settings"]["manifest"], report["settings"]["accuracy_limit"]
    quick = ["--quick"] if report["quick"] else []
    commands = [
        (
            "everything on this page",
            ["edgefuse", "bench", str(folder), "--out", str(out), "--manifest", manifest, *quick],
        )
    ]
    for part_set in report["part_sets"]:
        evaluate = ["edgefuse", "eval", str(folder), manifest, "--part-dir", part_set, "--split", SPLIT]
        commands.append(
            (f"accuracy, {part_set} parts", [*evaluate, *(["--limit", str(limit)] if limit else []), "--json"])
        )
    for part_set in report["memory"]:
        memory = ["python", "-m", footprint.MODULE, str(folder), part_set, json.dumps(report["example"])]
        commands.append((f"memory, {part_set} parts", memory))
    commands.append(("first answer", ["time", "edgefuse", *footprint.predict_arguments(folder, report["example"])]))
    commands.append(("size on disk", ["du", "-ab", f"{folder}/parts"]))
    return [(what, shlex.join(words)) for what, words in commands]


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["bench", *sys.argv[1:]])
