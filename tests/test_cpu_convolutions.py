"""Convolutions over time as matrix products, against ONNX Runtime's own convolution."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgefuse.optimize.cpu_convolutions import products_of_convolutions
from tests.optimize_fixtures import PARTS, Net, operators, outputs, rewritten


def convolution(channels: int, length: int, weight: np.ndarray, bias: bool, **attributes: object) -> bytes:
    net = Net()
    inputs = [net.random.standard_normal(len(weight))] if bias else []
    y = net.add("Conv", "x", weight, *inputs, **attributes)
    return net.model({"x": (TensorProto.FLOAT, [channels, length])}, {"y": y})


@settings(max_examples=60, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    length=st.integers(12, 40),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 5),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
)
def test_a_convolution_over_time_is_the_same_as_a_product(
    channels: int, length: int, kernel: int, stride: int, pads: tuple[int, int], bias: bool
) -> None:
    weight = Net(kernel).random.standard_normal((5, channels, kernel))
    model = convolution(channels, length, weight, bias, strides=[stride], pads=list(pads))
    x = np.random.default_rng(length).standard_normal((2, channels, length)).astype(np.float32)
    product = rewritten(products_of_convolutions, model)
    assert "Conv" not in operators(product)
    np.testing.assert_allclose(outputs(product, {"x": x})[0], outputs(model, {"x": x})[0], atol=1e-4)


def test_a_depthwise_convolution_over_time_gets_a_second_dimension() -> None:
    model = convolution(6, 20, Net(1).random.standard_normal((6, 1, 5)), True, group=6, pads=[2, 2], strides=[2])
    x = np.random.default_rng(0).standard_normal((2, 6, 20)).astype(np.float32)
    wide = rewritten(products_of_convolutions, model)
    (node,) = [node for node in onnx.load_model_from_string(wide).graph.node if node.op_type == "Conv"]
    assert list(next(a.ints for a in node.attribute if a.name == "pads")) == [0, 2, 0, 2]
    np.testing.assert_allclose(outputs(wide, {"x": x})[0], outputs(model, {"x": x})[0], atol=1e-5)


def test_a_dilated_convolution_and_one_over_pictures_stay() -> None:
    assert (
        operators(
            rewritten(products_of_convolutions, convolution(3, 20, Net(1).weight(4, 3, 3), False, dilations=[2]))
        )["Conv"]
        == 1
    )
    assert operators(rewritten(products_of_convolutions, PARTS["image"])) == operators(PARTS["image"])
