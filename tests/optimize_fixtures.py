"""Small parts with all that optimize/ has to get right, and a bundle of them whose labels are its own answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import soundfile
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgefuse.optimize.compiler import Job
from edgefuse.optimize.cpu_rewrite import Rewrite
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.plan import Kernel, parse_layers
from edgefuse.runtime.backend_onnx import OnnxBackend, open_session
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
from edgefuse.runtime.predictor import Predictor

MODALITIES = ("image", "audio", "text")
LABELS = ("a", "b", "c", "d")
WORDS = ("what", "where", "red", "blue", "green", "round", "square", "left", "right", "is", "the")
PIXELS, PCM, LENGTH, RATE = 16, 640, 8, 16_000
DIM = 32
VOCABULARY = ("[PAD]", "[UNK]", *WORDS, *(f"unused{i}" for i in range(51)))
LINES = {"train": 24, "val": 60}


def operators(model: bytes) -> Counter[str]:
    """How often each operator stands in a model."""
    return Counter(node.op_type for node in onnx.load_model_from_string(model).graph.node)


def rewritten(rule: Callable[[Rewrite], None], model: bytes) -> bytes:
    """A model after one rule of cpu_rewrite."""
    rewrite = Rewrite(Graph(model))
    rule(rewrite)
    return rewrite.serialize()


class Net:
    """Writes an ONNX graph node by node; every value is named after its node."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str | NDArray[Any], name: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; an array is a constant input. Returns the name of its output, or all of them."""
        name = name or f"{op.lower()}_{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        made = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, name=name, **attributes))
        return name if outputs == 1 else made

    def constant(self, array: NDArray[Any]) -> str:
        """Add a constant; float arrays become float32."""
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> NDArray[np.float32]:
        """Random weights that keep the variance of what they multiply."""
        fan_in = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
        return (self.random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    def linear(self, value: str, inputs: int, outputs: int) -> str:
        """MatMul and bias."""
        product = self.add("MatMul", value, self.weight(inputs, outputs))
        return str(self.add("Add", product, 0.1 * self.random.standard_normal(outputs)))

    def norm(self, value: str, dim: int) -> str:
        """LayerNormalization with DistilBERT's epsilon, which FP16 cannot hold."""
        return str(self.add("LayerNormalization", value, np.ones(dim), np.zeros(dim), axis=-1, epsilon=1e-12))

    def model(self, inputs: dict[str, tuple[int, list[int]]], outputs: dict[str, str], opset: int = 18) -> bytes:
        """The checked model; `inputs` name -> (type, shape without batch), `outputs` name -> value."""
        nodes = [*self.nodes, *(helper.make_node("Identity", [value], [name]) for name, value in outputs.items())]
        given = [helper.make_tensor_value_info(n, kind, ["batch", *shape]) for n, (kind, shape) in inputs.items()]
        told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(nodes, "part", given, told, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def image_part(outlier: float = 1.0) -> bytes:
    """uint8 NHWC: normalisation, strided convolution, a residual block with squeeze-excite, a depthwise one, tokens.

    An `outlier` times as large channel, made up for by its weights, changes nothing in float and ruins INT8.
    """
    net = Net(1)
    pixels = net.add("Cast", "image", name="pixels", to=TensorProto.FLOAT)
    shifted = net.add("Sub", pixels, np.array([123.7, 116.3, 103.5]), name="shifted")
    scaled = net.add("Div", shifted, np.array([58.4, 57.1, 57.4]), name="scaled")
    planes = net.add("Transpose", scaled, name="planes", perm=[0, 3, 1, 2])
    stem = net.add("Conv", planes, net.weight(16, 3, 3, 3), name="stem", strides=[2, 2], pads=[1] * 4)
    x = net.add("Relu", stem)
    pooled = net.add("ReduceMean", x, np.array([2, 3]))
    squeezed = net.add("Relu", net.add("Conv", pooled, net.weight(16, 16, 1, 1), name="squeeze"))
    gate = net.add("HardSigmoid", net.add("Conv", squeezed, net.weight(16, 16, 1, 1), name="excite"))
    branch = net.add("Conv", net.add("Mul", x, gate), net.weight(16, 16, 1, 1), name="branch")
    x = net.add("Add", branch, x, name="residual")
    x = net.add("HardSwish", net.add("Conv", x, net.weight(16, 1, 3, 3), name="depthwise", group=16, pads=[1] * 4))
    x = net.add("Conv", x, net.weight(DIM, 16, 3, 3), name="last", strides=[4, 4], pads=[1] * 4)
    flat = net.add("Reshape", x, np.array([-1, DIM, 4]))
    stretch = np.ones((DIM, 1))
    stretch[0] = outlier
    stretched = net.add("Mul", net.add("Transpose", flat, perm=[0, 2, 1]), stretch[:, 0])
    tokens = net.add("MatMul", stretched, net.weight(DIM, DIM) / stretch)
    return net.model({"image": (TensorProto.UINT8, [PIXELS, PIXELS, 3])}, {"image_tokens": tokens})


def audio_part() -> bytes:
    """PCM: a DFT as convolution, power, mel matrix, log, mean removed; then a trained convolution and a Linear."""
    net = Net(2)
    angle = 2 * np.pi * np.outer(np.arange(17), np.arange(32)) / 32
    basis = (np.concatenate([np.cos(angle), -np.sin(angle)]) * np.hanning(32))[:, None]
    wave = net.add("Unsqueeze", "audio", np.array([1]), name="wave")
    spectrum = net.add("Conv", wave, basis, name="dft", strides=[16])
    real, imaginary = net.add("Split", spectrum, name="split", outputs=2, axis=1, num_outputs=2)
    squares = [net.add("Mul", part, part, name=f"square{i}") for i, part in enumerate((real, imaginary))]
    power = net.add("Transpose", net.add("Add", *squares, name="power"), name="frames", perm=[0, 2, 1])
    mel = net.add("MatMul", power, np.abs(net.weight(17, 16)), name="mel")
    log = net.add("Log", net.add("Add", mel, np.array(1e-6), name="floor"), name="log")
    mean = net.add("ReduceMean", log, np.array([1]), name="mean")
    features = net.add("Transpose", net.add("Sub", log, mean, name="normalised"), name="bands", perm=[0, 2, 1])
    x = net.add("Relu", net.add("Conv", features, net.weight(DIM, 16, 3), name="stem", strides=[2], pads=[1, 1]))
    x = net.linear(net.add("Transpose", x, perm=[0, 2, 1]), DIM, DIM)  # [B, 20, D]
    x = net.linear(net.add("Sigmoid", x), DIM, DIM)
    pooled = net.add("ReduceMean", x, np.array([1]))  # [B, 1, D]
    return net.model({"audio": (TensorProto.FLOAT, [PCM])}, {"audio_tokens": net.linear(pooled, DIM, DIM)})


def text_part() -> bytes:
    """Ids and mask: embedding, one transformer layer with masked attention of two heads, GELU."""
    net = Net(3)
    table = net.add("Gather", net.random.standard_normal((len(VOCABULARY), DIM)), "input_ids", name="embedding")
    x = net.norm(net.add("Add", table, net.random.standard_normal((1, LENGTH, DIM))), DIM)
    real = net.add("Unsqueeze", net.add("Cast", "attention_mask", to=TensorProto.BOOL), np.array([1, 2]))
    mask = net.add("Where", real, np.array(0.0), np.array(np.finfo(np.float32).min), name="mask")

    def heads(value: str, perm: list[int]) -> str:
        split = net.add("Reshape", net.linear(value, DIM, DIM), np.array([-1, LENGTH, 2, DIM // 2]))
        return str(net.add("Transpose", split, perm=perm))

    query, key, value = heads(x, [0, 2, 1, 3]), heads(x, [0, 2, 3, 1]), heads(x, [0, 2, 1, 3])
    scaled = net.add("Mul", net.add("MatMul", query, key, name="scores"), np.array((DIM // 2) ** -0.5))
    share = net.add("Softmax", net.add("Add", scaled, mask), axis=-1)
    mixed = net.add("Transpose", net.add("MatMul", share, value, name="mixed"), perm=[0, 2, 1, 3])
    mixed = net.linear(net.add("Reshape", mixed, np.array([-1, LENGTH, DIM])), DIM, DIM)
    x = net.norm(net.add("Add", mixed, x), DIM)
    hidden = net.linear(x, DIM, 2 * DIM)
    curve = net.add("Add", net.add("Erf", net.add("Div", hidden, np.array(2**0.5))), np.array(1.0))
    x = net.norm(net.add("Add", net.linear(net.add("Mul", hidden, curve), 2 * DIM, DIM), x), DIM)
    inputs = {name: (int(TensorProto.INT32), [LENGTH]) for name in ("input_ids", "attention_mask")}
    return net.model(inputs, {"text_tokens": x})


COUNTS = {"image": 4, "audio": 1, "text": LENGTH}


def head_part() -> bytes:
    """Means of the tokens, placeholders where missing, a gate, a classifier."""
    net = Net(10)
    means = [net.add("ReduceMean", f"{m}_tokens", np.array([1]), keepdims=1) for m in MODALITIES]
    stacked = net.add("Concat", *means, axis=1)  # [B, M, D]
    column = net.add("Unsqueeze", "presence", np.array([2]))  # [B, M, 1]
    there = net.add("Greater", column, np.array(0.5))
    filled = net.add("Where", there, stacked, net.weight(3, DIM))
    score = net.add("Where", there, net.add("MatMul", filled, net.weight(DIM, 1)), np.array(-1e4))
    weights = net.add("Mul", net.add("Softmax", score, axis=1), column)  # [B, M, 1]
    fused = net.add("ReduceSum", net.add("Mul", filled, weights), np.array([1]), keepdims=0)
    hidden = net.add("Gemm", fused, net.weight(DIM, DIM), net.weight(DIM), name="hidden", transB=1)
    logits = net.add("Gemm", net.add("Relu", hidden), net.weight(DIM, len(LABELS)), name="classify")
    inputs = {f"{m}_tokens": (int(TensorProto.FLOAT), [COUNTS[m], DIM]) for m in MODALITIES}
    shares = net.add("Squeeze", weights, np.array([2]))
    return net.model({**inputs, "presence": (TensorProto.FLOAT, [3])}, {"logits": logits, "weights": shares})


PARTS = {"image": image_part(), "audio": audio_part(), "text": text_part(), HEAD: head_part()}


def inputs_of(part: str, batch: int = 4) -> dict[str, NDArray[Any]]:
    """Plausible inputs of a part; the last text is two words and padding."""
    random = np.random.default_rng(7)
    if part == "image":
        return {"image": random.integers(0, 256, (batch, PIXELS, PIXELS, 3), dtype=np.uint8)}
    if part == "audio":
        return {"audio": (0.2 * random.standard_normal((batch, PCM))).astype(np.float32)}
    if part == "text":
        lengths = np.append(random.integers(3, LENGTH + 1, batch - 1), 2)
        mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)  # [B, L]
        return {"input_ids": random.integers(2, 13, (batch, LENGTH)).astype(np.int32) * mask, "attention_mask": mask}
    tokens = {f"{m}_tokens": random.standard_normal((batch, COUNTS[m], DIM)).astype(np.float32) for m in MODALITIES}
    presence = np.ones((batch, 3), np.float32)
    presence[0, 1] = 0
    return {**tokens, "presence": presence}


def outputs(model: bytes, inputs: dict[str, NDArray[Any]], **options: Any) -> list[NDArray[Any]]:
    """What ONNX Runtime computes."""
    return list(open_session(model, **options).run(None, inputs))


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Cosine of the angle between two arrays."""
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def rtx_kernels(model: bytes, folder: Path, batch: int = 1) -> list[Kernel]:
    """The kernels that TensorRT-RTX makes of a model, compiled for SM 86 in a process of its own."""
    job = Job("tensorrt-rtx", (86,), batch, str(folder / "part.engine"))
    child = subprocess.run(
        [sys.executable, "-m", "edgefuse.optimize.compiler"],
        input=json.dumps(asdict(job)).encode() + b"\n" + model,
        capture_output=True,
        check=True,
    )
    answer = json.loads(child.stdout.splitlines()[-1])
    assert "built" in answer, answer
    return parse_layers(child.stderr.decode(errors="replace"))


def write_parts_bundle(folder: Path, parts: dict[str, bytes] | None = None) -> Bundle:
    """A bundle of the parts above, fp32 only; its manifest is folder.parent / data / manifest.jsonl."""
    parts = parts or PARTS
    info = BundleInfo(
        name="small",
        labels=LABELS,
        image=ImageSpec(height=PIXELS, width=PIXELS),
        audio=AudioSpec(sample_rate=RATE, samples=PCM),
        text=TextSpec(max_tokens=LENGTH),
        tokens={m: TokenSpec(count=COUNTS[m], dim=DIM) for m in MODALITIES},
        parts={"fp32": {part: PartInfo(file=part_file("fp32", part), precision="fp32") for part in parts}},
        lineage={"manifest": str(folder.parent / "data" / "manifest.jsonl")},
    )
    pieces = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    files = {part_file("fp32", part): model for part, model in parts.items()}
    return write_bundle(folder, info, {**files, "tokenizer.json": pieces.to_str().encode()})


def write_data(folder: Path, bundle: Bundle) -> Path:
    """Random pictures, sounds and sentences, each line labelled with what the FP32 bundle answers from all of them."""
    folder.mkdir()
    random = np.random.default_rng(5)
    rows = []
    with OnnxBackend(bundle, "fp32") as backend:
        predictor = Predictor(bundle, backend)
        for index, split in enumerate(split for split, count in LINES.items() for _ in range(count)):
            colour = random.integers(0, 256, (1, 1, 3))
            pixels = np.clip(colour + random.normal(0, 40, (PIXELS, PIXELS, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{index}.png"), pixels)
            tone = np.sin(np.arange(PCM) * random.uniform(0.1, 3)) * random.uniform(0.05, 0.5)
            soundfile.write(folder / f"{index}.wav", tone, RATE, subtype="PCM_16")
            text = " ".join(random.choice(WORDS, random.integers(2, LENGTH)))
            row = {"image": f"{index}.png", "audio": f"{index}.wav", "text": text}
            answer = predictor.predict(image=folder / row["image"], audio=folder / row["audio"], text=text)
            rows.append({**row, "label": answer.label, "split": split})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def fresh_bundle(folder: Path, parts: dict[str, bytes] | None = None) -> Bundle:
    """A bundle that a test may change, with its data."""
    bundle = write_parts_bundle(folder / "bundle", parts)
    write_data(folder / "data", bundle)
    return bundle
