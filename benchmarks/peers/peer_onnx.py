"""The whole model as one ONNX graph in ONNX Runtime or OpenVINO, behind edgefuse's preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefuse.benchmarks.peers.contract import Job, Opened, our_host


def open_peer(option: str, job: Job) -> Opened:
    """`option` is "engine:file in job.made"."""
    engine, _, name = option.partition(":")
    return Opened(our_host(job), {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine](name, job))


def _onnxruntime(name: str, job: Job) -> Any:
    """ONNX Runtime with its own settings, but for the threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(job.file(name), options, providers=["CPUExecutionProvider"])
    return lambda tensors: session.run(["logits"], tensors)[0]


def _openvino(name: str, job: Job) -> Any:
    """OpenVINO for latency at fixed shapes; its own choice where AVX512-BF16 is, rounding FP32 to it, slowed INT8."""
    import openvino

    core = openvino.Core()
    model = core.read_model(job.file(name))
    rest = {value.any_name: list(value.partial_shape)[1:] for value in model.inputs}
    model.reshape({tensor: [job.batch, *(size.get_length() for size in sizes)] for tensor, sizes in rest.items()})
    about = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", about).create_infer_request()
    return lambda tensors: np.array(request.infer(tensors)["logits"])
