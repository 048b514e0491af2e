"""CUDA by pycuda: the primary context, which TensorRT shares, pushed and popped around what a thread does with it."""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgefuse.runtime.cuda import CudaKind, HostMemory
from edgefuse.runtime.errors import BackendError, MissingExtraError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which pycuda has no name


@functools.cache
def primary_context() -> tuple[Any, Any, Any]:
    """pycuda's driver module, device 0, and its primary context, which is kept until the process ends.

    pycuda releases a context by pushing it without a pop, so one that is released stays current, and dead.

    Raises:
        MissingExtraError: pycuda is not installed.
        BackendError: there is no driver or no GPU.
    """
    try:
        import pycuda.driver as driver
    except ModuleNotFoundError:
        raise MissingExtraError("this needs pycuda: pip install 'edgefuse[pycuda]'") from None
    except ImportError as error:
        raise BackendError(f"pycuda does not find the NVIDIA driver ({error})") from None
    try:
        driver.init()
        device = driver.Device(0)
        context = device.retain_primary_context()
    except driver.Error as error:
        raise BackendError(f"CUDA failed: {error}") from None
    atexit.register(context.detach)  # its destructor would take it for a context that pycuda made, and complain
    return driver, device, context


class PyCuda:
    """Implements `Cuda`, without graphs.

    Args:
        driver: the module pycuda.driver.
        device: one of its devices.
        context: the primary context of `device`.
    """

    name: CudaKind = "pycuda"
    can_capture = False

    def __init__(self, driver: Any, device: Any, context: Any) -> None:
        self._driver = driver
        self._context = context
        self._hosts: list[Any] = []
        self._devices: list[Any] = []
        self._streams: dict[int, Any] = {}  # handle -> stream
        self._done: dict[int, Any] = {}  # handle of a stream -> the event that `synchronize` sleeps on
        self._events: list[Any] = []
        attributes = driver.device_attribute
        needed = (attributes.INTEGRATED, attributes.CAN_MAP_HOST_MEMORY)
        self.is_integrated = all(self._call(device.get_attribute, which) for which in needed)

    def host(self, nbytes: int) -> HostMemory:
        flags = self._driver.host_alloc_flags.DEVICEMAP if self.is_integrated else 0
        array = self._call(self._driver.pagelocked_empty, nbytes, np.uint8, "C", flags)  # [nbytes]
        self._hosts.append(array.base)
        device = int(self._call(array.base.get_device_pointer)) if self.is_integrated else None
        return HostMemory(array, array.ctypes.data, device)

    def device(self, nbytes: int) -> int:
        self._devices.append(self._call(self._driver.mem_alloc, nbytes))
        return int(self._devices[-1])

    def stream(self) -> int:
        stream = self._call(self._driver.Stream, NON_BLOCKING)
        self._streams[stream.handle] = stream
        self._done[stream.handle] = self._call(self._driver.Event, self._driver.event_flags.BLOCKING_SYNC)
        return int(stream.handle)

    def event(self) -> int:
        self._events.append(self._call(self._driver.Event))
        return len(self._events) - 1

    def copy_in(self, device: int, host: HostMemory, nbytes: int, stream: int) -> None:
        self._call(self._driver.memcpy_htod_async, device, host.array[:nbytes], self._streams[stream])

    def copy_out(self, host: HostMemory, device: int, nbytes: int, stream: int) -> None:
        self._call(self._driver.memcpy_dtoh_async, host.array[:nbytes], device, self._streams[stream])

    def record(self, event: int, stream: int) -> None:
        self._call(self._events[event].record, self._streams[stream])

    def wait(self, stream: int, event: int) -> None:
        self._call(self._streams[stream].wait_for_event, self._events[event])

    def synchronize(self, stream: int) -> None:
        # Stream.synchronize would spin: pycuda cannot ask the primary context to sleep, an event can.
        self._call(self._done[stream].record, self._streams[stream])
        self._call(self._done[stream].synchronize)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._call(self._events[start].time_till, self._events[end]))

    def capture(self, stream: int, work: Callable[[], None]) -> int | None:
        return None

    def launch(self, graph: int, stream: int) -> None:
        raise BackendError("pycuda has no CUDA graphs; use cuda-python")

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._call(self._context.push)
        try:
            yield
        finally:  # one that is left pushed aborts the process at its end
            self._call(self._context.pop)

    def close(self) -> None:
        if not (self._hosts or self._devices or self._streams or self._events):
            return
        errors: list[BackendError] = []
        with self.current():
            for stream in self._streams:
                with _collected(errors):
                    self.synchronize(stream)
            for made in (self._events, self._done, self._streams):  # pycuda destroys what nobody refers to
                made.clear()
            for memory in (self._devices, self._hosts):
                while memory:
                    with _collected(errors):
                        self._call(memory.pop().free)
        if errors:  # after an error that lasts, freeing fails too: the first one tells why
            raise errors[0]

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise BackendError(f"CUDA failed: {error}") from None


@contextlib.contextmanager
def _collected(errors: list[BackendError]) -> Iterator[None]:
    try:
        yield
    except BackendError as error:
        errors.append(BackendError(str(error)))  # a new one: the frames of this one keep what failed alive
