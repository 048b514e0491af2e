"""One part on the GPU: an engine's context, the memory of its tensors, its stream, and its CUDA graph.

All memory is made once, for the largest batch that will run, and every run uses it again. No GPU has met these lines:
they are tested over doubles of CUDA and of TensorRT that refuse what the real ones refuse.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.cuda import Cuda, HostMemory
from edgefuse.runtime.errors import BackendError, BundleError, EngineError

if TYPE_CHECKING:  # it imports tensorrt, which means nothing before use_package
    from edgefuse.runtime.trt_engine import Engine, Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Memory:
    """Where one tensor is that the CPU writes or reads."""

    host: HostMemory
    address: int  # for the GPU
    is_shared: bool  # the GPU uses the memory of the CPU, and nothing is copied


class Part:
    """An engine that is ready to run.

    Args:
        cuda: the GPU.
        engine: the loaded part.
        batch: the largest batch that will run.
        on_device: tensor -> address and bytes, for those that never leave the GPU.

    Raises:
        EngineError, BackendError: there is no memory for it, or TensorRT refuses the memory or the batch.
    """

    def __init__(self, cuda: Cuda, engine: Engine, batch: int, on_device: Mapping[str, tuple[int, int]]) -> None:
        self._cuda = cuda
        self._what = engine.what
        self._tensors = {tensor.name: tensor for tensor in engine.tensors}
        self._graph: int | None = None
        self._batch = 0
        self._memory: dict[str, _Memory] = {}
        self.arrays: dict[str, NDArray[Any]] = {}  # what the CPU writes and reads, batch first
        self.stream = cuda.stream()
        self.began, self.ended = cuda.event(), cuda.event()
        self._context = engine.context()
        try:
            for name, shape in self._context.set_batch(batch).items():
                self._context.set_address(name, self._place(self._tensors[name], shape, on_device))
            self.set_batch(batch)
        except BaseException:
            self._context.close()
            raise

    def set_batch(self, batch: int) -> None:
        """Choose the batch of the next runs; `arrays` are others afterwards."""
        if batch == self._batch:
            return
        shapes = self._context.set_batch(batch)
        for name, memory in self._memory.items():
            dtype, shape = self._tensors[name].dtype, shapes[name]
            self.arrays[name] = memory.host.array[: _nbytes(dtype, shape)].view(dtype).reshape(shape)
        self._batch = batch

    def fill(self, tensors: Tensors) -> None:
        """Copy the inputs to where the GPU gets them from.

        Raises:
            BundleError: they are not what the part takes.
        """
        for name, tensor in self._tensors.items():
            if tensor.is_input and name in self.arrays:
                array, given = self.arrays[name], tensors.get(name)
                if given is None or given.shape != array.shape or given.dtype != array.dtype:
                    raise BundleError(
                        f"{self._what} takes {name} as {_described(array)}, not {_described(given)}; export again"
                    )
                array[...] = given

    def run(self, tensors: Tensors, batch: int) -> dict[str, NDArray[Any]]:
        """Run once and wait for it; the outputs change with the next run."""
        self.set_batch(batch)
        self.fill(tensors)
        self.start()
        self.finish()
        return {name: array for name, array in self.arrays.items() if not self._tensors[name].is_input}

    def start(self) -> None:
        """Enqueue one run of what is filled in; it is done once `ended` has happened."""
        self._cuda.record(self.began, self.stream)
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self.stream)
        self._cuda.record(self.ended, self.stream)

    def finish(self) -> None:
        """Sleep until what was started is done."""
        self._cuda.synchronize(self.stream)

    def warm_up(self) -> None:
        """One run on zeros: TensorRT does on the first one what it puts off until then."""
        for array in self.arrays.values():
            array[...] = 0
        self.start()
        self.finish()
        self._context.save_cache()

    def capture(self) -> None:
        """Make one launch of all that a run enqueues; the batch stays as it is from now on. After `warm_up`."""
        if self._context.captures_itself or not self._cuda.can_capture:
            return
        self._graph = self._cuda.capture(self.stream, self._enqueue)
        if self._graph is None:
            _log.warning("%s cannot be captured in a CUDA graph, and runs a little slower without", self._what)

    def elapsed_ms(self) -> float:
        """What the last run took on the GPU, with its copies."""
        return self._cuda.elapsed_ms(self.began, self.ended)

    def close(self) -> None:
        """Let go of the context; the memory is freed with `cuda`."""
        try:
            with contextlib.suppress(BackendError):
                self.finish()  # a run may be pending where another part has failed
                self._context.save_cache()
        finally:
            self._context.close()

    def _place(self, tensor: Tensor, shape: tuple[int, ...], on_device: Mapping[str, tuple[int, int]]) -> int:
        """Where the GPU finds a tensor of this shape; the memory is made where it is not on the device already."""
        nbytes = _nbytes(tensor.dtype, shape)
        if tensor.name in on_device:
            address, there = on_device[tensor.name]
            if nbytes != there:
                raise EngineError(
                    f"{self._what} has {tensor.name} in {nbytes} bytes, the contract says {there}; export again"
                )
            return address
        host = self._cuda.host(nbytes)
        shared = host.device_address
        memory = _Memory(host, self._cuda.device(nbytes) if shared is None else shared, shared is not None)
        self._memory[tensor.name] = memory
        return memory.address

    def _enqueue(self) -> None:
        """The copies in, the engine, the copies out."""
        for name, memory in self._memory.items():
            if not memory.is_shared and self._tensors[name].is_input:
                self._cuda.copy_in(memory.address, memory.host, self.arrays[name].nbytes, self.stream)
        self._context.enqueue(self.stream)
        for name, memory in self._memory.items():
            if not memory.is_shared and not self._tensors[name].is_input:
                self._cuda.copy_out(memory.host, memory.address, self.arrays[name].nbytes, self.stream)


def _nbytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _described(array: NDArray[Any] | None) -> str:
    return "missing" if array is None else f"{array.dtype} {list(array.shape)}"
