"""Parts for ONNX Runtime's CPU: they answer as FP32 does, keep the front end float, and are timed fairly."""

from __future__ import annotations

import logging

import onnx
import pytest

from edgefuse.optimize.cpu_parts import DYNAMIC, STATIC, cpu_candidates, median_ms
from edgefuse.optimize.judge import REFERENCE, Candidate
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples
from tests.optimize_fixtures import PARTS, cosine, fresh_bundle, inputs_of, outputs


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with fp32 parts, and its data; read only."""
    return fresh_bundle(tmp_path_factory.mktemp("small"))


def training_samples(bundle: Bundle, modality: str) -> Samples:
    return Samples(Preprocessor(bundle), read_manifest(bundle.info.lineage["manifest"], split="train"), modality)


@pytest.mark.parametrize("part", PARTS)
def test_cpu_candidates_answer_as_fp32_does(part: str, small: Bundle) -> None:
    samples = None if part == HEAD else training_samples(small, part)
    candidates = {candidate.precision: candidate for candidate in cpu_candidates(PARTS[part], samples)}
    assert set(candidates) == ({REFERENCE, DYNAMIC} if part == HEAD else {REFERENCE, DYNAMIC, STATIC})
    assert candidates[REFERENCE].model == PARTS[part]
    inputs = inputs_of(part)
    for candidate in candidates.values():
        assert cosine(outputs(candidate.model, inputs)[0], outputs(PARTS[part], inputs)[0]) > 0.98


def test_the_front_end_stays_float_on_the_cpu(small: Bundle) -> None:
    for candidate in cpu_candidates(PARTS["audio"], training_samples(small, "audio"))[1:]:
        graph = onnx.load_model_from_string(candidate.model).graph
        nodes = {node.name: node for node in graph.node}
        float_weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
        for name in ("dft", "mel"):
            assert nodes[name].input[1] in float_weights
        assert nodes["dft"].input[0] == "wave"
        assert nodes["mel"].input[0] == "frames"


def test_times_are_medians_of_interleaved_runs() -> None:
    times = median_ms([Candidate("a", PARTS[HEAD]), Candidate("b", PARTS[HEAD])], inputs_of(HEAD, batch=1))
    assert set(times) == {"a", "b"}
    assert all(0 < time < 100 for time in times.values())


def test_quiet_quantizers_leave_logging_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    cpu_candidates(PARTS[HEAD], None)
    assert not caplog.records
    logging.getLogger().warning("still heard")
    assert caplog.messages == ["still heard"]
