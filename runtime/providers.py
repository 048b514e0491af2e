"""ONNX Runtime's execution providers: those that can be asked for, what each runs, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass

from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BackendError

CPU = "CPUExecutionProvider"
Chain = list[tuple[str, dict[str, str]]]  # ONNX Runtime's name of each provider and its options, the wanted one first


@dataclass(frozen=True, slots=True)
class Provider:
    """One row of the table."""

    name: str  # ONNX Runtime's
    part_sets: tuple[str, ...]  # it runs the first of them that the bundle has
    package: str  # the build of ONNX Runtime that has it


PROVIDERS = {
    "cpu": Provider(CPU, ("cpu", "fp32"), "onnxruntime"),
    "openvino": Provider("OpenVINOExecutionProvider", ("fp32",), "onnxruntime-openvino"),
    "ort-tensorrt": Provider("TensorrtExecutionProvider", ("trt", "fp32"), "onnxruntime-gpu"),
    "ort-cuda": Provider("CUDAExecutionProvider", ("fp32",), "onnxruntime-gpu"),
}


def part_set_for(bundle: Bundle, kind: str) -> str:
    """The part set of `bundle` that `kind` runs where none is asked for."""
    return next((name for name in PROVIDERS[kind].part_sets if name in bundle.info.parts), "fp32")


def chain(bundle: Bundle, kind: str, part_set: str, part: str, threads: int) -> Chain:
    """What ONNX Runtime is to run `part` on; it gives the CPU what the wanted provider does not take.

    Raises:
        BackendError: the part does not belong on this provider.
    """
    info = bundle.part_info(part_set, part)
    options: dict[str, str] = {}
    if kind == "cpu":
        return [(CPU, options)]
    if kind == "openvino":
        options = {"device_type": "CPU", **({"num_of_threads": str(threads)} if threads else {})}
    elif kind == "ort-tensorrt":
        # The provider knows an engine by the names in the graph, not by its weights: a folder per content.
        folder = bundle.folder / "engines" / kind / f"{part}-{bundle.info.files[info.file][:16]}"
        options = {
            "trt_fp16_enable": _flag("fp16" in info.precision),
            "trt_int8_enable": _flag("int8" in info.precision),
            "trt_engine_cache_enable": _flag(True),
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": _flag(True),
            "trt_timing_cache_path": str(folder),
        }
    elif "int8" in info.precision:
        raise BackendError(
            f"{part} of {part_set} is {info.precision}: the CUDA provider has no INT8 kernels and bounces every one to "
            "the CPU; use the fp32 parts, or ort-tensorrt"
        )
    return [(PROVIDERS[kind].name, options), (CPU, {})]


def _flag(value: bool) -> str:
    return "1" if value else "0"
