"""The double of the CUDA runtime refuses what the real one refuses, and finds what the real one would let pass."""

from __future__ import annotations

import ctypes
import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as real

from tests.cuda_double import CONSTANTS, ENUMS, FRESH, Driver, cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode
from tests.cuda_order import Misuse

OK = cudaError_t.cudaSuccess
IN, OUT = cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToHost
MODE = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


class Setup:
    """A device with two streams, an event, and 16 bytes of each kind of memory."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.cuda: Any = self.driver.runtime
        self.a, self.b = (self.get(self.cuda.cudaStreamCreateWithFlags(1)) for _ in range(2))
        self.event = self.get(self.cuda.cudaEventCreate())
        self.memory = self.get(self.cuda.cudaMalloc(16))
        self.host = self.get(self.cuda.cudaHostAlloc(16, 0))
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * 16).from_address(self.host))  # [16]

    def get(self, answer: tuple[Any, ...]) -> Any:
        assert answer[0] == OK
        return answer[1] if len(answer) > 1 else None

    def copy_in(self, stream: Any, nbytes: int = 16) -> None:
        self.get(self.cuda.cudaMemcpyAsync(self.memory, self.host, nbytes, IN, stream))

    def copy_out(self, stream: Any) -> None:
        self.get(self.cuda.cudaMemcpyAsync(self.host, self.memory, 16, OUT, stream))

    def add(self, stream: Any, amount: int) -> cudaError_t:
        """A kernel that adds to every byte of the device memory."""
        place = [(self.memory, 16)]

        def work() -> None:
            self.driver.view(self.memory, 16)[:] += amount

        return self.driver.enqueue(stream, work, reads=place, writes=place)


@pytest.fixture
def it() -> Setup:
    return Setup()


# It is like the real one.


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_its_numbers_are_those_of_the_real_binding(enum: Any) -> None:
    for member in enum:
        assert int(getattr(getattr(real, enum.__name__), member.name)) == member.value


def test_only_success_is_false_in_both() -> None:
    for error in cudaError_t:
        assert bool(error) == bool(getattr(real.cudaError_t, error.name)) == (error.name != "cudaSuccess")


def test_its_constants_are_those_of_the_real_binding() -> None:
    assert {name: getattr(real, name) for name in CONSTANTS} == CONSTANTS


FUNCTIONS = [name for name in vars(Driver) if name.startswith("cuda")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_functions_take_what_the_real_ones_take(name: str) -> None:
    signature = re.match(rf"{name}\((.*)\)", getattr(real, name).__doc__)
    assert signature is not None
    ours = list(inspect.signature(getattr(Driver, name)).parameters)[1:]
    assert len(ours) == len(signature[1].split(",")) if signature[1] else not ours


def test_its_answers_are_tuples_as_long_as_the_real_ones() -> None:
    driver: Any = Driver().runtime
    for name, arguments in {
        "cudaSetDevice": (0,),
        "cudaMalloc": (8,),
        "cudaGetErrorName": (real.cudaError_t(0),),
    }.items():
        answers = getattr(driver, name)(*arguments), getattr(real, name)(*arguments)
        assert len(answers[0]) == len(answers[1])


# Work runs when it must, not before.


def test_nothing_runs_before_its_stream_is_synchronized(it: Setup) -> None:
    it.bytes[:] = 1
    it.copy_in(it.a)
    it.add(it.a, 4)
    assert it.driver.pending(it.a) == 2
    assert (it.driver.view(it.memory, 16) == FRESH).all()
    it.get(it.cuda.cudaStreamSynchronize(it.a))
    assert (it.driver.view(it.memory, 16) == 5).all()


def test_a_result_that_is_read_too_early_is_rubbish(it: Setup) -> None:
    it.bytes[:] = 1
    it.copy_in(it.a)
    it.get(it.cuda.cudaStreamSynchronize(it.a))
    it.copy_out(it.a)
    assert (it.bytes == FRESH).all()
    it.get(it.cuda.cudaStreamSynchronize(it.a))
    assert (it.bytes == 1).all()


def test_a_wait_runs_the_other_stream_up_to_the_event_and_no_further(it: Setup) -> None:
    it.bytes[:] = 1
    it.copy_in(it.a)
    it.get(it.cuda.cudaEventRecord(it.event, it.a))
    other = it.get(it.cuda.cudaMalloc(1))
    it.driver.enqueue(it.a, lambda: it.driver.view(other, 1).fill(9), writes=[(other, 1)])
    it.get(it.cuda.cudaStreamWaitEvent(it.b, it.event, 0))
    it.add(it.b, 1)
    it.get(it.cuda.cudaStreamSynchronize(it.b))
    assert (it.driver.view(it.memory, 16) == 2).all()
    assert it.driver.view(other, 1)[0] == FRESH


def test_time_passes_with_the_work_between_two_events(it: Setup) -> None:
    end = it.get(it.cuda.cudaEventCreate())
    it.cuda.cudaEventRecord(it.event, it.a)
    it.add(it.a, 1)
    it.cuda.cudaEventRecord(end, it.a)
    assert it.cuda.cudaEventElapsedTime(it.event, end) == (cudaError_t.cudaErrorNotReady, None)
    it.cuda.cudaStreamSynchronize(it.a)
    assert it.cuda.cudaEventElapsedTime(it.event, end) == (OK, 2.0)


# What the real one would let pass.


def test_host_memory_that_is_written_before_its_copy_ran_is_found(it: Setup) -> None:
    it.bytes[:] = 1
    it.copy_in(it.a)
    it.bytes[3] = 2
    with pytest.raises(Misuse, match="written while work on it was pending"):
        it.cuda.cudaStreamSynchronize(it.a)


def test_host_memory_that_is_written_before_a_copy_to_it_ran_is_found(it: Setup) -> None:
    it.copy_out(it.a)
    it.bytes[:] = 0
    with pytest.raises(Misuse, match="written while work on it was pending"):
        it.cuda.cudaStreamSynchronize(it.a)


def test_host_memory_that_goes_out_and_in_again_on_one_stream_is_fine(it: Setup) -> None:
    it.bytes[:] = 1
    it.copy_in(it.a)
    it.add(it.a, 1)
    it.copy_out(it.a)
    it.copy_in(it.a)
    it.cuda.cudaStreamSynchronize(it.a)
    assert (it.bytes == 2).all()


@pytest.mark.parametrize(
    ("first", "second"), [("copy_in", "copy_out"), ("copy_out", "copy_in"), ("copy_in", "copy_in")], ids=str
)
def test_two_streams_in_no_order_on_the_same_memory_are_found(it: Setup, first: str, second: str) -> None:
    getattr(it, first)(it.a)
    with pytest.raises(Misuse, match="in no order"):
        getattr(it, second)(it.b)


def test_two_streams_in_an_order_on_the_same_memory_are_fine(it: Setup) -> None:
    it.copy_in(it.a)
    it.cuda.cudaEventRecord(it.event, it.a)
    it.cuda.cudaStreamWaitEvent(it.b, it.event, 0)
    it.add(it.b, 1)
    it.cuda.cudaStreamSynchronize(it.b)
    it.add(it.a, 1)
    it.cuda.cudaStreamSynchronize(it.a)
    it.add(it.b, 1)


def test_an_event_of_before_does_not_order_what_came_after_it(it: Setup) -> None:
    it.cuda.cudaEventRecord(it.event, it.a)
    it.copy_in(it.a)
    it.cuda.cudaStreamWaitEvent(it.b, it.event, 0)
    with pytest.raises(Misuse, match="in no order"):
        it.add(it.b, 1)


def test_two_readers_need_no_order(it: Setup) -> None:
    for stream in (it.a, it.b):
        it.driver.enqueue(stream, lambda: None, reads=[(it.memory, 16)])


def test_work_that_touches_what_it_did_not_name_is_found(it: Setup) -> None:
    it.driver.enqueue(it.a, lambda: it.driver.view(it.memory, 16), reads=[(it.memory, 8)])
    with pytest.raises(Misuse, match="did not name"):
        it.cuda.cudaStreamSynchronize(it.a)


MISUSES: dict[str, Callable[[Setup], object]] = {
    "freed twice": lambda it: [it.cuda.cudaFree(it.memory) for _ in range(2)],
    "after it was freed": lambda it: [it.cuda.cudaFreeHost(it.host), it.copy_in(it.a)],
    "which has only 16": lambda it: it.copy_in(it.a, 17),
    "there is no device memory at": lambda it: it.cuda.cudaMemcpyAsync(it.host, it.host, 16, IN, it.a),
    "there is no host memory at": lambda it: it.cuda.cudaMemcpyAsync(it.memory, it.memory, 16, IN, it.a),
    "no device memory starts at": lambda it: it.cuda.cudaFree(it.memory + 4),
    "no device memory starts at 0x": lambda it: it.cuda.cudaFree(it.host),
    "memory freed while work on it is pending": lambda it: [it.copy_in(it.a), it.cuda.cudaFree(it.memory)],
    "freed while work": lambda it: [it.copy_in(it.a), it.cuda.cudaFreeHost(it.host)],
    "a stream destroyed with work pending": lambda it: [it.copy_in(it.a), it.cuda.cudaStreamDestroy(it.a)],
    "is no stream": lambda it: it.copy_in(it.event),
    "is no event": lambda it: it.cuda.cudaEventRecord(it.a, it.a),
    "or one that was destroyed": lambda it: [it.cuda.cudaStreamDestroy(it.a), it.cuda.cudaStreamSynchronize(it.a)],
    "no event, or one that was destroyed": lambda it: [it.cuda.cudaEventDestroy(it.event) for _ in range(2)],
    "work on the default stream": lambda it: it.copy_in(0),
    "the default stream": lambda it: it.driver.enqueue(0, lambda: None),
    "waits for the default stream": lambda it: it.cuda.cudaStreamCreateWithFlags(0),
    "an allocation of 0 bytes": lambda it: it.cuda.cudaMalloc(0),
}


@pytest.mark.parametrize("words", MISUSES)
def test_a_misuse_is_found(it: Setup, words: str) -> None:
    with pytest.raises(Misuse, match=words):
        MISUSES[words](it)


def test_a_misuse_that_was_swallowed_is_found_at_the_end(it: Setup) -> None:
    with pytest.raises(Misuse):
        it.copy_in(0)
    close(it)
    with pytest.raises(AssertionError, match="default stream"):
        it.driver.finish()


@pytest.mark.parametrize("left", ["Stream", "Event", "16 bytes"])
def test_what_is_never_freed_is_found_at_the_end(it: Setup, left: str) -> None:
    close(it, but=left)
    with pytest.raises(AssertionError, match=f"never freed.*{left}"):
        it.driver.finish()


def test_memory_that_is_written_after_it_was_freed_is_found_at_the_end(it: Setup) -> None:
    close(it)
    it.driver.finish()
    it.bytes[5] = 1
    with pytest.raises(AssertionError, match="after it was freed"):
        it.driver.finish()


def close(it: Setup, but: str = "") -> None:
    for name, free in (("Event", it.cuda.cudaEventDestroy), ("Stream", it.cuda.cudaStreamDestroy)):
        for handle in [h for h in (it.a, it.b, it.event) if type(h).__name__ == name != but]:
            free(handle)
    it.cuda.cudaFreeHost(it.host)
    if but != "16 bytes":
        it.cuda.cudaFree(it.memory)


# Errors that it reports.


def test_the_nth_call_of_a_function_fails_as_planned_and_the_error_is_kept(it: Setup) -> None:
    it.driver.fail("cudaMalloc", "cudaErrorMemoryAllocation", nth=2)
    assert it.cuda.cudaMalloc(8)[0] == OK
    assert it.cuda.cudaMalloc(8) == (cudaError_t.cudaErrorMemoryAllocation, None)
    assert it.cuda.cudaMalloc(8)[0] == OK
    assert it.cuda.cudaGetLastError() == (cudaError_t.cudaErrorMemoryAllocation,)
    assert it.cuda.cudaGetLastError() == (OK,)


def test_an_enum_is_not_replaced_by_its_number(it: Setup) -> None:
    with pytest.raises(TypeError):
        it.cuda.cudaMemcpyAsync(it.memory, it.host, 16, 1, it.a)


def test_mapped_memory_has_a_second_address_for_the_same_bytes() -> None:
    driver = Driver(is_integrated=True)
    cuda: Any = driver.runtime
    host = cuda.cudaHostAlloc(4, 2)[1]
    device = cuda.cudaHostGetDevicePointer(host, 0)[1]
    ctypes.memset(host, 7, 4)
    assert device != host
    assert (driver.view(device, 4) == 7).all()
    with pytest.raises(Misuse, match="no device memory"):
        driver.view(host, 4)


def test_memory_that_is_not_mapped_has_none() -> None:
    cuda: Any = Driver().runtime
    assert cuda.cudaHostGetDevicePointer(cuda.cudaHostAlloc(4, 0)[1], 0)[0] == cudaError_t.cudaErrorInvalidValue


# Graphs.


def test_a_graph_runs_when_it_is_launched_and_as_often(it: Setup) -> None:
    it.bytes[:] = 1
    it.copy_in(it.a)
    it.cuda.cudaStreamBeginCapture(it.a, MODE)
    it.add(it.a, 1)
    graph = it.get(it.cuda.cudaGraphInstantiateWithFlags(it.get(it.cuda.cudaStreamEndCapture(it.a)), 0))
    for _ in range(2):
        it.get(it.cuda.cudaGraphLaunch(graph, it.a))
    it.cuda.cudaStreamSynchronize(it.a)
    assert (it.driver.view(it.memory, 16) == 3).all()


FORBIDDEN: dict[str, Callable[[Setup], Any]] = {
    "cudaMalloc": lambda it: it.cuda.cudaMalloc(8),
    "cudaHostAlloc": lambda it: it.cuda.cudaHostAlloc(8, 0),
    "cudaFree": lambda it: it.cuda.cudaFree(it.memory),
    "cudaFreeHost": lambda it: it.cuda.cudaFreeHost(it.host),
    "cudaStreamSynchronize": lambda it: it.cuda.cudaStreamSynchronize(it.a),
}


@pytest.mark.parametrize("forbidden", FORBIDDEN)
def test_what_must_not_be_captured_is_refused_and_spoils_the_capture(it: Setup, forbidden: str) -> None:
    it.cuda.cudaStreamBeginCapture(it.a, MODE)
    assert FORBIDDEN[forbidden](it)[0] == cudaError_t.cudaErrorStreamCaptureUnsupported
    assert it.add(it.a, 1) == cudaError_t.cudaErrorStreamCaptureInvalidated
    assert it.cuda.cudaStreamEndCapture(it.a) == (cudaError_t.cudaErrorStreamCaptureInvalidated, None)
    assert it.add(it.a, 1) == OK


def test_another_thread_may_allocate_while_one_captures(it: Setup) -> None:
    it.cuda.cudaStreamBeginCapture(it.a, MODE)
    answers: list[Any] = []
    other = threading.Thread(target=lambda: answers.extend([it.cuda.cudaMalloc(8), it.cuda.cudaStreamEndCapture(it.a)]))
    other.start()
    other.join()
    assert answers[0][0] == OK
    assert answers[1][0] == cudaError_t.cudaErrorStreamCaptureWrongThread
    assert it.cuda.cudaStreamEndCapture(it.a)[0] == OK


def fork(it: Setup) -> None:
    it.cuda.cudaStreamBeginCapture(it.a, MODE)
    it.cuda.cudaEventRecord(it.event, it.a)
    it.cuda.cudaStreamWaitEvent(it.b, it.event, 0)
    it.add(it.b, 1)


def test_a_forked_stream_is_captured_too_and_must_be_joined(it: Setup) -> None:
    fork(it)
    assert it.driver.is_capturing(it.b)
    assert it.driver.pending(it.b) == 0
    assert it.cuda.cudaStreamEndCapture(it.a)[0] == cudaError_t.cudaErrorStreamCaptureUnjoined
    assert not it.driver.is_capturing(it.b)
    fork(it)
    it.cuda.cudaEventRecord(it.event, it.b)
    it.cuda.cudaStreamWaitEvent(it.a, it.event, 0)
    assert it.cuda.cudaStreamEndCapture(it.a)[0] == OK


def test_branches_of_a_graph_in_each_others_way_are_found(it: Setup) -> None:
    fork(it)
    with pytest.raises(Misuse, match="in no order"):
        it.add(it.a, 1)


def test_a_capture_cannot_wait_for_what_is_outside_of_it(it: Setup) -> None:
    it.cuda.cudaEventRecord(it.event, it.b)
    it.cuda.cudaStreamBeginCapture(it.a, MODE)
    assert it.cuda.cudaStreamWaitEvent(it.a, it.event, 0) == (cudaError_t.cudaErrorStreamCaptureIsolation,)
    assert it.cuda.cudaStreamEndCapture(it.a)[0] == cudaError_t.cudaErrorStreamCaptureInvalidated


def test_an_event_of_a_capture_has_no_time(it: Setup) -> None:
    fork(it)
    it.cuda.cudaStreamEndCapture(it.a)
    assert it.cuda.cudaEventElapsedTime(it.event, it.event)[0] == cudaError_t.cudaErrorCapturedEvent
    assert it.cuda.cudaStreamWaitEvent(it.b, it.event, 0)[0] == cudaError_t.cudaErrorCapturedEvent


def test_a_capture_is_begun_and_ended_once(it: Setup) -> None:
    assert it.cuda.cudaStreamEndCapture(it.a)[0] == cudaError_t.cudaErrorIllegalState
    it.cuda.cudaStreamBeginCapture(it.a, MODE)
    assert it.cuda.cudaStreamBeginCapture(it.a, MODE)[0] == cudaError_t.cudaErrorIllegalState


def captured(it: Setup) -> Any:
    it.cuda.cudaStreamBeginCapture(it.a, MODE)
    it.add(it.a, 1)
    graph = it.get(it.cuda.cudaStreamEndCapture(it.a))
    executable = it.get(it.cuda.cudaGraphInstantiateWithFlags(graph, 0))
    it.cuda.cudaGraphDestroy(graph)
    return executable


def test_a_graph_over_memory_that_is_freed_is_not_launched(it: Setup) -> None:
    graph = captured(it)
    it.cuda.cudaFree(it.memory)
    with pytest.raises(Misuse, match="over memory that is freed"):
        it.cuda.cudaGraphLaunch(graph, it.a)


def test_a_graph_that_is_destroyed_is_not_launched(it: Setup) -> None:
    graph = captured(it)
    it.cuda.cudaGraphExecDestroy(graph)
    with pytest.raises(Misuse, match="destroyed"):
        it.cuda.cudaGraphLaunch(graph, it.a)


def test_a_graph_is_not_destroyed_while_its_work_is_pending(it: Setup) -> None:
    graph = captured(it)
    it.cuda.cudaGraphLaunch(graph, it.a)
    with pytest.raises(Misuse, match="its work pending"):
        it.cuda.cudaGraphExecDestroy(graph)
