"""ONNX Runtime's execution providers: what each is given, and what does not belong on it."""

from __future__ import annotations

import pytest

from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle, PartInfo
from edgefuse.runtime.errors import BackendError
from edgefuse.runtime.providers import chain


def with_precision(bundle: Bundle, part_set: str, precision: str) -> Bundle:
    """The bundle with such a part set, over the fp32 files."""
    parts = {part: PartInfo(file=info.file, precision=precision) for part, info in bundle.info.parts["fp32"].items()}
    return Bundle(bundle.folder, bundle.info.model_copy(update={"parts": {**bundle.info.parts, part_set: parts}}))


@pytest.mark.parametrize("precision", ["int8+fp16", "dynamic-int8"])
def test_int8_is_refused_on_the_cuda_provider_with_the_reason(tiny, precision):
    bundle = with_precision(Bundle.open(tiny.bundle), "trt", precision)

    with pytest.raises(BackendError, match=rf"image of trt is {precision.replace('+', '.')}: .* bounces every one to"):
        OnnxBackend(bundle, "trt", provider="ort-cuda")

    assert OnnxBackend(bundle, provider="ort-cuda").part_set == "fp32"


def test_the_cpu_takes_what_the_wanted_provider_does_not(tiny):
    bundle = Bundle.open(tiny.bundle)

    (openvino, options), (rest, _) = chain(bundle, "openvino", "fp32", "image", 3)

    assert (openvino, rest) == ("OpenVINOExecutionProvider", "CPUExecutionProvider")
    assert options == {"device_type": "CPU", "num_of_threads": "3"}


def test_tensorrt_may_use_the_precisions_of_the_part_and_no_others(tiny):
    def flags(precision: str) -> tuple[str, str]:
        bundle = with_precision(Bundle.open(tiny.bundle), "trt", precision)
        options = dict(chain(bundle, "ort-tensorrt", "trt", "image", 0))["TensorrtExecutionProvider"]
        return options["trt_fp16_enable"], options["trt_int8_enable"]

    assert {precision: flags(precision) for precision in ("fp32", "fp16", "int8+fp16")} == {
        "fp32": ("0", "0"),
        "fp16": ("1", "0"),
        "int8+fp16": ("1", "1"),
    }


def test_an_engine_is_cached_in_the_bundle_for_the_weights_it_was_built_from(tiny_copy):
    def cache(bundle: Bundle) -> str:
        options = dict(chain(bundle, "ort-tensorrt", "fp32", "image", 0))["TensorrtExecutionProvider"]
        return options["trt_engine_cache_path"]

    before = cache(tiny_copy)
    after = cache(tiny_copy.updated({"parts/fp32/image.onnx": b"trained again"}))

    assert before.startswith(str(tiny_copy.folder / "engines/ort-tensorrt/image-"))
    assert after != before
