"""CUDA by cuda-python, over the strict double; the names that it uses are those of the real package."""

from __future__ import annotations

import ast
import inspect
import re
import threading
from collections.abc import Callable, Iterator

import pytest
from cuda.bindings import runtime as real

from edgefuse.runtime import cuda_runtime
from edgefuse.runtime.cuda import Cuda
from edgefuse.runtime.cuda_runtime import CudaRuntime
from edgefuse.runtime.errors import BackendError
from tests.cuda_double import Driver


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(is_integrated=request.param)


@pytest.fixture
def cuda(driver: Driver) -> Iterator[Cuda]:
    with_all: Cuda = CudaRuntime(driver.runtime)
    yield with_all
    with_all.close()
    driver.finish()


SIZE = 64


class Chain:
    """Host memory -> device -> plus one -> host memory."""

    def __init__(self, cuda: Cuda, driver: Driver) -> None:
        self.cuda, self.driver = cuda, driver
        self.into, self.out = cuda.host(SIZE), cuda.host(SIZE)
        self.memory, self.stream = cuda.device(SIZE), cuda.stream()

    def enqueue(self) -> None:
        self.cuda.copy_in(self.memory, self.into, SIZE, self.stream)
        self.add_one(self.stream)
        self.cuda.copy_out(self.out, self.memory, SIZE, self.stream)

    def add_one(self, stream: int) -> None:
        place = [(self.memory, SIZE)]

        def work() -> None:
            self.driver.view(self.memory, SIZE)[:] += 1

        if self.driver.enqueue(stream, work, reads=place, writes=place):
            raise BackendError("not enqueued")


@pytest.fixture
def chain(cuda: Cuda, driver: Driver) -> Chain:
    return Chain(cuda, driver)


def test_bytes_go_in_and_come_out(chain: Chain) -> None:
    chain.into.array[:] = range(SIZE)
    chain.enqueue()
    chain.cuda.synchronize(chain.stream)
    assert chain.out.array.tolist() == list(range(1, SIZE + 1))


def test_part_of_the_memory_can_be_copied(chain: Chain) -> None:
    chain.into.array[:] = 1
    chain.enqueue()
    chain.cuda.synchronize(chain.stream)
    chain.into.array[:] = 9
    chain.cuda.copy_in(chain.memory, chain.into, 3, chain.stream)
    chain.cuda.copy_out(chain.out, chain.memory, 5, chain.stream)
    chain.cuda.synchronize(chain.stream)
    assert chain.out.array[:6].tolist() == [9, 9, 9, 2, 2, 2]


def test_the_array_of_host_memory_is_that_memory(chain: Chain) -> None:
    assert chain.into.array.ctypes.data == chain.into.address
    assert chain.into.array.flags.writeable
    assert chain.into.array.nbytes == SIZE


def test_host_memory_is_mapped_where_the_gpu_shares_it(cuda: Cuda, driver: Driver) -> None:
    host = cuda.host(SIZE)
    assert (host.device_address is not None) == cuda.is_integrated == driver.is_integrated
    if host.device_address is not None:
        host.array[:] = 5
        assert (driver.view(host.device_address, SIZE) == 5).all()


def test_host_memory_that_cannot_be_mapped_is_not() -> None:
    cuda = CudaRuntime(Driver(is_integrated=True, can_map_host=False).runtime)
    assert not cuda.is_integrated
    assert cuda.host(SIZE).device_address is None


def test_an_event_orders_two_streams(chain: Chain) -> None:
    other, event = chain.cuda.stream(), chain.cuda.event()
    chain.into.array[:] = 1
    chain.cuda.copy_in(chain.memory, chain.into, SIZE, chain.stream)
    chain.cuda.record(event, chain.stream)
    chain.cuda.wait(other, event)
    chain.add_one(other)
    chain.cuda.copy_out(chain.out, chain.memory, SIZE, other)
    chain.cuda.synchronize(other)
    assert (chain.out.array == 2).all()


def test_the_time_between_two_events(chain: Chain) -> None:
    start, end = chain.cuda.event(), chain.cuda.event()
    chain.cuda.record(start, chain.stream)
    chain.enqueue()
    chain.cuda.record(end, chain.stream)
    with pytest.raises(BackendError, match="cudaErrorNotReady"):
        chain.cuda.elapsed_ms(start, end)
    chain.cuda.synchronize(chain.stream)
    assert chain.cuda.elapsed_ms(start, end) == 4.0


def test_every_thread_may_use_it(chain: Chain) -> None:
    chain.into.array[:] = 3

    def use() -> None:
        with chain.cuda.current():
            chain.enqueue()
            chain.cuda.synchronize(chain.stream)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert (chain.out.array == 4).all()


def test_waiting_sleeps_and_does_not_spin(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    monkeypatch.setattr(driver.runtime, "cudaSetDeviceFlags", lambda given: (flags.append(given), (0,))[1])
    CudaRuntime(driver.runtime)
    assert flags == [real.cudaDeviceScheduleBlockingSync]


# Graphs.


def test_a_captured_graph_does_the_same_with_what_is_in_the_memory_then(chain: Chain) -> None:
    graph = graph_of(chain)
    for value in (5, 8):
        chain.into.array[:] = value
        chain.cuda.launch(graph, chain.stream)
        chain.cuda.synchronize(chain.stream)
        assert (chain.out.array == value + 1).all()


def test_streams_that_fork_and_join_are_captured_as_one(chain: Chain) -> None:
    other, forked, joined = chain.cuda.stream(), chain.cuda.event(), chain.cuda.event()

    def work() -> None:
        chain.cuda.copy_in(chain.memory, chain.into, SIZE, chain.stream)
        chain.cuda.record(forked, chain.stream)
        chain.cuda.wait(other, forked)
        chain.add_one(other)
        chain.cuda.record(joined, other)
        chain.cuda.wait(chain.stream, joined)
        chain.cuda.copy_out(chain.out, chain.memory, SIZE, chain.stream)

    graph = chain.cuda.capture(chain.stream, work)
    assert graph is not None
    chain.into.array[:] = 1
    chain.cuda.launch(graph, chain.stream)
    chain.cuda.synchronize(chain.stream)
    assert (chain.out.array == 2).all()


def unjoined(chain: Chain) -> None:
    event = chain.cuda.event()
    other = chain.cuda.stream()
    chain.cuda.record(event, chain.stream)
    chain.cuda.wait(other, event)
    chain.add_one(other)


REFUSED: dict[str, Callable[[Chain], object]] = {
    "allocates": lambda chain: chain.cuda.device(8),
    "allocates on the host": lambda chain: chain.cuda.host(8),
    "synchronizes": lambda chain: chain.cuda.synchronize(chain.stream),
    "leaves a stream unjoined": unjoined,
    "cannot be captured and does not say so": lambda chain: chain.driver.invalidate(chain.stream),
    "says that it cannot be captured": lambda chain: (_ for _ in ()).throw(BackendError("no")),
}


@pytest.mark.parametrize("why", REFUSED)
def test_work_that_cannot_be_captured_gives_no_graph_and_leaves_no_trace(chain: Chain, why: str) -> None:
    assert chain.cuda.capture(chain.stream, lambda: REFUSED[why](chain) and None) is None
    assert chain.driver.last_error == 0
    chain.into.array[:] = 1
    chain.enqueue()
    chain.cuda.synchronize(chain.stream)
    assert (chain.out.array == 2).all()


@pytest.mark.parametrize("function", ["cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_a_graph_that_cuda_refuses_is_none(chain: Chain, function: str) -> None:
    chain.driver.fail(function, "cudaErrorNotSupported")
    assert chain.cuda.capture(chain.stream, chain.enqueue) is None
    assert chain.driver.last_error == 0
    assert chain.cuda.capture(chain.stream, chain.enqueue) is not None


def test_an_error_of_the_captured_work_is_passed_on_and_the_capture_ended(chain: Chain) -> None:
    def work() -> None:
        chain.enqueue()
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        chain.cuda.capture(chain.stream, work)
    assert not chain.driver.is_capturing(chain.stream)


# Errors.


def graph_of(chain: Chain) -> int:
    graph = chain.cuda.capture(chain.stream, chain.enqueue)
    assert graph is not None
    return graph


CALLS: dict[str, Callable[[Chain], object]] = {
    "cudaHostAlloc": lambda chain: chain.cuda.host(8),
    "cudaMalloc": lambda chain: chain.cuda.device(8),
    "cudaStreamCreateWithFlags": lambda chain: chain.cuda.stream(),
    "cudaEventCreate": lambda chain: chain.cuda.event(),
    "cudaMemcpyAsync": lambda chain: chain.cuda.copy_in(chain.memory, chain.into, 8, chain.stream),
    "cudaEventRecord": lambda chain: chain.cuda.record(chain.cuda.event(), chain.stream),
    "cudaStreamWaitEvent": lambda chain: chain.cuda.wait(chain.stream, chain.cuda.event()),
    "cudaStreamSynchronize": lambda chain: chain.cuda.synchronize(chain.stream),
    "cudaEventElapsedTime": lambda chain: chain.cuda.elapsed_ms(chain.cuda.event(), chain.cuda.event()),
    "cudaStreamBeginCapture": lambda chain: chain.cuda.capture(chain.stream, lambda: None),
    "cudaGraphDestroy": lambda chain: chain.cuda.capture(chain.stream, lambda: None),
    "cudaGraphLaunch": lambda chain: chain.cuda.launch(
        chain.cuda.capture(chain.stream, chain.enqueue) or 0, chain.stream
    ),
}


@pytest.mark.parametrize("function", CALLS)
def test_every_error_of_cuda_is_said_by_its_name(cuda: Cuda, driver: Driver, function: str) -> None:
    chain = Chain(cuda, driver)
    driver.fail(function, "cudaErrorIllegalAddress")
    with pytest.raises(BackendError, match=r"^CUDA failed: cudaErrorIllegalAddress \(.+\)$"):
        CALLS[function](chain)


def test_a_failure_to_map_frees_the_memory_in_the_end() -> None:
    driver = Driver(is_integrated=True)
    cuda = CudaRuntime(driver.runtime)
    driver.fail("cudaHostGetDevicePointer", "cudaErrorMemoryAllocation")
    with pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
        cuda.host(8)
    cuda.close()
    driver.finish()


def test_closing_waits_for_the_work_and_twice_is_fine(chain: Chain) -> None:
    graph = graph_of(chain)
    chain.into.array[:] = 1
    chain.cuda.launch(graph, chain.stream)
    chain.cuda.event()
    for _ in range(2):
        chain.cuda.close()
    chain.driver.finish()


def test_closing_frees_all_that_can_be_freed_and_tells_the_first_error(chain: Chain) -> None:
    chain.driver.fail("cudaStreamSynchronize", "cudaErrorLaunchFailure")
    chain.driver.fail("cudaFree", "cudaErrorIllegalAddress")
    chain.driver.fail("cudaFreeHost", "cudaErrorIllegalAddress")
    chain.cuda.device(8)
    with pytest.raises(BackendError, match="cudaErrorLaunchFailure"):
        chain.cuda.close()
    chain.driver.finish()


# Without a driver, or with one that does not fit.


def test_without_a_driver_one_line_says_so() -> None:
    with pytest.raises(BackendError) as caught:
        CudaRuntime(real)
    assert re.fullmatch(r"no NVIDIA driver \(libcuda\.so\.1.*\)", str(caught.value))


def test_a_binding_that_raises_where_there_is_no_driver_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(flags: int) -> None:  # as cuda-bindings 12.8.0 does
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    module = Driver().runtime
    monkeypatch.setattr(module, "cudaSetDeviceFlags", raises)
    with pytest.raises(BackendError, match=r"^no NVIDIA driver .*Failed to dlopen libcuda\.so\.1"):
        CudaRuntime(module)


def test_a_driver_that_is_too_old_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(driver.runtime, "cudaDriverGetVersion", lambda: (0, 12060))
    monkeypatch.setattr(driver.runtime, "cudaRuntimeGetVersion", lambda: (0, 13050))
    driver.fail("cudaSetDeviceFlags", "cudaErrorInsufficientDriver")
    with pytest.raises(BackendError, match=r"driver has CUDA 12\.6, cuda-python needs 13\.5; .* 'cuda-python<13'"):
        CudaRuntime(driver.runtime)


def test_no_gpu_is_said_by_its_name() -> None:
    driver = Driver()
    driver.fail("cudaSetDevice", "cudaErrorNoDevice")
    with pytest.raises(BackendError, match="cudaErrorNoDevice"):
        CudaRuntime(driver.runtime)


# The real package.


def attributes(tree: ast.AST) -> Iterator[str]:
    """Every name of the runtime that is used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("cuda[A-Z]", node.attr):
            yield node.attr


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every function of the runtime that is called, and the number of its arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and hasattr(real, node.func.attr):
            yield node.func.attr, len(node.args)


@pytest.fixture(scope="module")
def code() -> ast.AST:
    return ast.parse(inspect.getsource(cuda_runtime))


def test_every_name_that_is_used_is_in_the_real_package(code: ast.AST) -> None:
    places = (real, real.cudaError_t, real.cudaMemcpyKind, real.cudaDeviceAttr, real.cudaStreamCaptureMode)
    names = set(attributes(code))
    assert len(names) > 25
    assert [name for name in names if not any(hasattr(place, name) for place in places)] == []


def test_every_function_is_called_with_as_many_arguments_as_the_real_one_takes(code: ast.AST) -> None:
    called = dict(calls(code))
    assert len(called) > 15
    for name, count in called.items():
        signature = re.match(rf"{name}\((.*)\)", getattr(real, name).__doc__)
        assert signature is not None
        assert count == (len(signature[1].split(",")) if signature[1] else 0), name
