"""The double of TensorRT refuses what the real one refuses, and finds what it lets pass to compute rubbish."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx

from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.cuda_runtime import CudaRuntime
from tests.conftest import Tiny
from tests.cuda_double import Driver
from tests.cuda_order import Misuse
from tests.trt_context import Context
from tests.trt_double import Cache, Config, Engine, Runtime, TrtDouble
from tests.trt_plan import SM, VERSIONS, Plan, write_plan

AUDIO, TOKENS = 160 * 4, 3 * 4  # bytes of one example


class Setup:
    """The audio part, ready to run a batch of one."""

    def __init__(self, model: bytes, target: str = "tensorrt", *, is_ready: bool = True) -> None:
        self.driver = Driver()
        self.trt = TrtDouble(self.driver, target)
        self.cuda = CudaRuntime(self.driver.runtime)
        self.log: list[str] = []
        said = self.log

        class Logger(self.trt.module.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: int, msg: str) -> None:
                said.append(msg)

        self.logger = Logger()
        self.data = write_plan(target, Plan(VERSIONS[target], SM, (1, 1, 4), model))
        self.runtime = self.trt.module.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(self.data)
        self.context = self.engine.create_execution_context()
        self.stream = self.cuda.stream()
        self.audio, self.tokens = self.cuda.device(4 * AUDIO), self.cuda.device(4 * TOKENS)
        if is_ready:
            assert self.context.set_input_shape("audio", (1, 160))
            assert self.context.infer_shapes() == []
            assert self.context.set_tensor_address("audio", self.audio)
            assert self.context.set_tensor_address("audio_tokens", self.tokens)

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(self.stream))

    def close(self) -> None:
        """In the order that TensorRT needs."""
        for stream in self.cuda._streams:
            self.cuda.synchronize(stream)
        for name in ("context", "engine", "runtime"):
            self.__dict__.pop(name, None)
        self.cuda.close()


@pytest.fixture(scope="session")
def model(tiny: Tiny) -> bytes:
    return Bundle.open(tiny.bundle).part("fp32", "audio")


@pytest.fixture
def setup(model: bytes) -> Iterator[Setup]:
    """Whatever was done with it, in the end it is closed."""
    made = Setup(model)
    yield made
    made.close()


@pytest.fixture
def blank(model: bytes) -> Iterator[Setup]:
    """The same without shapes and addresses."""
    made = Setup(model, is_ready=False)
    yield made
    made.close()


def test_it_computes_what_onnx_runtime_computes_when_the_stream_is_waited_for(setup: Setup) -> None:
    sound = np.zeros((1, 160), np.float32)
    sound[0, :50] = 0.5  # of blue's third
    into, out = setup.cuda.host(AUDIO), setup.cuda.host(TOKENS)
    into.array[...] = sound.view(np.uint8)[0]
    setup.cuda.copy_in(setup.audio, into, AUDIO, setup.stream)
    assert setup.run()
    setup.cuda.copy_out(out, setup.tokens, TOKENS, setup.stream)
    found = out.array.view(np.float32)
    assert found[1] != 0  # rubbish still
    setup.cuda.synchronize(setup.stream)
    np.testing.assert_allclose(found, [10 * 0.5 * 50 / 54, 0, 0], rtol=1e-5)
    setup.close()
    setup.driver.finish()


def test_an_engine_tells_its_tensors(setup: Setup) -> None:
    engine, module = setup.engine, setup.trt.module
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    assert names == ["audio", "audio_tokens"]
    assert [engine.get_tensor_mode(name) for name in names] == [module.TensorIOMode.INPUT, module.TensorIOMode.OUTPUT]
    assert [engine.get_tensor_dtype(name).name for name in names] == ["FLOAT", "FLOAT"]
    assert [engine.get_tensor_shape(name) for name in names] == [(-1, 160), (-1, 1, 3)]
    assert engine.get_tensor_profile_shape("audio", 0) == [(1, 160), (1, 160), (4, 160)]


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.get_tensor_mode("sound"),
        lambda engine: engine.get_tensor_profile_shape("audio", 1),
        lambda engine: engine.get_tensor_profile_shape("audio_tokens", 0),
    ],
)
def test_what_an_engine_does_not_have_is_a_misuse(setup: Setup, call: Any) -> None:
    with pytest.raises(Misuse):
        call(setup.engine)


@pytest.mark.parametrize(
    ("double", "real"),
    [
        (Runtime, tensorrt_rtx.Runtime),
        (Engine, tensorrt_rtx.ICudaEngine),
        (Context, tensorrt_rtx.IExecutionContext),
        (Config, tensorrt_rtx.IRuntimeConfig),
        (Cache, tensorrt_rtx.IRuntimeCache),
    ],
)
def test_it_has_no_name_that_the_real_one_lacks(double: type, real: type) -> None:
    names = {name for name, value in vars(double).items() if not name.startswith("_") and name != "HEAD"}
    assert names
    assert not [name for name in names if not hasattr(real, name)]


def test_its_constants_are_those_of_the_real_one(model: bytes) -> None:
    module = TrtDouble(Driver(), "tensorrt-rtx").module
    for name in ("TensorIOMode", "CudaGraphStrategy"):
        real = getattr(tensorrt_rtx, name)
        assert {member.name: int(member) for member in getattr(module, name)} == {
            member: int(value) for member, value in real.__members__.items()
        }
    assert {member.name for member in module.DataType} <= set(tensorrt_rtx.DataType.__members__)
    assert hasattr(tensorrt_rtx.IRuntimeConfig, "cuda_graph_strategy")


# What it answers with None or False and a line in its log.


def other(setup: Setup, **changes: Any) -> bytes:
    plan = {"version": VERSIONS["tensorrt"], "sm": SM, "batches": (1, 1, 4), "model": b"", **changes}
    return write_plan("tensorrt", Plan(**plan))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda setup: other(setup, version=(10, 2, 0, 1)), "expecting library version 10.3.0.26 got 10.2.0.1"),
        (lambda setup: other(setup, sm=75), "expecting compute 8.9 got compute 7.5"),
        (lambda setup: setup.data[:-1], "plan.header.size == blobSize failed"),
        (lambda setup: b"vtrt" + setup.data[4:], "header.magicTag == kEXPECTED_MAGIC_TAG failed"),
        (lambda setup: b"", "header.magicTag"),
    ],
)
def test_an_engine_that_does_not_fit_is_none(setup: Setup, spoil: Any, said: str) -> None:
    assert setup.runtime.deserialize_cuda_engine(spoil(setup)) is None
    assert said in setup.log[-1]


@pytest.mark.parametrize("shape", [(0, 160), (5, 160), (1, 161), (160,), (1, 1, 160), (-1, 160)])
def test_a_shape_outside_of_the_profile_is_refused(setup: Setup, shape: tuple[int, ...]) -> None:
    assert setup.context.set_input_shape("audio", shape) is False
    assert "does not satisfy any optimization profiles" in setup.log[-1]
    assert setup.run()  # with the shape of before


def test_a_name_that_is_no_input_has_no_shape(setup: Setup) -> None:
    assert setup.context.set_input_shape("audio_tokens", (1, 1, 3)) is False
    assert setup.context.set_input_shape("sound", (1, 160)) is False


@pytest.mark.parametrize(("name", "address"), [("sound", 1), ("audio", 0)])
def test_an_address_for_nothing_or_of_nothing_is_refused(setup: Setup, name: str, address: int) -> None:
    assert setup.context.set_tensor_address(name, address) is False
    assert name in setup.log[-1]


def test_shapes_that_are_missing_are_named_and_nothing_runs(blank: Setup) -> None:
    assert blank.context.infer_shapes() == ["audio"]
    assert blank.context.get_tensor_shape("audio_tokens") == (-1, 1, 3)
    assert not blank.run()
    assert "the shape of audio is not specified" in blank.log[-1]


@pytest.mark.parametrize("name", ["audio", "audio_tokens"])
def test_an_address_that_is_missing_is_named_and_nothing_runs(blank: Setup, name: str) -> None:
    blank.context.set_input_shape("audio", (1, 160))
    blank.context.infer_shapes()
    blank.context.set_tensor_address("audio_tokens" if name == "audio" else "audio", blank.audio)
    assert not blank.run()
    assert f"Address is not set for {'input' if name == 'audio' else 'output'} tensor {name}" in blank.log[-1]
    assert blank.driver.pending(blank.stream) == 0


def test_planned_failures_answer_in_their_own_way_and_write_nothing(setup: Setup) -> None:
    functions = ("execute_async_v3", "set_input_shape", "set_tensor_address", "create_execution_context")
    for function in (*functions, "deserialize_cuda_engine", "infer_shapes", "Runtime"):
        setup.trt.fail(function)
    assert setup.run() is False
    assert setup.driver.pending(setup.stream) == 0
    assert setup.context.set_input_shape("audio", (1, 160)) is False
    assert setup.context.set_tensor_address("audio", setup.audio) is False
    assert setup.engine.create_execution_context() is None
    assert setup.runtime.deserialize_cuda_engine(setup.data) is None
    with pytest.raises(RuntimeError, match="Shape inference failed"):
        setup.context.infer_shapes()
    with pytest.raises(TypeError, match="returned nullptr"):
        setup.trt.module.Runtime(setup.logger)
    assert len(setup.log) == 6
    assert setup.run() is True  # once each


# What the real one lets pass.


def test_a_shape_without_its_inference_is_a_misuse(setup: Setup) -> None:
    setup.context.set_input_shape("audio", (2, 160))
    with pytest.raises(Misuse, match="before infer_shapes"):
        setup.run()


def test_the_default_stream_is_a_misuse(setup: Setup) -> None:
    with pytest.raises(Misuse, match="default stream"):
        setup.context.execute_async_v3(0)


def test_memory_that_is_too_small_is_a_misuse(setup: Setup) -> None:
    setup.context.set_tensor_address("audio_tokens", setup.cuda.device(TOKENS - 1))
    with pytest.raises(Misuse, match="which has only 11 in all"):
        setup.run()


def test_memory_that_is_freed_is_a_misuse(setup: Setup) -> None:
    setup.driver.runtime.cudaFree(setup.audio)
    setup.cuda._devices.remove(setup.audio)
    with pytest.raises(Misuse, match="after it was freed"):
        setup.run()


def test_memory_of_the_cpu_is_a_misuse(setup: Setup) -> None:
    setup.context.set_tensor_address("audio", setup.cuda.host(AUDIO).address)
    with pytest.raises(Misuse, match="there is no device memory at"):
        setup.run()


def test_another_thread_is_a_misuse(setup: Setup) -> None:
    found: list[BaseException] = []

    def run() -> None:
        try:
            setup.run()
        except Misuse as misuse:
            found.append(misuse)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "from another thread" in str(found[0])


@pytest.mark.parametrize("gone", ["engine", "runtime"])
def test_a_context_whose_engine_or_runtime_is_gone_is_a_misuse(setup: Setup, gone: str) -> None:
    delattr(setup, gone)
    assert any("deleted before what was made of it" in misuse for misuse in setup.driver.misuses)
    with pytest.raises(Misuse, match="after what it was made of was deleted"):
        setup.run()


def test_a_context_that_is_deleted_while_it_runs_is_a_misuse(setup: Setup) -> None:
    setup.run()
    del setup.context
    assert "memory freed while work on it is pending" in setup.driver.misuses


def test_one_context_on_two_streams_at_once_is_a_misuse(setup: Setup) -> None:
    setup.run()
    setup.context.set_tensor_address("audio", setup.cuda.device(AUDIO))
    setup.context.set_tensor_address("audio_tokens", setup.cuda.device(TOKENS))
    with pytest.raises(Misuse, match="use the same memory in no order"):
        setup.context.execute_async_v3(setup.cuda.stream())


def test_without_a_current_cuda_context_it_is_a_misuse() -> None:
    trt = TrtDouble(Driver(), is_current=lambda: False)
    with pytest.raises(Misuse, match="Runtime without a current CUDA context"):
        trt.module.Runtime(trt.module.ILogger())


def test_a_logger_that_was_not_made_is_refused(setup: Setup) -> None:
    class Logger(setup.trt.module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None: ...

    with pytest.raises(TypeError, match=r"ILogger.__init__\(\) must be called"):
        setup.trt.module.Runtime(Logger())


# Capturing.


def test_a_warm_context_is_captured_and_its_graph_runs(setup: Setup) -> None:
    setup.run()
    setup.cuda.synchronize(setup.stream)
    graph = setup.cuda.capture(setup.stream, lambda: setup.run() or None)  # type: ignore[func-returns-value]
    assert graph is not None
    setup.driver.view(setup.tokens, TOKENS)[...] = 0
    setup.driver.view(setup.audio, AUDIO)[...] = np.ones(160, np.float32).view(np.uint8)
    setup.cuda.launch(graph, setup.stream)
    setup.cuda.synchronize(setup.stream)
    np.testing.assert_allclose(setup.driver.view(setup.tokens, TOKENS).view(np.float32), 10, rtol=1e-5)


@pytest.mark.parametrize("why", ["never run", "another shape", "cannot be captured"])
def test_what_is_not_ready_for_it_spoils_the_capture(setup: Setup, why: str) -> None:
    if why != "never run":
        setup.run()
        setup.cuda.synchronize(setup.stream)
    if why == "another shape":
        setup.context.set_input_shape("audio", (2, 160))
        setup.context.infer_shapes()
    if why == "cannot be captured":
        setup.trt.not_capturable = {"audio"}
    assert setup.cuda.capture(setup.stream, lambda: setup.run() and None) is None
    assert "operation not permitted when stream is capturing" in setup.log[-1]
    assert setup.run()  # the stream is as good as before


def test_a_graph_is_not_launched_after_its_context(setup: Setup) -> None:
    setup.run()
    setup.cuda.synchronize(setup.stream)
    graph = setup.cuda.capture(setup.stream, lambda: setup.run() and None)
    assert graph is not None
    del setup.context
    with pytest.raises(Misuse, match="a graph launched over memory that is freed"):
        setup.cuda.launch(graph, setup.stream)


# TensorRT-RTX


def test_only_tensorrt_rtx_has_its_settings(setup: Setup, model: bytes) -> None:
    assert not hasattr(setup.trt.module, "CudaGraphStrategy")
    with pytest.raises(AttributeError):
        setup.engine.create_runtime_config()


def test_a_cache_keeps_what_was_compiled_for_this_version_only(model: bytes) -> None:
    setup = Setup(model, "tensorrt-rtx")
    config = setup.engine.create_runtime_config()
    config.cuda_graph_strategy = setup.trt.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = config.create_runtime_cache()
    assert config.set_runtime_cache(cache)
    context = setup.engine.create_execution_context(config)
    setup.context, config = context, None
    del context
    for batch in (1, 2, 1):
        setup.context.set_input_shape("audio", (batch, 160))
        setup.context.infer_shapes()
        setup.context.set_tensor_address("audio", setup.audio)
        setup.context.set_tensor_address("audio_tokens", setup.tokens)
        assert setup.run()
    assert setup.trt.compiled == [("audio_tokens", 1), ("audio_tokens", 2)]
    setup.cuda.synchronize(setup.stream)
    assert setup.cuda.capture(setup.stream, lambda: setup.run() and None) is None  # it has graphs of its own
    blob = bytes(cache.serialize())
    again = setup.engine.create_runtime_config().create_runtime_cache()
    assert again.deserialize(blob)
    assert again.known == {"audio_tokens:1", "audio_tokens:2"}
    assert not again.deserialize(blob.replace(b"1.7.1", b"1.6.0"))
    setup.close()
    setup.driver.finish()
