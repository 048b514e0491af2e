"""Reads the compiler's own plan: which kernels run, in which precision, what they read and write.

Three forms are understood:
- the `Layers:` block of the VERBOSE log, which TensorRT-RTX prints also on a machine without a GPU (TensorRT 10 prints
  it too, with one `Format/Datatype` per tensor);
- the engine inspector's JSON of TensorRT 10, `{"Layers": [...], "Bindings": [names]}`, one `Format/Datatype` a tensor;
- that of TensorRT 11, `{"Layers": [...], "I/O Tensors": [...]}`, where `Format` and `Datatype` stand apart.

None of them is a stable interface, so what does not match is skipped and an unknown plan has no kernels. Sources:
docs.nvidia.com, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"; NVIDIA/TensorRT#4397;
trt-engine-explorer's trex/activations.py for the words of `Format/Datatype`; the log of TensorRT-RTX 1.7.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

BITS = {
    "Float": 32, "Half": 16, "BFloat16": 16, "FP8": 8, "FP4": 4, "Int64": 64, "Int32": 32, "Int8": 8, "UInt8": 8,
    "Int4": 4, "Bool": 8,
}  # fmt: skip
NOT_KERNELS = ("signal", "wait", "NoOp", "Constant")  # events between streams, and what was folded away
_NUMERIC = ("FP4", "Int4", "FP8", "Int8", "Half", "BFloat16", "Float")  # narrowest first
_OTHER_WORDS = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16"}  # of layouts, as in "Row major linear FP16 format"
_WORDS = {name.lower(): name for name in BITS} | _OTHER_WORDS

_BLOCK = re.compile(r"Layers:\s*$", re.MULTILINE)
_DOCUMENT = re.compile(r'\{\s*"Layers"\s*:')
_TENSORS = r"(?:\[\]|\[ ?(?P<{0}>\{{.*?\}}) ?\])"
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), "
    rf"Inputs: {_TENSORS.format('inputs')}, (?:Constants: {_TENSORS.format('constants')}, )?"
    rf"Outputs: {_TENSORS.format('outputs')}(?P<rest>, .*)?"
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<dims>[-\d,]*)\].*?Datatype: (?P<type>[^,}]*)"
)
_WEIGHTS = re.compile(r"(?:Weights|Bias): \{ ?Type: (\w+), Count: (\d+)")
_STREAM = re.compile(r", StreamId: (\d+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")  # they are separated by control characters


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that a kernel reads or writes."""

    name: str
    dims: tuple[int, ...]  # -1 where the size is free
    type: str  # a key of BITS, or a word that is not known

    @property
    def size_bytes(self) -> int | None:
        """Bytes without the padding of its layout, None where a size is free or the type unknown."""
        if self.type not in BITS or any(dim < 0 for dim in self.dims):
            return None
        return (prod(self.dims) * BITS[self.type] + 7) // 8


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry of the plan."""

    name: str
    kind: str  # gemm, correlation, kgen, runtime_fusion, shape_call, CaskConvolution, Reformat, signal, wait, ...
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    stream: int
    onnx_nodes: tuple[str, ...]  # the ONNX nodes that it computes

    @property
    def precision(self) -> str:
        """The narrowest numeric type that it reads, "" where it reads none."""
        types = {tensor.type for tensor in (*self.inputs, *self.constants)}
        return next((name for name in _NUMERIC if name in types), "")

    @property
    def bytes_touched(self) -> int | None:
        """Bytes read and written, a whole embedding table included; None where a size is free."""
        sizes = [tensor.size_bytes for tensor in (*self.inputs, *self.constants, *self.outputs)]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def is_launched(self) -> bool:
        """Whether it is a kernel, and no event or folded entry."""
        return self.kind not in NOT_KERNELS

    @property
    def is_fused_attention(self) -> bool:
        """Whether it is one of the compiler's multi-head attention kernels."""
        return "mha" in self.name.lower()


def parse_layers(text: str) -> list[Kernel]:
    """The kernels of the last plan in a log or an inspector's answer, in order; empty where none can be read."""
    block = max((found.end() for found in _BLOCK.finditer(text)), default=-1)
    document = max((found.start() for found in _DOCUMENT.finditer(text)), default=-1)
    return list(_from_json(text, document) if document > block else _from_block(text, block))


def summary(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """{kernels, bytes_touched, fused_attention}: signals and waits not counted, None where the plan does not tell."""
    launched = [kernel for kernel in kernels if kernel.is_launched]
    sizes = [kernel.bytes_touched for kernel in launched]
    known = [size for size in sizes if size is not None]
    return {
        "kernels": len(launched) or None,
        "bytes_touched": sum(known) if known and len(known) == len(sizes) else None,
        "fused_attention": sum(kernel.is_fused_attention for kernel in launched),
    }


def _type(words: str) -> str:
    """The type that the words of a `Datatype` or `Format/Datatype` name; the words themselves where none is known."""
    found = (_WORDS.get(word.strip(".").lower()) for word in words.split())
    return next((name for name in found if name), words.strip())


def _from_block(text: str, start: int) -> Iterator[Kernel]:
    """The lines of a `Layers:` block, up to the first that is not a layer."""
    if start < 0:
        return
    for line in text[start:].lstrip("\r\n").split("\n"):  # splitlines() would also split inside of a line
        match = _LAYER.fullmatch(line.rstrip("\r"))
        if match is None:
            return
        told, _, metadata = (match["rest"] or "").partition(", Metadata:")
        stream = _STREAM.search(told)
        weights = tuple(Tensor("weights", (int(count),), _type(kind)) for kind, count in _WEIGHTS.findall(told))
        yield Kernel(
            name=match["name"],
            kind=match["kind"],
            inputs=_tensors(match["inputs"]),
            constants=_tensors(match["constants"]) + weights,
            outputs=_tensors(match["outputs"]),
            stream=int(stream[1]) if stream else 0,
            onnx_nodes=tuple(_ONNX_NODE.findall(metadata)),
        )


def _tensors(text: str | None) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(found["name"], tuple(int(dim) for dim in found["dims"].split(",") if dim), _type(found["type"]))
        for found in _TENSOR.finditer(text or "")
    )


def _from_json(text: str, start: int) -> Iterator[Kernel]:
    """The layers of an inspector's document, none where it is cut off or holds names alone."""
    try:
        document, _ = json.JSONDecoder(strict=False).raw_decode(text, start)  # metadata has raw control characters
    except (ValueError, RecursionError):
        return
    for layer in _dicts(document.get("Layers")):
        if not (isinstance(layer.get("Name"), str) and isinstance(layer.get("LayerType"), str)):
            continue
        weights = [
            {"Name": key.lower(), "Dimensions": [weight.get("Count")], "Datatype": weight.get("Type")}
            for key in ("Weights", "Bias")
            for weight in _dicts([layer.get(key)])
        ]
        stream = layer.get("StreamId")
        yield Kernel(
            name=layer["Name"],
            kind=layer["LayerType"],
            inputs=_json_tensors(layer.get("Inputs")),
            constants=_json_tensors(layer.get("Constants")) + _json_tensors(weights),
            outputs=_json_tensors(layer.get("Outputs")),
            stream=stream if type(stream) is int else 0,
            onnx_nodes=tuple(_ONNX_NODE.findall(str(layer.get("Metadata", "")))),
        )


def _json_tensors(listed: Any) -> tuple[Tensor, ...]:
    found = []
    for tensor in _dicts(listed):
        dims = tensor.get("Dimensions")
        if not isinstance(dims, list) or any(type(dim) is not int for dim in dims):
            dims = [-1]
        words = next((tensor[key] for key in ("Datatype", "DataType", "Format/Datatype") if key in tensor), "")
        found.append(Tensor(str(tensor.get("Name", "")), tuple(dims), _type(str(words))))
    return tuple(found)


def _dicts(listed: Any) -> list[dict[str, Any]]:
    """The objects of a JSON list; none where it is something else."""
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
