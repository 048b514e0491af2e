"""Attention becomes one node however its heads are split, and only if it is attention."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgefuse.optimize.cpu_attention import one_node_attention
from tests.optimize_fixtures import DIM, PARTS, Net, inputs_of, operators, outputs, rewritten

TIME, HEADS, SIZE = 5, 4, DIM // 4


def packed(order: str = "qkv", *, joined: bool = True, swapped_heads: bool = False) -> bytes:
    """Q, K and V from one product, split by a five-dimensional transpose and gathers, as in train/conformer.py."""
    net = Net(4)
    all_heads = net.add("Reshape", net.linear("x", DIM, 3 * DIM), np.array([-1, TIME, 3, HEADS, SIZE]))
    all_heads = net.add("Transpose", all_heads, perm=[2, 0, 3, 1, 4])
    parts = {name: net.add("Gather", all_heads, np.array(i), axis=0) for i, name in enumerate(order)}
    keys = net.add("Transpose", parts["k"], perm=[0, 1, 3, 2])
    if swapped_heads:
        keys = net.add("Gather", keys, np.array([1, 0, 2, 3]), axis=1)
    root = np.array(SIZE**-0.25)
    scores = net.add("MatMul", net.add("Mul", parts["q"], root), net.add("Mul", root, keys))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), parts["v"])
    mixed = net.add("Transpose", mixed, perm=[0, 2, 1, 3]) if joined else mixed
    y = net.add("Reshape", mixed, np.array([-1, TIME, DIM]))
    return net.model({"x": (TensorProto.FLOAT, [TIME, DIM])}, {"y": net.linear(y, DIM, DIM)})


@pytest.mark.parametrize("order", ["qkv", "vkq"])
def test_attention_of_one_projection_becomes_one_node(order: str) -> None:
    model = packed(order)
    x = np.random.default_rng(0).standard_normal((3, TIME, DIM)).astype(np.float32)
    one = rewritten(one_node_attention, model)
    assert operators(one)["MultiHeadAttention"] == 1
    assert not operators(one).keys() & {"Transpose", "Gather", "Softmax"}
    np.testing.assert_allclose(outputs(one, {"x": x})[0], outputs(model, {"x": x})[0], atol=1e-5)


def test_masked_attention_of_three_projections_becomes_one_node() -> None:
    one = rewritten(one_node_attention, PARTS["text"])
    assert operators(one)["MultiHeadAttention"] == 1
    assert "Where" not in operators(one)
    inputs = inputs_of("text", batch=5)  # the last text is mostly padding
    assert inputs["attention_mask"].min() == 0
    np.testing.assert_allclose(outputs(one, inputs)[0], outputs(PARTS["text"], inputs)[0], atol=1e-5)


def test_what_only_looks_like_attention_stays() -> None:
    for model in (packed(joined=False), packed(swapped_heads=True)):
        assert operators(rewritten(one_node_attention, model)) == operators(model)


def test_a_mask_that_hides_words_instead_of_padding_is_no_padding_mask() -> None:
    model = onnx.load_model_from_string(PARTS["text"])
    where = next(node for node in model.graph.node if node.op_type == "Where")
    where.input[1], where.input[2] = where.input[2], where.input[1]
    assert "MultiHeadAttention" not in operators(rewritten(one_node_attention, model.SerializeToString()))
