"""What a part in some precision would cost on a device: read from the compiled plan, or else estimated from the graph.

Kernels and bytes become one figure by a stated model: a launch, and the time that the memory of an Orin Nano takes for
the bytes. It ranks the forms of a part; it is no latency, and none was measured.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgefuse.optimize.compile_process import run_compiler
from edgefuse.optimize.compiler import Job
from edgefuse.optimize.graph import FLOAT16, Graph
from edgefuse.optimize.plan import parse_layers, summary
from edgefuse.runtime.errors import EngineError

LAUNCH_US = 3.0  # one kernel of a CUDA graph, start to start; assumed
BYTES_PER_US = 68_000  # 68 GB/s: NVIDIA's data sheet of the Jetson Orin Nano 8 GB
SM = 86  # the plan of an Ampere GPU, as Orin has; TensorRT-RTX knows no SM 87
_WEIGHTED = ("Conv", "MatMul", "Gemm", "Gather")


@dataclass(frozen=True, slots=True)
class Cost:
    """Launches and bytes of one run at batch 1."""

    kernels: int
    bytes_touched: int

    @property
    def us(self) -> float:
        """Launches and bytes as microseconds of the stated model."""
        return self.kernels * LAUNCH_US + self.bytes_touched / BYTES_PER_US


def cost_source() -> tuple[str, Callable[[bytes], Cost]]:
    """What the costs are read from on this machine, in words and as a function of the ONNX bytes."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return "estimated from the graph, since TensorRT-RTX is not installed", estimated_cost
    return f"the plan of TensorRT-RTX for SM {SM}, batch 1", compiled_cost


def compiled_cost(model: bytes) -> Cost:
    """Compile `model` and count.

    Raises:
        EngineError: the compiler refuses it, or its plan cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        job = Job("tensorrt-rtx", (SM,), 1, str(Path(folder, "engine")))
        run_compiler(job, model, log, lambda phase, done: None, lambda note: None)
        told = summary(parse_layers(log.read_text(errors="replace")))
    if told["kernels"] is None or told["bytes_touched"] is None:
        raise EngineError("the plan of TensorRT-RTX cannot be read; uninstall tensorrt-rtx to estimate costs instead")
    return Cost(told["kernels"], told["bytes_touched"])


def estimated_cost(model: bytes) -> Cost:
    """One kernel and its operands for each weighted node; INT8 products and convolutions add one that rescales.

    The rule is what plans of TensorRT-RTX 1.7 show: an INT8 product writes FP16, and a kernel behind it applies scales,
    bias and activation, where FP16 does all in one; an INT8 convolution writes FP32.
    """
    graph = Graph(model)
    kernels = bytes_touched = 0
    for node in graph.nodes:
        if node.op_type not in _WEIGHTED:
            continue
        codes = [graph.producers[name] for name in node.input if name in graph.producers]
        in_int8 = any(producer.op_type == "DequantizeLinear" for producer in codes)
        sources = [
            graph.producers[name].input[0] if name in graph.producers and in_int8 else name for name in node.input
        ]
        result = graph.size_bytes(node.output[0])
        bytes_touched += sum(graph.size_bytes(name) for name in sources if name) + result
        kernels += 1
        if in_int8 and node.op_type != "Gather":
            kernels += 1
            widened = 2 if node.op_type == "Conv" and graph.types.get(node.output[0]) == FLOAT16 else 1
            bytes_touched += result * (widened + 1)
    return Cost(kernels, bytes_touched)
