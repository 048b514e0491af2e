"""What the process of one engine does in the race of cpu.py: open the whole model, time it, tell what it answered.

    python cpu_engines.py ENGINE BUNDLE INPUTS THREADS REALTIME

It runs in OpenVINO's venv too, so it imports nothing of edgefuse before it needs it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORK = Path(__file__).resolve().parents[2] / "build" / "peers" / "cpu"  # the peers' models
WARMUP, RUNS = 10, 40
ENCODERS = ("image", "audio", "text")

Run = Callable[[dict[str, Any]], np.ndarray]  # named tensors at batch 1 -> logits


def main() -> None:
    """Print one line of JSON."""
    engine, bundle, inputs, threads, realtime = sys.argv[1:]
    with np.load(inputs) as stored:
        tensors = {name: stored[name] for name in stored.files}
    run = ENGINES[engine](Path(bundle), int(threads))
    logits = [run(tensors) for _ in range(WARMUP)][-1]
    times = []
    if realtime == "realtime":
        _prioritise(True)
    for _ in range(RUNS):
        started = time.perf_counter()
        run(tensors)
        times.append((time.perf_counter() - started) * 1e3)
    if realtime == "realtime":
        _prioritise(False)
    told = {"p50_ms": statistics.median(times), "least_ms": min(times), "logits": logits.ravel().tolist()}
    print(json.dumps(told))


def _prioritise(realtime: bool) -> None:
    """Let no other process of the machine run on the cores of these threads, or let them again."""
    policy, priority = (os.SCHED_RR, 1) if realtime else (os.SCHED_OTHER, 0)
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))


def edgefuse(folder: Path, threads: int) -> Run:
    """The cpu parts, as the runtime runs them."""
    from edgefuse.runtime.backend_onnx import OnnxBackend
    from edgefuse.runtime.bundle import SENSOR_TENSORS, Bundle
    from edgefuse.runtime.predictor import Predictor

    bundle = Bundle.open(folder)
    backend = OnnxBackend(bundle, "cpu", threads)
    predictor = Predictor(bundle, backend)
    for modality in ENCODERS:
        backend.load(modality)

    def run(tensors: dict[str, Any]) -> np.ndarray:
        tokens, _ = predictor.encode_each({m: {name: tensors[name] for name in SENSOR_TENSORS[m]} for m in ENCODERS})
        return predictor.fuse(tokens, tensors["presence"])[0]

    return run


def onnxruntime(model: str) -> Callable[[Path, int], Run]:
    """ONNX Runtime with its own settings."""

    def opened(_: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(WORK / model, options, providers=["CPUExecutionProvider"])
        return lambda tensors: session.run(["logits"], tensors)[0]

    return opened


def openvino(model: str) -> Callable[[Path, int], Run]:
    """OpenVINO for latency; its own choice where AVX512-BF16 is, to round FP32 to bfloat16, made INT8 slower here."""

    def opened(_: Path, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        read = core.read_model(WORK / model)
        read.reshape({i.any_name: [1, *(size.get_length() for size in list(i.partial_shape)[1:])] for i in read.inputs})
        about = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(read, "CPU", about).create_infer_request()
        return lambda tensors: request.infer(tensors)["logits"]

    return opened


ENGINES = {
    "edgefuse cpu parts": edgefuse,
    "ONNX Runtime FP32": onnxruntime("fp32.onnx"),
    "ONNX Runtime dynamic INT8": onnxruntime("dynamic.onnx"),
    "OpenVINO FP32": openvino("fp32.onnx"),
    "OpenVINO INT8 (NNCF)": openvino("int8.xml"),
}


if __name__ == "__main__":
    main()
