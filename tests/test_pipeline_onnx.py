"""The pipeline on ONNX Runtime: part by part it gives what the predictor gives, and keeps nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import SENSOR_TENSORS, Bundle
from edgefuse.runtime.errors import BackendError
from edgefuse.runtime.predictor import Predictor
from edgefuse.runtime.preprocess import Preprocessor

M = ("image", "audio", "text")


@pytest.fixture(scope="module", params=[1, 3], ids=["one lane", "three lanes"])
def backend(tiny, request) -> Iterator[OnnxBackend]:
    with OnnxBackend(Bundle.open(tiny.bundle), threads=request.param) as backend:
        yield backend


@pytest.fixture(scope="module")
def predictor(tiny, backend) -> Predictor:
    return Predictor(Bundle.open(tiny.bundle), backend)


def readings(preprocessor: Preprocessor, seed: int) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    tensors = {modality: preprocessor.empty(modality) for modality in M}
    tensors["image"]["image"][:] = random.integers(0, 256, (1, 8, 8, 3))
    tensors["audio"]["audio"][:] = random.uniform(-1, 1, (1, 160))
    for name, most in zip(SENSOR_TENSORS["text"], (5, 2), strict=True):
        tensors["text"][name][:] = random.integers(0, most, (1, 4))
    return tensors


subsets = st.sets(st.sampled_from(M))


@given(st.lists(st.tuples(subsets, subsets, st.integers(0, 99)), min_size=1, max_size=8))
def test_it_equals_the_predictor_over_any_sequence_of_fresh_subsets(backend, predictor, steps):
    """Exactly: what was not fresh stands on its last reading, and what is not present counts for nothing."""
    pipeline, tokens = backend.pipeline(), {}
    for fresh, present, seed in steps:
        given_now = {m: tensors for m, tensors in readings(predictor.preprocessor, seed).items() if m in fresh}
        tokens |= {m: predictor.encode(m, tensors) for m, tensors in given_now.items()}
        presence = np.array([[m in present and m in tokens for m in M]], np.float32)
        counted = {m: tokens[m] for m, there in zip(M, presence[0], strict=True) if there}
        logits, weights = predictor.fuse(counted, presence)

        outcome = pipeline.run(given_now, presence)

        np.testing.assert_array_equal(outcome.logits, logits[0])
        np.testing.assert_array_equal(outcome.weights, weights[0])
        assert list(outcome.stages_ms) == [*given_now, "head"]


def test_a_reading_may_be_written_again_and_its_answer_stays(backend, predictor):
    pipeline, tensors = backend.pipeline(), readings(predictor.preprocessor, 0)
    everything = np.ones((1, 3), np.float32)
    before = pipeline.run(tensors, everything).logits.copy()

    for arrays in tensors.values():
        for array in arrays.values():
            array[:] = 1

    np.testing.assert_array_equal(pipeline.run({}, everything).logits, before)


def test_a_presence_that_is_written_in_place_is_seen(backend, predictor):
    pipeline, presence = backend.pipeline(), np.ones((1, 3), np.float32)
    pipeline.run(readings(predictor.preprocessor, 0), presence)

    presence[0] = [0, 1, 0]

    np.testing.assert_array_equal(pipeline.run({}, presence).weights, [0, 1, 0])
    np.testing.assert_array_equal(pipeline.run({}, np.eye(3, dtype=np.float32)[2:]).weights, [0, 0, 1])


def test_two_pipelines_of_a_backend_do_not_share_tokens(backend, predictor):
    one, other = backend.pipeline(), backend.pipeline()
    everything = np.ones((1, 3), np.float32)
    before = one.run(readings(predictor.preprocessor, 0), everything).logits.copy()

    other.run(readings(predictor.preprocessor, 1), everything)

    np.testing.assert_array_equal(one.run({}, everything).logits, before)


def test_nothing_is_kept_of_a_run_once_warm(tiny, predictor):
    with OnnxBackend(Bundle.open(tiny.bundle), threads=1) as alone:
        pipeline, everything = alone.pipeline(), np.ones((1, 3), np.float32)
        turns = [readings(predictor.preprocessor, seed) for seed in range(3)]  # as the mailbox changes them
        tracemalloc.start()
        for tensors in turns * 10:
            outcome = pipeline.run(tensors, everything)
        warm, _ = tracemalloc.get_traced_memory()
        for tensors in turns * 100:
            outcome = pipeline.run(tensors, everything)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert after - warm < 200
        assert outcome.logits is pipeline.run({}, everything).logits


@pytest.mark.parametrize("threads", [1, 3])
def test_after_an_error_it_is_closed_and_says_so(tiny, predictor, threads):
    with OnnxBackend(Bundle.open(tiny.bundle), threads=threads) as backend:
        pipeline, everything = backend.pipeline(), np.ones((1, 3), np.float32)
        wrong = {**readings(predictor.preprocessor, 0), "image": {"image": np.zeros((1, 9, 9, 3), np.uint8)}}
        with pytest.raises(BackendError, match=r"image failed on onnxruntime:cpu: .*invalid dimensions") as caught:
            pipeline.run(wrong, everything)
        assert len(str(caught.value).splitlines()) == 1

        with pytest.raises(BackendError, match="onnxruntime:cpu is closed; open the backend again"):
            pipeline.run({}, everything)

        assert backend.pipeline().run({}, everything).logits.shape == (3,)


def test_it_is_closed_with_its_backend(tiny):
    with OnnxBackend(Bundle.open(tiny.bundle), threads=1) as backend:
        pipeline = backend.pipeline()

    with pytest.raises(BackendError, match="is closed"):
        pipeline.run({}, np.ones((1, 3), np.float32))
