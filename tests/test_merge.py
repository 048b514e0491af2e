"""Merging Q, K and V: exact, only where it is the same product, and one INT8 product in the real compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgefuse.optimize.calibrate import observe
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.merge import merge_attention
from edgefuse.optimize.plan import Kernel
from edgefuse.optimize.qdq import find_sites, insert
from tests.optimize_fixtures import PARTS, Net, inputs_of, outputs, rtx_kernels

LENGTH, HEADS, WIDTH = 16, 2, 32
DIM = HEADS * WIDTH
SPLIT = [-1, LENGTH, HEADS, WIDTH]
TOO_NARROW = [-1, 2 * LENGTH, HEADS, WIDTH // 2]  # splits every row of the product in two


def branch(net: Net, value: str, *, bias: int = DIM, split: list[int] = SPLIT, **transpose: Any) -> list[str]:
    """A product, its bias, the heads apart and the heads first: the outputs of the four nodes."""
    names = [net.add("MatMul", value, net.weight(DIM, DIM))]
    names.append(net.add("Add", names[-1], net.random.standard_normal(bias)))
    names.append(net.add("Reshape", names[-1], np.array(split)))
    names.append(net.add("Transpose", names[-1], **{"perm": [0, 2, 1, 3], **transpose}))
    return names


def attention() -> bytes:
    """A layer of self-attention, K turned and Q and K scaled as torch's exporter does."""
    net = Net(4)
    x = net.norm("x", DIM)
    query, key, value = (branch(net, x)[-1] for _ in range(3))
    turned = net.add("Transpose", net.add("Reshape", key, np.array([-1, LENGTH, WIDTH])), perm=[0, 2, 1])
    turned = net.add("Reshape", turned, np.array([-1, HEADS, WIDTH, LENGTH]))
    query, turned = (net.add("Mul", each, np.array(WIDTH**-0.25)) for each in (query, turned))
    share = net.add("Softmax", net.add("MatMul", query, turned), axis=-1)
    mixed = net.add("Transpose", net.add("MatMul", share, value), perm=[0, 2, 1, 3])
    mixed = net.linear(net.add("Reshape", mixed, np.array([-1, LENGTH, DIM])), DIM, DIM)
    return net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": net.add("Add", mixed, "x")})


def two_branches(first: dict[str, Any], second: dict[str, Any], *, read: int = -1, put_out: int = -1) -> bytes:
    """Two branches of x; another node reads value `read` of the second, `put_out` is an output of the graph too."""
    net = Net(5)
    source = second.pop("of", None)
    one, two = branch(net, "x", **first), branch(net, net.add(source, "x") if source else "x", **second)
    told = {"one": one[-1], "two": two[-1]}
    if read >= 0:
        told["extra"] = net.add("Relu", two[read])
    model = onnx.load_model_from_string(net.model({"x": (FLOAT, [LENGTH, DIM])}, told))
    if put_out >= 0:
        model.graph.output.append(onnx.helper.make_tensor_value_info(two[put_out], FLOAT, None))
    return bytes(model.SerializeToString())


def given(batch: int = 3) -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(1).standard_normal((batch, LENGTH, DIM)).astype(np.float32)}


def products(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if node.op_type == "MatMul" and node.input[1] in graph.initializers]


def test_three_products_become_one_that_computes_the_same() -> None:
    graph = Graph(attention())
    merged = merge_attention(graph)
    assert (len(products(graph)), len(products(merged))) == (4, 2)
    assert merged.shape(merged.producers["y"].input[0]) == (1, LENGTH, DIM)
    for batch in (1, 5):
        (expected,), (found,) = (outputs(g.serialize(), given(batch)) for g in (Graph(attention()), merged))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_part_with_another_form_of_k_merges_q_and_v() -> None:
    """The text part turns K in the Transpose that splits its heads."""
    graph = merge_attention(Graph(PARTS["text"]))
    (merged,) = [name for name in products(graph) if name.endswith("_qkv")]
    assert graph.shape(merged)[-1] == 64
    (expected,), (found,) = (outputs(m, inputs_of("text")) for m in (PARTS["text"], graph.serialize()))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("part", ["image", "audio", "head"])
def test_a_part_without_attention_is_left_as_it_is(part: str) -> None:
    graph = Graph(PARTS[part])
    assert merge_attention(graph) is graph


def test_every_layer_is_merged_apart() -> None:
    net = Net(6)
    value = "x"
    for _ in range(2):
        query, key = (branch(net, value)[-1] for _ in range(2))
        mixed = net.add("Transpose", net.add("Mul", query, key), perm=[0, 2, 1, 3])
        value = net.add("Reshape", mixed, np.array([-1, LENGTH, DIM]))
    model = net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": value})
    merged = merge_attention(Graph(model))
    assert len(products(merged)) == 2
    np.testing.assert_allclose(outputs(merged.serialize(), given())[0], outputs(model, given())[0], atol=1e-5)


@pytest.mark.parametrize(
    "differs",
    [
        {"of": "Relu"},
        {"split": [-1, LENGTH, 4, 16]},
        {"split": TOO_NARROW},
        {"bias": 1},
        {"perm": [0, 2, 3, 1]},
    ],
    ids=lambda differs: next(iter(differs)),
)
def test_another_input_shape_or_order_is_not_merged(differs: dict[str, Any]) -> None:
    model = two_branches({}, dict(differs))
    merged = merge_attention(Graph(model))
    assert not [name for name in products(merged) if name.endswith("_qkv")]
    for found, expected in zip(outputs(merged.serialize(), given()), outputs(model, given()), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("differs", [{"bias": 1}, {"split": TOO_NARROW}], ids=["bias", "split"])
def test_two_of_a_form_that_cannot_be_merged_are_left_alone(differs: dict[str, Any]) -> None:
    model = two_branches(dict(differs), dict(differs))
    assert len(products(merge_attention(Graph(model)))) == 2


def test_a_transpose_without_an_order_is_no_branch() -> None:
    net = Net(7)
    for name in ("one", "two"):
        value = net.add("Reshape", net.linear("x", DIM, DIM), np.array(SPLIT))
        net.add("Transpose", value, name=name)
    model = net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": net.add("Add", "one", "two")})
    assert len(products(merge_attention(Graph(model)))) == 2


@pytest.mark.parametrize("how", ["read", "put_out"])
@pytest.mark.parametrize("value", [0, 1, 2], ids=["product", "biased", "split"])
def test_a_value_in_between_that_others_want_is_kept(value: int, how: str) -> None:
    model = two_branches({}, {}, **{how: value})
    merged = merge_attention(Graph(model))
    assert len(products(merged)) == 2
    assert merged.outputs == Graph(model).outputs
    for found, expected in zip(outputs(merged.serialize(), given()), outputs(model, given()), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_heads_may_be_an_output_and_have_several_readers() -> None:
    model = two_branches({}, {}, read=3, put_out=3)
    merged = merge_attention(Graph(model))
    assert len(products(merged)) == 1
    for found, expected in zip(outputs(merged.serialize(), given()), outputs(model, given()), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def int8_plan(graph: Graph, folder: Path) -> list[Kernel]:
    """The plan of the graph with all its weight products in INT8."""
    sites = find_sites(graph)
    seen = observe(graph, {site.activation for site in sites if site.activation}, [given(8)])
    int8 = insert(graph, sites, {name: found.histogram.threshold() for name, found in seen.items()})
    return rtx_kernels(to_fp16(int8).serialize(), folder)


def test_tensorrt_rtx_computes_q_k_and_v_as_one_int8_product(tmp_path: Path) -> None:
    """No kernel turns the weights into float at every run, and one splits the heads of all three."""
    graphs = {"apart": Graph(attention()), "merged": merge_attention(Graph(attention()))}
    plans = {name: int8_plan(graph, tmp_path) for name, graph in graphs.items()}
    for plan in plans.values():
        holding = [kernel for kernel in plan if any(c.type == "Int8" and len(c.dims) > 1 for c in kernel.constants)]
        assert [(kernel.kind, kernel.precision) for kernel in holding] == [("gemm", "Int8")] * 2  # QKV and the output
    (product,) = [kernel for kernel in plans["merged"] if kernel.outputs[0].dims == (1, LENGTH, 3 * DIM)]
    assert (product.kind, product.precision) == ("gemm", "Int8")
    (split,) = [kernel for kernel in plans["merged"] if product.outputs[0] in kernel.inputs]
    assert len(split.outputs) == 3
    launched = {name: sum(kernel.is_launched for kernel in plan) for name, plan in plans.items()}
    assert launched["merged"] == launched["apart"] - 2
