"""What this CPU does at its best, measured: large matrix products in ONNX Runtime, and a stream through memory.

The products are those of the library that runs our parts, so the share that a part reaches is its own and not the
library's. The stream is STREAM's triad, a = b + s c, its bytes counted as there: three arrays, a write without the read
that a cache does first (McCalpin 1995, Memory Bandwidth and Machine Balance in Current High Performance Computers).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import psutil
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgefuse.runtime.backend_onnx import open_session

GEMM_SIZE = 512  # rows, columns and inner size: 0.27 GFLOP, short enough to run between two interruptions
REPEATS = 50  # of a product; the shortest counts, since whatever disturbs only takes away from a peak
STREAM_BYTES = 256 << 20  # of one array; the three of them outgrow the caches of today's CPUs
_STRETCH = 1 << 20  # numbers of each array and thread that are timed at once, 4 MB in FP32
_BLOCK = 1 << 15  # numbers, 128 kB: numpy takes two steps for a triad, and the second finds this in the cache
_PEAK_TYPES = {
    "fp32": (TensorProto.FLOAT, "MatMul", TensorProto.FLOAT),
    "int8": (TensorProto.UINT8, "MatMulInteger", TensorProto.INT32),
}


def measure_peaks(threads: int, size: int = GEMM_SIZE, stream_bytes: int = STREAM_BYTES) -> dict[str, float]:
    """{fp32_flops, int8_flops, stream_bytes}, all a second, with so many threads.

    Args:
        threads: that work at once.
        size: of the square matrices; INT8 is unsigned times signed, as ONNX Runtime's dynamic quantization has it.
        stream_bytes: of one array of the stream; a twelfth of the free memory at most.
    """
    fits = min(stream_bytes, psutil.virtual_memory().available // 12)
    return {
        "fp32_flops": gemm_flops("fp32", threads, size),
        "int8_flops": gemm_flops("int8", threads, size),
        "stream_bytes": triad_bytes(threads, fits),
    }


def gemm_flops(precision: str, threads: int, size: int) -> float:
    """Operations a second of [size, size] x [size, size]: 2 size^3 in the shortest of REPEATS runs."""
    left_type, op, out_type = _PEAK_TYPES[precision]
    right_type = TensorProto.INT8 if precision == "int8" else left_type
    random = np.random.default_rng(0)
    left = random.integers(0, 128, (size, size)).astype(helper.tensor_dtype_to_np_dtype(left_type))
    right = random.integers(-64, 64, (size, size)).astype(helper.tensor_dtype_to_np_dtype(right_type))
    session = open_session(_product(op, left_type, out_type, right), threads=threads)
    work = partial(session.run, None, {"left": left})
    work()  # warms up
    return 2 * size**3 / min(_seconds(work) for _ in range(REPEATS))


def triad_bytes(threads: int, array_bytes: int) -> float:
    """Bytes a second of a = b + s c, in the shortest stretch of two passes over arrays of about `array_bytes`."""
    once = threads * _STRETCH
    count = max(array_bytes // 4 // once, 1) * once
    a, b, c = (np.full(count, value, np.float32) for value in (0.0, 1.0, 2.0))
    with ThreadPoolExecutor(threads) as pool:  # numpy gives the lock back while it computes

        def stretch(start: int) -> None:
            list(pool.map(partial(_triad, a, b, c), range(start, start + once, _STRETCH)))

        seconds = min(_seconds(partial(stretch, start)) for _ in range(2) for start in range(0, count, once))
    return 3 * 4 * once / seconds


def _triad(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32], start: int) -> None:
    for begin in range(start, start + _STRETCH, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        np.multiply(c[block], np.float32(3), out=a[block])
        np.add(a[block], b[block], out=a[block])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _product(op: str, left_type: int, out_type: int, right: NDArray[np.generic]) -> bytes:
    """A graph of one product with the constant `right`, which is packed once, as weights are."""
    size = right.shape[0]
    weight = helper.make_tensor(
        "right", helper.np_dtype_to_tensor_dtype(right.dtype), right.shape, right.tobytes(), raw=True
    )
    graph = helper.make_graph(
        [helper.make_node(op, ["left", "right"], ["out"])],
        "product",
        [helper.make_tensor_value_info("left", left_type, [size, size])],
        [helper.make_tensor_value_info("out", out_type, [size, size])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())
