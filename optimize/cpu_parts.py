"""Makes the candidates of a part for ONNX Runtime's CPU, and times them.

The FP32 part as it is, rewritten for ONNX Runtime's kernels, and that in dynamic INT8. Static INT8 is none: ONNX
Runtime's INT8 convolutions take twice as long as its FP32 ones at batch 1, and where the matrix products are, dynamic
INT8 is as fast. The INT8 graphs of TensorRT are no use here: ONNX Runtime computes symmetric Q/DQ mostly in float.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edgefuse.optimize.cpu_attention import one_node_attention
from edgefuse.optimize.cpu_convolutions import products_of_convolutions
from edgefuse.optimize.cpu_int8 import dynamic_int8
from edgefuse.optimize.cpu_padding import without_padding
from edgefuse.optimize.cpu_rewrite import Rewrite, one_gelu, unfused_residual_norm
from edgefuse.optimize.cpu_spectra import quarter_spectra
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.judge import REFERENCE, Candidate
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session

FUSED, DYNAMIC = "fp32-fused", "dynamic-int8"
RUNS = 40  # timed runs of each candidate


def cpu_candidates(model: bytes) -> list[Candidate]:
    """FP32, rewritten, and in dynamic INT8; a form that changes nothing is left out."""
    forms = [(REFERENCE, model)]
    for precision, change in ((FUSED, fused), (DYNAMIC, dynamic_int8)):
        changed = change(forms[-1][1])
        if changed != forms[-1][1]:
            forms.append((precision, changed))
    return [Candidate(precision, form) for precision, form in forms]


def fused(model: bytes) -> bytes:
    """The same function in nodes that ONNX Runtime computes faster; `model` itself where there are none."""
    rewrite = Rewrite(Graph(model))
    rules = (
        quarter_spectra,
        products_of_convolutions,
        one_node_attention,
        one_gelu,
        unfused_residual_norm,
        without_padding,
    )
    for rule in rules:
        rule(rewrite)
    return rewrite.serialize() if rewrite.is_changed else model


def median_ms(candidates: Sequence[Candidate], inputs: Tensors) -> dict[str, float]:
    """Median time of one run on `inputs` per precision, on one core, as in a lane of the backend.

    The candidates take turns, so that all meet the same noise.
    """
    sessions = {candidate.precision: open_session(candidate.model, threads=1) for candidate in candidates}
    times: dict[str, list[float]] = {precision: [] for precision in sessions}
    for _ in range(RUNS + 1):
        for precision, session in sessions.items():
            started = time.perf_counter()
            session.run(None, dict(inputs))
            times[precision].append((time.perf_counter() - started) * 1e3)
    return {precision: float(np.median(runs[1:])) for precision, runs in times.items()}  # the first one warms up
