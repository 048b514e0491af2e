"""Device memory, streams, events and graphs: the little of CUDA that the TensorRT backend needs, by either package."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.errors import MissingExtraError

CudaKind = Literal["cuda-python", "pycuda"]


@dataclass(frozen=True, eq=False)
class HostMemory:
    """Pinned memory of the CPU; a copy from or to it runs beside the CPU. Not to be touched after `Cuda.close`."""

    array: NDArray[np.uint8]  # [nbytes]
    address: int
    device_address: int | None  # the same memory as the GPU sees it, where the two share it


class Cuda(Protocol):
    """One GPU, device 0 of those that CUDA_VISIBLE_DEVICES leaves; belongs to one thread at a time.

    Everything but `current` and `close` is called inside of `with cuda.current():`. Any failure is a BackendError.
    """

    name: CudaKind
    is_integrated: bool  # GPU and CPU share memory, as on a Jetson: host memory is mapped and needs no copy
    can_capture: bool  # has CUDA graphs

    def host(self, nbytes: int) -> HostMemory:
        """Pinned memory of the CPU; its content is undefined."""
        ...

    def device(self, nbytes: int) -> int:
        """The address of new memory of the GPU; its content is undefined."""
        ...

    def stream(self) -> int:
        """A new stream that does not wait for the default stream."""
        ...

    def event(self) -> int:
        """A new event, with timing."""
        ...

    def copy_in(self, device: int, host: HostMemory, nbytes: int, stream: int) -> None:
        """Enqueue a copy to the GPU; `host` must stay as it is until the copy ran."""
        ...

    def copy_out(self, host: HostMemory, device: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy from the GPU; `host` holds it once `stream` is synchronized."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Enqueue that `event` happens here."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Enqueue that `stream` waits for the last recording of `event`; for nothing where there was none."""
        ...

    def synchronize(self, stream: int) -> None:
        """Sleep until all that was enqueued on `stream` has run."""
        ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Time on the GPU between two events that have happened, and were not recorded in a capture."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> int | None:
        """A graph of what `work` enqueues on `stream`, and on those that it forks from it and joins again.

        Nothing of it runs before `launch`. None where CUDA has no graphs, or where `work` has something that cannot be
        captured (it may raise BackendError for that); any other error of `work` is passed on.
        """
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a captured graph."""
        ...

    def current(self) -> AbstractContextManager[Any]:
        """Makes the GPU usable in this thread."""
        ...

    def close(self) -> None:
        """Wait for all streams, then free all that was made; calling it twice is fine."""
        ...


def open_cuda(kind: CudaKind) -> Cuda:
    """The GPU by one of the two packages.

    Raises:
        MissingExtraError: the package is not installed.
        BackendError: there is no driver or no GPU, or CUDA refuses it.
    """
    if kind == "pycuda":
        from edgefuse.runtime.cuda_pycuda import PyCuda, primary_context

        return PyCuda(*primary_context())
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingExtraError("this needs cuda-python: pip install cuda-python (edgefuse[tensorrt] has it)") from None
    from edgefuse.runtime.cuda_runtime import CudaRuntime

    return CudaRuntime(runtime)


def as_array(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Memory of the CPU at `address`, not a copy; nothing keeps it alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
