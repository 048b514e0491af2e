"""What the Shapley values of the sensors cost beside one decision, and whether they add up to what they explain."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgefuse.benchmarks.loop_readings import Readings
from edgefuse.runtime.attribution import Moment, shapley_values
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.predictor import Predictor


def measure_explain(bundle: Bundle, readings: Readings, repeats: int) -> dict[str, Any]:
    """Each reading explained and decided in turns.

    Returns:
        {explained, sum_error, decision_ms, shapley_ms, ratio}: the largest distance of a sum from what two runs of the
        parts, with every sensor and with none, say themselves, and the median of the ratios of each pair.
    """
    modalities = bundle.info.modalities
    errors, decided_s, explained_s = [], [], []
    with OnnxBackend(bundle, threads=1) as backend:
        predictor = Predictor(bundle, backend)
        for number in range(repeats):
            inputs = {m: readings[m][number % len(readings[m])] for m in modalities}
            moment, explain_s = _timed(Moment, predictor, inputs)
            logits, decide_s = _timed(_logits, predictor, inputs, 1.0)
            values = shapley_values(modalities, moment.worth)
            apart = _log_odds(logits, moment.label) - _log_odds(_logits(predictor, inputs, 0.0), moment.label)
            errors.append(abs(sum(values.values()) - apart))
            explained_s.append(explain_s)
            decided_s.append(decide_s)
    warm = slice(repeats // 10, None)
    return {
        "explained": repeats,
        "sum_error": max(errors),
        "decision_ms": float(np.median(decided_s[warm])) * 1e3,
        "shapley_ms": float(np.median(explained_s[warm])) * 1e3,
        "ratio": float(np.median(np.divide(explained_s[warm], decided_s[warm]))),
    }


def _logits(predictor: Predictor, inputs: Mapping[str, Tensors], presence: float) -> Any:
    """The logits [C] of one decision, every part run, with all or none of the sensors counting."""
    tokens = {m: predictor.encode(m, tensors) for m, tensors in inputs.items()}
    return predictor.fuse(tokens, np.full((1, len(inputs)), presence, np.float32))[0][0]


def _log_odds(logits: Any, label: int) -> float:
    """ln(p / (1 - p)), written another way than in attribution.py."""
    others = [float(logit) for number, logit in enumerate(logits) if number != label]
    return float(logits[label]) - float(np.logaddexp.reduce(others))


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - begin
