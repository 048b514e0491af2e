"""The scores that tools are compared by are right where they are known, and a peer's worker makes a usable part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgefuse.benchmarks.peers import quantizer_worker
from edgefuse.benchmarks.peers.quantizer_scores import Exam, compiled, gathered, nearness, tokens_of
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples
from tests.optimize_fixtures import DIM, LINES, PARTS, fresh_bundle, inputs_of, outputs


def test_nearness_is_signal_over_error_and_the_mean_cosine() -> None:
    reference = np.random.default_rng(0).standard_normal((50, 2, 100)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(reference.shape)
    found = nearness((reference + 0.1 * noise).astype(np.float32), reference)
    assert found["sqnr_db"] == pytest.approx(20, abs=0.2)
    assert found["cosine"] == pytest.approx(1 / np.sqrt(1.01), abs=1e-3)
    scaled = nearness(2 * reference, reference)
    assert scaled["sqnr_db"] == pytest.approx(0, abs=1e-4)
    assert scaled["cosine"] == pytest.approx(1)
    assert nearness(reference, reference)["sqnr_db"] == np.inf


def test_an_exam_passes_fp32_and_fails_noise(tmp_path: Path) -> None:
    bundle = fresh_bundle(tmp_path)
    exam = Exam(bundle, read_manifest(bundle.info.lineage["manifest"], split="val", labels=bundle.info.labels))
    assert set(exam.inputs) == {"image", "audio", "text"}
    assert all(found["retention"] == 1 for found in exam.kept(exam.reference).values())
    noise = np.random.default_rng(0).standard_normal(exam.reference["text"].shape).astype(np.float32)
    kept = exam.kept({"text": 10 * noise})
    assert set(kept) == {"typed"}  # a spoken question does not read text
    assert kept["typed"]["retention"] < 0.9
    assert kept["typed"]["interval"][1] < 1


def test_samples_are_gathered_up_to_the_limit(tmp_path: Path) -> None:
    bundle = fresh_bundle(tmp_path)
    examples = read_manifest(bundle.info.lineage["manifest"], split="train")
    samples = Samples(Preprocessor(bundle), examples, "image")
    assert len(gathered(samples, 20)["image"]) == 20
    assert len(gathered(samples)["image"]) == LINES["train"]
    tokens = tokens_of(PARTS["image"], "image", gathered(samples, 20))
    np.testing.assert_allclose(tokens, outputs(PARTS["image"], gathered(samples, 20))[0], atol=1e-5)


def test_a_part_is_compiled_alone_and_a_refusal_is_told(tmp_path: Path) -> None:
    bundle = fresh_bundle(tmp_path)
    found = compiled(bundle, "text", to_fp16(Graph(PARTS["text"])).serialize())
    assert found["kernels"] > 5
    assert 0.01 < found["mb_touched"] < 1
    model = onnx.load_model_from_string(PARTS["text"])
    model.graph.node[-1].op_type = "Det"  # TensorRT has none
    assert "Det" in compiled(bundle, "text", model.SerializeToString())["refused"]


def test_the_worker_quantizes_with_onnx_runtime_and_leaves_what_a_log_reads(tmp_path: Path) -> None:
    part = tmp_path / "part.onnx"
    part.write_bytes(PARTS["audio"])
    np.savez(tmp_path / "samples.npz", **inputs_of("audio", batch=10))  # type: ignore[arg-type]
    given = [str(part), str(tmp_path / "samples.npz"), str(tmp_path / "out.onnx"), "MatMul", "Gemm", "from_log"]
    done = subprocess.run(
        [sys.executable, quantizer_worker.__file__, "onnxruntime", *given], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert told["seconds"] > 0
    assert told["peak_mb"] > 20
    made = onnx.load(tmp_path / "out.onnx")
    quantized = {node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    assert quantized
    assert not quantized & {"power", "frames", "wave"}
    assert outputs(made.SerializeToString(), inputs_of("audio"))[0].shape == (4, 1, DIM)
