"""What a bundle survives: `python benchmarks/robust.py BUNDLE MANIFEST`, the same as `edgefuse robust`.

Every corruption of runtime/corruptions.py at every severity, for every subset of the sensors that the spoiled one is
in. What is not spoiled is encoded once, and the same draws spoil at every severity.
"""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console

from edgefuse.runtime.backends import open_backend, part_set_of
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.corruptions import CORRUPTIONS, SEVERITIES
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.evaluate import (
    ALL,
    Z_95,
    Answered,
    Bools,
    Encoded,
    encode_examples,
    encode_samples,
    right_by_subset,
    score,
)
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.predictor import Predictor
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples

SEED = 0
Cell = dict[str, Any]  # of the matrix: what each subset of the sensors makes of one corruption at one severity


def robust(
    bundle: str | Path,
    manifest: str | Path,
    *,
    part_set: str | None = None,
    backend: str | None = None,
    corruptions: Collection[str] = (),
    severities: Collection[int] = (),
    split: str = "test",
    limit: int | None = None,
) -> dict[str, Any]:
    """Accuracy of a bundle under each corruption, at each severity, from each subset of sensors.

    Args:
        bundle: folder of the bundle.
        manifest: the .jsonl file; every line of the split needs a label that the model knows.
        part_set, backend: see `open_backend`.
        corruptions: rows of CORRUPTIONS; all of the bundle's sensors where empty.
        severities: of SEVERITIES; all where empty.
        split, limit: which lines, and how many at most, evenly spread.

    Returns:
        {clean: {subset: score}, matrix: {corruption: {severity: {subset: score}}}, summary: {subset: ...}, fused,
        levels, n, ...}. The summary is like the relative mean corruption error of Hendrycks & Dietterich (2019), with
        the clean input in place of AlexNet: points lost, on average over severities, then over corruptions. `fused`
        says for each cell how many points all sensors are above the best single one, with a paired 95 % interval.

    Raises:
        OptionError: a corruption that does not exist, or of a sensor that the bundle lacks.
        EdgefuseError: see `edgefuse.runtime.evaluate.evaluate`.
    """
    opened = Bundle.open(bundle)
    names = _chosen(corruptions, opened.info.modalities)
    examples = read_manifest(manifest, split=split, labels=opened.info.labels, limit=limit)
    console = Console(stderr=True, highlight=False)
    matrix: dict[str, dict[str, Cell]] = {}
    fused: dict[str, dict[str, Any]] = {}
    with open_backend(opened, backend, part_set=part_set) as device:
        predictor = Predictor(opened, device)
        encoded = encode_examples(predictor, examples)
        answered = _by_sensors(encoded, examples)
        clean = _told(console, "clean", answered)
        for name in names:
            for severity in sorted(severities or SEVERITIES):
                spoiled = _spoiled(opened, predictor, encoded, examples, name, severity)
                answered = _by_sensors(spoiled, examples)
                cell = _told(console, f"{name} {severity}", answered, CORRUPTIONS[name].sensor)
                matrix.setdefault(name, {})[str(severity)] = cell
                if margin := _over_the_best_single(answered):
                    fused.setdefault(name, {})[str(severity)] = margin
    return {
        "clean": clean,
        "summary": _summary(clean, matrix),
        "matrix": matrix,
        "fused": fused,
        "levels": {name: [CORRUPTIONS[name].unit, *CORRUPTIONS[name].levels] for name in names},
        "n": len(examples),
        "part_set": part_set_of(opened, backend, part_set),
        "backend": device.name,
        "manifest": str(manifest),
        "split": split,
    }


def paired_difference(reference: Bools, candidate: Bools) -> tuple[float, tuple[float, float]]:
    """How much more often the candidate is right on the same examples [n], and the 95 % interval.

    Wald's interval of a paired difference with half an example added to each cell (Agresti & Min 2005).
    """
    won, lost, n = int((candidate & ~reference).sum()), int((reference & ~candidate).sum()), len(reference)
    up, down, total = won + 0.5, lost + 0.5, n + 2.0
    half = Z_95 * math.sqrt(up + down - (up - down) ** 2 / total) / total
    return (won - lost) / n, ((won - lost) / total - half, (won - lost) / total + half)


class _Spoiling(Preprocessor):
    """A preprocessor that spoils pictures or sounds once they have the model's size and rate."""

    def __init__(self, bundle: Bundle, corruption: str, severity: float) -> None:
        super().__init__(bundle)
        self._corruption, self._severity = CORRUPTIONS[corruption], severity

    def prepare(self, modality: str, decoded: Any) -> dict[str, NDArray[Any]]:
        """As the bundle's own, then spoiled by draws that depend on what the tensor holds."""
        tensors = super().prepare(modality, decoded)
        value = tensors[modality][0]
        value[:] = self._corruption(value, self._severity, _draws(value.tobytes()))
        return tensors


def _spoiled(
    bundle: Bundle, predictor: Predictor, clean: Encoded, examples: Sequence[Example], name: str, severity: int
) -> Encoded:
    """The examples with one sensor spoiled; every line has a text of its own then, since words are what is right."""
    corruption = CORRUPTIONS[name]
    if corruption.sensor == "text":
        spoiled = [
            replace(e, text=corruption(e.text, severity, _draws(f"{number} {e.text}".encode()))) if e.text else e
            for number, e in enumerate(examples)
        ]
        samples = Samples(predictor.preprocessor, spoiled, "text")
    else:
        samples = Samples(_Spoiling(bundle, name, severity), examples, corruption.sensor)
    if not len(samples):
        return clean
    return clean.with_tokens(corruption.sensor, encode_samples(predictor, samples), samples.rows)


def _draws(content: bytes) -> Generator:
    return np.random.default_rng((SEED, zlib.crc32(content)))


def _chosen(names: Collection[str], modalities: Collection[str]) -> list[str]:
    fitting = [name for name, corruption in CORRUPTIONS.items() if corruption.sensor in modalities]
    for name in names:
        if name not in fitting:
            raise OptionError(f"--corruption {name}: for this bundle there are {', '.join(fitting)}")
    return [name for name in fitting if not names or name in names]


def _by_sensors(encoded: Encoded, examples: Sequence[Example]) -> dict[str, Answered]:
    return {name: found for name, found in right_by_subset(encoded, examples).items() if name != ALL}


def _told(console: Console, title: str, answered: Mapping[str, Answered], sensor: str = "") -> Cell:
    """The scores of the subsets with `sensor`, all where none is named; also printed, as a row of the matrix."""
    cell = {name: score(found.right) for name, found in answered.items() if not sensor or sensor in name.split("+")}
    shown = (f"{name} {_percent(found['accuracy'])} ({_span(found['interval'])})" for name, found in cell.items())
    console.print(f"{title:16} " + "  ".join(shown), soft_wrap=True)
    return cell


def _over_the_best_single(answered: Mapping[str, Answered]) -> Cell:
    """How far all sensors together are above the best of them alone, on the lines that have all; {} for one sensor."""
    together, lines = answered[list(answered)[-1]].right, answered[list(answered)[-1]].lines
    alone = {name: found.right[np.isin(found.lines, lines)] for name, found in answered.items() if "+" not in name}
    if len(alone) < 2:
        return {}
    best = max(alone, key=lambda name: alone[name].mean())
    gain, interval = paired_difference(alone[best], together)
    return {"points": 100 * gain, "interval": [100 * bound for bound in interval], "best_single": best}


def _summary(clean: Cell, matrix: Mapping[str, Mapping[str, Cell]]) -> dict[str, Any]:
    """Points lost per subset: on average over its corruptions, and in the worst cell."""
    summary: dict[str, Any] = {}
    for subset, whole in clean.items():
        lost = {
            name: [100 * (whole["accuracy"] - cell[subset]["accuracy"]) for cell in cells.values()]
            for name, cells in matrix.items()
            if subset in next(iter(cells.values()))
        }
        if lost:
            worst = max(lost, key=lambda name: max(lost[name]))
            mean = float(np.mean([np.mean(points) for points in lost.values()]))
            summary[subset] = {"mean_points_lost": mean, "most_points_lost": max(lost[worst]), "by": worst}
    return summary


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _span(interval: Sequence[float]) -> str:
    return "-".join(map(_percent, interval))


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["robust", *sys.argv[1:]])
