"""The encoders that people train, through conversion, ONNX Runtime and the real compiler."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgefuse.optimize.plan import summary
from edgefuse.optimize.trt_parts import FP16, INT8, encoder_candidates, head_candidate
from edgefuse.runtime.bundle import HEAD, SENSOR_TENSORS, token_tensor
from edgefuse.train.encoders import AudioEncoder, ImageEncoder, TextEncoder
from edgefuse.train.recipe import AudioSettings, ImageSettings, TextSettings
from tests.optimize_fixtures import PARTS, cosine, outputs, rtx_kernels

SECONDS, TOKENS, VOCABULARY = 1.0, 16, 120
LAYERS = {"image": 0, "audio": 2, "text": 2}  # with attention


class Drawn:
    """Random samples in the place of `Samples`."""

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def __len__(self) -> int:
        return 16

    def batches(self, size: int) -> Any:
        for start in range(0, len(self), size):
            yield tensors(self.modality, min(size, len(self) - start), seed=start)


def tensors(modality: str, batch: int, seed: int = 99) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    if modality == "image":
        return {"image": random.integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)}
    if modality == "audio":
        return {"audio": (0.1 * random.standard_normal((batch, round(16_000 * SECONDS)))).astype(np.float32)}
    mask = (np.arange(TOKENS) < random.integers(3, TOKENS + 1, (batch, 1))).astype(np.int32)  # [B, L]
    return {"input_ids": random.integers(1, VOCABULARY, mask.shape).astype(np.int32), "attention_mask": mask}


def exported(modality: str) -> bytes:
    """An untrained encoder of a few hundred thousand weights as the FP32 part that export.py writes."""
    torch.manual_seed(0)
    encoder: torch.nn.Module
    if modality == "image":
        encoder = ImageEncoder(ImageSettings(encoder="mobilenet_v3_small", height=64, width=64))
    elif modality == "audio":
        encoder = AudioEncoder(AudioSettings(encoder="conformer_nano", seconds=SECONDS), round(16_000 * SECONDS))
    else:
        encoder = TextEncoder(TextSettings(encoder="distilbert_nano", max_tokens=TOKENS), VOCABULARY)
    names = SENSOR_TENSORS[modality]
    settle_batch_norms(encoder, [torch.from_numpy(tensors(modality, 32)[name]) for name in names])
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            encoder.eval(),
            tuple(torch.from_numpy(tensors(modality, 2)[name]) for name in names),
            dynamo=True,
            opset_version=18,
            input_names=list(names),
            output_names=[token_tensor(modality)],
            dynamic_shapes=tuple({0: batch} for _ in names),
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def settle_batch_norms(encoder: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
    """Give the BatchNorms statistics; with those they start with, an untrained MobileNet fades to 1e-8."""
    for module in encoder.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = None
    with torch.no_grad():
        encoder.train()(*inputs)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_an_encoder_keeps_its_answers_and_its_fused_attention(modality: str, tmp_path: Path) -> None:
    model, inputs = exported(modality), tensors(modality, 4)
    (reference,) = outputs(model, inputs)
    candidates = encoder_candidates(model, Drawn(modality), convolutions=False)  # type: ignore[arg-type]
    assert [candidate.precision for candidate in candidates] == ([FP16] if modality == "image" else [FP16, INT8])
    for candidate in candidates:
        (tokens,) = outputs(candidate.model, inputs, exact_qdq=True)
        assert cosine(tokens, reference) > (0.9999 if candidate.precision == FP16 else 0.995)
        assert len(candidate.model) < 0.65 * len(model)  # the DFT of the sound's front end stays FP32
        plan = rtx_kernels(candidate.model, tmp_path, batch=8)
        assert summary(plan)["fused_attention"] == LAYERS[modality]
        int8 = [kernel for kernel in plan if kernel.kind == "gemm" and kernel.precision == "Int8"]
        assert bool(int8) == (candidate.precision == INT8)


def test_the_head_is_fp16_and_says_why() -> None:
    candidate = head_candidate(PARTS[HEAD])
    assert candidate.precision == FP16
    assert candidate.exact_qdq
    assert "one row at a time" in candidate.note
