"""A tiny bundle with its data, made in-process: image 8x8, 160 samples of sound, five words, three colours to tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import soundfile
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgefuse.runtime import cli
from edgefuse.runtime.bundle import (
    HEAD,
    AudioSpec,
    Bundle,
    BundleInfo,
    ImageSpec,
    PartInfo,
    TextSpec,
    TokenSpec,
    part_file,
    write_bundle,
)
from edgefuse.runtime.preprocess import Preprocessor
from tests.chromium import browser  # noqa: F401 (a fixture)

settings.register_profile("edgefuse", deadline=None)  # a training may run beside the tests
settings.load_profile("edgefuse")

LABELS = ("blue", "green", "red")
MODALITIES = ("image", "audio", "text")
COUNTS = {"image": 2, "audio": 1, "text": 1}  # tokens N of each modality
PIXELS, SAMPLES, TOKENS, RATE = 8, 160, 4, 16_000
VOCABULARY = ("[PAD]", "[UNK]", *LABELS)
EVIDENCE = 10.0  # logit of a pure colour, a full-scale sound or a word


@dataclass(frozen=True)
class Tiny:
    """Where the tiny bundle and its data are; tests that write take the `tiny_copy` fixture."""

    bundle: Path
    manifest: Path  # 12 lines, a picture, a sound and a word of each label in turn
    media: Path  # <label>.png and <label>.wav


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny bundle; read only."""
    folder = tmp_path_factory.mktemp("tiny")
    _write_tiny_bundle(folder / "bundle")
    return Tiny(folder / "bundle", _write_data(folder / "data"), folder / "data")


@pytest.fixture
def tiny_copy(tiny: Tiny, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle that a test may damage."""
    shutil.copytree(tiny.bundle, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def preprocessor(tiny: Tiny) -> Preprocessor:
    """That of the tiny bundle."""
    return Preprocessor(Bundle.open(tiny.bundle))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int | str, str, str]]:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int | str, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return stop.value.code or 0, found.out, found.err

    return call


def _write_tiny_bundle(folder: Path) -> None:
    parts = {**{modality: _encoder(modality) for modality in MODALITIES}, HEAD: _head()}
    info = BundleInfo(
        name="tiny",
        labels=LABELS,
        image=ImageSpec(height=PIXELS, width=PIXELS),
        audio=AudioSpec(sample_rate=RATE, samples=SAMPLES),
        text=TextSpec(max_tokens=TOKENS),
        tokens={modality: TokenSpec(count=COUNTS[modality], dim=len(LABELS)) for modality in MODALITIES},
        parts={
            part_set: {part: PartInfo(file=part_file(part_set, part), precision="fp32") for part in parts}
            for part_set in ("fp32", "cpu")
        },
    )
    files = {
        info.parts[part_set][part].file: parts[part].SerializeToString() for part_set in info.parts for part in parts
    }
    write_bundle(folder, info, {**files, "tokenizer.json": _tokenizer()})


def _tokenizer() -> bytes:
    pieces = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    return pieces.to_str().encode()


def _encoder(modality: str) -> onnx.ModelProto:
    """Tokens [B, N, 3]: N times the evidence for each label.

    Colour: the mean of its channel. Sound: the mean of its third of the samples. Text: whether its word is there.
    """
    repeat = [helper.make_node("Concat", ["one"] * COUNTS[modality], [f"{modality}_tokens"], axis=1)]
    if modality == "image":
        to_labels = EVIDENCE / 255 * np.eye(3, dtype=np.float32)[:, ::-1]  # RGB -> blue, green, red
        nodes = [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["colour"], keepdims=0),  # [B, 3]
            helper.make_node("MatMul", ["colour", "to_labels"], ["evidence"]),
        ]
        inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", PIXELS, PIXELS, 3])]
        weights = {"axes": np.array([1, 2]), "to_labels": to_labels}
    elif modality == "audio":
        thirds = np.arange(SAMPLES) * 3 // SAMPLES  # [T], which label each sample speaks for
        to_labels = np.stack([EVIDENCE * (thirds == k) / (thirds == k).sum() for k in range(3)], axis=1)
        nodes = [helper.make_node("MatMul", ["audio", "to_labels"], ["evidence"])]
        inputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", SAMPLES])]
        weights = {"to_labels": to_labels}
    else:
        one_hot = np.concatenate([np.zeros((2, 3)), EVIDENCE * np.eye(3)])  # [V, 3]
        nodes = [
            helper.make_node("Gather", ["one_hot", "input_ids"], ["words"]),  # [B, L, 3]
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),  # [B, L, 1]
            helper.make_node("Mul", ["words", "mask_column"], ["seen"]),
            helper.make_node("ReduceMax", ["seen", "axes"], ["evidence"], keepdims=0),
        ]
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", TOKENS])
            for name in ("input_ids", "attention_mask")
        ]
        weights = {"axes": np.array([1]), "last": np.array([2]), "one_hot": one_hot}
    nodes.append(helper.make_node("Unsqueeze", ["evidence", "token_axis"], ["one"]))
    shape = ["batch", COUNTS[modality], len(LABELS)]
    outputs = [helper.make_tensor_value_info(f"{modality}_tokens", TensorProto.FLOAT, shape)]
    return _model(nodes + repeat, inputs, outputs, {**weights, "token_axis": np.array([1])})


def _head() -> onnx.ModelProto:
    """Weights = presence / how many are there; logits = the weighted sum of each modality's mean token."""
    nodes = [
        helper.make_node("ReduceSum", ["presence", "one"], ["count"], keepdims=1),  # [B, 1]
        helper.make_node("Max", ["count", "least"], ["divisor"]),
        helper.make_node("Div", ["presence", "divisor"], ["weights"]),  # [B, M]
        helper.make_node("Unsqueeze", ["weights", "two"], ["column"]),  # [B, M, 1]
        *(
            helper.make_node("ReduceMean", [f"{modality}_tokens", "one"], [f"{modality}_mean"], keepdims=1)
            for modality in MODALITIES
        ),
        helper.make_node("Concat", [f"{modality}_mean" for modality in MODALITIES], ["means"], axis=1),  # [B, M, 3]
        helper.make_node("Mul", ["means", "column"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "one"], ["logits"], keepdims=0),  # [B, 3]
    ]
    inputs = [
        helper.make_tensor_value_info(f"{modality}_tokens", TensorProto.FLOAT, ["batch", COUNTS[modality], len(LABELS)])
        for modality in MODALITIES
    ]
    inputs.append(helper.make_tensor_value_info("presence", TensorProto.FLOAT, ["batch", len(MODALITIES)]))
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)]),
        helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["batch", len(MODALITIES)]),
    ]
    return _model(nodes, inputs, outputs, {"one": np.array([1]), "two": np.array([2]), "least": np.ones(1)})


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    """A checked model of opset 18; float weights become float32."""
    initializers = [
        numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        for name, array in weights.items()
    ]
    graph = helper.make_graph(nodes, "part", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _write_data(folder: Path) -> Path:
    """A picture and a sound of each label, and a manifest of 12 lines over them."""
    folder.mkdir()
    rows = []
    for number, label in enumerate(LABELS):
        pixels = np.zeros((16, 16, 3), np.uint8)  # BGR, in the order of LABELS
        pixels[:, :, number] = 200
        cv2.imwrite(str(folder / f"{label}.png"), pixels)
        pcm = np.zeros(SAMPLES, np.float32)
        pcm[np.arange(SAMPLES) * 3 // SAMPLES == number] = 0.5
        soundfile.write(folder / f"{label}.wav", pcm, RATE, subtype="PCM_16")
    for index in range(12):
        label = LABELS[index % 3]
        row = {"image": f"{label}.png", "audio": f"{label}.wav", "text": label, "label": label}
        rows.append({**row, "split": "test", "answer_type": "warm" if label == "red" else "cold"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest
