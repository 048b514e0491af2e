"""CUDA by the real pycuda, over a small libcuda.so.1 of ours, each time in a process of its own.

Skipped where pycuda cannot be built; with EDGEFUSE_CONFORMANCE=require in the environment it fails instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pycuda_build import environment, wheel
from tests.trt_conformance import NotAvailableError, available

BEGIN = """
import ctypes, threading
import numpy as np
from edgefuse.runtime.cuda import open_cuda
from edgefuse.runtime.cuda_pycuda import primary_context
from edgefuse.runtime.errors import BackendError
fake = ctypes.CDLL("libcuda.so.1")  # the one that pycuda loads too
cuda = open_cuda("pycuda")

def pass_through(values):
    into, out = cuda.host(8), cuda.host(8)
    memory, stream = cuda.device(8), cuda.stream()
    into.array[:] = values
    cuda.copy_in(memory, into, 8, stream)
    cuda.copy_out(out, memory, 8, stream)
    cuda.synchronize(stream)
    return out.array.tolist()

def refused(function, *arguments):
    try:
        function(*arguments)
    except BackendError as error:
        return str(error)
"""


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return available(lambda: environment(tmp_path_factory.mktemp("pycuda")))


def run(fake_driver: dict[str, str], code: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, env={**os.environ, **fake_driver, **more}, capture_output=True, text=True, check=False, timeout=60
    )


def passes(fake_driver: dict[str, str], code: str, **more: str) -> None:
    """`code` holds and its process ends well, without a word."""
    told = run(fake_driver, BEGIN + code, **more)
    assert (told.returncode, told.stderr, told.stdout) == (0, "", "")


def test_bytes_go_in_and_come_out_and_nothing_is_left(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
with cuda.current():
    assert pass_through(range(8)) == list(range(8))
    assert cuda.host(8).device_address is None
    cuda.event()
assert fake.fake_left() > 0
for _ in range(2):
    cuda.close()
assert (fake.fake_left(), fake.fake_pushes(), fake.fake_retained()) == (0, 0, 1)
""",
    )


def test_a_copy_takes_only_as_many_bytes_as_it_was_told(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
with cuda.current():
    into, out, memory, stream = cuda.host(8), cuda.host(8), cuda.device(8), cuda.stream()
    into.array[:], out.array[:] = 1, 0
    cuda.copy_in(memory, into, 8, stream)
    cuda.synchronize(stream)
    into.array[:] = 2
    cuda.copy_in(memory, into, 2, stream)
    cuda.copy_out(out, memory, 5, stream)
    assert out.array.tolist() == [0] * 8  # not yet
    cuda.synchronize(stream)
    assert out.array.tolist() == [2, 2, 1, 1, 1, 0, 0, 0]
    assert "invalid argument" in refused(cuda.copy_in, memory + 4, into, 8, stream)
cuda.close()
""",
    )


def test_host_memory_is_mapped_where_the_gpu_shares_it(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
assert cuda.is_integrated
with cuda.current():
    host = cuda.host(8)
    assert host.device_address not in (None, host.address)
    assert host.address == host.array.ctypes.data
cuda.close()
assert fake.fake_left() == 0
""",
        FAKE_CUDA_INTEGRATED="1",
    )


def test_events_order_two_streams_and_tell_the_time(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
with cuda.current():
    into, out, memory = cuda.host(8), cuda.host(8), cuda.device(8)
    first, second, start, end = cuda.stream(), cuda.stream(), cuda.event(), cuda.event()
    into.array[:] = 7
    cuda.record(start, first)
    cuda.copy_in(memory, into, 8, first)
    cuda.record(end, first)
    cuda.wait(second, end)
    cuda.copy_out(out, memory, 8, second)
    assert "not ready" in refused(cuda.elapsed_ms, start, end)
    cuda.synchronize(second)  # and not the first
    assert out.array.tolist() == [7] * 8
    assert cuda.elapsed_ms(start, end) == 2.0
cuda.close()
""",
    )


def test_waiting_sleeps_and_does_not_spin(fake_driver: dict[str, str]) -> None:
    passes(fake_driver, "with cuda.current(): pass_through(range(8))\ncuda.close()\nassert fake.fake_spins() == 0")


def test_two_threads_use_it_in_turn_and_another_closes_it(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
results, depths = [], []
def work(start):
    with cuda.current():
        results.append(pass_through(range(start, start + 8)))
        depths.append(fake.fake_depth())
    depths.append(fake.fake_depth())
for start in (0, 20):
    thread = threading.Thread(target=work, args=(start,))
    thread.start()
    thread.join()
assert results == [list(range(8)), list(range(20, 28))]
assert depths == [1, 0, 1, 0]
cuda.close()
assert (fake.fake_left(), fake.fake_pushes()) == (0, 0)
""",
    )


def test_a_context_that_is_current_twice_is_popped_twice(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
with cuda.current():
    with cuda.current():
        pass_through(range(8))
    pass_through(range(8))
assert fake.fake_depth() == 0
cuda.close()
""",
    )


def test_a_thread_without_the_context_is_told(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
errors = []
def work():
    errors.append(refused(cuda.stream))
    errors.append(refused(cuda.device, 8))
with cuda.current():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
told = "CUDA failed: explicit_context_dependent failed: invalid device context - no currently active context?"
assert errors == [told, "CUDA failed: cuMemAlloc failed: invalid device context"], errors
cuda.close()
""",
    )


def test_an_error_inside_leaves_no_context_behind(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
try:
    with cuda.current():
        raise KeyError("a bug")
except KeyError:
    pass
assert (fake.fake_depth(), fake.fake_pushes()) == (0, 0)
""",
    )


def test_a_context_that_is_left_behind_would_abort_the_process(fake_driver: dict[str, str]) -> None:
    """So the tests above would find one."""
    told = run(fake_driver, BEGIN + "threading.Thread(target=primary_context()[2].push).start()")
    assert told.returncode == -6
    assert "context stack was not empty" in told.stderr


def test_a_process_that_never_closes_ends_well(fake_driver: dict[str, str]) -> None:
    passes(fake_driver, "with cuda.current(): pass_through(range(8)); cuda.event()")


def test_a_process_that_never_closes_what_a_thread_opened_ends_well(fake_driver: dict[str, str]) -> None:
    opened = 'cuda = open_cuda("pycuda")\n'
    assert opened in BEGIN
    code = """
def work():
    global cuda
    cuda = open_cuda("pycuda")
    with cuda.current():
        assert pass_through(range(8)) == list(range(8))
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    told = run(fake_driver, BEGIN.replace(opened, "") + code)
    assert (told.returncode, told.stderr, told.stdout) == (0, "", "")


def test_it_is_opened_again_on_the_same_context(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
for _ in range(3):
    with cuda.current():
        pass_through(range(8))
    cuda.close()
    cuda = open_cuda("pycuda")
assert (fake.fake_left(), fake.fake_pushes(), fake.fake_retained()) == (0, 0, 1)
""",
    )


def test_there_are_no_graphs(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
with cuda.current():
    assert not cuda.can_capture
    assert cuda.capture(cuda.stream(), lambda: None) is None
    assert "no CUDA graphs" in refused(cuda.launch, 1, 1)
cuda.close()
""",
    )


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("cuMemAlloc_v2", "cuda.device(8)"),
        ("cuMemHostAlloc", "cuda.host(8)"),
        ("cuStreamCreate", "cuda.stream()"),
        ("cuEventCreate", "cuda.event()"),
        ("cuMemcpyHtoDAsync_v2", "cuda.copy_in(cuda.device(8), cuda.host(8), 8, cuda.stream())"),
        ("cuMemcpyDtoHAsync_v2", "cuda.copy_out(cuda.host(8), cuda.device(8), 8, cuda.stream())"),
        ("cuEventRecord", "cuda.record(cuda.event(), cuda.stream())"),
        ("cuStreamWaitEvent", "cuda.wait(cuda.stream(), cuda.event())"),
        ("cuEventSynchronize", "cuda.synchronize(cuda.stream())"),
        ("cuEventElapsedTime", "cuda.elapsed_ms(cuda.event(), cuda.event())"),
    ],
)
def test_every_error_of_cuda_is_said(fake_driver: dict[str, str], function: str, call: str) -> None:
    told = run(
        fake_driver,
        BEGIN + f"with cuda.current():\n    print(refused(lambda: {call}))",
        FAKE_CUDA_FAIL=f"{function}:719",
    )
    name = function.removesuffix("_v2")
    assert told.stdout == f"CUDA failed: {name} failed: unspecified launch failure\n"


def test_closing_waits_for_the_work(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
with cuda.current():
    host, memory, stream = cuda.host(8), cuda.device(8), cuda.stream()
    cuda.copy_in(memory, host, 8, stream)
cuda.close()
assert (fake.fake_left(), fake.fake_unfinished()) == (0, 0)
""",
    )


def test_closing_frees_all_that_can_be_freed_and_tells_the_first_error(fake_driver: dict[str, str]) -> None:
    passes(
        fake_driver,
        """
import os
with cuda.current():
    pass_through(range(8))
os.environ["FAKE_CUDA_FAIL"] = "cuEventSynchronize:719"
try:
    cuda.close()
except BackendError as error:
    assert "cuEventSynchronize failed" in str(error)
    assert fake.fake_left() == 0  # and the error keeps none of it alive
else:
    raise AssertionError
assert (fake.fake_left(), fake.fake_pushes()) == (0, 0)
assert refused(cuda.close) is None
""",
    )


def test_a_machine_without_a_gpu_is_said_in_one_line(fake_driver: dict[str, str]) -> None:
    code = "from edgefuse.runtime.cuda import open_cuda\nopen_cuda('pycuda')"
    told = run(fake_driver, code, FAKE_CUDA_FAIL="cuInit:100").stderr.splitlines()[-1]
    assert told.endswith("BackendError: CUDA failed: cuInit failed: no CUDA-capable device is detected")


def test_a_machine_without_a_driver_is_said_in_one_line(fake_driver: dict[str, str], tmp_path: Path) -> None:
    code = "from edgefuse.runtime.cuda import open_cuda\nopen_cuda('pycuda')"
    told = run(fake_driver, code, LD_LIBRARY_PATH=str(tmp_path)).stderr.splitlines()[-1]
    assert "BackendError: pycuda does not find the NVIDIA driver (libcuda.so.1: cannot open shared object" in told


def test_a_build_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NotAvailableError, match=r"pip download pycuda==[\d.]+ fails: ERROR: .+"):
        wheel(tmp_path / "cache")
