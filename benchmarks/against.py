"""Two bundles side by side: the same queries to both, one right after the other in random order, in blocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.benchmarks.latency import pools_by_sensors, spread
from edgefuse.benchmarks.paired import CONFIDENCE, MARGIN, Comparison, Floats, compare
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BundleError, OptionError
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Predictor

Opener = Callable[[], AbstractContextManager[Predictor]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked."""

    blocks: int = 30  # both bundles are opened anew for each
    queries: int = 16  # of a block, to each bundle
    warmup: int = 3  # before them, not counted


PLAN = Plan()


@dataclass(frozen=True, slots=True)
class Other:
    """The bundle of another report, and what it has in common with ours."""

    report: Path
    bundle: Bundle
    part_sets: tuple[str, ...]
    modalities: tuple[str, ...]


def open_other(report: Path, ours: Bundle, part_sets: Sequence[str]) -> Other:
    """The bundle that a report.json was measured on.

    Args:
        report: the file.
        ours: the bundle that it is compared with.
        part_sets: those of ours that are a speed.

    Raises:
        OptionError: no report of ours; or its bundle is gone, was changed since, or shares no part set or sensor.
    """
    try:
        about = json.loads(report.read_bytes())["bundle"]
        folder, fingerprint = Path(about["folder"]), about["fingerprint"]
    except FileNotFoundError:
        raise OptionError(f"{report} is not there; give the report.json of an `edgefuse bench`") from None
    except (ValueError, KeyError, TypeError):
        raise OptionError(f"{report} does not say which bundle it is of; run `edgefuse bench` on that again") from None
    try:
        bundle = Bundle.open(folder)
    except BundleError as error:
        raise OptionError(f"{report} is of a bundle that cannot be opened any more: {error}") from None
    if bundle.fingerprint != fingerprint:
        raise OptionError(f"{folder} was changed since {report} was made; run `edgefuse bench` on it again")
    shared = tuple(part_set for part_set in part_sets if part_set in bundle.info.parts)
    modalities = tuple(m for m in ours.info.modalities if m in bundle.info.modalities)
    if not shared or not modalities:
        what = "sensor" if shared else "part set"
        raise OptionError(f"{ours.folder} and {folder} have no {what} in common; compare with another report")
    return Other(report, bundle, shared, modalities)


def face(
    ours: Bundle,
    other: Other,
    examples: Sequence[Example],
    phase: Callable[[str, int], Callable[[], None]],
) -> dict[str, Any]:
    """The verdict on each part set that both have, asked from every sensor that both take.

    Args:
        ours: an open bundle.
        other: what it is compared with.
        examples: labelled lines; the fullest of them are asked.
        phase: (name, steps) -> what is called after each step.

    Returns:
        {report, bundle, sensors, confidence, margin, part_sets: {part set: `Comparison`}}.

    Raises:
        ManifestError: no line has one of the common sensors.
    """
    sensors, pool = list(pools_by_sensors(examples, other.modalities).items())[-1]
    found = {}
    for part_set in other.part_sets:
        mine, theirs = _opener(ours, part_set), _opener(other.bundle, part_set)
        step = phase(f"against, {part_set}", PLAN.blocks)
        found[part_set] = asdict(compare_openers(mine, theirs, pool, sensors.split("+"), PLAN, step))
    about = {"report": str(other.report), "bundle": str(other.bundle.folder), "sensors": sensors}
    return {**about, "confidence": CONFIDENCE, "margin": MARGIN, "part_sets": found}


def compare_openers(
    ours: Opener,
    others: Opener,
    examples: Sequence[Example],
    sensors: Sequence[str],
    plan: Plan,
    progress: Callable[[], None],
) -> Comparison:
    """Ask both sides and compare their times, host end to end; the order is another one each time."""
    times = np.empty((2, plan.blocks, plan.queries))  # ms
    random = np.random.default_rng()
    queries = spread(examples, plan.blocks * plan.queries)
    for block in range(plan.blocks):
        times[:, block] = _ask_block((ours, others), queries[block :: plan.blocks], sensors, plan.warmup, random)
        progress()
    return compare(*times)


def _ask_block(
    sides: Sequence[Opener],
    queries: Sequence[Example],
    sensors: Sequence[str],
    warmup: int,
    random: np.random.Generator,
) -> Floats:
    """Times in ms [side, queries] of one block."""
    times = np.empty((2, len(queries)))
    with ExitStack() as opened:
        predictors: dict[int, Predictor] = {}
        for side in random.permutation(2):
            predictors[side] = opened.enter_context(sides[side]())
        for number in range(-warmup, len(queries)):
            inputs: dict[str, Any] = {sensor: getattr(queries[max(number, 0)], sensor) for sensor in sensors}
            for side in random.permutation(2):
                took_ms = predictors[side].predict(**inputs).stages_ms["total"]
                times[side, max(number, 0)] = took_ms  # a warm-up query is overwritten
    return times


def _opener(bundle: Bundle, part_set: str) -> Opener:
    @contextmanager
    def opened() -> Iterator[Predictor]:
        with OnnxBackend(bundle, part_set) as backend:
            yield Predictor(bundle, backend)

    return opened
