"""Reads the compiler's own plan: which kernels run, in which precision, what they read and write.

TensorRT-RTX prints it as one `Layers:` block of its VERBOSE log, also on a machine without a GPU. The format is not
documented, so what does not match is skipped and an unknown plan has no kernels. Notes: tensorrt.md, section 2.5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

BITS = {
    "Float": 32, "Half": 16, "BFloat16": 16, "FP8": 8, "FP4": 4, "Int64": 64, "Int32": 32, "Int8": 8, "UInt8": 8,
    "Int4": 4, "Bool": 8,
}  # fmt: skip
NOT_KERNELS = ("signal", "wait")  # events between streams
_NUMERIC = ("FP4", "Int4", "FP8", "Int8", "Half", "BFloat16", "Float")  # narrowest first

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?, StreamId: (?P<stream>\d+), Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\].*?Datatype: (?P<type>\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")  # they are separated by control characters


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that a kernel reads or writes."""

    name: str
    dims: tuple[int, ...]  # -1 where the size is free
    type: str  # the compiler's word: Float, Half, Int8, ...

    @property
    def size_bytes(self) -> int | None:
        """Bytes, None where a size is free or the type unknown."""
        if self.type not in BITS or any(dim < 0 for dim in self.dims):
            return None
        return (prod(self.dims) * BITS[self.type] + 7) // 8


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry of the plan."""

    name: str
    kind: str  # gemm, correlation, kgen, runtime_fusion, shape_call, signal, wait
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
    def is_fused_attention(self) -> bool:
        """Whether it is one of the compiler's multi-head attention kernels."""
        return "mha" in self.name.lower()


def parse_layers(log: str) -> list[Kernel]:
    """The kernels of the last plan in a TensorRT log, in order; empty where there is none that can be read."""
    lines = log.split("\n")  # splitlines() would also split at the control characters inside of a line
    starts = [number for number, line in enumerate(lines) if line.rstrip().endswith("Layers:")]
    kernels = []
    for line in lines[starts[-1] + 1 :] if starts else []:
        match = _LAYER.fullmatch(line)
        if match is None:
            break
        kernels.append(_kernel(match))
    return kernels


def summary(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """{kernels, bytes_touched, fused_attention}: signals and waits not counted, None where the plan does not tell."""
    launched = [kernel for kernel in kernels if kernel.kind not in NOT_KERNELS]
    sizes = [kernel.bytes_touched for kernel in launched]
    known = [size for size in sizes if size is not None]
    return {
        "kernels": len(launched) or None,
        "bytes_touched": sum(known) if known and len(known) == len(sizes) else None,
        "fused_attention": sum(kernel.is_fused_attention for kernel in launched),
    }


def _kernel(match: re.Match[str]) -> Kernel:
    return Kernel(
        name=match["name"],
        kind=match["kind"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"]),
        outputs=_tensors(match["outputs"]),
        stream=int(match["stream"]),
        onnx_nodes=tuple(_ONNX_NODE.findall(match["metadata"])),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(found["name"], tuple(int(dim) for dim in found["dims"].split(",") if dim), found["type"])
        for found in _TENSOR.finditer(text)
    )
