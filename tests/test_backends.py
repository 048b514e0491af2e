"""Backends by name: each name opens what it says, and another name is refused with those that there are."""

from __future__ import annotations

import numpy as np
import pytest

from edgefuse.runtime.backends import KINDS, open_backend, part_set_of
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BackendError, EdgefuseError, MissingExtraError
from edgefuse.runtime.evaluate import evaluate
from edgefuse.runtime.predictor import predict_once


@pytest.mark.parametrize("kind", [None, "cpu"])
def test_the_cpu_is_the_default_and_runs_the_cpu_parts(tiny, kind):
    bundle = Bundle.open(tiny.bundle)

    with open_backend(bundle, kind, threads=1) as backend:
        assert backend.name == "onnxruntime:cpu"
        pixels = np.full((1, 8, 8, 3), (255, 0, 0), np.uint8)
        np.testing.assert_allclose(backend.run("image", {"image": pixels})["image_tokens"][0, 0], [0, 0, 10])


def test_other_parts_run_where_they_are_asked_for(tiny):
    assert open_backend(Bundle.open(tiny.bundle), "cpu", part_set="fp32").name == "onnxruntime:fp32"


def test_predict_and_eval_run_on_the_backend_that_is_asked_for(tiny):
    assert predict_once(tiny.bundle, text="green", backend="cpu")["label"] == "green"
    measured = evaluate(tiny.bundle, tiny.manifest, backend="cpu", part_set="fp32")
    assert (measured["part_set"], measured["backend"]) == ("fp32", "onnxruntime:fp32")

    with pytest.raises(MissingExtraError, match="OpenVINOExecutionProvider"):
        predict_once(tiny.bundle, text="green", backend="openvino")
    with pytest.raises(MissingExtraError, match="OpenVINOExecutionProvider"):
        evaluate(tiny.bundle, tiny.manifest, backend="openvino")


@pytest.mark.parametrize(("kind", "parts"), [(None, "cpu"), ("openvino", "fp32"), ("tensorrt-rtx", "trt")])
def test_each_backend_has_parts_that_are_made_for_it(tiny, kind, parts):
    assert part_set_of(Bundle.open(tiny.bundle), kind) == parts
    assert part_set_of(Bundle.open(tiny.bundle), kind, "fp32") == "fp32"


def test_an_unknown_name_is_refused_with_those_that_there_are(tiny):
    with pytest.raises(BackendError, match="'cuda'; choose one of: cpu, openvino, ort-tensorrt, ort-cuda, tensorrt"):
        open_backend(Bundle.open(tiny.bundle), "cuda")


def test_engines_are_of_the_trt_parts_alone(tiny):
    with pytest.raises(BackendError, match="tensorrt-rtx runs engines of the trt parts, not fp32"):
        open_backend(Bundle.open(tiny.bundle), "tensorrt-rtx", part_set="fp32")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cpu"])
def test_what_this_machine_cannot_do_ends_in_one_line(tiny, kind):
    """The ONNX Runtime of the tests has the CPU alone, and there is no GPU."""
    with pytest.raises(EdgefuseError) as caught:
        open_backend(Bundle.open(tiny.bundle), kind).load("image")

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("openvino", r"has no OpenVINOExecutionProvider, only .*CPUExecutionProvider; install onnxruntime-openvino"),
        ("ort-tensorrt", r"has no TensorrtExecutionProvider, only .*CPUExecutionProvider; install onnxruntime-gpu"),
    ],
)
def test_a_provider_that_is_not_built_in_is_named_with_its_package(tiny, kind, message):
    with pytest.raises(MissingExtraError, match=message):
        open_backend(Bundle.open(tiny.bundle), kind).load("image")
