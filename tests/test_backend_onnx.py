"""The ONNX Runtime backend: it runs what the contract names and refuses the rest in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefuse.runtime import backend_onnx as module
from edgefuse.runtime.backend_onnx import ROWS, OnnxBackend, _waiting, loop_threads, open_session
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BackendError, BundleError


def test_outputs_have_the_names_and_types_of_the_contract(tiny):
    bundle = Bundle.open(tiny.bundle)
    tokens = {f"{m}_tokens": np.zeros((3, spec.count, spec.dim), np.float32) for m, spec in bundle.info.tokens.items()}

    with OnnxBackend(bundle, "fp32", threads=1) as backend:
        outputs = backend.run("head", {**tokens, "presence": np.ones((3, 3), np.float32)})

    assert {name: (array.dtype, array.shape) for name, array in outputs.items()} == {
        "logits": (np.float32, (3, 3)),
        "weights": (np.float32, (3, 3)),
    }


def test_the_cpu_parts_are_taken_where_there_are_some(tiny_copy):
    assert OnnxBackend(tiny_copy).part_set == "cpu"

    only_fp32 = tiny_copy.updated({}, parts={"fp32": tiny_copy.info.parts["fp32"]})

    assert OnnxBackend(only_fp32).name == "onnxruntime:fp32"


def test_a_session_does_not_keep_the_file_beside_its_weights(tiny):
    model = Bundle.open(tiny.bundle).part("fp32", "head")
    before = sys.getrefcount(model)

    session = open_session(model)

    assert sys.getrefcount(model) == before
    assert session.get_outputs()


def test_a_part_set_that_is_not_there_is_refused_before_the_first_run(tiny):
    with pytest.raises(BundleError, match="has no trt parts, only: fp32, cpu"):
        OnnxBackend(Bundle.open(tiny.bundle), "trt")


def test_a_part_is_read_when_it_is_needed(tiny_copy):
    (tiny_copy.folder / "parts/cpu/audio.onnx").write_bytes(b"altered")

    with OnnxBackend(tiny_copy) as backend:
        backend.load("image")
        with pytest.raises(BundleError, match="was altered"):
            backend.load("audio")


def test_a_graph_that_is_none_is_refused(tiny_copy):
    broken = tiny_copy.updated({"parts/cpu/image.onnx": b"no graph"})

    with pytest.raises(BundleError, match=r"ONNX Runtime [\d.]+ refuses the graph"):
        OnnxBackend(broken).load("image")


def test_tensors_that_do_not_fit_the_part_are_refused(tiny):
    with (
        OnnxBackend(Bundle.open(tiny.bundle)) as backend,
        pytest.raises(BundleError, match="image of cpu does not run as the contract says"),
    ):
        backend.run("image", {"image": np.zeros((1, 9, 9, 3), np.uint8)})


def test_closing_twice_is_fine(tiny):
    backend = OnnxBackend(Bundle.open(tiny.bundle))
    backend.load("image")
    backend.close()
    backend.close()


def test_exact_qdq_computes_what_the_graph_says():
    """MatMul between Q/DQ pairs, against numpy: exactly as written, as TensorRT does."""
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(4, 64)).astype(np.float32), random.normal(size=(64, 8)).astype(np.float32)
    x_scale, w_scale = np.float32(abs(x).max() / 127), np.float32(abs(weight).max() / 127)
    quantized = np.clip(np.rint(weight / w_scale), -127, 127).astype(np.int8)
    constants = {"xs": x_scale, "ws": w_scale, "zero": np.int8(0), "w": quantized}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "xs", "zero"], ["dx"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "zero"], ["dw"]),
            helper.make_node("MatMul", ["dx", "dw"], ["y"]),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)

    (y,) = open_session(model.SerializeToString(), threads=1, exact_qdq=True).run(None, {"x": x})

    dequantized = np.clip(np.rint(x / x_scale), -128, 127) * x_scale
    np.testing.assert_allclose(y, dequantized @ (quantized * w_scale), rtol=1e-5, atol=1e-5)


def test_without_onnxruntime_the_extra_is_named():
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from edgefuse.runtime.backend_onnx import open_session\n"
        "from edgefuse.runtime.errors import MissingExtraError\n"
        "try: open_session(b'')\n"
        "except MissingExtraError as error: print(error)"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert found == "this needs ONNX Runtime: pip install 'edgefuse[cpu]'\n"


def test_workers_leave_the_cores_alone_after_a_run():
    weight = numpy_helper.from_array(np.ones((512, 512), np.float32), "w")
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [512, 512]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", sides[:1], sides[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = open_session(model.SerializeToString(), threads=4)
    session.run(None, {"x": np.ones((512, 512), np.float32)})

    busy = time.process_time()
    time.sleep(0.2)

    assert time.process_time() - busy < 0.01  # three spinning workers burn ten times as much


@pytest.mark.parametrize(("version", "setting"), [("1.25.1", "allow_spinning"), ("1.26.0", "spin_duration_us")])
def test_an_old_onnxruntime_lets_its_workers_sleep(version, setting):
    assert list(_waiting(version)) == [f"session.intra_op.{setting}"]


@pytest.mark.parametrize(
    ("cores", "given", "alone", "in_a_loop"),  # lanes, and threads of each
    [
        (1, 0, (1, 1), (1, 1)),
        (2, 0, (2, 1), (1, 1)),
        (8, 0, (3, 2), (3, 2)),
        (12, 0, (3, 4), (3, 3)),
        (8, 2, (2, 1), (2, 1)),
    ],
)
def test_a_pipeline_leaves_a_core_to_the_sensors_unless_threads_are_given(
    tiny, monkeypatch, cores, given, alone, in_a_loop
):
    opened = []
    monkeypatch.setattr(module, "open_session", lambda model, **options: opened.append(options) or open_session(model))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))

    with OnnxBackend(Bundle.open(tiny.bundle), threads=given) as backend:
        backend.load("text")
        lanes = backend.lanes.count
        backend.pipeline()

        assert (lanes, backend.lanes.count) == (alone[0], in_a_loop[0])
    again = 3 if given else 4  # the text is opened anew where its threads change
    assert [options["threads"] for options in opened] == [alone[1], *[in_a_loop[1]] * again]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 64])
def test_a_batch_is_dealt_out_to_the_lanes_and_comes_back_in_order(tiny, rows, threads):
    pictures = {"image": np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), np.uint8)}
    bundle = Bundle.open(tiny.bundle)
    expected = open_session(bundle.part("cpu", "image")).run(None, pictures)[0]

    with OnnxBackend(bundle, threads=threads) as backend:
        found = backend.run("image", pictures)

    assert list(found) == ["image_tokens"]
    np.testing.assert_array_equal(found["image_tokens"], expected)


def test_what_a_batch_gives_does_not_depend_on_the_number_of_lanes(tiny_copy):
    """A part in dynamic INT8 takes one scale for all the rows that it is run on together."""
    rows = np.random.default_rng(0).normal(size=(3 * ROWS + 1, 4)).astype(np.float32)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "rounded", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    bundle = tiny_copy.updated({"parts/cpu/image.onnx": model.SerializeToString()})
    found = []
    for threads in (1, 2, 3):
        with OnnxBackend(bundle, threads=threads) as backend:
            found.append(backend.run("image", {"x": rows})["y"])
    together = open_session(model.SerializeToString()).run(None, {"x": rows})[0]

    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], together), "rows that share a scale are told apart from others"


def test_a_batch_that_does_not_fit_is_refused_from_a_lane_too(tiny):
    with (
        OnnxBackend(Bundle.open(tiny.bundle), threads=3) as backend,
        pytest.raises(BundleError, match="image of cpu does not run as the contract says"),
    ):
        backend.run("image", {"image": np.zeros((4, 9, 9, 3), np.uint8)})


@pytest.mark.parametrize(("cores", "threads"), [({0}, 1), ({0, 1}, 1), (set(range(8)), 7)])
def test_the_cores_that_this_process_may_use_count(monkeypatch, cores, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)

    assert loop_threads() == threads


def test_a_provider_that_does_not_start_is_no_silent_cpu(tiny, monkeypatch):
    """As onnxruntime-gpu behaves without CUDA: the provider is there, and the session has the CPU alone."""
    import onnxruntime

    class Session:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    with pytest.raises(BackendError, match="CUDAExecutionProvider does not start here"):
        OnnxBackend(Bundle.open(tiny.bundle), provider="ort-cuda").load("image")


def test_a_provider_without_its_libraries_is_not_the_fault_of_the_bundle(tiny, monkeypatch):
    """As onnxruntime-gpu behaves without TensorRT."""
    import onnxruntime

    def open_it(*_: object, **__: object) -> None:
        raise RuntimeError("Please install TensorRT libraries")

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_it)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])

    with pytest.raises(
        BackendError, match=r"TensorrtExecutionProvider .* cannot run the part here: Please install Ten"
    ):
        OnnxBackend(Bundle.open(tiny.bundle), provider="ort-tensorrt").load("image")
