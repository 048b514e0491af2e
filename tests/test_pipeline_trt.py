"""The chained parts on the doubles: the answers of ONNX Runtime to the last bit, with no call and no copy too many."""

from __future__ import annotations

import logging
import shutil
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefuse.runtime.backend import Pipeline
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.decision import Notice
from edgefuse.runtime.errors import BundleError, EngineError
from edgefuse.runtime.loop import Loop
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.preprocess import Preprocessor
from tests.conftest import MODALITIES, Tiny
from tests.cuda_order import Misuse
from tests.test_backend_trt import TARGETS, refused
from tests.trt_rig import Rig, readings, rig_of

ALL = np.ones((1, 3), np.float32)
SENSOR_TENSORS = 4  # image, audio, input_ids, attention_mask
KINDS = [(target, is_integrated) for target in TARGETS for is_integrated in (False, True)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{'integrated' if kind[1] else 'discrete'}")
def rig(request: pytest.FixtureRequest, tiny_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = rig_of(tiny_copy, request.param[0], monkeypatch, is_integrated=request.param[1])
    yield rig
    rig.driver.finish()


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'integrated' if kind[1] else 'discrete'}")
def pair(
    request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Rig, Pipeline, Pipeline]]:
    """The pipeline and ONNX Runtime's, on the same parts."""
    folder = tmp_path_factory.mktemp("pair") / "bundle"
    shutil.copytree(tiny.bundle, folder)
    with pytest.MonkeyPatch.context() as patch:
        rig = rig_of(Bundle.open(folder), request.param[0], patch, is_integrated=request.param[1])
        with rig.open() as backend, OnnxBackend(rig.bundle, "trt", 1) as onnx:
            yield rig, backend.pipeline(), onnx.pipeline()
        rig.driver.finish()


IS_THERE = st.lists(st.booleans(), min_size=3, max_size=3)
STEPS = st.lists(st.tuples(st.sets(st.sampled_from(MODALITIES)), IS_THERE, st.integers(0, 99)), min_size=1, max_size=8)


@given(STEPS)
@settings(max_examples=30)
def test_any_sequence_of_what_is_new_and_what_is_there_gives_the_same_answers(
    pair: tuple[Rig, Pipeline, Pipeline], steps: list[tuple[set[str], list[bool], int]]
) -> None:
    rig, pipeline, onnx = pair
    for fresh, is_there, seed in steps:
        given_now = {m: tensors for m, tensors in readings(rig.bundle, seed).items() if m in fresh}
        presence = np.array([is_there], np.float32)
        found, expected = pipeline.run(given_now, presence), onnx.run(given_now, presence)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.weights, expected.weights)
        assert set(found.stages_ms) == {*fresh, HEAD}
        assert all(found.stages_ms[part] > 0 for part in found.stages_ms)
    assert not rig.driver.misuses


def test_readings_may_be_written_again_once_it_returns(rig: Rig) -> None:
    with rig.open() as backend:
        pipeline, fresh = backend.pipeline(), readings(rig.bundle, 0)
        first = pipeline.run(fresh, ALL).logits.copy()
        for tensors in fresh.values():
            for array in tensors.values():
                array[...] = 1
        np.testing.assert_array_equal(pipeline.run({}, ALL).logits, first)


def test_what_was_never_encoded_is_zeros(rig: Rig) -> None:
    with rig.open() as backend:
        found = backend.pipeline().run({}, ALL)
        tokens = {f"{m}_tokens": np.zeros((1, s.count, s.dim), np.float32) for m, s in rig.bundle.info.tokens.items()}
        np.testing.assert_array_equal(found.logits, backend.run(HEAD, {**tokens, "presence": ALL})["logits"][0])


def test_once_warm_a_run_makes_nothing_and_copies_only_what_it_must(rig: Rig) -> None:
    fresh = readings(rig.bundle, 0)
    with rig.open() as backend:
        pipeline = backend.pipeline()
        memory, runs = len(rig.driver._blocks), 50
        rig.cuda.calls.clear()
        rig.trt.calls.clear()
        outcomes = [pipeline.run(fresh if number % 2 else {"text": fresh["text"]}, ALL) for number in range(runs)]
        assert len(rig.driver._blocks) == memory
        assert all(outcome.logits is outcomes[0].logits for outcome in outcomes)
        encoders, tensors = runs // 2 * (1 + 3), runs // 2 * (2 + SENSOR_TENSORS)
        has_graphs = rig.target == "tensorrt"
        copies = 0 if has_graphs or rig.driver.is_integrated else 1
        assert rig.cuda.calls == {
            "synchronize": runs,
            "wait": encoders,
            "record": 2 * (encoders + runs),
            "elapsed_ms": encoders + runs,
            **({"launch": encoders + runs} if has_graphs else {}),
            **({"copy_in": tensors + runs, "copy_out": 2 * runs} if copies else {}),  # presence; logits and weights
        }
        assert rig.trt.calls == ({} if has_graphs else {"execute_async_v3": encoders + runs})


def test_memory_of_ours_does_not_grow(rig: Rig) -> None:
    ours = [tracemalloc.Filter(True, f"*/runtime/{name}.py") for name in ("backend_trt", "pipeline_trt", "trt_*")]
    fresh = readings(rig.bundle, 0)
    with rig.open() as backend:
        pipeline = backend.pipeline()
        tracemalloc.start()
        try:
            sizes = []
            for _ in range(3):
                for _ in range(100):
                    pipeline.run(fresh, ALL)
                traces = tracemalloc.take_snapshot().filter_traces(ours).traces
                sizes.append(sum(trace.size for trace in traces))
        finally:
            tracemalloc.stop()
    assert sizes[2] - sizes[1] < 500  # bytes in 100 runs


def test_a_graph_holds_the_same_copies(rig: Rig) -> None:
    with rig.open() as backend:
        backend.pipeline()
        once = SENSOR_TENSORS + 1
        times = 2 if rig.target == "tensorrt" else 1  # to warm up, and to capture
        clearing = len(MODALITIES)
        assert rig.cuda.calls["copy_in"] == clearing + (0 if rig.driver.is_integrated else once * times)
        assert rig.cuda.calls["copy_out"] == (0 if rig.driver.is_integrated else 2 * times)
        assert rig.cuda.calls["capture"] == (4 if rig.target == "tensorrt" else 0)  # TensorRT-RTX has graphs of its own


def test_what_cannot_be_captured_runs_without_a_graph_and_that_is_said_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.trt.not_capturable = {"audio"}
    fresh = readings(rig.bundle, 0)
    with rig.open() as backend, OnnxBackend(rig.bundle, "trt", 1) as onnx, caplog.at_level(logging.WARNING):
        pipeline, other = backend.pipeline(), onnx.pipeline()
        for _ in range(3):
            np.testing.assert_array_equal(pipeline.run(fresh, ALL).logits, other.run(fresh, ALL).logits)
        captured = rig.target == "tensorrt"
        assert rig.cuda.calls["launch"] == (3 * 3 if captured else 0)
        said = "the tensorrt engine of audio cannot be captured in a CUDA graph, and runs a little slower without"
        assert [record.getMessage() for record in caplog.records] == ([said] if captured else [])


def test_without_cuda_graphs_parts_are_enqueued(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgefuse.runtime.cuda_runtime.CudaRuntime.can_capture", False)  # as pycuda
    with rig.open() as backend, OnnxBackend(rig.bundle, "trt", 1) as onnx:
        fresh = readings(rig.bundle, 0)
        found = backend.pipeline().run(fresh, ALL)
        np.testing.assert_array_equal(found.logits, onnx.pipeline().run(fresh, ALL).logits)
        assert rig.cuda.calls["capture"] == rig.cuda.calls["launch"] == 0
        assert not caplog.records


def test_encoders_run_on_streams_of_their_own(rig: Rig) -> None:
    with rig.open() as backend:
        pipeline = backend.pipeline()
        parts = [pipeline._head, *pipeline._encoders.values()]  # type: ignore[attr-defined]
        assert len({part.stream for part in parts}) == 4


def test_a_head_that_does_not_wait_is_found(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the double is for: the events are needed."""
    with rig.open() as backend:
        pipeline = backend.pipeline()
        with monkeypatch.context() as patch:
            patch.setattr(rig.cuda._cuda, "wait", lambda stream, event: None)
            with pytest.raises(Misuse, match="in no order"):
                pipeline.run(readings(rig.bundle, 0), ALL)
    rig.driver.misuses.clear()


@pytest.mark.parametrize(
    ("fresh", "presence", "message"),
    [
        ({"audio": {"audio": np.zeros((2, 160), np.float32)}}, ALL, r"of audio takes audio as float32 \[1, 160\]"),
        ({"text": {"input_ids": np.zeros((1, 4), np.int32)}}, ALL, "takes attention_mask as .*, not missing"),
        ({}, np.ones((1, 2), np.float32), r"of head takes presence as float32 \[1, 3\], not float32 \[1, 2\]"),
        ({}, np.ones((1, 3)), "not float64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_runs(
    rig: Rig, fresh: dict[str, dict[str, np.ndarray]], presence: np.ndarray, message: str
) -> None:
    with rig.open() as backend:
        pipeline, good = backend.pipeline(), readings(rig.bundle, 0)
        before = pipeline.run(good, ALL).logits.copy()
        with_good = {"image": readings(rig.bundle, 1)["image"], **fresh}
        refused(BundleError, message, lambda: pipeline.run(with_good, presence))
        np.testing.assert_array_equal(pipeline.run({}, ALL).logits, before)


def test_the_loop_gets_over_a_gpu_that_fails(rig: Rig) -> None:
    notices: list[Notice] = []
    info, now_ns = rig.bundle.info, [1]
    mailbox = Mailbox(Preprocessor(rig.bundle).empty, info.modalities)
    with Loop(info, rig.open, mailbox, clock=lambda: now_ns[0], on_notice=notices.append) as loop:
        sensor = mailbox.writer("audio")
        sensor.tensors["audio"][...] = 0.25
        sensor.put(now_ns[0])
        before = loop.step()
        rig.driver.fail("cudaStreamSynchronize", "cudaErrorLaunchFailure")
        sensor.tensors["audio"][...] = 0.25
        sensor.put(now_ns[0])
        assert loop.step() is None
        now_ns[0] += 200_000_000
        after = loop.step()
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    assert [(notice.about, notice.is_well) for notice in notices] == [("backend", False), ("backend", True)]
    assert "CUDA failed: cudaErrorLaunchFailure" in notices[0].message


def test_two_pipelines_and_batches_do_not_disturb_each_other(rig: Rig) -> None:
    one, two = readings(rig.bundle, 1), readings(rig.bundle, 2)
    with rig.open() as backend, OnnxBackend(rig.bundle, "trt", 1) as onnx:
        first, second = backend.pipeline(), backend.pipeline()
        first.run(one, ALL)
        second.run(two, ALL)
        backend.run("image", readings(rig.bundle, 3, 4)["image"])
        np.testing.assert_array_equal(first.run({}, ALL).logits, onnx.pipeline().run(one, ALL).logits)
        np.testing.assert_array_equal(second.run({}, ALL).logits, onnx.pipeline().run(two, ALL).logits)


def test_tokens_of_another_size_than_the_contract_says_are_refused(rig: Rig) -> None:
    spec = rig.bundle.info.tokens["text"]
    rig.bundle.info.tokens["text"] = spec.model_copy(update={"dim": spec.dim - 1})
    with rig.open() as backend:
        refused(EngineError, "of text has text_tokens in 12 bytes, the contract says 8; export again", backend.pipeline)
