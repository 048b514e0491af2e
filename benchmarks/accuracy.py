"""Accuracy of every part set on the same examples, paired with fp32: what each keeps, by sensors and by answer type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.evaluate import ALL, Bools, Encoded, answer_types, retention, right_by_subset, score
from edgefuse.runtime.manifest import Example

REFERENCE = "fp32"
SPLIT = "test"  # of the manifest


def judge(
    encoded: Mapping[str, Encoded], examples: Sequence[Example], progress: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """What `edgefuse eval` says of each part set, and with it what the set keeps of fp32 on the same examples.

    Args:
        encoded: part set -> the tokens of `examples`; fp32, the reference, must be among them.
        examples: labelled examples of one split.
        progress: called after each part set.

    Returns:
        {part set: {accuracy, interval, n, retention, retention_interval, by_answer_type, by_subset}}; the retention of
        fp32 itself, and of examples of which fp32 has none right, is None.
    """
    types = answer_types(examples)
    answered = {}
    for part_set, tokens in encoded.items():
        answered[part_set] = right_by_subset(tokens, examples)
        progress()
    results = {}
    for part_set, mine in answered.items():
        scores = {}
        for name, (lines, right) in mine.items():
            reference = None if part_set == REFERENCE else answered[REFERENCE][name].right
            scores[name] = _result(right, reference, types[lines])
        results[part_set] = {**scores.pop(ALL), "by_subset": scores}
    return results


def _result(right: Bools, reference: Bools | None, types: NDArray[np.str_]) -> dict[str, Any]:
    by_type = {}
    for kind in np.unique(types):
        if kind:
            chosen = types == kind
            by_type[str(kind)] = _score(right[chosen], None if reference is None else reference[chosen])
    return {**_score(right, reference), "by_answer_type": by_type}


def _score(right: Bools, reference: Bools | None) -> dict[str, Any]:
    kept, interval = None, None
    if reference is not None and reference.any():
        kept, interval = retention(reference, right)
    return {**score(right), "retention": kept, "retention_interval": interval and list(interval)}
