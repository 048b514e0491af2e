"""TensorRT's runtime objects behind plain ones: an engine, its contexts, and every answer of theirs checked.

Only names that TensorRT 10.3 to 11 and TensorRT-RTX all have; what only TensorRT-RTX has is asked for by getattr, and
tests/test_trt_conformance.py lets mypy read this file against each version. Imported by backend_trt.py once
trt_package.py has chosen what `import tensorrt` means. No GPU has met these lines: they are tested over a double, and
up to the missing driver with the real TensorRT-RTX.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt  # type: ignore[import-not-found,import-untyped,unused-ignore]

from edgefuse.runtime.errors import BackendError, EngineError
from edgefuse.runtime.rtx_cache import RtxCache
from edgefuse.runtime.trt_errors import plain

Shape = tuple[int, ...]
# TensorRT's own nptype() lacks types that it has, and fails on them.
DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
PROFILE = 0  # the one that our engines have
_KEPT_ERRORS = 20  # messages
_log = logging.getLogger(__name__)


class _Logger(trt.ILogger):  # type: ignore[misc]  # its base is known when it runs
    """Keeps the last errors. Nothing here may raise: C++ calls it, and a Python exception would end the process."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        level = int(severity)  # 0 internal error, 1 error, 2 warning, 3 information, 4 verbose
        if level <= 1:
            self.errors.append(msg)
            del self.errors[:-_KEPT_ERRORS]
        if level <= 2:
            _log.debug("[%d] %s", level, msg)


_LOGGER = _Logger()  # one per process: TensorRT keeps the first


def _listen() -> None:
    """Before a call that may fail: what was logged until now has nothing to do with it."""
    _LOGGER.errors.clear()


def _why() -> str:
    """What was logged since `_listen`, in plain words."""
    return plain(_LOGGER.errors)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of an engine."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    sizes: Shape  # -1 for the batch where it is free


class Engine:
    """One engine, loaded.

    Args:
        runtime: what `open_runtime` gave.
        what: it in words, for messages.
        data: its bytes.
        cache: where TensorRT-RTX keeps the kernels that it compiled for this GPU.

    Raises:
        EngineError: TensorRT does not take the plan; says why.
    """

    def __init__(self, runtime: trt.Runtime, what: str, data: bytes, cache: Path) -> None:
        self.what = what
        self.cache = cache
        _listen()
        self.cuda_engine = runtime.deserialize_cuda_engine(data)
        if self.cuda_engine is None:
            raise EngineError(f"{what} cannot be loaded: {_why()}")
        try:
            names = map(self.cuda_engine.get_tensor_name, range(self.cuda_engine.num_io_tensors))
            self.tensors = tuple(map(self._tensor, names))
            self.batches = self._batches()  # smallest and largest
        except BaseException:
            self.close()
            raise

    def context(self) -> Context:
        """What runs it; see Context."""
        return Context(self)

    def close(self) -> None:
        """Free it; its contexts are closed already."""
        del self.cuda_engine

    def _tensor(self, name: str) -> Tensor:
        kind = self.cuda_engine.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise EngineError(f"{self.what} has {name} as {kind}; only {', '.join(DTYPES)} can be filled; export again")
        is_input = self.cuda_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        return Tensor(name, is_input, np.dtype(DTYPES[kind]), tuple(self.cuda_engine.get_tensor_shape(name)))

    def _batches(self) -> tuple[int, int]:
        smallest, largest = 1, 2**31
        for tensor in self.tensors:
            if not tensor.is_input:
                continue
            least = most = tensor.sizes[0]
            if least == -1:
                shapes = self.cuda_engine.get_tensor_profile_shape(tensor.name, PROFILE)  # smallest, best, largest
                least, most = shapes[0][0], shapes[2][0]
            smallest, largest = max(smallest, least), min(largest, most)
        return smallest, largest


class Context:
    """What runs an engine, with one batch size at a time; to be closed before the engine.

    Args:
        engine: what to run.

    Raises:
        EngineError: there is no memory for it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        strategies = getattr(trt, "CudaGraphStrategy", None)  # TensorRT-RTX only
        self.captures_itself = strategies is not None  # in CUDA graphs
        self._rtx: RtxCache | None = None
        if strategies is not None:
            self._rtx = RtxCache(engine.cuda_engine, engine.cache, strategies.WHOLE_GRAPH_CAPTURE)
        _listen()
        self._context = engine.cuda_engine.create_execution_context(*((self._rtx.config,) if self._rtx else ()))
        if self._context is None:
            self.close()
            raise EngineError(f"{engine.what} cannot be made ready: {_why()}")

    def set_batch(self, batch: int) -> dict[str, Shape]:
        """Choose the batch; returns the shape of every tensor.

        Raises:
            BackendError: TensorRT refuses it.
        """
        _listen()
        for tensor in self.engine.tensors:
            shape = tuple(batch if size == -1 else size for size in tensor.sizes)
            if tensor.is_input and not self._context.set_input_shape(tensor.name, shape):
                raise BackendError(f"{self.engine.what} refuses {tensor.name} as {list(shape)}: {_why()}")
        try:
            missing = ", ".join(self._context.infer_shapes())
        except RuntimeError as error:
            missing = str(error)
        if missing:
            raise BackendError(f"{self.engine.what} has no shapes for a batch of {batch}: {missing}; {_why()}")
        return {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in self.engine.tensors}

    def set_address(self, name: str, address: int) -> None:
        """Say where the GPU finds a tensor."""
        _listen()
        if not self._context.set_tensor_address(name, address):
            raise BackendError(f"{self.engine.what} refuses the memory of {name}: {_why()}")

    def enqueue(self, stream: int) -> None:
        """Enqueue one run.

        Raises:
            BackendError: nothing was enqueued; who goes on reads outputs of zeros.
        """
        _listen()
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"{self.engine.what} did not run: {_why()}")

    def save_cache(self) -> None:
        """Let TensorRT-RTX start faster the next time."""
        if self._rtx is not None:
            self._rtx.save()

    def close(self) -> None:
        """Free it; nothing of it is pending on the GPU."""
        del self._context, self._rtx


def open_runtime(target: str) -> trt.Runtime:
    """What loads engines.

    Raises:
        EngineError: TensorRT finds no GPU that it can use.
    """
    _listen()
    try:
        return trt.Runtime(_LOGGER)
    except TypeError:  # its constructor returned nothing
        raise EngineError(f"{target} found no usable GPU here: {_why()}") from None
