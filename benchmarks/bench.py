"""Measures a bundle on this machine's CPU, and its engines where a GPU is, batch 1; writes the report.

edgefuse bench runs/demo/bundle --out runs/demo/report [--quick] [--manifest data.jsonl]
    [--against other/report.json] [--history runs/history.jsonl] [--fail-on "cpu.p50_ms>20"] [--builds 5]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edgefuse.benchmarks import footprint, loadgen
from edgefuse.benchmarks.accuracy import REFERENCE, SPLIT, judge
from edgefuse.benchmarks.against import face, open_other
from edgefuse.benchmarks.ceilings import measure_ceilings
from edgefuse.benchmarks.effort import FULL, QUICK, Effort
from edgefuse.benchmarks.energy import measure_energy
from edgefuse.benchmarks.environment import describe_environment, heat_and_clocks
from edgefuse.benchmarks.figures import figures, names
from edgefuse.benchmarks.gpu import Asked, measure_engines, targets_of
from edgefuse.benchmarks.history import append, line_of
from edgefuse.benchmarks.latency import (
    JUDGES,
    Timings,
    fast_sets,
    part_sets,
    pools_by_sensors,
    speed,
    spread,
    time_interleaved,
)
from edgefuse.benchmarks.meters import open_meters
from edgefuse.benchmarks.named_latencies import name_latencies
from edgefuse.benchmarks.pareto import Measured, pareto, time_combinations
from edgefuse.benchmarks.parity_ledger import measure_parity
from edgefuse.benchmarks.report import JUDGE, render
from edgefuse.benchmarks.report_markdown import render_markdown
from edgefuse.benchmarks.reproduce import commands
from edgefuse.benchmarks.thresholds import broken, parse
from edgefuse.runtime.backend_onnx import OnnxBackend, cores
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import ManifestError, MissingExtraError
from edgefuse.runtime.evaluate import encode_examples
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.predictor import Predictor

SCHEMA = 1  # of report.json
GATE = 0.99  # share of the fp32 accuracy to keep, where the bundle does not say (MLPerf's for edge models)
REST_S = 2.0  # that the machine rests before energy is measured
_ONLY_DRAWN = ("distribution_ms", "commands")  # in report.json, but not worth printing


def bench(
    bundle_folder: Path,
    out: Path,
    *,
    manifest: Path | None = None,
    quick: bool = False,
    against: Path | None = None,
    history: Path | None = None,
    fail_on: Sequence[str] = (),
    builds: int = 0,
) -> dict[str, Any]:
    """Measure speed, memory, size and accuracy of every part set of a bundle and write the report.

    Args:
        bundle_folder: the bundle.
        out: folder for report.json, report.md and index.html, made if need be.
        manifest: labelled data with lines of split "test"; None takes that of the training, as the lineage says.
        quick: measure less.
        against: report.json of another bundle, which then answers the same queries beside this one.
        history: file that a line of figures is added to.
        fail_on: what must not come out, see `thresholds.parse`.
        builds: where a GPU is, so many more builds of the engines, each from nothing, to see how they differ.

    Returns:
        What report.json holds, {stages, scenarios, latencies, mlperf, energy, memory, cold_start, size, accuracy,
        pareto, ceilings, gpu, engines, environment, against, ...}, without what only the drawings need, and the path of
        the page. The verdict is "failed" where something of `fail_on` came out, else "ok"; `broken` says what, as does
        stderr.

    Raises:
        UsageError: one of `fail_on` cannot be read or names no figure.
        OptionError: the bundle of `against` cannot be compared with this one.
        BundleError, ManifestError: the bundle, the manifest or a file that it names cannot be used.
    """
    effort = QUICK if quick else FULL
    bundle = Bundle.open(bundle_folder)
    bundle.part_info(REFERENCE, HEAD)  # nothing can be judged without the reference
    known = names(part_sets(bundle), fast_sets(bundle), targets_of(bundle), against is not None)
    thresholds = [parse(text, known) for text in fail_on]
    other = None if against is None else open_other(against, bundle, fast_sets(bundle))
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
            **_measure(bundle, manifest, examples, effort, out, builds, progress),
            "against": other and face(bundle, other, examples, partial(_phase, progress)),
        }
    report["environment"]["heat_at_end"] = heat_and_clocks()
    report["commands"] = commands(report, bundle.folder, out, () if against is None else ("--against", str(against)))
    report["broken"] = broken(thresholds, figures(report))
    report["verdict"] = "failed" if report["broken"] else "ok"
    write_atomic(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    write_atomic(out / "report.md", render_markdown(report).encode())
    write_atomic(out / "index.html", render(report).encode())
    if history is not None:
        append(history, line_of(report))
    for line in report["broken"]:
        print(f"edgefuse: {line}", file=sys.stderr)
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


def _phase(progress: Progress, name: str, steps: int) -> Callable[[], None]:
    """Begin a phase of so many steps; what is returned is called after each."""
    return partial(progress.advance, progress.add_task(name, total=steps))


def _about(bundle: Bundle, effort: Effort, manifest: Path) -> dict[str, Any]:
    """What was measured, and how."""
    info = bundle.info
    asked = info.lineage.get("quantize", {})
    return {
        "gate": asked.get("gate", GATE),
        "bundle": {
            "name": info.name,
            "folder": str(bundle.folder.resolve()),  # this and the next are how --against finds it again
            "fingerprint": bundle.fingerprint,
            "labels": len(info.labels),
            "lineage": info.lineage,
            "quality": info.quality,
        },
        "part_sets": {
            part_set: {
                "role": JUDGE if part_set in JUDGES else "speed",
                "precision": {part: about.precision for part, about in info.parts[part_set].items()},
            }
            for part_set in part_sets(bundle)
        },
        "settings": {
            **{key: value for key, value in asdict(effort).items() if key != "load"},
            "backend": "ONNX Runtime, CPU, batch 1, encoders side by side, sessions that do not spin",
            "threads": f"shared out over the encoders, {cores()} at most, one per core",
            "order": "every query goes to each part set in turn; each part set is first equally often",
            "percentiles": "stated from 2 (p50), 10 (p90) and 100 (p99) queries on",
            "manifest": str(manifest),
            "split": SPLIT,
        },
    }


def _measure(
    bundle: Bundle,
    manifest: Path,
    examples: Sequence[Example],
    effort: Effort,
    out: Path,
    builds: int,
    progress: Progress,
) -> dict[str, Any]:
    phase = partial(_phase, progress)
    environment = describe_environment()  # first: its load is that of the others, not ours
    sets, fast = part_sets(bundle), fast_sets(bundle)
    pools = pools_by_sensors(examples, bundle.info.modalities)
    fullest = list(pools)[-1]
    timings: dict[str, Timings] = {}
    with ExitStack() as opened:
        backends = {name: opened.enter_context(OnnxBackend(bundle, name)) for name in sets}
        predictors = {name: Predictor(bundle, backend) for name, backend in backends.items()}
        for name, pool in pools.items():
            asked = {part_set: predictors[part_set] for part_set in (sets if name == fullest else fast)}
            count = effort.warmup_queries + (effort.queries if name == fullest else effort.scenario_queries)
            queries, step = spread(pool, count), phase(f"speed, {name}", count)
            timings[name] = time_interleaved(asked, queries, name.split("+"), effort.warmup_queries, step)
        limit = min(effort.accuracy_limit or len(examples), len(examples))
        lines, step = spread(examples, limit), phase("accuracy", 2 * len(sets))
        encoded = {}
        for name in sets:
            encoded[name] = encode_examples(predictors[name], lines)
            step()
        accuracy = judge(encoded, lines, step)
        queries = spread(pools[fullest], effort.warmup_queries + effort.queries)
        timed = {bundle.info.name: (bundle, {name: backends[name] for name in fast})}
        step = phase("speed, every combination", len(queries))
        told = time_combinations(timed, queries, fullest.split("+"), effort.warmup_queries, step)
        measured = Measured(bundle, told[bundle.info.name], {name: encoded[name] for name in fast})
        combined = pareto({bundle.info.name: measured}, lines, fullest.split("+"))
        inputs = {sensor: getattr(pools[fullest][0], sensor) for sensor in fullest.split("+")}
        decide = {name: partial(predictors[name].predict, **inputs) for name in fast}
        energy = measure_energy(open_meters(), decide, effort.energy_decisions, REST_S)
    mlperf = _ask_loadgen(bundle, fast[-1], pools[fullest], fullest.split("+"), effort.load, phase("MLPerf LoadGen", 1))
    gpu = measure_engines(bundle, Asked(queries, fullest.split("+"), effort.warmup_queries, lines, builds), phase)
    step = phase("ceilings", 1)
    ceilings = measure_ceilings(bundle, effort.ceiling_runs)
    step()
    step = phase("parity", 1)
    parity = measure_parity(bundle, manifest, effort.parity_lines)
    step()
    step = phase("memory", len(fast) * effort.memory_runs)
    memory = {name: footprint.memory(bundle, name, inputs, effort.memory_runs, step) for name in fast}
    first = footprint.cold_start(bundle, inputs, effort.cold_starts, phase("first answer", effort.cold_starts))
    return {
        **speed(timings, fullest, fast, REFERENCE),
        "latencies": name_latencies(bundle, timings[fullest], fast, out),
        "mlperf": mlperf,
        "energy": energy,
        "memory": memory,
        "cold_start": first,
        "size": footprint.sizes(bundle, sets),
        "accuracy": accuracy,
        "pareto": combined,
        "ceilings": ceilings,
        "parity": parity,
        "gpu": gpu,
        "engines": footprint.engines(bundle, gpu),
        "environment": environment,
        "example": inputs,
    }


def _ask_loadgen(bundle: Bundle, part_set: str, *arguments: Any) -> dict[str, Any]:
    """What LoadGen says of one part set; where it is not installed, that it was not measured."""
    try:
        return loadgen.ask(bundle, part_set, *arguments)
    except MissingExtraError as error:
        return {"not_measured": str(error)}


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["bench", *sys.argv[1:]])
