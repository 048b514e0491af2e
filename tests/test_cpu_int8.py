"""Dynamic INT8: products and tables, near FP32 on any CPU, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgefuse.optimize.cpu_int8 import WEIGHT_STEPS, dynamic_int8
from tests.optimize_fixtures import DIM, PARTS, Net, cosine, inputs_of, operators, outputs


def product(op: str, **attributes: object) -> bytes:
    """A product with the bias that its operator has, or that stands behind it."""
    net = Net(7)
    weight = net.weight(24, DIM) if attributes.get("transB") else net.weight(DIM, 24)
    bias = net.random.standard_normal(24)
    y = net.add(op, "x", weight, *([bias] if op == "Gemm" else []), **attributes)
    y = y if op == "Gemm" else net.add("Add", bias, y)
    return net.model({"x": (TensorProto.FLOAT, [DIM])}, {"y": y})


@pytest.mark.parametrize(("op", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_a_product_and_its_bias_become_one_int8_product(op: str, attributes: dict[str, int]) -> None:
    model = product(op, **attributes)
    x = np.random.default_rng(0).standard_normal((64, DIM)).astype(np.float32)
    int8 = dynamic_int8(model)
    assert operators(int8) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Identity": 1}
    assert cosine(outputs(int8, {"x": x})[0], outputs(model, {"x": x})[0]) > 0.9997


def test_products_of_one_value_share_its_codes() -> None:
    count = operators(dynamic_int8(PARTS["text"]))
    assert count["MatMulIntegerToFloat"] == 6
    assert count["DynamicQuantizeLinear"] == 4  # Q, K and V read the same


def test_weights_have_seven_bits_and_a_scale_per_column() -> None:
    graph = onnx.load_model_from_string(dynamic_int8(PARTS["text"])).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            codes, scales = (numpy_helper.to_array(tensors[node.input[i]]) for i in (1, 3))
            assert codes.dtype == np.int8
            assert (np.abs(codes).max(axis=0) == WEIGHT_STEPS).all()
            assert scales.shape == codes.shape[1:]


def test_a_column_of_zeros_stays_zero() -> None:
    net = Net(8)
    weight = net.weight(DIM, 24)
    weight[:, 3] = 0
    model = net.model({"x": (TensorProto.FLOAT, [DIM])}, {"y": net.add("MatMul", "x", weight)})
    y = outputs(dynamic_int8(model), {"x": np.ones((2, DIM), np.float32)})[0]
    assert np.isfinite(y).all()
    assert (y[:, 3] == 0).all()


def test_table_rows_keep_their_own_scale() -> None:
    net = Net(9)
    table = net.weight(40, DIM) * np.logspace(-4, 1, 40, dtype=np.float32)[:, None]
    model = net.model({"ids": (TensorProto.INT32, [3])}, {"y": net.add("Gather", table, "ids")})
    ids = np.arange(40, dtype=np.int32).reshape(-1, 1).repeat(3, axis=1)
    y = outputs(dynamic_int8(model), {"ids": ids})[0]  # [40, 3, D]
    error = np.abs(y - table[ids]).max(axis=(1, 2))
    assert (error <= np.abs(table).max(axis=1) / 253).all()


def test_the_front_end_and_small_matrices_stay_float() -> None:
    graph = onnx.load_model_from_string(dynamic_int8(PARTS["audio"])).graph
    nodes = {node.name: node for node in graph.node}
    float_weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for name in ("dft", "mel"):
        assert nodes[name].input[1] in float_weights
    net = Net(1)
    narrow = net.model({"x": (TensorProto.FLOAT, [DIM])}, {"y": net.linear("x", DIM, 8)})
    assert dynamic_int8(narrow) == narrow


@pytest.mark.parametrize("part", ["audio", "text"])
def test_int8_parts_stay_near_fp32(part: str) -> None:
    inputs = inputs_of(part)
    assert cosine(outputs(dynamic_int8(PARTS[part]), inputs)[0], outputs(PARTS[part], inputs)[0]) > 0.999
