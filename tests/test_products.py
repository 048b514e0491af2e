"""What a graph multiplies: counts worked out by hand, kinds, and what counts as asked for INT8 or as attention."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from edgefuse.optimize.products import ATTENTION, CONVOLUTION, LINEAR, Attention, attentions, products
from edgefuse.optimize.view import View
from tests.optimize_fixtures import PARTS, Net

FLOAT = int(TensorProto.FLOAT)


def graph_of(net: Net, shape: list[int], output: str) -> View:
    return View(net.model({"x": (FLOAT, shape)}, {"y": output}, opset=20))


def codes(net: Net, value: str | np.ndarray, scale: float = 0.1) -> str:
    """`value` through QuantizeLinear, where it is one, and DequantizeLinear."""
    ends = (net.constant(np.array(scale)), net.constant(np.array(0, np.int8)))
    quantized = net.add("QuantizeLinear", value, *ends) if isinstance(value, str) else net.constant(value)
    return str(net.add("DequantizeLinear", quantized, *ends))


@pytest.mark.parametrize(
    ("weight", "attributes", "macs"),
    [
        ((4, 3, 3, 3), {"strides": [2, 2], "pads": [1] * 4}, 4 * 4 * 4 * 27),
        ((6, 1, 5, 5), {"group": 3, "pads": [2] * 4}, 6 * 8 * 8 * 25),
        ((4, 3, 1, 1), {}, 4 * 8 * 8 * 3),
        ((4, 3, 3, 3), {"dilations": [2, 2]}, 4 * 4 * 4 * 27),
    ],
)
def test_a_convolution_counts_its_filter_at_every_place(weight: tuple[int, ...], attributes: dict, macs: int) -> None:
    net = Net()
    out = net.add("Conv", "x", net.weight(*weight), name="conv", **attributes)
    (product,) = products(graph_of(net, [3, 8, 8], out).at_batch_1)
    assert (product.node, product.kind, product.macs, product.wants_int8) == ("conv", CONVOLUTION, macs, False)


def test_a_transposed_convolution_counts_its_filter_at_every_input() -> None:
    net = Net()
    out = net.add("ConvTranspose", "x", net.weight(3, 4, 2, 2), strides=[2, 2])
    (product,) = products(graph_of(net, [3, 8, 8], out).at_batch_1)
    assert product.macs == 3 * 8 * 8 * 4 * 2 * 2


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_recurrent_layer_counts_both_weights_of_its_gates_at_every_step(op: str, gates: int, directions: int) -> None:
    """7 steps of 5 numbers into 3 hidden ones: gates x hidden x (input + hidden), in each direction."""
    net = Net()
    steps = net.add("Transpose", "x", perm=[1, 0, 2])  # [T, B, I]
    weights = net.weight(directions, gates * 3, 5), net.weight(directions, gates * 3, 3)
    direction = "bidirectional" if directions == 2 else "forward"
    out = net.add(op, steps, *weights, name="memory", hidden_size=3, direction=direction)
    (product,) = products(graph_of(net, [7, 5], out).at_batch_1)
    assert (product.node, product.op, product.kind) == ("memory", op, LINEAR)
    assert product.macs == 7 * directions * gates * 3 * (5 + 3)


@pytest.mark.parametrize("form", ["MatMul", "Gemm", "Gemm transposed"])
def test_a_matrix_product_counts_rows_times_inner_times_columns(form: str) -> None:
    net = Net()
    if form == "MatMul":
        shape, out = [5, 6], net.add("MatMul", "x", net.weight(6, 7))
        macs = 5 * 6 * 7
    else:
        turned = form != "Gemm"
        weight = net.weight(7, 6) if turned else net.weight(6, 7)
        shape, out, macs = [6], net.add("Gemm", "x", weight, net.weight(7), transB=int(turned)), 6 * 7
    (product,) = products(graph_of(net, shape, out).at_batch_1)
    assert (product.kind, product.macs) == (LINEAR, macs)


def test_sizes_that_the_exporter_left_to_shape_nodes_are_known() -> None:
    """torch writes reshapes by Shape, Slice and Concat; at batch 1 they are constants."""
    net = Net()
    size = net.add("Shape", "x")
    batch = net.add("Slice", size, np.array([0]), np.array([1]))
    flat = net.add("Reshape", "x", net.add("Concat", batch, np.array([24]), axis=0))
    (product,) = products(graph_of(net, [4, 6], net.add("MatMul", flat, net.weight(24, 2))).at_batch_1)
    assert product.macs == 24 * 2


def test_what_is_computed_beforehand_is_not_counted() -> None:
    net = Net()
    folded = net.add("MatMul", net.weight(6, 6), net.weight(6, 6))
    found = products(graph_of(net, [5, 6], net.add("MatMul", "x", folded, name="real")).at_batch_1)
    assert [product.node for product in found] == ["real"]


def test_only_codes_on_both_sides_ask_for_int8() -> None:
    net = Net()
    x = net.add("MatMul", codes(net, "x"), codes(net, np.ones((6, 6), np.int8)), name="both")
    x = net.add("MatMul", x, codes(net, np.ones((6, 6), np.int8)), name="weight alone")
    x = net.add("MatMul", codes(net, x), net.weight(6, 6), name="activation alone")
    turned = net.add("Transpose", codes(net, np.ones((6, 6), np.int8)), perm=[1, 0])
    x = net.add("MatMul", codes(net, x), turned, name="weight turned")
    found = {product.node: product.wants_int8 for product in products(graph_of(net, [5, 6], x).at_batch_1)}
    assert found == {"both": True, "weight alone": False, "activation alone": False, "weight turned": True}


def test_the_attention_of_the_text_is_found_with_its_products() -> None:
    scope = View(PARTS["text"]).at_batch_1
    (attention,) = attentions(scope)
    assert (attention.scores, attention.mixed) == ("scores", "mixed")
    assert attention.nodes == {attention.softmax, "scores", "mixed"}
    kinds = {product.node: product.kind for product in products(scope)}
    assert kinds["scores"] == kinds["mixed"] == ATTENTION
    assert list(kinds.values()).count(LINEAR) == 6  # Q, K, V, the output, and the two of the feed-forward


def test_codes_in_an_attention_do_not_hide_it() -> None:
    net = Net()
    scores = net.add("MatMul", codes(net, "x"), codes(net, net.add("Transpose", "x", perm=[0, 2, 1])), name="scores")
    share = net.add("Softmax", net.add("Mul", scores, np.array(0.5)), name="softmax")
    out = net.add("MatMul", codes(net, share, 1 / 127), codes(net, "x"), name="mixed")
    scope = graph_of(net, [5, 6], out).at_batch_1
    assert attentions(scope) == [Attention("softmax", "scores", "mixed", frozenset({"softmax", "scores", "mixed"}))]
    assert all(product.wants_int8 for product in products(scope))


def test_a_softmax_behind_a_weight_is_no_attention() -> None:
    assert attentions(View(PARTS["head"]).at_batch_1) == []
    net = Net()  # pooling by attention: the scores come of a weight
    weights = net.add("Softmax", net.add("MatMul", "x", net.weight(6, 6)), axis=1)
    out = net.add("MatMul", net.add("Transpose", weights, perm=[0, 2, 1]), "x")
    assert attentions(graph_of(net, [5, 6], out).at_batch_1) == []
