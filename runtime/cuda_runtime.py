"""CUDA by cuda-python: the runtime API on the primary context, which TensorRT shares and every thread may use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from edgefuse.runtime.cuda import CudaKind, HostMemory, as_array
from edgefuse.runtime.errors import BackendError

DEVICE = 0
NO_DRIVER = "no NVIDIA driver (libcuda.so.1 is not there)"


class CudaRuntime:
    """Implements `Cuda`.

    Args:
        runtime: the module cuda.bindings.runtime.

    Raises:
        BackendError: there is no driver or no GPU.
    """

    name: CudaKind = "cuda-python"
    can_capture = True

    def __init__(self, runtime: Any) -> None:
        self._cuda = runtime
        self._hosts: list[int] = []
        self._devices: list[int] = []
        self._streams: list[int] = []
        self._events: list[int] = []
        self._graphs: list[int] = []
        self._open_device()
        attributes = runtime.cudaDeviceAttr
        needed = (attributes.cudaDevAttrIntegrated, attributes.cudaDevAttrCanMapHostMemory)
        self.is_integrated = all(self._ask(runtime.cudaDeviceGetAttribute(which, DEVICE)) for which in needed)

    def host(self, nbytes: int) -> HostMemory:
        cuda = self._cuda
        flags = cuda.cudaHostAllocMapped if self.is_integrated else cuda.cudaHostAllocDefault
        address = int(self._ask(cuda.cudaHostAlloc(nbytes, flags)))
        self._hosts.append(address)
        device = int(self._ask(cuda.cudaHostGetDevicePointer(address, 0))) if self.is_integrated else None
        return HostMemory(as_array(address, nbytes), address, device)

    def device(self, nbytes: int) -> int:
        self._devices.append(int(self._ask(self._cuda.cudaMalloc(nbytes))))
        return self._devices[-1]

    def stream(self) -> int:
        cuda = self._cuda
        self._streams.append(int(self._ask(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))))
        return self._streams[-1]

    def event(self) -> int:
        self._events.append(int(self._ask(self._cuda.cudaEventCreate())))
        return self._events[-1]

    def copy_in(self, device: int, host: HostMemory, nbytes: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._cuda.cudaMemcpyAsync(device, host.address, nbytes, kind, stream))

    def copy_out(self, host: HostMemory, device: int, nbytes: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._cuda.cudaMemcpyAsync(host.address, device, nbytes, kind, stream))

    def record(self, event: int, stream: int) -> None:
        self._check(self._cuda.cudaEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        self._check(self._cuda.cudaStreamWaitEvent(stream, event, 0))

    def synchronize(self, stream: int) -> None:
        self._check(self._cuda.cudaStreamSynchronize(stream))

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._ask(self._cuda.cudaEventElapsedTime(start, end)))

    def capture(self, stream: int, work: Callable[[], None]) -> int | None:
        cuda = self._cuda
        self._check(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        is_whole = False
        executable = None
        try:
            with contextlib.suppress(BackendError):
                work()
                is_whole = True
        finally:  # a stream that is left capturing takes no other work
            error, graph = cuda.cudaStreamEndCapture(stream)
            if is_whole and not error:
                executable = self._instantiate(graph)
            if not error and int(graph):
                self._check(cuda.cudaGraphDestroy(graph))
            cuda.cudaGetLastError()  # a refusal is kept, and the next who asks for the last error would have it
        return executable

    def launch(self, graph: int, stream: int) -> None:
        self._check(self._cuda.cudaGraphLaunch(graph, stream))

    def current(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def close(self) -> None:
        cuda = self._cuda
        errors: list[BackendError] = []
        for free, made in (
            (cuda.cudaStreamSynchronize, list(self._streams)),
            (cuda.cudaGraphExecDestroy, self._graphs),
            (cuda.cudaEventDestroy, self._events),
            (cuda.cudaStreamDestroy, self._streams),
            (cuda.cudaFree, self._devices),
            (cuda.cudaFreeHost, self._hosts),
        ):
            while made:
                try:
                    self._check(free(made.pop()))
                except BackendError as error:
                    errors.append(error)
        if errors:  # after an error that lasts, freeing fails too: the first one tells why
            raise errors[0]

    def _open_device(self) -> None:
        cuda = self._cuda
        try:
            # Asleep instead of spinning while it waits: the cores belong to the sensors.
            answers = (cuda.cudaSetDeviceFlags(cuda.cudaDeviceScheduleBlockingSync), cuda.cudaSetDevice(DEVICE))
        except RuntimeError as error:  # cuda-python before 13 does not report a missing driver but raises
            raise BackendError(f"{NO_DRIVER} ({error})") from None
        for answer in answers:
            if answer[0] == cuda.cudaError_t.cudaErrorInsufficientDriver:
                raise BackendError(self._driver_is_old())
            self._check(answer)

    def _driver_is_old(self) -> str:
        driver, ours = (self._ask(ask()) for ask in (self._cuda.cudaDriverGetVersion, self._cuda.cudaRuntimeGetVersion))
        if driver == 0:
            return NO_DRIVER
        return (
            f"cudaErrorInsufficientDriver: the NVIDIA driver has CUDA {_version(driver)}, cuda-python needs "
            f"{_version(ours)}; update the driver, or pip install 'cuda-python<{ours // 1000}'"
        )

    def _instantiate(self, graph: Any) -> int | None:
        error, executable = self._cuda.cudaGraphInstantiateWithFlags(graph, 0)  # the same in CUDA 11, 12 and 13
        if error:
            return None
        self._graphs.append(int(executable))
        return self._graphs[-1]

    def _ask(self, answer: tuple[Any, Any]) -> Any:
        self._check(answer)
        return answer[1]

    def _check(self, answer: tuple[Any, ...]) -> None:
        error = answer[0]
        if error:
            name, text = (self._cuda.cudaGetErrorName(error)[1], self._cuda.cudaGetErrorString(error)[1])
            raise BackendError(f"CUDA failed: {name.decode()} ({text.decode()})")


def _version(number: int) -> str:
    """13050 -> 13.5."""
    return f"{number // 1000}.{number % 1000 // 10}"
