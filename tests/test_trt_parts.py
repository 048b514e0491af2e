"""The forms of a part: what is offered and given back, and real encoders through ONNX Runtime and the real compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgefuse.optimize.cost import Cost
from edgefuse.optimize.export import _to_onnx
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.plan import summary
from edgefuse.optimize.trt_parts import FP16, INT8, TrtPart, encoder_part, head_part
from edgefuse.runtime.bundle import HEAD, SENSOR_TENSORS, token_tensor
from edgefuse.runtime.errors import ManifestError
from edgefuse.train.encoders import AudioEncoder, ImageEncoder, TextEncoder
from edgefuse.train.recipe import AudioSettings, ImageSettings, TextSettings
from tests.optimize_fixtures import PARTS, Net, cosine, image_part, inputs_of, outputs, rtx_kernels

SECONDS, TOKENS, VOCABULARY = 1.0, 16, 120
LAYERS = {"image": 0, "audio": 2, "text": 2}  # with attention
Inputs = dict[str, NDArray[Any]]


class Drawn:
    """Made-up samples in the place of `Samples`."""

    def __init__(self, modality: str, make: Callable[[int], Inputs], count: int = 16) -> None:
        self.modality = modality
        self._make = make
        self._count = count

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Inputs]:
        for start in range(0, self._count, size):
            yield self._make(min(size, self._count - start))


def small_part(part: str, precision: str, cost_of: Callable[[bytes], Cost], model: bytes | None = None) -> TrtPart:
    samples = Drawn(part, lambda size: inputs_of(part, size))
    return encoder_part(model or PARTS[part], samples, precision, cost_of)  # type: ignore[arg-type]


def no_cost(model: bytes) -> Cost:
    raise AssertionError("only auto asks for costs")


def cost_of_weights(model: bytes) -> Cost:
    """A device on which INT8 pays wherever there are weights."""
    graph = Graph(model)
    return Cost(1, 1000 * sum(graph.array(name).nbytes for name in graph.initializers))


def has_int8(model: bytes) -> bool:
    return "DequantizeLinear" in {node.op_type for node in Graph(model).nodes}


def cost_of_nodes(model: bytes) -> Cost:
    """A device on which every node is a kernel, Q and DQ too."""
    return Cost(len(Graph(model).nodes), 0)


def test_the_head_is_fp16_and_says_why() -> None:
    part = head_part(PARTS[HEAD])
    (candidate,) = part.candidates
    assert (candidate.precision, candidate.exact_qdq) == (FP16, True)
    assert not has_int8(candidate.model)
    assert "one row at a time" in part.note(FP16)
    assert part.reasons(FP16) == []
    assert part.blocks(FP16) == frozenset()


def test_fp16_has_no_int8_and_asks_for_no_cost() -> None:
    part = small_part("text", "fp16", no_cost)
    (candidate,) = part.candidates
    assert candidate.precision == FP16
    assert not has_int8(candidate.model)
    assert "INT8: " not in part.note(FP16)
    assert "attention in FP16: as asked for" in part.note(FP16)


def test_int8_is_every_weight_that_may_be_convolutions_too() -> None:
    part = small_part("image", "int8", no_cost)
    assert [candidate.precision for candidate in part.candidates] == [FP16, INT8]
    rows = part.reasons(INT8)
    assert {row["block"] for row in rows if row["precision"] == "int8"} == part.blocks(INT8)
    assert {row["block"].split(maxsplit=1)[1] for row in rows if row["precision"] == "int8"} == {
        "dense Conv",
        "pointwise Conv",
        "depthwise Conv",
        "MatMul 32x32 after Mul",
    }
    (refused,) = [row for row in rows if row["precision"] == "fp16"]
    assert refused["why"].startswith("a matrix-vector product")
    assert "calibration" in part.note(INT8)  # how it was quantized
    assert "calibration" not in part.note(FP16)


def test_a_part_that_int8_does_not_suit_has_its_fp16_form_only() -> None:
    net = Net()
    model = net.model({"audio": (1, [64])}, {"audio_tokens": net.linear("audio", 64, 32)})  # one row at a time
    samples = Drawn("audio", lambda size: {"audio": np.ones((size, 64), np.float32)})
    for precision in ("int8", "auto"):
        part = encoder_part(model, samples, precision, cost_of_weights)  # type: ignore[arg-type]
        assert [candidate.precision for candidate in part.candidates] == [FP16]


def test_auto_is_fp16_alone_where_no_int8_pays() -> None:
    part = small_part("audio", "auto", cost_of_nodes)
    assert [candidate.precision for candidate in part.candidates] == [FP16]
    assert "dense Conv in FP16: INT8 here makes +3 kernels" in part.note(FP16)  # Q, DQ, and DQ of the weights


def test_a_retreat_gives_back_the_noisiest_block_first_until_no_int8_is_left() -> None:
    part = small_part("image", "auto", cost_of_weights, image_part(3000.0))
    assert [candidate.precision for candidate in part.candidates] == [FP16, INT8]
    left = [part.blocks(INT8)]
    assert len(left[0]) == 4
    while (less := part.retreat()) is not None:
        assert part.candidates[-1] is less
        assert has_int8(less.model)
        left.append(part.blocks(less.precision))
    assert [len(blocks) for blocks in left] == [4, 3, 2, 1]
    assert all(after < before for before, after in pairwise(left))
    assert left[0] - left[1] == {"1 MatMul 32x32 after Mul"}  # the one with the outlier
    assert [candidate.precision for candidate in part.candidates] == [FP16, INT8, *(f"{INT8}/{n}" for n in (1, 2, 3))]
    rows = {row["block"]: row for row in part.reasons(f"{INT8}/1")}
    assert rows["1 MatMul 32x32 after Mul"]["why"].endswith("given back to FP16 for the gate")


def test_a_retreat_from_fp16_leads_nowhere() -> None:
    assert small_part("audio", "auto", cost_of_nodes).retreat() is None


def test_no_sample_is_refused() -> None:
    with pytest.raises(ManifestError, match="no training line has text, which the model reads; calibration needs some"):
        encoder_part(PARTS["text"], Drawn("text", dict, count=0), "auto", no_cost)  # type: ignore[arg-type]


def tensors(modality: str, batch: int, seed: int = 99) -> Inputs:
    """Random inputs of a real encoder."""
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
    samples = {name: torch.from_numpy(array) for name, array in tensors(modality, 32).items()}
    settle_batch_norms(encoder, list(samples.values()))
    assert tuple(samples) == SENSOR_TENSORS[modality]
    return _to_onnx(encoder.eval(), samples, [token_tensor(modality)])


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
    samples = Drawn(modality, lambda size: tensors(modality, size, seed=size))
    part = encoder_part(model, samples, "fp16", no_cost)  # type: ignore[arg-type]
    assert part.forms is not None
    attention = next((block.name for block in part.forms.blocks if block.products), "")
    assert attention == (f"{LAYERS[modality]} attention" if LAYERS[modality] else "")
    blocks = {block.name for block in part.forms.blocks if "Conv" not in block.name}
    if modality == "audio":
        blocks -= {attention}  # in INT8 the compiler fuses heads of 16, 32 and 64 only, these have 24
    if modality != "image":  # which is convolutions alone
        part.offer(frozenset(blocks), [])
    for candidate in part.candidates:
        (tokens,) = outputs(candidate.model, inputs, exact_qdq=True)
        assert cosine(tokens, reference) > (0.9999 if candidate.precision == FP16 else 0.99)
        assert len(candidate.model) < 0.65 * len(model)  # the DFT of the sound's front end stays FP32
        plan = rtx_kernels(candidate.model, tmp_path, batch=8)
        assert summary(plan)["fused_attention"] == LAYERS[modality]
        int8 = [kernel for kernel in plan if kernel.kind == "gemm" and kernel.precision == "Int8"]
        assert bool(int8) == (candidate.precision == INT8)
