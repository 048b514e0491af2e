"""Engines of the double: a plan whose header is the real one's and whose payload is the ONNX part itself."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

import onnx

from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file
from edgefuse.runtime.engine_header import SIZE, SM_BITS
from edgefuse.runtime.engines import COMPILED_SET, Sidecar, staged_file, write_sidecar

VERSIONS = {"tensorrt": (10, 3, 0, 26), "tensorrt-rtx": (1, 7, 1, 116)}
MAGICS = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
SM, GPU_NAME = 89, "Double 4090"
MAX_BATCH = 4
KINDS = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}  # of onnx.TensorProto


@dataclass(frozen=True)
class Io:
    """One input or output."""

    name: str
    is_input: bool
    kind: str  # name of a DataType
    sizes: tuple[int, ...]  # -1 for the batch


@dataclass(frozen=True)
class Plan:
    """What is in an engine file."""

    version: tuple[int, int, int, int]
    sm: int
    batches: tuple[int, int, int]  # smallest, best, largest
    model: bytes

    @property
    def tensors(self) -> tuple[Io, ...]:
        graph = onnx.load_from_string(self.model).graph
        return (*(_io(value, True) for value in graph.input), *(_io(value, False) for value in graph.output))


def write_plan(target: str, plan: Plan) -> bytes:
    """The bytes of an engine file, whose header says its size."""
    about = json.dumps({"sm": plan.sm, "batches": plan.batches}).encode()
    payload = struct.pack("<I", len(about)) + about + plan.model
    mask = 1 << SM_BITS.index(plan.sm) if plan.sm in SM_BITS else 0
    form = "<4s12xQ4B4sQ24x" if target == "tensorrt-rtx" else "<4s4xQ8x4B4sQ24x"
    return struct.pack(form, MAGICS[target], SIZE + len(payload), *plan.version, MAGICS[target], mask) + payload


def read_plan(target: str, data: bytes) -> Plan | str:
    """The plan, or what TensorRT says where it is none that it takes."""
    magic, wanted = (int.from_bytes(word, "little") for word in (data[:4], MAGICS[target]))
    if magic != wanted:
        return (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion header.magicTag == "
            f"kEXPECTED_MAGIC_TAG failed.Trying to load an engine created with incompatible serialization version "
            f"({magic} != {wanted}).)"
        )
    version = tuple(data[24:28])
    if version != VERSIONS[target]:
        here, there = (".".join(map(str, numbers)) for numbers in (VERSIONS[target], version))
        return (
            "6: The engine plan file is not compatible with this version of TensorRT, expecting library version "
            f"{here} got {there}, please rebuild."
        )
    (size,) = struct.unpack_from("<Q", data, 16 if target == "tensorrt-rtx" else 8)
    if size != len(data):
        return "Error Code 1: Serialization (Serialization assertion plan.header.size == blobSize failed.)"
    (length,) = struct.unpack_from("<I", data, SIZE)
    about = json.loads(data[SIZE + 4 : SIZE + 4 + length])
    if about["sm"] != SM:
        here, there = (f"{sm // 10}.{sm % 10}" for sm in (SM, about["sm"]))
        return (
            "6: The engine plan file is generated on an incompatible device, expecting compute "
            f"{here} got compute {there}, please rebuild."
        )
    return Plan(VERSIONS[target], SM, tuple(about["batches"]), data[SIZE + 4 + length :])


def with_engines(bundle: Bundle, target: str, max_batch: int = MAX_BATCH, **changes: Any) -> Bundle:
    """The bundle with its fp32 parts as trt parts too, and an engine of each."""
    parts = (*bundle.info.modalities, HEAD)
    models = {part: bundle.part("fp32", part) for part in parts}
    trt = {part: PartInfo(file=part_file(COMPILED_SET, part), precision="fp32") for part in parts}
    bundle = bundle.updated(
        {trt[part].file: models[part] for part in parts}, parts={**bundle.info.parts, COMPILED_SET: trt}
    )
    for part in parts:
        put_engine(bundle, target, part, Plan(VERSIONS[target], SM, (1, 1, max_batch), models[part]), **changes)
    return bundle


def put_engine(bundle: Bundle, target: str, part: str, plan: Plan, **changes: Any) -> None:
    """Write an engine and its sidecar."""
    put_bytes(bundle, target, part, write_plan(target, plan), batch=plan.batches, **changes)


def put_bytes(bundle: Bundle, target: str, part: str, data: bytes, **changes: Any) -> None:
    """Write an engine of any bytes with a sidecar that says that it fits."""
    described = {
        "part": part,
        "target": target,
        "tensorrt_version": ".".join(map(str, VERSIONS[target])),
        "sm": (SM,),
        "gpu": GPU_NAME if target == "tensorrt" else None,
        "batch": (1, 1, MAX_BATCH),
        "source_sha256": bundle.info.files[part_file(COMPILED_SET, part)],
        "engine_sha256": hashlib.sha256(data).hexdigest(),
        "kernels": None,
        "bytes_touched": None,
        "seconds": 0.0,
        **changes,
    }
    staged = staged_file(bundle.folder, target, part)
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_bytes(data)
    write_sidecar(bundle.folder, Sidecar.model_validate(described))


def _io(value: onnx.ValueInfoProto, is_input: bool) -> Io:
    kind = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return Io(value.name, is_input, KINDS[kind.elem_type], sizes)
