"""Every row and fusion that a recipe can name goes the whole way: ONNX as torch computes, checked, FP16, compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgefuse.optimize.export import MAX_ABS_ERROR, OPSET, _to_onnx
from edgefuse.optimize.fp16 import front_end, to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.preflight import check
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.train.encoders import AudioEncoder, ImageEncoder
from edgefuse.train.recipe import AudioSettings, ImageSettings
from tests.optimize_fixtures import cosine, rtx_kernels
from tests.test_export import head_inputs, head_part

SAMPLES = 6400  # 0.4 s
PICTURES = [  # row, slots, layers
    ("conv4", 6, 2),
    ("conv3", 0, 1),
    ("mobilenet_v3_small_16", 0, 1),
    ("mobilenet_v3_small_8", 0, 0),
]


def goes_the_whole_way(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], folder: Path) -> Graph:
    """Asserts it; returns the FP32 graph."""
    model = _to_onnx(module.eval(), inputs, outputs)
    given = {name: value.numpy() for name, value in inputs.items()}
    with torch.no_grad():
        expected = module(*inputs.values())
    expected = [value.numpy() for value in (expected if isinstance(expected, tuple) else (expected,))]
    half = to_fp16(Graph(model)).serialize()
    for found, halved, wanted in zip(
        open_session(model).run(None, given), open_session(half).run(None, given), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=MAX_ABS_ERROR)
        assert cosine(halved, wanted) > 0.999
    for name, content in (("fp32", model), ("fp16", half)):
        (folder / f"{name}.onnx").write_bytes(content)
        assert check(folder / f"{name}.onnx") == {"verdict": "ok", "findings": []}
    pytest.importorskip("tensorrt_rtx")
    assert rtx_kernels(half, folder)
    graph = Graph(model)
    assert {entry.version for entry in graph.model.opset_import if entry.domain == ""} == {OPSET}
    return graph


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slots", "layers"), PICTURES)
def test_a_picture_network_and_its_layers_compile(name: str, slots: int, layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageSettings(encoder=name, height=64, width=64, slots=slots, layers=layers, tokens="all"))
    pictures = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    for norm in (module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # one batch's statistics: with those it starts with, an untrained network fades
    encoder(pictures)
    goes_the_whole_way(encoder, {"image": pictures}, ["image_tokens"], tmp_path)


@pytest.mark.slow
def test_the_cnn_lstm_compiles_with_its_cepstrum_and_stays_two_lstm_nodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(AudioSettings(encoder="cnn_lstm_small", features="mfcc", seconds=0.4), SAMPLES)
    graph = goes_the_whole_way(encoder, {"audio": 0.1 * torch.randn(3, SAMPLES)}, ["audio_tokens"], tmp_path)
    assert [node.op_type for node in graph.nodes].count("LSTM") == 2
    assert "Log" in {node.op_type for node in graph.nodes if node.name in front_end(graph)}  # in FP32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bottleneck", "film", "precise"])
def test_a_fusion_compiles(kind: str, tmp_path: Path) -> None:
    inputs = head_inputs("all", np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0]]))
    goes_the_whole_way(head_part(kind), inputs, ["logits", "weights"], tmp_path)
