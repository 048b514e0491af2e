"""Accuracy of every part set on the same examples, paired with fp32: what each keeps, by sensors and by answer type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.evaluate import encode_examples, retention, subsets, wilson
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Predictor

Bools = NDArray[np.bool_]

REFERENCE = "fp32"
ALL = "all"  # every sensor that a line has, be it one or all of them


def judge(
    predictors: Mapping[str, Predictor], examples: Sequence[Example], progress: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """What `edgefuse eval` says of each part set, and with it what the set keeps of fp32 on the same examples.

    Args:
        predictors: part set -> what answers; fp32, the reference, must be among them.
        examples: labelled examples of one split.
        progress: called after each part set.

    Returns:
        {part set: {accuracy, interval, n, retention, retention_interval, by_answer_type, by_subset}}; the retention of
        fp32 itself, and of examples of which fp32 has none right, is None.
    """
    modalities = predictors[REFERENCE].info.modalities
    usable = [example for example in examples if set(modalities) & set(example.sensors)]
    types = np.array([example.answer_type or "" for example in usable])
    chosen = {"+".join(subset): _lines_with(usable, subset) for subset in subsets(modalities)}
    chosen[ALL] = np.ones(len(usable), bool)
    right = {}
    for part_set, predictor in predictors.items():
        right[part_set] = _right_by_subset(predictor, usable)
        progress()
    results = {}
    for part_set, mine in right.items():
        reference = {} if part_set == REFERENCE else right[REFERENCE]
        scores = {
            name: _result(mine[name], reference.get(name), lines, types)
            for name, lines in chosen.items()
            if lines.any()
        }
        results[part_set] = {**scores.pop(ALL), "by_subset": scores}
    return results


def _right_by_subset(predictor: Predictor, examples: Sequence[Example]) -> dict[str, Bools]:
    """Which examples are answered right from each subset of sensors, [n] each, encoding every sensor once."""
    truth = np.array([predictor.info.labels.index(example.label or "") for example in examples])  # [n]
    encoded = encode_examples(predictor, examples)
    modalities = predictor.info.modalities
    named = {"+".join(subset): subset for subset in subsets(modalities)} | {ALL: modalities}
    return {name: encoded.logits(sensors).argmax(axis=1) == truth for name, sensors in named.items()}


def _lines_with(examples: Sequence[Example], sensors: Sequence[str]) -> Bools:
    return np.array([set(sensors) <= set(example.sensors) for example in examples])  # [n]


def _result(right: Bools, reference: Bools | None, chosen: Bools, types: NDArray[np.str_]) -> dict[str, Any]:
    by_type = {}
    for kind in np.unique(types[chosen]):
        if kind:
            by_type[str(kind)] = _score(right, reference, chosen & (types == kind))
    return {**_score(right, reference, chosen), "by_answer_type": by_type}


def _score(right: Bools, reference: Bools | None, chosen: Bools) -> dict[str, Any]:
    correct, n = int(right[chosen].sum()), int(chosen.sum())
    kept, interval = None, None
    if reference is not None and reference[chosen].any():
        kept, interval = retention(reference[chosen], right[chosen])
    return {
        "accuracy": correct / n,
        "interval": list(wilson(correct, n)),
        "n": n,
        "retention": kept,
        "retention_interval": interval and list(interval),
    }
