"""A strict double of the CUDA runtime: the functions of `cuda.bindings.runtime` that we call, over memory of its own.

What is enqueued runs as late as CUDA allows: when its stream is synchronized, or when work on another stream waits for
it by an event. So code that reads a result too early reads rubbish. What the real thing answers with an error code, the
double answers with the same; what the real thing would let pass, to crash or to compute rubbish, raises Misuse: memory
that is not there, host memory touched while work on it is pending, two streams in each other's way, the default stream.

    driver = Driver()
    cuda = CudaRuntime(driver.runtime)
    driver.enqueue(stream, work, reads=[(address, nbytes)], writes=[(address, nbytes)])  # a kernel: a Python callable
    driver.view(address, nbytes)  # device memory, as bytes
    driver.fail("cudaMalloc", "cudaErrorMemoryAllocation", nth=2)  # the call after the next one
    driver.finish()  # nothing leaked, no misuse swallowed
"""

# ruff: noqa: N801, N802, N815 - the names are CUDA's

from __future__ import annotations

import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.cuda_order import Misuse, Order, Span

FRESH, FREED = 0xCD, 0xDD  # what memory holds before its first use and after its last
DEVICE_MEMORY = 0x7_0000_0000  # where device addresses start; nothing is there, so touching one crashes


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureMerge = 902
    cudaErrorStreamCaptureUnjoined = 904
    cudaErrorStreamCaptureIsolation = 905
    cudaErrorCapturedEvent = 907
    cudaErrorStreamCaptureWrongThread = 908


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrCanMapHostMemory = 19


CONSTANTS = {
    "cudaHostAllocDefault": 0,
    "cudaHostAllocMapped": 2,
    "cudaStreamNonBlocking": 1,
    "cudaDeviceScheduleBlockingSync": 4,
}
ENUMS = (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr)


class RefusedError(Exception):
    """A call that the runtime answers with an error code."""

    def __init__(self, error: cudaError_t) -> None:
        self.error = error


@dataclass(eq=False)
class Handle:
    """Of a stream, an event, a graph: as in the binding, an object that is no int but has one."""

    number: int

    def __int__(self) -> int:
        return self.number


@dataclass(eq=False)
class Block:
    """One allocation; a freed one keeps its place, so that whoever still uses it is found."""

    data: NDArray[np.uint8]
    host: int | None = None  # the address that the CPU sees
    device: int | None = None  # the address that the GPU sees
    is_freed: bool = False


@dataclass(eq=False)
class Operation:
    """Something that was enqueued."""

    work: Callable[[], object] = lambda: None
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()
    waits_for: Record | None = None
    graph: Graph | None = None  # that it was launched with
    seen: list[tuple[Span, bytes]] = field(default_factory=list)  # host memory, which must not change until it runs

    @property
    def spans(self) -> tuple[Span, ...]:
        return (*self.reads, *self.writes)


@dataclass(eq=False)
class Capture:
    """What a stream, and those that it is joined with, are being captured to."""

    origin: Stream
    thread: int = field(default_factory=threading.get_ident)
    operations: list[Operation] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    order: Order = field(default_factory=Order)
    is_invalid: bool = False
    is_over: bool = False


@dataclass(eq=False)
class Stream(Handle):
    queue: deque[Operation] = field(default_factory=deque)
    issued: int = 0  # operations enqueued since it was made
    done: int = 0  # of them, those that ran
    capture: Capture | None = None


@dataclass(eq=False)
class Record:
    """One recording of an event: a place in a stream."""

    stream: Stream
    place: int
    clock: dict[int, int]
    capture: Capture | None = None
    at_ms: float | None = None


@dataclass(eq=False)
class Event(Handle):
    record: Record | None = None


@dataclass(eq=False)
class Graph(Handle):
    operations: list[Operation] = field(default_factory=list)


class Executable(Graph):
    """An instantiated graph."""


class Driver:
    """One GPU without a GPU.

    Args:
        is_integrated: it shares its memory with the CPU, as on a Jetson.
        can_map_host: pinned host memory can be mapped for the GPU.
    """

    def __init__(self, is_integrated: bool = False, can_map_host: bool = True) -> None:
        self.is_integrated = is_integrated
        self.can_map_host = can_map_host
        self.misuses: list[str] = []  # also those that were swallowed
        self.calls: Counter[str] = Counter()
        self.last_error = cudaError_t.cudaSuccess
        self.clock_ms = 0.0  # every operation takes a millisecond
        self._planned: dict[tuple[str, int], cudaError_t] = {}  # function, number of its call
        self._blocks: list[Block] = []
        self._handles: dict[int, Handle] = {}
        self._numbers = iter(range(0x1000, 1 << 30, 0x10))
        self._next_address = DEVICE_MEMORY
        self._order = Order()
        self._running: Operation | None = None
        self._lock = threading.RLock()
        self.runtime = self._module()

    # For the tests and for the double of TensorRT.

    def fail(self, function: str, error: str, nth: int = 1) -> None:
        """Let the nth call from now (1: the next one) of a function report `error`; only what frees is done still."""
        self._planned[function, self.calls[function] + nth] = cudaError_t[error]

    def enqueue(
        self,
        stream: Any,
        work: Callable[[], object],
        reads: Iterable[tuple[int, int]] = (),
        writes: Iterable[tuple[int, int]] = (),
    ) -> cudaError_t:
        """Enqueue a kernel; it may look at the device memory that it names, by `view`, when it runs."""
        with self._lock, self._noted():
            spans = [tuple(self._span(*place, "device") for place in places) for places in (reads, writes)]
            try:
                self._push(self._get(stream, Stream), Operation(work, *spans))
            except RefusedError as refused:
                self.last_error = refused.error
                return refused.error
            return cudaError_t.cudaSuccess

    def view(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Device memory as bytes, not a copy. While work runs, only what it said that it reads or writes."""
        with self._noted():
            span = self._span(address, nbytes, "device")
            if self._running is not None and not any(known.holds(span) for known in self._running.spans):
                raise Misuse(f"work touches {nbytes} bytes at {address:#x}, which it did not name")
            return span.data

    def is_capturing(self, stream: Any) -> bool:
        """Whether what is enqueued on `stream` goes into a graph."""
        return self._get(stream, Stream).capture is not None

    def invalidate(self, stream: Any) -> None:
        """Spoil the capture of `stream`, as an operation does that cannot be captured."""
        capture = self._get(stream, Stream).capture
        if capture is not None:
            capture.is_invalid = True

    def pending(self, stream: Any) -> int:
        """Operations on `stream` that did not run yet."""
        return len(self._get(stream, Stream).queue)

    def finish(self) -> None:
        """After everything is closed: nothing may be left, and no misuse may have been swallowed."""
        left = [f"{type(handle).__name__} {int(handle):#x}" for handle in self._handles.values()]
        left += [f"{block.data.nbytes} bytes" for block in self._blocks if not block.is_freed]
        touched = [b.data.nbytes for b in self._blocks if b.is_freed and not bool((b.data == FREED).all())]
        assert not self.misuses, self.misuses
        assert not left, f"never freed: {left}"
        assert not touched, f"written after it was freed: {touched} bytes"

    # Device and errors.

    def cudaSetDeviceFlags(self, flags: int) -> None:
        _expect(flags, int)

    def cudaSetDevice(self, device: int) -> None:
        if device != 0:
            raise RefusedError(cudaError_t.cudaErrorInvalidValue)

    def cudaDriverGetVersion(self) -> int:
        return 13000

    def cudaRuntimeGetVersion(self) -> int:
        return 13000

    def cudaDeviceGetAttribute(self, attribute: cudaDeviceAttr, device: int) -> int:
        _expect(attribute, cudaDeviceAttr)
        return int(self.is_integrated if attribute == cudaDeviceAttr.cudaDevAttrIntegrated else self.can_map_host)

    def cudaGetErrorName(self, error: cudaError_t) -> bytes:
        return cudaError_t(error).name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> bytes:
        return f"what {cudaError_t(error).name} means".encode()

    # Memory.

    def cudaMalloc(self, nbytes: int) -> int:
        self._no_capture_here()
        return self._allocate(nbytes, is_host=False, is_seen_by_device=True)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> int:
        self._no_capture_here()
        return self._allocate(nbytes, is_host=True, is_seen_by_device=bool(flags & CONSTANTS["cudaHostAllocMapped"]))

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> int:
        device = self._block(address, "host").device
        if device is None or not self.can_map_host or flags != 0:
            raise RefusedError(cudaError_t.cudaErrorInvalidValue)
        return device

    def cudaFree(self, address: int) -> None:
        self._no_capture_here()
        self._free(self._block(address, "device"), is_host=False)

    def cudaFreeHost(self, address: int) -> None:
        self._no_capture_here()
        self._free(self._block(address, "host"), is_host=True)

    def cudaMemcpyAsync(self, to: int, of: int, nbytes: int, kind: cudaMemcpyKind, stream: Any) -> None:
        _expect(kind, cudaMemcpyKind)
        source = "host" if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else "device"
        target = "host" if kind == cudaMemcpyKind.cudaMemcpyDeviceToHost else "device"
        read, written = self._span(of, nbytes, source), self._span(to, nbytes, target)

        def copy() -> None:
            written.data[:] = read.data

        self._push(self._get(stream, Stream), Operation(copy, (read,), (written,)))

    # Streams and events.

    def cudaStreamCreateWithFlags(self, flags: int) -> Stream:
        if flags != CONSTANTS["cudaStreamNonBlocking"]:
            raise Misuse("a stream that waits for the default stream")
        return self._add(Stream)

    def cudaStreamDestroy(self, stream: Any) -> None:
        found = self._get(stream, Stream)
        if found.queue or found.capture is not None:
            raise Misuse("a stream destroyed with work pending")
        del self._handles[found.number]

    def cudaStreamSynchronize(self, stream: Any) -> None:
        found = self._get(stream, Stream)
        if found.capture is not None:
            self._spoil(found.capture, cudaError_t.cudaErrorStreamCaptureUnsupported)
        self._run(found, found.issued)
        self._order.synchronize(found.number)

    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        waiting, record = self._get(stream, Stream), self._get(event, Event).record
        if record is None:  # never recorded: nothing to wait for
            return
        if record.capture is None and waiting.capture is not None:
            self._spoil(waiting.capture, cudaError_t.cudaErrorStreamCaptureIsolation)
        if record.capture is not None:
            self._join(waiting, record.capture)
        self._push(waiting, Operation(waits_for=record), record.clock)

    def cudaEventCreate(self) -> Event:
        return self._add(Event)

    def cudaEventDestroy(self, event: Any) -> None:
        del self._handles[self._get(event, Event).number]

    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        found, at = self._get(event, Event), self._get(stream, Stream)
        record = Record(at, at.issued + 1, {}, at.capture)

        def note_time() -> None:
            record.at_ms = self.clock_ms

        self._push(at, Operation(note_time))
        record.clock = (at.capture.order if at.capture else self._order).clock(at.number)
        found.record = record

    def cudaEventElapsedTime(self, start: Any, end: Any) -> float:
        records = [self._get(event, Event).record for event in (start, end)]
        if any(record is None for record in records):
            raise RefusedError(cudaError_t.cudaErrorInvalidResourceHandle)
        if any(record is not None and record.capture is not None for record in records):
            raise RefusedError(cudaError_t.cudaErrorCapturedEvent)
        began, ended = (record.at_ms if record else None for record in records)
        if began is None or ended is None:
            raise RefusedError(cudaError_t.cudaErrorNotReady)
        return ended - began

    # Graphs.

    def cudaStreamBeginCapture(self, stream: Any, mode: cudaStreamCaptureMode) -> None:
        _expect(mode, cudaStreamCaptureMode)
        found = self._get(stream, Stream)
        if found.capture is not None:
            raise RefusedError(cudaError_t.cudaErrorIllegalState)
        found.capture = Capture(found, streams=[found])

    def cudaStreamEndCapture(self, stream: Any) -> Graph:
        found = self._get(stream, Stream)
        capture = found.capture
        if capture is None or capture.origin is not found:
            raise RefusedError(cudaError_t.cudaErrorIllegalState)
        if capture.thread != threading.get_ident():
            raise RefusedError(cudaError_t.cudaErrorStreamCaptureWrongThread)
        for joined in capture.streams:
            joined.capture = None
        capture.is_over = True
        if capture.is_invalid:
            raise RefusedError(cudaError_t.cudaErrorStreamCaptureInvalidated)
        if not all(capture.order.is_before(joined.number, found.number) for joined in capture.streams):
            raise RefusedError(cudaError_t.cudaErrorStreamCaptureUnjoined)
        return self._add(Graph, capture.operations)

    def cudaGraphInstantiateWithFlags(self, graph: Any, flags: int) -> Executable:
        return self._add(Executable, list(self._get(graph, Graph).operations))

    def cudaGraphDestroy(self, graph: Any) -> None:
        del self._handles[self._get(graph, Graph).number]

    def cudaGraphExecDestroy(self, graph: Any) -> None:
        found = self._get(graph, Executable)
        if any(operation.graph is found for operation in self._pending()):
            raise Misuse("a graph destroyed with its work pending")
        del self._handles[found.number]

    def cudaGraphLaunch(self, graph: Any, stream: Any) -> None:
        launched, at = self._get(graph, Executable), self._get(stream, Stream)
        for operation in launched.operations:  # they were captured in an order that satisfies every wait
            if any(span.block.is_freed for span in operation.spans):
                raise Misuse("a graph launched over memory that is freed")
            self._push(at, Operation(operation.work, operation.reads, operation.writes, graph=launched))

    # The inside.

    def _push(self, stream: Stream, operation: Operation, clock: dict[int, int] | None = None) -> None:
        capture = stream.capture
        if capture is not None and capture.is_invalid:
            raise RefusedError(cudaError_t.cudaErrorStreamCaptureInvalidated)
        order = capture.order if capture else self._order
        order.enter(stream.number, operation.reads, operation.writes, clock or {})
        if capture is not None:
            capture.operations.append(Operation(operation.work, operation.reads, operation.writes))
            return
        self._look_at_host_memory(operation)
        stream.queue.append(operation)
        stream.issued += 1

    def _look_at_host_memory(self, operation: Operation) -> None:
        """Remember what host memory holds until the work runs; fill what it is going to write with rubbish."""
        for span in operation.spans:
            if span.block.host is None:
                continue
            is_written = span in operation.writes
            before = [s for o in self._pending() for s in (o.spans if is_written else o.writes)]
            if not any(span.overlaps(other) for other in before):
                if is_written:
                    span.data[:] = FRESH
                operation.seen.append((span, span.data.tobytes()))

    def _run(self, stream: Stream, place: int) -> None:
        while stream.done < place:
            operation = stream.queue.popleft()
            if operation.waits_for is not None:
                self._run(operation.waits_for.stream, operation.waits_for.place)
            if any(span.data.tobytes() != content for span, content in operation.seen):
                raise Misuse("host memory was written while work on it was pending")
            self.clock_ms += 1.0
            stream.done += 1
            self._running, outer = operation, self._running
            try:
                operation.work()
            finally:
                self._running = outer

    def _pending(self) -> list[Operation]:
        return [o for handle in self._handles.values() if isinstance(handle, Stream) for o in handle.queue]

    def _join(self, stream: Stream, capture: Capture) -> None:
        """Waiting for an event of a capture takes a stream into it."""
        if capture.is_over:
            raise RefusedError(cudaError_t.cudaErrorCapturedEvent)
        if stream.capture is None:
            stream.capture = capture
            capture.streams.append(stream)
        elif stream.capture is not capture:
            self._spoil(stream.capture, cudaError_t.cudaErrorStreamCaptureMerge)

    def _no_capture_here(self) -> None:
        """What a thread that captures must not call."""
        for handle in list(self._handles.values()):
            capture = handle.capture if isinstance(handle, Stream) else None
            if capture is not None and capture.thread == threading.get_ident():
                self._spoil(capture, cudaError_t.cudaErrorStreamCaptureUnsupported)

    def _spoil(self, capture: Capture, error: cudaError_t) -> None:
        capture.is_invalid = True
        raise RefusedError(error)

    def _allocate(self, nbytes: int, is_host: bool, is_seen_by_device: bool) -> int:
        if nbytes <= 0:
            raise Misuse(f"an allocation of {nbytes} bytes")
        block = Block(np.full(nbytes, FRESH, np.uint8))
        if is_host:
            block.host = block.data.ctypes.data
        if is_seen_by_device:
            block.device = self._next_address
            self._next_address += (nbytes + 0x3FF) // 0x200 * 0x200  # with a gap behind
        self._blocks.append(block)
        address = block.host if is_host else block.device
        assert address is not None
        return address

    def _free(self, block: Block, is_host: bool) -> None:
        if (block.host is not None) != is_host:
            raise Misuse("memory of the one kind freed as of the other")
        if any(span.block is block for operation in self._pending() for span in operation.spans):
            raise Misuse("memory freed while work on it is pending")
        block.is_freed = True
        block.data[:] = FREED

    def _block(self, address: int, kind: str) -> Block:
        """The allocation that starts at `address`."""
        for block in self._blocks:
            if getattr(block, kind) == address:
                if block.is_freed:
                    raise Misuse(f"{kind} memory at {address:#x} is used after it was freed, or freed twice")
                return block
        raise Misuse(f"no {kind} memory starts at {address:#x}")

    def _span(self, address: int, nbytes: int, kind: str) -> Span:
        for block in self._blocks:
            start = getattr(block, kind)
            if start is not None and start <= address < start + block.data.nbytes:
                if block.is_freed:
                    raise Misuse(f"{kind} memory at {address:#x} is used after it was freed")
                if nbytes <= 0 or address + nbytes > start + block.data.nbytes:
                    raise Misuse(f"{nbytes} bytes at {address:#x}, which has only {block.data.nbytes} in all")
                return Span(block, address - start, address - start + nbytes)
        raise Misuse(f"there is no {kind} memory at {address:#x}")

    def _add(self, kind: Callable[..., Any], *arguments: Any) -> Any:
        number = next(self._numbers)
        self._handles[number] = kind(number, *arguments)
        return self._handles[number]

    def _get(self, handle: Any, kind: type) -> Any:
        if int(handle) == 0:
            raise Misuse("work on the default stream" if kind is Stream else "a null handle")
        found = self._handles.get(int(handle))
        if type(found) is not kind:
            raise Misuse(f"{int(handle):#x} is no {kind.__name__.lower()}, or one that was destroyed")
        return found

    def _noted(self) -> _Noted:
        return _Noted(self.misuses)

    def _module(self) -> ModuleType:
        """What stands for `cuda.bindings.runtime`."""
        module = ModuleType("cuda.bindings.runtime")
        for enum in ENUMS:
            setattr(module, enum.__name__, enum)
        for name, value in CONSTANTS.items():
            setattr(module, name, value)
        for name in (name for name in dir(self) if name.startswith("cuda")):
            setattr(module, name, self._function(name))
        module.cudaGetLastError = self._take_last_error  # type: ignore[attr-defined]
        return module

    def _function(self, name: str) -> Callable[..., tuple[Any, ...]]:
        method = getattr(self, name)
        gives_value = method.__annotations__["return"] != "None"
        ends = re.search("Free|Destroy|End", name)  # does what it does even where it reports an error

        def call(*arguments: Any) -> tuple[Any, ...]:
            with self._lock, self._noted():
                self.calls[name] += 1
                planned = self._planned.pop((name, self.calls[name]), None)
                try:
                    if planned is not None and not ends:
                        raise RefusedError(planned)
                    value = method(*arguments)
                    if planned is not None:
                        if gives_value:
                            del self._handles[int(value)]
                        raise RefusedError(planned)
                except RefusedError as refused:
                    self.last_error = refused.error
                    return (refused.error, None) if gives_value else (refused.error,)
                return (cudaError_t.cudaSuccess, value) if gives_value else (cudaError_t.cudaSuccess,)

        return call

    def _take_last_error(self) -> tuple[cudaError_t]:
        error, self.last_error = self.last_error, cudaError_t.cudaSuccess
        return (error,)


class _Noted:
    """Writes a misuse down, for those that are swallowed on their way up."""

    def __init__(self, misuses: list[str]) -> None:
        self._misuses = misuses

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Misuse):
            self._misuses.append(str(error))


def _expect(value: object, kind: type) -> None:
    """Releases of the real binding take nothing else either."""
    if not isinstance(value, kind):
        raise TypeError(f"argument has incorrect type: {value!r} is no {kind.__name__}")
