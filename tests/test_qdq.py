"""INT8: the arithmetic against oracles, the placement against NVIDIA's rules, the result against the real compiler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from edgefuse.optimize import qdq
from edgefuse.optimize.calibrate import observe
from edgefuse.optimize.fp16 import front_end, to_fp16
from edgefuse.optimize.graph import FLOAT, FLOAT16, Graph
from edgefuse.optimize.qdq import (
    SMALLEST_SCALE,
    SMALLEST_TABLE,
    Product,
    Site,
    find_products,
    find_sites,
    fp16_scale,
    insert,
    quantize_weight,
    refusal,
)
from tests.optimize_fixtures import DIM, LENGTH, PARTS, Net, cosine, inputs_of, outputs, rtx_kernels

INT32 = int(onnx.TensorProto.INT32)

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


def quantized(part: str, *, convolutions: bool = True) -> Graph:
    """A part with every allowed site in INT8, still FP32 around them."""
    graph = Graph(PARTS[part])
    sites = [site for site in find_sites(graph, front_end(graph)) if convolutions or site.op != "Conv"]
    tensors = {site.activation for site in sites if site.activation} | set(qdq.skip_inputs(graph, sites).values())
    seen = observe(graph, tensors, [inputs_of(part, batch=8)])
    placed = [site for site in sites if not refusal(site, seen[site.activation].shape if site.activation else ())]
    return insert(graph, placed, {name: found.histogram.threshold() for name, found in seen.items()})


def nodes_of(graph: Graph, op: str) -> list[NodeProto]:
    return [node for node in graph.nodes if node.op_type == op]


@given(matrices, st.integers(0, 3))
def test_weights_are_quantized_per_channel_as_a_plain_loop_does(weight: np.ndarray, axis: int) -> None:
    axis %= weight.ndim
    codes, scales = quantize_weight(weight, axis)
    assert codes.dtype == np.int8
    assert scales.shape == (weight.shape[axis],)
    for channel in range(weight.shape[axis]):
        values = weight.take(channel, axis)
        scale = float(np.float16(max(float(np.abs(values).max()) / 127, SMALLEST_SCALE)))
        assert scales[channel] == scale
        expected = np.clip(np.rint(values.astype(np.float64) / scale), -127, 127)
        assert np.abs(codes.take(channel, axis) - expected).max() <= 1  # float32 may fall on the other side of a half
        # Half a step of rounding, and what the FP16 scale falls short of the largest value.
        assert np.abs(codes.take(channel, axis) * scale - values).max() <= scale * (0.5 + 127 * 2**-11) + 1e-7


@given(st.floats(0, 1e6, width=32))
def test_scales_are_exact_in_fp16_and_never_too_small(largest: float) -> None:
    scale = fp16_scale(largest)
    assert np.float32(np.float16(scale)) == scale
    assert np.float16(scale) >= np.finfo(np.float16).smallest_normal
    assert np.isfinite(np.float16(1) / np.float16(scale))


def test_a_dead_channel_becomes_zeros() -> None:
    weight = np.stack([np.zeros(5, np.float32), np.full(5, 0.3, np.float32)])
    codes, scales = quantize_weight(weight, 0)
    assert not codes[0].any()
    assert scales[0] == fp16_scale(0.0) > 0


def test_codes_are_those_of_the_onnx_reference() -> None:
    """Half to even, saturating: our weights, onnx.reference and ONNX Runtime give the same codes."""
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    weight[0] = [0.5, 1.5, 2.5, 127.0]  # halves in steps of exactly one
    codes, scales = quantize_weight(weight, 0)
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], axis=0)
    graph = helper.make_graph(
        [node],
        "q",
        [helper.make_tensor_value_info("x", FLOAT, [6, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [6, 4])],
        [onnx.numpy_helper.from_array(scales, "scale"), onnx.numpy_helper.from_array(np.zeros(6, np.int8), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    np.testing.assert_array_equal(codes, ReferenceEvaluator(model).run(None, {"x": weight})[0])
    np.testing.assert_array_equal(codes, outputs(model.SerializeToString(), {"x": weight}, exact_qdq=True)[0])
    assert codes[0].tolist() == [0, 2, 2, 127]


@pytest.mark.parametrize("part", ["image", "audio", "text"])
def test_graphs_compute_what_the_onnx_reference_computes(part: str) -> None:
    model = quantized(part).serialize()
    inputs = inputs_of(part)
    ours = outputs(model, inputs, exact_qdq=True)[0]
    reference = ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, inputs)[0]
    assert cosine(ours, reference) > 0.9999
    assert cosine(ours, outputs(PARTS[part], inputs)[0]) > 0.99


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "axis"),
    [
        ("MatMul", (16, 24), {}, 1),
        ("Gemm", (16, 24), {}, 1),
        ("Gemm", (24, 16), {"transB": 1}, 0),
        ("Conv", (24, 16, 3), {}, 0),
        ("Conv", (24, 16, 3, 3), {}, 0),
    ],
)
def test_the_scale_axis_is_the_output_channel(op: str, shape: tuple[int, ...], attributes: dict, axis: int) -> None:
    net = Net()
    given = [8] * (len(shape) - 2)
    value = net.add(op, "x", net.weight(*shape), name="node", **attributes)
    model = net.model({"x": (FLOAT, [16, *given])}, {"y": value})
    (site,) = find_sites(Graph(model))
    assert (site.node, site.op, site.activation, site.axis, site.shape[axis]) == ("node", op, "x", axis, 24)
    graph = insert(Graph(model), [site], {"x": 3.0})
    weight_dq = next(node for node in nodes_of(graph, "DequantizeLinear") if node.input[0] in graph.initializers)
    assert weight_dq.attribute[0].i == axis
    assert graph.array(weight_dq.input[1]).shape == (24,)


def large_table() -> bytes:
    """Rows of an embedding table that is large enough for INT8, times a matrix."""
    net = Net(6)
    rows = SMALLEST_TABLE // DIM
    looked_up = net.add("Gather", net.random.standard_normal((rows, DIM)), "ids", name="embedding")
    return net.model({"ids": (INT32, [LENGTH])}, {"y": net.add("MatMul", looked_up, net.weight(DIM, DIM))})


def test_an_embedding_table_has_a_scale_per_row_and_its_index_none() -> None:
    site = next(site for site in find_sites(Graph(large_table())) if site.op == "Gather")
    assert (site.activation, site.axis) == (None, 0)
    assert refusal(site, ()) is None
    graph = insert(Graph(large_table()), [site], {})
    table = graph.producers[nodes_of(graph, "Gather")[0].input[0]]
    assert table.op_type == "DequantizeLinear"
    assert graph.array(table.input[0]).dtype == np.int8
    assert graph.array(table.input[1]).shape == (SMALLEST_TABLE // DIM,)


def test_products_of_two_activations_are_left_alone() -> None:
    names = {site.node for site in find_sites(Graph(PARTS["text"]))}
    assert not names & {"scores", "mixed"}


def masked_attention(mask: str) -> Net:
    """Scores of x with itself that pass a `mask` on their way to the softmax, and the softmax's mix of x."""
    net = Net(8)
    turned = net.add("Transpose", "x", perm=[0, 2, 1])
    scores = net.add("MatMul", "x", turned, name="scores")
    there = np.tri(LENGTH)
    if mask == "Where":
        scores = net.add("Where", there > 0, scores, np.array(-1e4))
    elif mask == "Add":
        scores = net.add("Add", net.add("Div", scores, np.array(4.0)), np.log(there + 1e-4))
    net.add("MatMul", net.add("Softmax", scores, axis=-1, name="share"), "x", name="mixed")
    return net


@pytest.mark.parametrize("mask", ["", "Where", "Add"])
def test_both_products_of_an_attention_are_found_behind_any_mask(mask: str) -> None:
    graph = Graph(masked_attention(mask).model({"x": (FLOAT, [LENGTH, DIM])}, {"y": "mixed"}))
    assert find_products(graph) == [
        Product("scores", ("x", "transpose_0")),
        Product("mixed", ("share", "x")),
    ]
    assert find_products(graph, {"scores"}) == find_products(graph, {"mixed"}) == []


def test_an_attention_with_a_constant_is_not_half_in_int8() -> None:
    """A learned query has a weight product for scores, and the mix alone in INT8 breaks the fused kernel."""
    net = Net(9)
    scores = net.add("MatMul", net.weight(1, DIM), net.add("Transpose", "x", perm=[0, 2, 1]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), "x")
    assert find_products(Graph(net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": mixed}))) == []


def test_a_softmax_that_mixes_nothing_is_no_attention() -> None:
    net = Net(9)
    share = net.add("Softmax", net.add("MatMul", "x", net.weight(DIM, DIM)), axis=-1)
    graph = Graph(net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": net.add("Mul", share, "x")}))
    assert find_products(graph) == []
    assert find_products(Graph(PARTS["image"])) == []


def test_all_four_inputs_of_an_int8_attention_are_quantized() -> None:
    graph = Graph(PARTS["text"])
    products = find_products(graph)
    assert [product.node for product in products] == ["scores", "mixed"]
    seen = observe(graph, {name for product in products for name in product.inputs}, [inputs_of("text", 8)])
    int8 = insert(graph, [], {name: found.histogram.threshold() for name, found in seen.items()}, products)
    for name in ("scores", "mixed"):
        assert [int8.producers[value].op_type for value in _node(int8, name).input] == ["DequantizeLinear"] * 2
    assert len(nodes_of(int8, "DequantizeLinear")) == 4
    found, expected = (outputs(model, inputs_of("text"))[0] for model in (int8.serialize(), PARTS["text"]))
    assert cosine(found, expected) > 0.999
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("site", "activation", "refused"),
    [
        (Site("n", "MatMul", "x", "w", (32, 64), 1), (1, 10, 32), False),
        (Site("n", "MatMul", "x", "w", (32, 64), 1), (1, 1, 32), True),  # pooled: one row
        (Site("n", "MatMul", "x", "w", (8, 64), 1), (1, 10, 8), True),
        (Site("n", "Gemm", "x", "w", (8, 64), 0), (10, 64), True),
        (Site("n", "Gather", None, "w", (SMALLEST_TABLE // 8, 8), 0), (), False),
        (Site("n", "Gather", None, "w", (SMALLEST_TABLE // 8 - 1, 8), 0), (), True),  # positions, a small vocabulary
        (Site("n", "Conv", "x", "w", (64, 32, 3, 3), 0), (1, 32, 8, 8), False),
        (Site("n", "Conv", "x", "w", (64, 32, 1, 1), 0), (1, 32, 1, 1), True),  # squeeze-excite
        (Site("n", "Conv", "x", "w", (16, 3, 3, 3), 0), (1, 3, 8, 8), False),  # the first layer
        (Site("n", "Conv", "x", "w", (12, 3, 3, 3), 0), (1, 3, 8, 8), True),
        (Site("n", "Conv", "x", "w", (16, 3, 1, 3), 0), (1, 3, 8, 8), True),
        (Site("n", "Conv", "x", "w", (32, 1, 3, 3), 0, groups=32), (1, 32, 8, 8), False),
        (Site("n", "Conv", "x", "w", (12, 1, 3, 3), 0, groups=12), (1, 12, 8, 8), True),
        (Site("n", "Conv", "x", "w", (32, 1, 1, 1), 0, groups=32), (1, 32, 8, 8), True),
    ],
)
def test_shapes_that_int8_does_not_suit_are_refused(site: Site, activation: tuple[int, ...], refused: bool) -> None:
    assert (refusal(site, activation) is not None) == refused


def test_a_residual_addition_has_its_skip_quantized_and_not_its_branch() -> None:
    graph = quantized("image")
    skip, branch = (graph.producers[name].op_type for name in reversed(_node(graph, "residual").input))
    assert (skip, branch) == ("DequantizeLinear", "Conv")
    float_convolutions = quantized("image", convolutions=False)
    assert {float_convolutions.producers[name].op_type for name in _node(float_convolutions, "residual").input} == {
        "Conv",
        "Relu",
    }


def _node(graph: Graph, name: str) -> NodeProto:
    return next(node for node in graph.nodes if node.name == name)


def test_readers_of_one_activation_share_its_quantizer() -> None:
    graph = quantized("text")
    normalised = nodes_of(graph, "LayerNormalization")[0].output[0]
    assert [node.op_type for node in graph.consumers(normalised)] == ["QuantizeLinear", "Add"]
    shared = graph.producers[nodes_of(graph, "MatMul")[0].input[0]]
    assert len(graph.consumers(shared.output[0])) == 3  # query, key, value


@pytest.mark.parametrize("part", ["image", "audio", "text"])
def test_everything_is_symmetric_int8_with_fp16_scales(part: str) -> None:
    graph = to_fp16(quantized(part))
    assert graph.opset == 19
    pairs = nodes_of(graph, "QuantizeLinear") + nodes_of(graph, "DequantizeLinear")
    assert pairs
    for node in pairs:
        assert len(node.input) == 3
        zero, scale = graph.array(node.input[2]), graph.array(node.input[1])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == np.float16
        assert (scale >= np.float16(6e-5)).all()
        if node.op_type == "QuantizeLinear":
            assert scale.ndim == 0
            assert graph.types[node.input[0]] == FLOAT16
        else:
            assert graph.types[node.output[0]] == FLOAT16


def test_biases_normalisations_and_the_front_end_stay_float() -> None:
    graph = quantized("audio")
    behind_dq = {node.output[0] for node in nodes_of(graph, "DequantizeLinear")}
    for node in graph.nodes:
        if node.op_type in ("Add", "Log", "LayerNormalization") or node.name in ("dft", "mel"):
            assert not behind_dq.intersection(node.input), node.name
    assert all(not behind_dq.intersection(node.input[2:]) for node in nodes_of(graph, "Conv"))


def test_weights_are_stored_as_int8_and_once() -> None:
    graph, before = quantized("text", convolutions=False), Graph(PARTS["text"])
    tables = {node.input[0] for node in nodes_of(before, "Gather")}  # too small for INT8
    assert all(graph.array(name).dtype == np.float32 for name in tables)
    small, large = (sum(g.array(n).nbytes for n in g.initializers if n not in tables) for g in (graph, before))
    assert small < 0.35 * large
    net = Net()
    shared = net.constant(net.weight(32, 32))
    first = net.add("MatMul", "x", shared)
    model = net.model({"x": (FLOAT, [10, 32])}, {"y": net.add("MatMul", net.add("Relu", first), shared)})
    tied = insert(Graph(model), find_sites(Graph(model)), {"x": 1.0, "relu_1": 1.0})
    assert sum(graph_array.nbytes > 100 for graph_array in map(tied.array, tied.initializers)) == 2  # codes and scales
    assert len(nodes_of(tied, "DequantizeLinear")) == 4  # TensorRT fuses a DQ into one reader


@pytest.mark.parametrize("part", ["image", "audio", "text"])
def test_tensorrt_rtx_computes_every_quantized_product_in_int8(part: str, tmp_path: Path) -> None:
    graph = quantized(part, convolutions=False)
    kernels = rtx_kernels(to_fp16(graph).serialize(), tmp_path)
    multiplied = {
        node.name
        for node in nodes_of(graph, "MatMul")
        if graph.producers.get(node.input[0], node).op_type == "DequantizeLinear"
    }
    assert multiplied
    for name in multiplied:
        assert any(
            kernel.precision == "Int8" and kernel.kind == "gemm" for kernel in kernels if name in kernel.onnx_nodes
        ), name
    if part == "text":
        assert sum(kernel.is_fused_attention for kernel in kernels) == 1


def test_tensorrt_rtx_looks_up_a_large_table_in_int8(tmp_path: Path) -> None:
    graph = Graph(large_table())
    (site,) = [site for site in find_sites(graph) if site.op == "Gather"]
    (kernel, *_) = rtx_kernels(to_fp16(insert(graph, [site], {})).serialize(), tmp_path)
    assert "embedding" in kernel.onnx_nodes
    assert any(constant.type == "Int8" and constant.dims == site.shape for constant in kernel.constants)


def test_tensorrt_rtx_fuses_an_int8_attention_between_int8_products(tmp_path: Path) -> None:
    graph = Graph(PARTS["text"])
    sites = [site for site in find_sites(graph) if site.op == "MatMul"]
    products = find_products(graph)
    names = {name for each in products for name in each.inputs} | {site.activation or "" for site in sites}
    int8 = insert(graph, sites, dict.fromkeys(names, 4.0), products)
    (attention,) = [kernel for kernel in rtx_kernels(to_fp16(int8).serialize(), tmp_path) if kernel.is_fused_attention]
    assert {"scores", "mixed"} <= set(attention.onnx_nodes)
    assert [tensor.type for tensor in attention.inputs].count("Int8") == 3  # Q, K and V


def test_tensorrt_rtx_computes_quantized_convolutions_in_int8(tmp_path: Path) -> None:
    kernels = rtx_kernels(to_fp16(quantized("image")).serialize(), tmp_path)
    int8 = {name for kernel in kernels if kernel.precision == "Int8" for name in kernel.onnx_nodes}
    assert {"stem", "branch", "depthwise", "last"} <= int8
    assert not int8 & {"squeeze", "excite"}


def test_the_int8_part_is_a_third_of_the_fp32_one() -> None:
    net = Net()
    x = "x"
    for _ in range(3):
        x = net.add("Relu", net.linear(x, 256, 256))
    model = net.model({"x": (FLOAT, [DIM, 256])}, {"y": x})
    graph = Graph(model)
    sites = find_sites(graph)
    small = to_fp16(insert(graph, sites, {site.activation or "": 1.0 for site in sites})).serialize()
    assert len(small) < len(model) / 3
