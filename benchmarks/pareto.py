"""Accuracy with latency: every combination of the parts' precisions, of one bundle or of one for each model size.

    python benchmarks/pareto.py nano/bundle small/bundle base/bundle --manifest data.jsonl [--quick]
        [--out FILE] [--json]

`edgefuse bench` does the same for its one bundle. --out writes JSON, or the plot and its table where it ends in .html.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.benchmarks import blocks
from edgefuse.benchmarks.accuracy import SPLIT
from edgefuse.benchmarks.effort import FULL, QUICK, Effort
from edgefuse.benchmarks.environment import describe_environment
from edgefuse.benchmarks.latency import (
    fast_sets,
    median_interval,
    pools_by_sensors,
    spread,
    summarise,
    time_interleaved,
)
from edgefuse.benchmarks.report import page
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import EdgefuseError, OptionError
from edgefuse.runtime.evaluate import Encoded, encode_examples, right_from_all, score
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.predictor import Predictor

NOTES = (
    "latency: host end to end, every combination run as a whole, each query to each of them in turn",
    "accuracy: every sensor that a line has, the same lines for every combination; each encoder ran once per part set, "
    "the head once per combination",
    "frontier: no other combination is both at least as fast (median) and at least as right, and better in one of the "
    "two; where intervals overlap, another run may draw it otherwise",
    "trt parts have no time here, so they are no point",
)

Backends = Mapping[str, OnnxBackend]  # part set -> what runs it


class Combination:
    """Parts of several part sets of one bundle, each run by the backend that has it open; see `Parts`.

    Args:
        parts: part -> part set, the head among them.
        backends: those of the bundle.
    """

    def __init__(self, parts: Mapping[str, str], backends: Backends) -> None:
        self._backends = {part: backends[part_set] for part, part_set in parts.items()}
        self.lanes = self._backends[HEAD].lanes

    def load(self, part: str) -> None:
        """Open the session of `part`."""
        self._backends[part].load(part)

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part` on named tensors."""
        return self._backends[part].run(part, inputs)


@dataclass(frozen=True, slots=True)
class Measured:
    """One bundle, measured beside the others; part sets that are no speed are left out of both."""

    bundle: Bundle
    times_ms: Mapping[str, Sequence[float]]  # combination, see `name_of` -> one time per query, host end to end
    encoded: Mapping[str, Encoded]  # part set -> the tokens of the same test lines


def pareto(models: Mapping[str, Measured], examples: Sequence[Example], sensors: Sequence[str]) -> dict[str, Any]:
    """Every combination of part sets over the encoders of every model, and which of them are on the frontier.

    Args:
        models: name -> one bundle; all take the same sensors.
        examples: the labelled lines that were encoded.
        sensors: those that the timed queries have; only their encoders change.

    Returns:
        {sensors, points: [{model, parts: {part: part set}, accuracy, interval, n, latency: {n, mean_ms, p50_ms, ..},
        p50_interval_ms, bytes, frontier}], notes}, the fastest first. The head is of the last part set of its bundle.
    """
    points, notes = [], list(NOTES)
    for name, model in models.items():
        points += [_point(name, model, parts, examples) for parts in combinations(model.bundle, sensors)]
        notes += [f"{name}, {part}: {note}" for part, note in _merged(model.bundle, sensors)]
    points.sort(key=lambda point: (point["latency"]["p50_ms"], -point["accuracy"]))
    on_it = frontier([(point["latency"]["p50_ms"], point["accuracy"]) for point in points])
    told = [{**point, "frontier": on} for point, on in zip(points, on_it, strict=True)]
    return {"sensors": "+".join(sensors), "points": told, "notes": notes}


def name_of(parts: Mapping[str, str]) -> str:
    """A combination in one word, as fp32/cpu/cpu/cpu."""
    return "/".join(parts.values())


def time_combinations(
    models: Mapping[str, tuple[Bundle, Backends]],
    queries: Sequence[Example],
    sensors: Sequence[str],
    warmup: int,
    progress: Callable[[], None],
) -> dict[str, dict[str, list[float]]]:
    """Answer every query once with every combination of every model, in turn; see `latency.time_interleaved`.

    Returns:
        model -> combination -> one time in ms per query, without the first `warmup`.
    """
    predictors = {
        (model, name_of(parts)): Predictor(bundle, Combination(parts, backends))
        for model, (bundle, backends) in models.items()
        for parts in combinations(bundle, sensors)
    }
    found: dict[str, dict[str, list[float]]] = {model: {} for model in models}
    for (model, name), stages in time_interleaved(predictors, queries, sensors, warmup, progress).items():
        found[model][name] = stages["total"]
    return found


def frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of some (cost, gain) no other one dominates: none has at most the cost, at least the gain, and differs.

    Equal points stand or fall together.
    """
    on_it, last = [False] * len(points), None
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if last is None or points[index][1] > last[1] or points[index] == last:
            on_it[index], last = True, points[index]
    return on_it


def combinations(bundle: Bundle, sensors: Sequence[str]) -> list[dict[str, str]]:
    """Every choice of a part set for the encoders of `sensors`: part -> part set.

    A part whose file is the same in several sets is chosen once, as of the last. The head, and encoders of other
    sensors, are of the bundle's last part set.
    """
    base = dict.fromkeys((*bundle.info.modalities, HEAD), fast_sets(bundle)[-1])
    choices = [list(_files(bundle, part).values()) for part in sensors]
    return [{**base, **dict(zip(sensors, chosen, strict=True))} for chosen in itertools.product(*choices)]


def _files(bundle: Bundle, part: str) -> dict[str, str]:
    """Hash of a part's file -> the last part set that has it."""
    return {bundle.info.files[bundle.part_info(name, part).file]: name for name in fast_sets(bundle)}


def _merged(bundle: Bundle, sensors: Sequence[str]) -> Iterator[tuple[str, str]]:
    sets = fast_sets(bundle)
    for part in sensors:
        if len(_files(bundle, part)) < len(sets):
            yield part, f"the same file in several of {', '.join(sets)}, so it counts once"


def _point(name: str, model: Measured, parts: Mapping[str, str], examples: Sequence[Example]) -> dict[str, Any]:
    encoded, times_ms = model.encoded[parts[HEAD]], model.times_ms[name_of(parts)]
    for part, part_set in parts.items():
        if part != HEAD and part_set != parts[HEAD] and part in encoded.tokens:
            other = model.encoded[part_set]
            encoded = encoded.with_tokens(part, other.tokens[part], other.rows[part])
    files = [model.bundle.part_info(part_set, part).file for part, part_set in parts.items()]
    return {
        "model": name,
        "parts": dict(parts),
        **score(right_from_all(encoded, examples).right),
        "latency": summarise(times_ms),
        "p50_interval_ms": median_interval(times_ms),
        "bytes": sum((model.bundle.folder / file).stat().st_size for file in files),
    }


def measure(folders: Sequence[Path], manifest: Path, effort: Effort) -> dict[str, Any]:
    """`pareto` of several bundles, each query to each combination of each of them in turn, and the machine.

    Raises:
        OptionError: the bundles differ in their sensors or labels.
        BundleError, ManifestError: a bundle, the manifest or a file that it names cannot be used.
    """
    environment = describe_environment()  # first: its load is that of the others
    bundles = dict(zip(short_names(folders), map(Bundle.open, folders), strict=True))
    first = next(iter(bundles.values()))
    for bundle in bundles.values():
        for what in ("modalities", "labels"):
            ours, theirs = (getattr(each.info, what) for each in (first, bundle))
            if ours != theirs:
                raise OptionError(
                    f"{bundle.folder} has {what} {', '.join(theirs)}, {first.folder} has {', '.join(ours)}; "
                    "give bundles that answer the same lines"
                )
    examples = read_manifest(manifest, split=SPLIT, labels=first.info.labels)
    fullest, pool = list(pools_by_sensors(examples, first.info.modalities).items())[-1]
    sensors, queries = fullest.split("+"), spread(pool, effort.warmup_queries + effort.queries)
    lines = spread(examples, min(effort.accuracy_limit or len(examples), len(examples)))
    with ExitStack() as opened:
        backends = {
            name: {part_set: opened.enter_context(OnnxBackend(bundle, part_set)) for part_set in fast_sets(bundle)}
            for name, bundle in bundles.items()
        }
        both = {name: (bundle, backends[name]) for name, bundle in bundles.items()}
        times_ms = time_combinations(both, queries, sensors, effort.warmup_queries, lambda: None)
        models = {
            name: Measured(
                bundle,
                times_ms[name],
                {each: encode_examples(Predictor(bundle, backend), lines) for each, backend in backends[name].items()},
            )
            for name, bundle in bundles.items()
        }
        return {"environment": environment, **pareto(models, lines, sensors)}


def short_names(folders: Sequence[Path]) -> list[str]:
    """The paths without what all of them begin and end with, as nano for runs/nano/bundle."""
    paths = [folder.absolute().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise OptionError("a bundle is given twice; give each model size once")
    if len(paths) == 1:
        return [folders[0].name]
    begin = _alike(paths)
    end = _alike([path[begin:][::-1] for path in paths])
    return ["/".join(path[begin : len(path) - end]) or str(folders[i]) for i, path in enumerate(paths)]


def _alike(paths: Sequence[tuple[str, ...]]) -> int:
    """How many pieces all paths begin with."""
    pieces = zip(*paths, strict=False)  # the shortest ends it
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, pieces))


def _show(result: Mapping[str, Any]) -> None:
    head, rows = blocks.pareto_table(result)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for note in result["notes"]:
        print(f"- {note}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, help="one for each model size")
    parser.add_argument("--manifest", type=Path, required=True, help="labelled data with lines of split test")
    parser.add_argument("--quick", action="store_true", help="fewer queries and lines: a look, not a result")
    parser.add_argument("--out", type=Path, help="write the figures here, as a page if it ends in .html")
    parser.add_argument("--json", action="store_true", help="print them as one JSON document in the last line")
    given = parser.parse_args()
    try:
        result = measure(given.bundles, given.manifest, QUICK if given.quick else FULL)
    except EdgefuseError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    _show(result)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(given.out, _document(given.out, result).encode())
    if given.json:
        print(json.dumps(result))


def _document(path: Path, result: Mapping[str, Any]) -> str:
    if path.suffix != ".html":
        return json.dumps(result, indent=1) + "\n"
    title, about = "Accuracy with latency", f"{result['sensors']}, ONNX Runtime on the CPU, batch 1"
    return page(title, title, about, blocks.pareto({"pareto": result}))


if __name__ == "__main__":
    main()
