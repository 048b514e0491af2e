"""Makes the candidates of a part for ONNX Runtime's CPU, and times them.

The FP32 part as it is (ONNX Runtime optimises it when it opens it; doing that beforehand changed no time), dynamic INT8
and static INT8. The INT8 graphs of TensorRT are no use here: ONNX Runtime fuses symmetric Q/DQ around few nodes only
and computes the rest in float with the Q/DQ on top.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from edgefuse.optimize.fp16 import front_end
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.judge import REFERENCE, Candidate
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.samples import Samples

DYNAMIC, STATIC = "dynamic-int8", "static-int8"
CALIBRATION_BATCH = 8
RUNS = 40  # timed runs of each candidate
# Weights of 7 bits: on x86 without VNNI the products of 8-bit ones saturate, so other CPUs would answer differently.
_WEIGHTS: dict[str, Any] = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}


def cpu_candidates(model: bytes, samples: Samples | None) -> list[Candidate]:
    """FP32, dynamic INT8, and where there are `samples` to calibrate on, static INT8 (the head has none)."""
    candidates = [Candidate(REFERENCE, model), Candidate(DYNAMIC, _quantized(model, _dynamic))]
    if samples is not None:
        reader = _Reader(samples.batches(CALIBRATION_BATCH))
        candidates.append(Candidate(STATIC, _quantized(model, partial(_static, reader))))
    return candidates


def median_ms(candidates: Sequence[Candidate], inputs: Tensors) -> dict[str, float]:
    """Median time of one run on `inputs`, per precision; the candidates take turns, so that all meet the same noise."""
    sessions = {candidate.precision: open_session(candidate.model) for candidate in candidates}
    times: dict[str, list[float]] = {precision: [] for precision in sessions}
    for _ in range(RUNS + 1):
        for precision, session in sessions.items():
            started = time.perf_counter()
            session.run(None, dict(inputs))
            times[precision].append((time.perf_counter() - started) * 1e3)
    return {precision: float(np.median(runs[1:])) for precision, runs in times.items()}  # the first one warms up


def _dynamic(source: Path, target: Path, front_end_nodes: list[str]) -> None:
    """INT8 weights, activations quantized while running."""
    ops = ["MatMul", "Gemm", "Gather"]
    quantize_dynamic(source, target, op_types_to_quantize=ops, nodes_to_exclude=front_end_nodes, **_WEIGHTS)


def _static(reader: CalibrationDataReader, source: Path, target: Path, front_end_nodes: list[str]) -> None:
    """U8S8 Q/DQ with ranges from calibration: the largest values, which ONNX Runtime collects run by run."""
    quantize_static(
        source,
        target,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=front_end_nodes,
        activation_type=QuantType.QUInt8,
        extra_options={"MatMulConstBOnly": True},  # attention products stay float
        **_WEIGHTS,
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands ONNX Runtime one batch after the other."""

    def __init__(self, batches: Iterator[Mapping[str, NDArray[Any]]]) -> None:
        self._batches = batches

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """The next batch, None at the end."""
        return next(self._batches, None)


def _quantized(model: bytes, quantize: Callable[[Path, Path, list[str]], None]) -> bytes:
    """Run one of ONNX Runtime's quantizers, which want files."""
    graph = Graph(model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(graph.serialize())  # with a name for every node
        quantize(source, target, sorted(front_end(graph)))
        return target.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizers recommend a pre-processing that these graphs went through when they were exported."""
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        onnxruntime.set_default_logger_severity(2)
