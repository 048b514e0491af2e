"""Timing forms: the real code over the doubles of CUDA and TensorRT, with times that the test writes for the events."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefuse.optimize import timed
from edgefuse.optimize.compiler import Job
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.probe import GPU, Found
from edgefuse.optimize.timed import BLOCKS, RUNS, WARM_UP_BLOCKS, Device, Timer, find_device, measure
from edgefuse.runtime.bundle import HEAD
from edgefuse.runtime.errors import BackendError, EngineError
from edgefuse.runtime.machine import Gpu
from tests.cuda_double import Driver
from tests.optimize_fixtures import PARTS
from tests.test_compiler import stand_in
from tests.test_trt_engine import has_gpu
from tests.trt_double import TrtDouble
from tests.trt_plan import SM, VERSIONS, Plan, write_plan
from tests.trt_rig import OURS, Guarded

ROOT = Path(__file__).parent.parent
ORIN = Device("Orin", 87, "10.3.0")
ALL = WARM_UP_BLOCKS + BLOCKS  # of each form
TENSORS = {HEAD: 6, "audio": 2}  # that are copied
# The doubles as the packages of another process.
DOUBLES = """
import sys
import cuda.bindings
from tests.cuda_double import Driver
from tests.trt_double import TrtDouble
driver = Driver()
trt = TrtDouble(driver)
cuda.bindings.runtime = sys.modules["cuda.bindings.runtime"] = driver.runtime
globals().update({name: value for name, value in vars(trt.module).items() if name[:2] != "__"})
__version__ = trt.module.__version__
"""
TIMES = "Driver.cudaEventElapsedTime.__code__ = (lambda self, start, end: {}).__code__"


class Scripted(Driver):
    """A GPU whose events tell what a test wrote, and its own clock after that; asked wrongly, they answer as CUDA."""

    times_ms: Iterator[float] = iter(())

    def cudaEventElapsedTime(self, start: Any, end: Any) -> float:  # noqa: N802
        return next(self.times_ms, super().cudaEventElapsedTime(start, end))


class Bench:
    """The doubles in this process, and two engines that tell themselves apart by the number of their tensors."""

    def __init__(self, folder: Path, is_integrated: bool) -> None:
        self.driver = Scripted(is_integrated)
        self.cuda = Guarded(self.driver)
        self.trt = TrtDouble(self.driver, "tensorrt", lambda: self.cuda.depth > 0)
        self.engines = [write_engine(folder / "first.engine", HEAD), write_engine(folder / "form.engine", "audio")]

    def measure(self) -> list[list[float]]:
        return measure(self.cuda, self.engines)  # type: ignore[arg-type]


def write_engine(path: Path, part: str) -> Path:
    path.write_bytes(write_plan("tensorrt", Plan(VERSIONS["tensorrt"], SM, (1, 1, 1), PARTS[part])))
    return path


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """In the end nothing may be left on the GPU, and no misuse was swallowed."""
    made = Bench(tmp_path, request.param)
    for name in ("tensorrt", *OURS):
        monkeypatch.setitem(sys.modules, name, made.trt.module)
    for name in OURS:
        del sys.modules[name]
    yield made
    made.driver.finish()


def test_blocks_are_timed_in_turn_and_those_that_warm_up_are_left_out(bench: Bench) -> None:
    bench.driver.times_ms = iter(range(1, 2 * ALL + 1))
    places = np.arange(1, 2 * ALL + 1).reshape(ALL, 2)  # [round, engine]: the how manyth of all blocks it was
    places[1::2] = places[1::2, ::-1]  # in every second round the form comes first
    np.testing.assert_allclose(bench.measure(), places[WARM_UP_BLOCKS:].T * 1000 / RUNS)
    assert next(bench.driver.times_ms, None) is None


def test_a_block_is_ten_runs_of_what_the_loop_runs_and_nothing_else(bench: Bench) -> None:
    """By the clock of the double, on which everything that is enqueued takes a millisecond."""
    for times, part in zip(bench.measure(), (HEAD, "audio"), strict=True):
        copies = 0 if bench.driver.is_integrated else TENSORS[part]
        run_ms = 1 + copies + 1 + 1  # the part's events are around it
        np.testing.assert_allclose(times, [(RUNS * run_ms + 1) * 1000 / RUNS] * BLOCKS)
    assert bench.driver.calls["cudaGraphLaunch"] == 2 * ALL * RUNS
    assert bench.trt.calls["execute_async_v3"] == 2 * 2  # to warm up and to capture


@pytest.mark.parametrize(
    ("fails", "nth"),
    [
        ("deserialize_cuda_engine", 1),
        ("deserialize_cuda_engine", 2),
        ("create_execution_context", 1),
        ("create_execution_context", 2),
        ("execute_async_v3", 1),
        ("execute_async_v3", 3),  # the second is in a capture, and what cannot be captured runs without
    ],
)
def test_what_tensorrt_refuses_is_told_and_everything_is_let_go(bench: Bench, fails: str, nth: int) -> None:
    bench.trt.fail(fails, nth)
    with pytest.raises((EngineError, BackendError)) as error:
        bench.measure()
    assert "the engine f" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gpu_that_fails_between_blocks_is_told_and_everything_is_let_go(bench: Bench) -> None:
    bench.driver.fail("cudaStreamSynchronize", "cudaErrorLaunchFailure", 20)
    with pytest.raises(BackendError, match="cudaErrorLaunchFailure"):
        bench.measure()


# The forms of a part


class Compiler:
    """In the place of the compiler's process: each engine is the ONNX part, for the double."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.known: list[bytes] = []  # in the timing cache, before each build

    def __call__(self, job: Job, model: bytes, log: Path, *told: Any) -> dict[str, Any]:
        cache = Path(str(job.timing_cache))
        self.known.append(cache.read_bytes() if cache.exists() else b"")
        cache.write_bytes(self.known[-1] + b"+")
        self.jobs.append(job)
        write_engine(Path(job.engine), model.decode())
        return {"plan": '{"Layers": []}'}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(timed, "run_compiler", made)
    return made


def timer_of(monkeypatch: pytest.MonkeyPatch, *blocks: Callable[[], Any]) -> Timer:
    """A timer whose processes tell these blocks, one after the other."""
    told = iter(blocks)
    monkeypatch.setattr(Timer, "_blocks", lambda self, first, form: np.asarray(next(told)()))
    return Timer(ORIN)


@pytest.mark.usefixtures("compiler")
def test_a_gpu_that_gets_slower_does_not_make_the_later_form_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    first = 100 + 10 * np.random.default_rng(0).random(BLOCKS)
    slow = 2 * first + np.arange(BLOCKS)  # the same form on a GPU that is hot
    timer = timer_of(monkeypatch, lambda: [first, first], lambda: [slow, 0.9 * slow], lambda: [slow, slow])
    one, faster, same = (timer.time(HEAD.encode()) for _ in range(3))
    assert one.us == pytest.approx(np.median(first))
    assert faster.us == pytest.approx(0.9 * one.us)
    assert same.us == pytest.approx(one.us)
    assert max(form.spread_us for form in (one, faster, same)) < 1e-9  # the two of a round are equally hot


@pytest.mark.usefixtures("compiler")
def test_the_spread_is_that_of_the_middle_half_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = np.arange(101) / 100 + 0.5
    ratios[[0, -1]] = 0.01, 99  # what disturbs few blocks does not count
    timer = timer_of(monkeypatch, lambda: [np.full(101, 200.0), 200 * ratios])
    timing = timer.time(HEAD.encode())
    assert (timing.us, timing.spread_us) == pytest.approx((200.0, 100.0))


def test_the_first_form_is_kept_and_so_is_what_the_compiler_has_timed(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[tuple[bytes, bytes]] = []

    def blocks(self: Timer, first: Path, form: Path) -> Any:
        pairs.append((first.read_bytes(), form.read_bytes()))
        return np.ones((2, BLOCKS))

    monkeypatch.setattr(Timer, "_blocks", blocks)
    timer = Timer(ORIN)
    assert [timer.time(part.encode()).plan for part in ("text", HEAD, "audio")] == ['{"Layers": []}'] * 3
    text, head, audio = (form for _, form in pairs)
    assert pairs == [(text, text), (text, head), (text, audio)]
    assert len({text, head, audio}) == 3
    assert compiler.known == [b"", b"+", b"++"]
    assert {(job.target, job.sm, job.max_batch) for job in compiler.jobs} == {("tensorrt", (87,), 1)}
    assert not any(Path(job.engine).exists() for job in compiler.jobs)


# The process


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the processes that are started the doubles, and whatever else a test makes of them."""

    def install(code: str) -> None:
        folder = stand_in(tmp_path / "modules", DOUBLES + code)
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")

    return install


@pytest.mark.usefixtures("compiler")
def test_another_process_times_what_was_built(packages: Callable[[str], None]) -> None:
    packages("")
    timer = Timer(ORIN)
    for part in ("audio", HEAD):
        timing = timer.time(part.encode())
        assert timing.us == pytest.approx((RUNS * (3 + TENSORS[part]) + 1) * 1000 / RUNS)  # a millisecond for each
        assert timing.spread_us == 0


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.abort()", r"the process crashed \(SIGABRT\)"),
        ("print('a loud library'); sys.exit('it is over')", r"the process crashed \(exit code 1\): it is over"),
        (
            "raise ImportError('libnvinfer.so.10 is not there')",
            r".*cannot be loaded \(libnvinfer.so.10 is not there\).*",
        ),
        ("raise MemoryError", r"memory ran out; close other programs"),
        ("trt.fail('Runtime')", r"tensorrt found no usable GPU here: .*"),
        ("trt.fail('create_execution_context', 2)", r"the engine form cannot be made ready: .*"),
        ("driver.fail('cudaStreamSynchronize', 'cudaErrorLaunchFailure', 30)", r".*cudaErrorLaunchFailure.*"),
        (TIMES.format("0.0"), r"CUDA's events tell times that cannot be"),
        (TIMES.format("float('nan')"), r"CUDA's events tell times that cannot be"),
        ("timed = __import__('time').sleep(60)", r"it hangs \(more than 3 s\)"),
    ],
)
def test_however_the_process_ends_it_is_told_in_one_line(
    packages: Callable[[str], None], code: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages(code)
    monkeypatch.setattr(timed, "TIMEOUT_S", 3.0 if "sleep" in code else 60.0)
    with pytest.raises(EngineError) as error:
        Timer(ORIN).time(HEAD.encode())
    form = rf"a form cannot be timed on Orin: {why}; --precision int8 and fp16 need no costs"
    assert re.fullmatch(form, str(error.value)), str(error.value)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_driver_a_form_is_built_and_then_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both real processes; the module of TensorRT-RTX stands in for TensorRT, as in test_compiler.py."""
    monkeypatch.setenv("PYTHONPATH", str(stand_in(tmp_path / "modules")))
    with pytest.raises(EngineError, match=r"^a form cannot be timed on Orin: .*no NVIDIA driver .*need no costs$"):
        Timer(ORIN).time(to_fp16(Graph(PARTS[HEAD])).serialize())
    with pytest.raises(EngineError, match=r"^tensorrt 10\.3\.0 refuses the graph: "):
        Timer(ORIN).time(b"not onnx")


# The machine

GOOD = {
    GPU: Found(True, gpu={"name": "Orin", "sm": 87, "cuda": "12.6"}),
    "tensorrt": Found(True, "10.3.0"),
    "onnx": Found(True, "1.18.0"),
    "cuda.bindings.runtime": Found(True),
    "pycuda.driver": Found(False, why="not installed"),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Found]]:
    """What is found on a Jetson; a test may change it."""
    found = dict(GOOD)
    monkeypatch.setattr(timed, "find_gpu", lambda: Gpu("Orin", 87, "12.6"))
    monkeypatch.setattr(timed, "probe", lambda names, _: {name: found[name] for name in names})
    timed._facts.cache_clear()
    yield found
    timed._facts.cache_clear()


@pytest.mark.usefixtures("machine")
def test_a_machine_that_has_all_is_timed_on() -> None:
    assert find_device() == ORIN


@pytest.mark.parametrize(
    ("name", "found", "why"),
    [
        ("tensorrt", Found(False, why="not installed"), "tensorrt: not installed"),
        ("tensorrt", Found(True, "8.6.1"), "tensorrt 8.6.1 is older than 10.3"),
        ("cuda.bindings.runtime", Found(False, why="not installed"), "cuda.bindings.runtime: not installed"),
    ],
)
def test_what_a_gpu_lacks_to_be_timed_on_is_said(machine: dict[str, Found], name: str, found: Found, why: str) -> None:
    machine[name] = found
    with pytest.raises(EngineError) as error:
        find_device()
    assert str(error.value) == why


def test_without_a_gpu_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> Gpu:
        raise EngineError("no NVIDIA driver")

    monkeypatch.setattr(timed, "find_gpu", no_gpu)
    monkeypatch.setattr(timed, "_facts", None)  # would be called
    assert find_device() is None
