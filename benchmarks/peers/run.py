"""A bundle's cpu parts against its peers, end to end on the same files: latency, cold start, memory, size, accuracy.

    python benchmarks/peers/run.py BUNDLE --manifest M --run RUN --out build/peers/race

Every peer runs in a virtual environment of its own (made in --out by pip, kept) and in processes of its own, with the
same weights and threads. The result is benchmarks/results/peers.json; the tables are printed as Markdown. What cannot
be installed, made or run here is a row that says why. docs/peers.md says what each column means.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgefuse.benchmarks.environment import describe_environment
from edgefuse.benchmarks.latency import pools_by_sensors, spread, summarise
from edgefuse.benchmarks.peers.catalogue import ENVIRONMENTS, OURS, PEERS, Peer
from edgefuse.benchmarks.peers.contract import SAMPLES, WHOLE, Job, Query
from edgefuse.benchmarks.peers.environments import NotMeasuredError, build_wheel, described, environment, last_line
from edgefuse.benchmarks.peers.race import Start, Times, first_answers, race
from edgefuse.benchmarks.peers.verdicts import bars, markdown, ours_over_theirs
from edgefuse.benchmarks.peers.whole_model import calibration_tensors, one_graph
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BundleError, EdgefuseError, OptionError
from edgefuse.runtime.evaluate import score
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, read_manifest

RESULT = Path(__file__).resolve().parents[1] / "results" / "peers.json"
SENSORS = ("image", "audio", "text")
LONGEST_S = 3600  # until a tool has made its model


def main() -> None:
    """Measure, keep the JSON, print the tables; one line and exit 1 where that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle with fp32 and cpu parts")
    parser.add_argument("--manifest", type=Path, required=True, help="its data, with lines of split train and test")
    parser.add_argument("--run", type=Path, help="the run it was exported from; the peers in PyTorch need it")
    parser.add_argument("--out", type=Path, required=True, help="environments, models and logs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="peers whose name holds one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=1024, help="timed and judged, one at a time")
    parser.add_argument("--warmup", type=int, default=32, help="queries before, not counted")
    parser.add_argument("--batch", type=int, default=16, help="rows of a call for the throughput")
    parser.add_argument("--batches", type=int, default=64, help="timed calls for the throughput")
    parser.add_argument("--starts", type=int, default=5, help="cold starts of each peer")
    parser.add_argument("--calibration", type=int, default=256, help="training lines for the INT8 peers")
    parser.add_argument("--training", type=int, default=600, help="seconds that AutoGluon may train")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    try:
        document = measure(given)
    except EdgefuseError as error:
        sys.exit(f"peers: {error}")
    write_atomic(given.result, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    print(markdown(document))


def chosen(only: list[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers to measure, ours always, and why others are left out.

    Raises:
        OptionError: a name that no peer has.
    """
    for text in only:
        if not any(text.lower() in peer.name.lower() for peer in PEERS):
            raise OptionError(f"--only {text!r} fits no peer; there are: {'; '.join(peer.name for peer in PEERS)}")
    named = [peer for peer in PEERS if any(text.lower() in peer.name.lower() for text in only)]
    taken = [peer for peer in PEERS if peer.name == OURS or (peer in named if only else not peer.left_out)]
    return taken, {peer.name: peer.left_out or "not asked for" for peer in PEERS if peer not in taken}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """What goes into peers.json: {environment, settings, rows: peer -> row, bars}.

    Raises:
        EdgefuseError: an option, the bundle or the manifest cannot be used, or edgefuse itself cannot be installed.
    """
    for option in ("threads", "queries", "warmup", "batch", "batches", "starts", "calibration", "training"):
        if getattr(given, option) < 1:
            raise OptionError(f"--{option}: found {getattr(given, option)}, it must be 1 or more")
    peers, fallen = chosen(given.only)
    machine, bundle = describe_environment(), Bundle.open(given.bundle)
    if not set(bundle.info.modalities) <= set(SENSORS):
        raise BundleError(f"{given.bundle} takes {', '.join(bundle.info.modalities)}; the peers know {SENSORS} only")
    made = given.out.resolve() / "made"
    made.mkdir(parents=True, exist_ok=True)
    lines = spread(_lines(given.manifest, bundle, "test"), given.warmup + given.queries)
    _write_inputs(bundle, spread(_lines(given.manifest, bundle, "train"), given.calibration), made)
    run = str(given.run.resolve()) if given.run else None
    paths = (str(given.bundle.resolve()), str(made), run, str(given.manifest.resolve()))
    job = Job(*paths, threads=given.threads, batch=1, training_s=given.training)
    starts, environments, made_s = _prepared(peers, given.out.resolve(), job, fallen)
    queries = [_query(line, bundle) for line in lines]
    cold = _kept(first_answers(starts, job, queries[0], given.starts), fallen)
    single = _kept(race(_left(starts, fallen), job, [[query] for query in queries], given.warmup), fallen)
    many = replace(job, batch=given.batch)
    calls = _calls(queries, given.batch, given.batches)
    alone_only: dict[str, str] = {}
    together = _kept(race(_left(starts, fallen), many, calls, warmup=2), alone_only)
    judged = lines[given.warmup :]
    rows: dict[str, Any] = {}
    for peer in PEERS:
        if peer.name in fallen:
            rows[peer.name] = {"not_measured": fallen[peer.name]}
            continue
        first = cold[peer.name]
        rows[peer.name] = {
            **_speed(peer.name, single, together, given.batch),
            "made_s": made_s.get(peer.name),
            "no_rows_per_s": alone_only.get(peer.name),
            "cold_start": {key: first.pop(key) for key in ("median_s", "runs_s")},
            **first,
            **environments[peer.environment],
            "accuracy": score(_right(single[peer.name], judged, bundle)),
            "takes": [sensor for sensor in peer.takes if sensor in bundle.info.modalities],
        }
    settings = {key: value for key, value in vars(given).items() if isinstance(value, int)}
    return {"environment": machine, "bundle": bundle.info.name, "settings": settings, "rows": rows, "bars": bars(rows)}


def _lines(manifest: Path, bundle: Bundle, split: str) -> list[Example]:
    """The lines that have as many sensors as any: those with every sensor of the model, where there are some."""
    found = read_manifest(manifest, split=split, labels=bundle.info.labels)
    return list(pools_by_sensors(found, bundle.info.modalities).values())[-1]


def _query(line: Example, bundle: Bundle) -> Query:
    return {sensor: str(getattr(line, sensor)) for sensor in line.sensors if sensor in bundle.info.modalities}


def _calls(queries: list[Query], batch: int, count: int) -> list[list[Query]]:
    """`count` calls of `batch` queries after two for warming up."""
    endless = queries * (batch * (count + 2) // len(queries) + 1)
    return [endless[start * batch : (start + 1) * batch] for start in range(count + 2)]


def _write_inputs(bundle: Bundle, lines: list[Example], made: Path) -> None:
    onnx.save(one_graph(bundle), made / WHOLE)
    np.savez(made / SAMPLES, **calibration_tensors(bundle, lines))


def _prepared(
    peers: list[Peer], out: Path, job: Job, fallen: dict[str, str]
) -> tuple[list[Start], dict[str, Any], dict[str, float]]:
    """Install and make what each peer needs; what fails goes into `fallen`.

    Returns:
        How to start each, what each environment holds, and the seconds in which a peer made its model, or trained it.
    """
    starts, environments, made_s = [], {}, {}
    wheel = build_wheel(out / "environments")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    for peer in peers:
        print(f"preparing {peer.name}", file=sys.stderr, flush=True)
        try:
            if peer.needs_run and job.run is None:
                raise NotMeasuredError("it runs the trained run; give it with --run")
            python = _installed(peer.environment, out, wheel)
            folder = out / "environments" / peer.environment
            environments[peer.environment] = described(folder, ENVIRONMENTS[peer.environment][1])
            if peer.maker:
                where, module, *arguments = peer.maker
                maker, began = _installed(where, out, wheel), time.perf_counter()
                _make(maker, module, arguments, job)
                made_s[peer.name] = round(time.perf_counter() - began, 1)
        except NotMeasuredError as error:
            if peer.name == OURS:
                raise
            fallen[peer.name] = str(error)
            continue
        log = out / "logs" / f"{peer.name}.log"
        starts.append(Start(peer.name, python, peer.module, peer.option, log))
    return starts, environments, made_s


def _installed(name: str, out: Path, wheel: Path) -> Path:
    began = time.perf_counter()
    python = environment(out / "environments" / name, wheel, *ENVIRONMENTS[name])
    print(f"  environment {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return python


def _make(python: Path, module: str, arguments: list[str], job: Job) -> None:
    command = [str(python), "-m", f"edgefuse.benchmarks.peers.{module}", *arguments, json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_S)
    except subprocess.TimeoutExpired as error:
        raise NotMeasuredError(f"its model was not made within {LONGEST_S} s") from error
    if done.returncode:
        raise NotMeasuredError(f"its model could not be made: {last_line(done.stderr)}")


def _left(starts: list[Start], fallen: dict[str, str]) -> list[Start]:
    return [start for start in starts if start.name not in fallen]


def _kept(found: tuple[dict[str, Any], dict[str, str]], fallen: dict[str, str]) -> dict[str, Any]:
    """What was found, once the reasons of those that fell out are noted."""
    fallen |= found[1]
    if OURS in fallen:
        raise NotMeasuredError(fallen[OURS])
    return found[0]


def _speed(name: str, single: dict[str, Times], together: dict[str, Times], batch: int) -> dict[str, Any]:
    mine = single[name]
    rates = [batch * 1e3 / time_ms for time_ms in together[name].ms()] if name in together else []
    return {
        "latency": summarise(mine.ms()),
        "host_ms": float(np.median(mine.ms("host_ms"))),
        "model_ms": float(np.median(mine.ms("model_ms"))),
        "ours_over_theirs": None if name == OURS else ours_over_theirs(single[OURS].ms(), mine.ms()),
        "rows_per_s": float(np.median(rates)) if rates else None,
    }


def _right(times: Times, judged: list[Example], bundle: Bundle) -> Any:
    best = [int(np.argmax(answer["scores"][0])) for answer in times.answers]
    return np.array([bundle.info.labels[k] == line.label for k, line in zip(best, judged, strict=True)])


if __name__ == "__main__":
    main()
