"""How right a bundle is: accuracy with intervals, per answer type and per subset of sensors, and retention.

Tokens make this cheap: each distinct picture, sound and sentence is encoded once, then every subset of sensors costs
one pass through the head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backends import open_backend, part_set_of
from edgefuse.runtime.bundle import Bundle, BundleInfo
from edgefuse.runtime.errors import GateError, ManifestError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.predictor import Floats, Predictor
from edgefuse.runtime.samples import Samples

Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
DRAWS, SEED = 10_000, 0  # of the posterior; the seed is fixed so that a gate decides the same way twice
JEFFREYS = 0.5  # prior count of each cell of a multinomial
HEAD_BATCH = 256  # examples that pass the head at once
ALL = "all"  # every sensor that an example has, be it one or all of them

Bools = NDArray[np.bool_]


class Encoded:
    """The tokens of every distinct picture, sound and sentence of some examples.

    Args:
        predictor: what encoded them.
        tokens: modality -> [U, N, D], one row per distinct value.
        rows: modality -> [n], the row of each example, -1 where it lacks the sensor.
    """

    def __init__(
        self, predictor: Predictor, tokens: Mapping[str, Floats], rows: Mapping[str, NDArray[np.int64]]
    ) -> None:
        self.info = predictor.info
        self.rows = rows
        self.tokens = tokens
        self._predictor = predictor

    def logits(self, sensors: Collection[str]) -> Floats:
        """Logits [n, C] from these sensors only; an example that lacks one of them has presence 0 there."""
        n = len(next(iter(self.rows.values())))
        batches = [self._head(slice(start, start + HEAD_BATCH), sensors) for start in range(0, n, HEAD_BATCH)]
        return np.concatenate(batches)  # [n, C]

    def with_tokens(self, modality: str, tokens: Floats, rows: NDArray[np.int64]) -> Encoded:
        """The same examples with other tokens [U, N, D] of one modality, and the row of each example among them."""
        replaced = {**self.tokens, modality: tokens}
        return Encoded(self._predictor, replaced, {**self.rows, modality: rows})

    def _head(self, batch: slice, sensors: Collection[str]) -> Floats:
        presence, tokens = [], {}
        for modality in self.info.modalities:
            rows = self.rows[modality][batch]  # [B]
            present = (rows >= 0) & (modality in sensors)  # [B]
            presence.append(present.astype(np.float32))
            if modality in self.tokens:
                tokens[modality] = np.where(present[:, None, None], self.tokens[modality][rows], np.float32(0))
        logits, _ = self._predictor.fuse(tokens, np.stack(presence, axis=1))  # [B, C]
        return logits


def encode_examples(predictor: Predictor, examples: Sequence[Example], batch: int = 64) -> Encoded:
    """Encode each distinct picture, sound and sentence of `examples` once, `batch` at a time.

    Raises:
        ManifestError: a picture or sound cannot be decoded; names the first line that uses it.
    """
    tokens: dict[str, Floats] = {}
    rows: dict[str, NDArray[np.int64]] = {}
    for modality in predictor.info.modalities:
        samples = Samples(predictor.preprocessor, examples, modality)
        rows[modality] = samples.rows
        if len(samples):
            tokens[modality] = encode_samples(predictor, samples, batch)
    return Encoded(predictor, tokens, rows)


def encode_samples(predictor: Predictor, samples: Samples, batch: int = 64) -> Floats:
    """The tokens [U, N, D] of one modality's distinct values, `batch` at a time; see `encode_examples`."""
    chunks = [predictor.encode(samples.modality, tensors) for tensors in samples.batches(batch)]
    return np.concatenate(chunks)  # [U, N, D]


class Answered(NamedTuple):
    """Some examples, and which of them are answered right."""

    lines: NDArray[np.int64]  # [k], their numbers among all examples
    right: Bools  # [k]


def right_by_subset(encoded: Encoded, examples: Sequence[Example], drop: Collection[str] = ()) -> dict[str, Answered]:
    """Who is answered right from which sensors.

    Args:
        encoded: the tokens of `examples`.
        examples: labelled, with labels that the model knows.
        drop: sensors that ALL does without.

    Returns:
        Under ALL the examples with every sensor that each has, `drop` excepted; then each subset of sensors, as in
        "image+text", on the examples that have it entirely. What no example has is left out.

    Raises:
        ManifestError: no example has a sensor that ALL may use.
    """
    modalities = encoded.info.modalities
    truth = truth_of(encoded.info, examples)
    has = {modality: encoded.rows[modality] >= 0 for modality in modalities}  # [n] each
    asked = {"+".join(subset): (subset, np.all([has[m] for m in subset], axis=0)) for subset in subsets(modalities)}
    kept = tuple(modality for modality in modalities if modality not in drop)
    any_kept = np.any([has[m] for m in kept] or [np.zeros(len(examples), bool)], axis=0)  # [n]
    if not any_kept.any():
        raise ManifestError(
            f"{examples[0].where}: no line of split {examples[0].split!r} has a sensor that is left to the model "
            f"({', '.join(kept) or 'none'}); drop fewer sensors or give other lines"
        )
    answered = {}
    for name, (sensors, measured) in {ALL: (kept, any_kept), **asked}.items():
        if measured.any():
            right = encoded.logits(sensors).argmax(axis=1) == truth  # [n]
            answered[name] = Answered(np.flatnonzero(measured), right[measured])
    return answered


def right_from_all(encoded: Encoded, examples: Sequence[Example]) -> Answered:
    """ALL of `right_by_subset` alone, for one pass through the head."""
    measured = np.any([rows >= 0 for rows in encoded.rows.values()], axis=0)  # [n]
    right = encoded.logits(encoded.info.modalities).argmax(axis=1) == truth_of(encoded.info, examples)  # [n]
    return Answered(np.flatnonzero(measured), right[measured])


def truth_of(info: BundleInfo, examples: Sequence[Example]) -> NDArray[np.int64]:
    """The number of each example's label [n], which the model must know."""
    return np.array([info.labels.index(example.label or "") for example in examples])


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927); (0, 1) where nothing was seen."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def retention(reference: Bools, candidate: Bools) -> tuple[float, tuple[float, float]]:
    """What share of the reference's accuracy the candidate keeps, and its 95 % interval.

    The interval is Bayesian, of the paired 2x2 table of right and wrong under Jeffreys' prior: unlike a bootstrap it
    does not shrink to a point where the two never differ, since a few hundred equal answers do not prove equality.

    Args:
        reference: [n], whether the reference was right.
        candidate: [n], whether the candidate was right on the same examples.

    Raises:
        GateError: the reference has nothing right, so there is nothing to keep.
    """
    if not reference.any():
        raise GateError(f"the reference answers none of {len(reference)} examples right; train it or check the labels")
    both, lost, won = (reference & candidate).sum(), (reference & ~candidate).sum(), (~reference & candidate).sum()
    neither = len(reference) - both - lost - won
    counts = np.array([both, lost, won, neither])
    shares = np.random.default_rng(SEED).dirichlet(counts + JEFFREYS, DRAWS)  # [R, 4]
    ratios = (shares[:, 0] + shares[:, 2]) / (shares[:, 0] + shares[:, 1])
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float((both + won) / (both + lost)), (float(low), float(high))


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every subset of the modalities but the empty one, small ones first."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in itertools.combinations(modalities, size)]


def evaluate(
    bundle: str | Path,
    manifest: str | Path,
    *,
    part_set: str | None = None,
    backend: str | None = None,
    drop: Collection[str] = (),
    split: str = "test",
    limit: int | None = None,
) -> dict[str, Any]:
    """Accuracy of one part set of a bundle on one split of a manifest.

    Args:
        bundle: folder of the bundle.
        manifest: the .jsonl file; every line of the split needs a label that the model knows.
        part_set, backend: see `open_backend`.
        drop: sensors that the headline accuracy is measured without.
        split: "train", "val" or "test".
        limit: use this many lines at most, evenly spread.

    Returns:
        {accuracy, interval, n, by_answer_type, by_subset, part_set, backend, manifest, split}. The headline uses every
        sensor that a line has, `drop` excepted, and leaves out lines that then have none. `by_subset` holds each subset
        of sensors that some line has entirely, measured on those lines.

    Raises:
        BundleError, ManifestError: the bundle, the manifest or a file that it names cannot be used.
        EdgefuseError: the backend cannot be opened; see `open_backend`.
    """
    opened = Bundle.open(bundle)
    examples = read_manifest(manifest, split=split, labels=opened.info.labels, limit=limit)
    types = answer_types(examples)
    with open_backend(opened, backend, part_set=part_set) as device:
        answered = right_by_subset(encode_examples(Predictor(opened, device), examples), examples, drop)
    reports = {name: _report(right, types[lines]) for name, (lines, right) in answered.items()}
    ran = {"part_set": part_set_of(opened, backend, part_set), "backend": device.name}
    told = {**ran, "manifest": str(manifest), "split": split}
    return {**reports.pop(ALL), "by_subset": reports, **told}


def answer_types(examples: Sequence[Example]) -> NDArray[np.str_]:
    """The answer type of each example [n], "" where it has none."""
    return np.array([example.answer_type or "" for example in examples])


def score(right: Bools) -> dict[str, Any]:
    """Accuracy with its interval."""
    correct, n = int(right.sum()), len(right)
    return {"accuracy": correct / n, "interval": list(wilson(correct, n)), "n": n}


def _report(right: Bools, types: NDArray[np.str_]) -> dict[str, Any]:
    """Accuracy over some examples, and of each answer type among them."""
    by_type = {str(kind): score(right[types == kind]) for kind in np.unique(types) if kind}
    return {**score(right), "by_answer_type": by_type}
