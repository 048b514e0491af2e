"""FP16: what stays FP32 and why, and that the real parser takes the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from edgefuse.optimize.calibrate import overflowing
from edgefuse.optimize.fp16 import MASKED, SMALLEST_FP16, fp16_array, front_end, to_fp16
from edgefuse.optimize.graph import FLOAT, FLOAT16, Graph
from tests.optimize_fixtures import DIM, PARTS, Net, cosine, inputs_of, outputs, rtx_kernels

AUDIO_FRONT_END = {
    *("wave", "dft", "split", "square0", "square1", "power", "frames", "mel", "floor", "log"),
    *("mean", "normalised", "bands"),
}


def test_the_sound_front_end_ends_with_the_normalisation_after_the_log() -> None:
    assert front_end(Graph(PARTS["audio"])) == AUDIO_FRONT_END


def test_the_picture_front_end_ends_before_the_first_convolution() -> None:
    assert front_end(Graph(PARTS["image"])) == {"pixels", "shifted", "scaled", "planes"}


def test_text_and_head_have_no_front_end() -> None:
    assert front_end(Graph(PARTS["text"])) == front_end(Graph(PARTS["head"])) == set()


def test_a_residual_around_trained_weights_does_not_belong_to_the_front_end() -> None:
    net = Net()
    log = net.add("Log", net.add("Abs", "audio", name="abs"), name="log")
    product = net.add("MatMul", log, net.weight(DIM, DIM), name="trained")
    model = net.model({"audio": (FLOAT, [DIM])}, {"audio_tokens": net.add("Add", product, log, name="around")})
    assert front_end(Graph(model)) == {"abs", "log"}


@pytest.mark.parametrize("part", PARTS)
def test_every_other_float_value_is_fp16(part: str) -> None:
    graph = to_fp16(Graph(PARTS[part]))
    kept = front_end(Graph(PARTS[part]))
    for node in graph.nodes:
        to_output = node.op_type == "Cast" and set(node.output) <= set(graph.outputs)
        floats = {graph.types[name] for name in node.output} & {FLOAT, FLOAT16}
        assert floats <= ({FLOAT} if node.name in kept or to_output else {FLOAT16}), node.name
        if node.op_type != "Cast":
            operands = {graph.types[name] for name in node.input if name} & {FLOAT, FLOAT16}
            assert len(operands) <= 1, node.name


@pytest.mark.parametrize("part", PARTS)
def test_inputs_and_outputs_keep_their_types(part: str) -> None:
    before, after = (Graph(PARTS[part]), to_fp16(Graph(PARTS[part])))
    assert after.model.graph.input == before.model.graph.input
    assert after.model.graph.output == before.model.graph.output


@pytest.mark.parametrize("part", PARTS)
def test_fp16_answers_as_fp32_does(part: str) -> None:
    inputs = inputs_of(part, batch=6)
    half = to_fp16(Graph(PARTS[part])).serialize()
    for ours, theirs in zip(outputs(half, inputs), outputs(PARTS[part], inputs), strict=True):
        assert ours.dtype == np.float32
        assert cosine(ours, theirs) > 0.9999


@pytest.mark.parametrize("part", PARTS)
def test_every_weight_is_stored_once_in_its_type(part: str) -> None:
    def float_bytes(graph: Graph, kind: int) -> int:
        return sum(graph.array(name).nbytes for name in graph.initializers if graph.types[name] == kind)

    whole, half = Graph(PARTS[part]), to_fp16(Graph(PARTS[part]))
    assert 2 * float_bytes(half, FLOAT16) + float_bytes(half, FLOAT) == float_bytes(whole, FLOAT)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("batch", [1, 4])
def test_tensorrt_rtx_parses_and_builds_it(part: str, batch: int, tmp_path: Path) -> None:
    kernels = rtx_kernels(to_fp16(Graph(PARTS[part])).serialize(), tmp_path, batch)
    assert kernels
    if part == "text":
        assert sum(kernel.is_fused_attention for kernel in kernels) == 1  # in FP32 there is none


def test_the_compiler_keeps_the_front_end_in_fp32(tmp_path: Path) -> None:
    kernels = rtx_kernels(to_fp16(Graph(PARTS["audio"])).serialize(), tmp_path)
    (transform,) = (kernel for kernel in kernels if "dft" in kernel.onnx_nodes)
    assert {tensor.type for tensor in (*transform.inputs, *transform.outputs)} == {"Float"}


def test_mask_constants_become_finite() -> None:
    assert fp16_array(np.array([np.finfo(np.float32).min, -np.inf, -1.0], np.float32)).tolist() == [MASKED, MASKED, -1]
    assert np.isfinite(fp16_array(np.array([1e30], np.float32))).all()


def test_an_epsilon_does_not_become_zero() -> None:
    assert fp16_array(np.array(1e-12, np.float32)) == np.float16(SMALLEST_FP16) > 0
    assert fp16_array(np.array(0.0, np.float32)) == 0
    assert not fp16_array(np.full(4, 1e-12, np.float32)).any()  # weights that small are nothing


def test_a_fully_masked_text_gives_numbers() -> None:
    half = to_fp16(Graph(PARTS["text"])).serialize()
    inputs = {**inputs_of("text"), "attention_mask": np.zeros((4, 8), np.int32)}
    assert np.isfinite(outputs(half, inputs)[0]).all()


def test_layer_normalization_stays_one_node() -> None:
    half = to_fp16(Graph(PARTS["text"]))
    norms = [node for node in half.nodes if node.op_type == "LayerNormalization"]
    assert len(norms) == 3
    assert all(
        attribute.f == pytest.approx(1e-12) for n in norms for attribute in n.attribute if attribute.name == "epsilon"
    )


def test_values_beyond_fp16_stay_fp32() -> None:
    net = Net()
    wide = net.add("Mul", net.add("Relu", "x"), np.array(1e5), name="wide")
    model = net.model({"x": (FLOAT, [4])}, {"y": net.add("Relu", net.add("Div", wide, np.array(1e5)))})
    graph, inputs = Graph(model), {"x": np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)}
    half = to_fp16(graph, overflowing(graph, inputs))
    assert half.types["wide"] == FLOAT
    np.testing.assert_allclose(outputs(half.serialize(), inputs)[0], inputs["x"], rtol=1e-3)


def test_casts_and_constant_fills_follow() -> None:
    net = Net()
    shape = net.add("Shape", "x")
    fill = net.add("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([2.5], np.float32)))
    whole = net.add("Cast", net.add("Cast", "x", to=TensorProto.INT32), to=TensorProto.FLOAT)
    model = net.model({"x": (FLOAT, [4])}, {"y": net.add("Add", fill, whole)})
    half = to_fp16(Graph(model))
    inputs = {"x": np.array([[1.6, -1.6, 300.0, 0.0]], np.float32)}
    np.testing.assert_array_equal(outputs(half.serialize(), inputs)[0], [[3.5, 1.5, 302.5, 2.5]])


def test_a_value_read_in_both_types_is_cast_once() -> None:
    net = Net()
    log = net.add("Log", net.add("Abs", "audio"), name="log")
    branches = [net.add("MatMul", log, net.weight(DIM, DIM)) for _ in range(3)]
    half = to_fp16(Graph(net.model({"audio": (FLOAT, [DIM])}, {"audio_tokens": net.add("Sum", *branches)})))
    assert [node.input[0] for node in half.nodes if node.op_type == "Cast"].count("log") == 1
