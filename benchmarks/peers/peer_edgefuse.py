"""edgefuse itself, as a device has it: the runtime and a part set of the bundle in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefuse.benchmarks.peers.contract import Job, Opened, our_host


def open_peer(option: str, job: Job) -> Opened:
    """The part set `option`, its parts chained as `Predictor.predict` does."""
    from edgefuse.runtime.backend_onnx import OnnxBackend
    from edgefuse.runtime.bundle import SENSOR_TENSORS, Bundle
    from edgefuse.runtime.predictor import Predictor

    bundle = Bundle.open(job.bundle)
    backend = OnnxBackend(bundle, option, job.threads)
    predictor = Predictor(bundle, backend)
    for modality in bundle.info.modalities:
        backend.load(modality)

    def infer(tensors: Any) -> np.ndarray:
        there = tensors["presence"].any(axis=0)  # [M]: the encoder of a sensor that no query has is not run
        given = [modality for modality, has in zip(bundle.info.modalities, there, strict=True) if has]
        inputs = {m: {name: tensors[name] for name in SENSOR_TENSORS[m]} for m in given}
        tokens, _ = predictor.encode_each(inputs)
        return predictor.fuse(tokens, tensors["presence"])[0]

    return Opened(our_host(job), infer)
