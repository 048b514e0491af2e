"""What a part in some precision costs on a device: timed there, else read from a compiled plan, else estimated.

Where there is no device to time on, kernels and bytes become one figure by a stated model: a launch, and the time that
the memory of an Orin Nano takes for the bytes. That ranks the forms of a part; it is no latency.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgefuse.optimize.compile_process import run_compiler
from edgefuse.optimize.compiler import Job
from edgefuse.optimize.graph import FLOAT16, Graph
from edgefuse.optimize.plan import parse_layers, summary
from edgefuse.optimize.timed import BLOCKS, RUNS, Timer, find_device
from edgefuse.runtime.errors import EngineError

LAUNCH_US = 3.0  # one kernel of a CUDA graph, start to start; assumed
BYTES_PER_US = 68_000  # 68 GB/s: NVIDIA's data sheet of the Jetson Orin Nano 8 GB
SM = 86  # the plan of an Ampere GPU, as Orin has; TensorRT-RTX knows no SM 87
_WEIGHTED = ("Conv", "MatMul", "Gemm", "Gather")


WORTH = 0.002  # least share of the cost that INT8 has to save


@dataclass(frozen=True, slots=True)
class Cost:
    """One run at batch 1: its launches and the bytes they touch, and how long it takes where that was measured."""

    kernels: int | None  # None where a timed engine's plan does not tell
    bytes_touched: int | None
    measured_us: float | None = None
    spread_us: float = 0.0  # of measured_us

    @property
    def us(self) -> float:
        """What was measured, else launches and bytes as microseconds of the stated model."""
        if self.measured_us is not None:
            return self.measured_us
        return (self.kernels or 0) * LAUNCH_US + (self.bytes_touched or 0) / BYTES_PER_US

    def beats(self, other: Cost) -> bool:
        """Whether it is cheaper, by more than the spread of what was measured, and so that it is worth a change."""
        return other.us - self.us > max(WORTH * other.us, self.spread_us, other.spread_us)

    def against(self, other: Cost) -> str:
        """What sets it apart from `other`, in words."""
        told = []
        if self.measured_us is not None:
            spread = max(self.spread_us, other.spread_us)
            told.append(f"takes {self.us - other.us:+.1f} us (spread {spread:.1f})")
        if self.kernels is not None and other.kernels is not None:
            told.append(f"makes {self.kernels - other.kernels:+d} kernels")
        if self.bytes_touched is not None and other.bytes_touched is not None:
            told.append(f"{(self.bytes_touched - other.bytes_touched) / 1e3:+.0f} kB")
        return " and ".join(told)


def cost_source() -> tuple[str, Callable[[bytes], Cost]]:
    """What the costs of one part are read from on this machine, in words and as a function of the ONNX bytes."""
    untimed = ""
    try:
        if device := find_device():
            how = f"median of {BLOCKS} blocks of {RUNS} runs, in turn with the part's first form"
            told = f"timed on {device.gpu}, TensorRT {device.version}, batch 1, {how}"
            return told, partial(timed_cost, Timer(device))
    except EngineError as error:
        untimed = f"; not timed on the GPU: {error}"
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return f"estimated from the graph, since TensorRT-RTX is not installed{untimed}", estimated_cost
    return f"the plan of TensorRT-RTX for SM {SM}, batch 1{untimed}", compiled_cost


def timed_cost(timer: Timer, model: bytes) -> Cost:
    """Build `model` for this machine's GPU, time it there, and count what TensorRT says of its kernels.

    Raises:
        EngineError: TensorRT refuses it, or it cannot be timed.
    """
    timing = timer.time(model)
    told = summary(parse_layers(timing.plan))
    return Cost(told["kernels"], told["bytes_touched"], timing.us, timing.spread_us)


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
