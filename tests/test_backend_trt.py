"""The TensorRT backend over strict doubles of CUDA and TensorRT, against ONNX Runtime to the last bit.

No GPU is here: what these tests show is that the calls, their order, the memory and the errors are right.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgefuse.runtime import backend_trt
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.engines import engine_file
from edgefuse.runtime.errors import BackendError, BundleError, EdgefuseError, EngineError, MissingExtraError
from tests import trt_plan
from tests.trt_plan import MAX_BATCH, SM, VERSIONS, Plan, put_bytes, put_engine, write_plan
from tests.trt_rig import Rig, readings, rig_of

TARGETS = ("tensorrt", "tensorrt-rtx")
ALL = np.ones((1, 3), np.float32)


@pytest.fixture(params=TARGETS)
def rig(request: pytest.FixtureRequest, tiny_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Engines of the tiny bundle on a double; in the end nothing is left and nothing was misused."""
    rig = rig_of(tiny_copy, request.param, monkeypatch)
    yield rig
    rig.driver.finish()


@pytest.fixture
def trt_rig(tiny_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """The same for TensorRT only."""
    rig = rig_of(tiny_copy, "tensorrt", monkeypatch)
    yield rig
    rig.driver.finish()


@pytest.fixture
def rtx_rig(tiny_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """The same for TensorRT-RTX only."""
    rig = rig_of(tiny_copy, "tensorrt-rtx", monkeypatch)
    yield rig
    rig.driver.finish()


def refused(kind: type[EdgefuseError], message: str, work: Callable[[], object]) -> str:
    """`work` fails in one line that has `message`."""
    with pytest.raises(kind, match=message) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


# Batches


@pytest.mark.parametrize("is_integrated", [False, True])
def test_parts_give_what_onnx_runtime_gives(rig: Rig, is_integrated: bool) -> None:
    rig.driver.is_integrated = is_integrated
    with rig.open() as backend, OnnxBackend(rig.bundle, "trt", 1) as onnx:
        for batch in (1, 3, MAX_BATCH, 1, 2 * MAX_BATCH + 1):
            for modality, tensors in readings(rig.bundle, batch, batch).items():
                same(backend.run(modality, tensors), onnx.run(modality, tensors))
            tensors = tokens(rig.bundle, batch)
            same(backend.run(HEAD, tensors), onnx.run(HEAD, tensors))


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def tokens(bundle: Bundle, batch: int) -> dict[str, np.ndarray]:
    """Inputs of the head."""
    random = np.random.default_rng(batch)
    shapes = {f"{m}_tokens": (batch, s.count, s.dim) for m, s in bundle.info.tokens.items()}
    drawn = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**drawn, "presence": np.ones((batch, 3), np.float32)}


def test_outputs_of_one_run_stay_as_they_are_in_the_next(rig: Rig) -> None:
    with rig.open() as backend:
        first = backend.run("image", readings(rig.bundle, 0)["image"])["image_tokens"]
        before = first.copy()
        backend.run("image", readings(rig.bundle, 1)["image"])
        np.testing.assert_array_equal(first, before)


def test_a_part_is_loaded_once_and_ready_to_run(rig: Rig) -> None:
    with rig.open() as backend:
        backend.load("audio")
        backend.load("audio")
        assert rig.trt.calls["deserialize_cuda_engine"] == 1
        assert rig.trt.calls["execute_async_v3"] == 1  # on zeros
        memory = rig.driver.calls["cudaMalloc"]
        backend.run("audio", readings(rig.bundle, 0)["audio"])
        assert rig.driver.calls["cudaMalloc"] == memory
        assert rig.trt.calls["execute_async_v3"] == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": np.zeros((1, 9, 8, 3), np.uint8)}, r"takes image as uint8 \[1, 8, 8, 3\], not uint8 \[1, 9, 8, 3\]"),
        ({"image": np.zeros((1, 8, 8, 3), np.float32)}, r"not float32 \[1, 8, 8, 3\]; export again"),
        ({"audio": np.zeros((1, 160), np.float32)}, "not missing"),
        ({"image": np.zeros((0, 8, 8, 3), np.uint8)}, "with batches of 1 to 4, not of 0"),
        ({}, "not of 0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_do_no_harm(rig: Rig, inputs: dict[str, Any], message: str) -> None:
    with rig.open() as backend:
        refused(BundleError, message, lambda: backend.run("image", inputs))
        backend.run("image", readings(rig.bundle, 0)["image"])


# Errors


def engine_of(rig: Rig, **changes: Any) -> None:
    """Put another plan in the place of the head's, under a sidecar that says nothing of it."""
    plan = Plan(VERSIONS[rig.target], SM, (1, 1, MAX_BATCH), rig.bundle.part("trt", HEAD))
    put_engine(rig.bundle, rig.target, HEAD, replace(plan, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": (10, 2, 0, 1)}, "says that tensorrt 10.2.0.1 built it"),  # found without TensorRT
        ({"sm": 86}, "the tensorrt engine of head cannot be loaded: the engine was built for .* 8.6, this one has 8.9"),
    ],
)
def test_an_engine_that_does_not_fit_is_said_in_one_line(trt_rig: Rig, changes: dict[str, Any], message: str) -> None:
    engine_of(trt_rig, **changes)
    with trt_rig.open() as backend:
        refused(EngineError, message, lambda: backend.load(HEAD))
        backend.load("image")  # the others are fine


def test_what_tensorrt_says_of_an_engine_is_told(trt_rig: Rig) -> None:
    whole = write_plan("tensorrt", Plan(VERSIONS["tensorrt"], SM, (1, 1, 4), trt_rig.bundle.part("trt", HEAD)))
    with trt_rig.open() as backend:
        for data, message in ((whole[:-1], "is cut off"), (b"?" * 99, "is no engine of this program")):
            put_bytes(trt_rig.bundle, "tensorrt", HEAD, data)
            refused(EngineError, f"of head cannot be loaded: .* {message}", lambda: backend.load(HEAD))
        put_bytes(trt_rig.bundle, "tensorrt", HEAD, whole)
        trt_rig.trt.fail("deserialize_cuda_engine")
        refused(EngineError, "memory ran out", lambda: backend.load(HEAD))
        backend.load(HEAD)


def test_an_engine_that_is_missing_is_said_with_the_command(rig: Rig) -> None:
    engine_file(rig.bundle.folder, rig.target, "text").unlink()
    with rig.open() as backend:
        refused(EngineError, f"no {rig.target} engine of text; .*run `edgefuse build", backend.pipeline)


ONNX_TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.BOOL: np.bool_,
}


@pytest.mark.parametrize("kind", ONNX_TYPES, ids=lambda kind: TensorProto.DataType.Name(kind))
def test_every_type_is_filled_and_read_as_what_it_is(rig: Rig, kind: int) -> None:
    sides = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in ("x", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "g", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    put_engine(rig.bundle, rig.target, HEAD, Plan(VERSIONS[rig.target], SM, (1, 1, 4), model.SerializeToString()))
    given = np.array([[0, 1, 1], [1, 0, 1]], ONNX_TYPES[kind])
    with rig.open() as backend:
        same(backend.run(HEAD, {"x": given}), {"same": given.astype(np.float32)})


def test_a_type_that_numpy_lacks_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trt_plan.KINDS, 1, "BF16")
    with rig.open() as backend:
        refused(EngineError, "has audio as BF16; only FLOAT, HALF, .* can be filled", lambda: backend.load("audio"))


FAULTS = {
    "set_input_shape": "refuses image as .*: .*does not satisfy any optimization profiles",
    "infer_shapes": "has no shapes for a batch of 4: Shape inference failed",
    "set_tensor_address": "refuses the memory of image: .*setTensorAddress",
    "execute_async_v3": "the .* engine of image did not run: .*invalid device function",
}


@pytest.mark.parametrize("function", FAULTS)
def test_a_fault_of_tensorrt_is_told_and_the_backend_is_over(rig: Rig, function: str) -> None:
    with rig.open() as backend:
        rig.trt.fail(function)
        refused(BackendError, FAULTS[function], lambda: backend.load("image"))
        refused(BackendError, r"cannot be used any more \(.*open the backend again", lambda: backend.load("audio"))


def test_no_memory_for_a_context_is_told(rig: Rig) -> None:
    with rig.open() as backend:
        rig.trt.fail("create_execution_context", 2)
        refused(EngineError, "the .* engine of audio cannot be made ready: memory ran out", backend.pipeline)


def test_a_run_that_tensorrt_refuses_never_gives_an_answer(rig: Rig) -> None:
    """It wrote nothing: whoever goes on reads zeros."""
    with rig.open() as backend:
        backend.load("image")
        rig.trt.fail("execute_async_v3")
        refused(BackendError, "did not run", lambda: backend.run("image", readings(rig.bundle, 0)["image"]))


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaEventCreate"])
@pytest.mark.parametrize("nth", [1, 4])
def test_a_gpu_without_memory_is_told_and_nothing_is_left(rig: Rig, function: str, nth: int) -> None:
    with rig.open() as backend:
        rig.driver.fail(function, "cudaErrorMemoryAllocation", nth)
        refused(BackendError, "CUDA failed: cudaErrorMemoryAllocation", backend.pipeline)


RUN_FAULTS = ("cudaStreamSynchronize", "cudaEventRecord", "cudaStreamWaitEvent", "cudaEventElapsedTime")


@pytest.mark.parametrize("function", [*RUN_FAULTS, "cudaGraphLaunch", "cudaMemcpyAsync"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_fault_of_cuda_ends_the_pipeline_and_the_next_one_works(rig: Rig, function: str, nth: int) -> None:
    if function == ("cudaMemcpyAsync" if rig.target == "tensorrt" else "cudaGraphLaunch"):
        pytest.skip("is in the graph" if rig.target == "tensorrt" else "TensorRT-RTX has graphs of its own")
    backend = rig.open()
    pipeline, fresh = backend.pipeline(), readings(rig.bundle, 0)
    if nth == 2 and function == "cudaStreamSynchronize":
        pipeline.run(fresh, ALL)
        nth = 1
    rig.driver.fail(function, "cudaErrorLaunchFailure", nth)
    refused(BackendError, "CUDA failed: cudaErrorLaunchFailure", lambda: pipeline.run(fresh, ALL))
    refused(BackendError, "cannot be used any more", lambda: pipeline.run(fresh, ALL))
    backend.close()
    with rig.open() as backend:
        backend.pipeline().run(fresh, ALL)


# Who may use it


def test_another_thread_is_refused_by_name(rig: Rig) -> None:
    told: list[str] = []

    def use() -> None:
        for work in (lambda: backend.load("image"), backend.pipeline, lambda: pipeline.run({}, ALL), backend.close):
            told.append(refused(BackendError, "belongs to the thread", work))

    with rig.open() as backend:
        pipeline = backend.pipeline()
        thread = threading.Thread(target=use, name="web")
        thread.start()
        thread.join()
        assert len(told) == 4
        assert all("'MainThread' that opened it and was used from 'web'" in line for line in told)
        pipeline.run({}, ALL)  # and no harm was done


def test_what_a_thread_leaves_behind_can_be_closed(trt_rig: Rig) -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(trt_rig.open()))
    thread.start()
    thread.join()
    made[0].close()
    made[0].close()


def test_after_closing_it_says_so(rig: Rig) -> None:
    with rig.open() as backend:
        pipeline = backend.pipeline()
    backend.close()
    for work in (lambda: backend.load("image"), lambda: pipeline.run({}, ALL)):
        refused(BackendError, r"cannot be used any more \(it is closed\)", work)


def test_an_error_of_cuda_while_closing_leaves_nothing(rig: Rig) -> None:
    backend = rig.open()
    backend.pipeline()
    rig.driver.fail("cudaFree", "cudaErrorLaunchFailure")
    refused(BackendError, "cudaErrorLaunchFailure", backend.close)


# Opening


def test_without_a_gpu_it_says_what_needs_none(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> None:
        raise EngineError("no NVIDIA driver")

    monkeypatch.setattr(backend_trt, "find_gpu", no_gpu)
    refused(EngineError, f"--backend {rig.target} needs an NVIDIA GPU: no NVIDIA driver; --backend cpu", rig.open)
    rig.cuda.close()


def test_a_runtime_that_finds_no_gpu_is_told_and_cuda_is_closed(rig: Rig) -> None:
    rig.trt.fail("Runtime")
    refused(EngineError, "found no usable GPU here: CUDA cannot use a GPU here", rig.open)
    assert rig.cuda.calls["close"] == 1


def test_a_bundle_without_these_parts_is_refused_first(tiny: Any) -> None:
    refused(BundleError, "has no trt parts", lambda: backend_trt.TrtBackend(Bundle.open(tiny.bundle), "tensorrt"))


def test_pycuda_is_taken_where_cuda_python_is_not_installed(trt_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, missing = [], {"cuda-python"}

    def open_cuda(kind: str) -> Any:
        asked.append(kind)
        if kind in missing:
            raise MissingExtraError(f"this needs {kind}")
        return trt_rig.cuda

    monkeypatch.setattr(backend_trt, "open_cuda", open_cuda)
    backend_trt.TrtBackend(trt_rig.bundle, "tensorrt").close()
    assert asked == ["cuda-python", "pycuda"]
    missing.add("pycuda")
    refused(MissingExtraError, "needs cuda-python", lambda: backend_trt.TrtBackend(trt_rig.bundle, "tensorrt"))


# The cache of TensorRT-RTX


def test_what_was_compiled_is_there_at_the_next_start(rtx_rig: Rig) -> None:
    with rtx_rig.open() as backend:
        backend.pipeline()
        assert len(rtx_rig.trt.compiled) == 4
        assert engine_file(rtx_rig.bundle.folder, "tensorrt-rtx", "head", ".cache").is_file()  # before it is closed
        backend.run("image", readings(rtx_rig.bundle, 0, 3)["image"])
    assert len(rtx_rig.trt.compiled) == 5
    with rtx_rig.open() as backend:
        backend.pipeline()
        backend.run("image", readings(rtx_rig.bundle, 0, 3)["image"])
    assert len(rtx_rig.trt.compiled) == 5


@pytest.mark.parametrize("content", [b"", b"cache of 1.6.0.1 for SM 86:", bytes(99)])
def test_a_foreign_cache_is_ignored_and_replaced(rtx_rig: Rig, content: bytes) -> None:
    path = engine_file(rtx_rig.bundle.folder, "tensorrt-rtx", "head", ".cache")
    path.write_bytes(content)
    with rtx_rig.open() as backend:
        backend.load(HEAD)
    assert path.read_bytes().startswith(b"cache of 1.7.1.116 for SM 89:")


def test_a_cache_that_cannot_be_written_costs_only_time(rtx_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("edgefuse.runtime.rtx_cache.write_atomic", read_only)
    with rtx_rig.open() as backend:
        backend.pipeline().run(readings(rtx_rig.bundle, 0), ALL)


def test_tensorrt_has_no_such_cache(trt_rig: Rig) -> None:
    with trt_rig.open() as backend:
        backend.pipeline()
    assert not list(trt_rig.bundle.folder.glob("engines/*/*.cache"))


def test_only_what_was_logged_for_this_failure_is_told(trt_rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), trt_rig.open() as backend:
        backend.load("image")
        for message in ["something that did no harm"] * 99 + ["Error Code 2: OutOfMemory"]:
            trt_rig.trt.error(message)
        assert "OutOfMemory" in caplog.text
        trt_rig.trt.fail("execute_async_v3")
        told = refused(BackendError, "did not run", lambda: backend.run("image", readings(trt_rig.bundle, 0)["image"]))
        assert not re.search("memory|harm", told)


def test_a_driver_that_lends_no_memory_is_as_good(rig: Rig) -> None:
    """A GPU that is called integrated and maps nothing gets copies."""
    rig.driver.is_integrated, rig.driver.can_map_host = True, False
    with rig.open() as backend:
        backend.pipeline().run(readings(rig.bundle, 0), ALL)
        assert rig.cuda.calls["copy_in"]
