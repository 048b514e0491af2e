"""Rewriting keeps the names of values, the order of nodes and what is computed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from edgefuse.optimize.cpu_rewrite import Rewrite, one_gelu, unfused_residual_norm
from edgefuse.optimize.graph import Graph
from tests.optimize_fixtures import DIM, Net, outputs


def operators(rewrite: Rewrite) -> Counter[str]:
    return Counter(node.op_type for node in rewrite.nodes)


def chain() -> tuple[bytes, list[str]]:
    net = Net()
    first = net.add("Relu", "x")
    second = net.add("Neg", first)
    third = net.add("Abs", second)
    return net.model({"x": (TensorProto.FLOAT, [DIM])}, {"y": third}), [first, second, third]


def gelu(half: float = 0.5) -> bytes:
    """As torch's exporter writes it."""
    net = Net()
    curve = net.add("Add", net.add("Erf", net.add("Div", "x", np.array(2**0.5))), np.array(1.0))
    return net.model(
        {"x": (TensorProto.FLOAT, [DIM])}, {"y": net.add("Mul", "x", net.add("Mul", np.array(half), curve))}
    )


def test_a_new_node_takes_over_its_value() -> None:
    model, (first, second, third) = chain()
    rewrite = Rewrite(Graph(model))
    assert not rewrite.is_changed
    rewrite.add("Sigmoid", [first], instead_of=second)
    rewrite.sweep()
    assert [node.op_type for node in rewrite.nodes] == ["Relu", "Sigmoid", "Abs", "Identity"]
    assert rewrite.is_changed
    assert rewrite.sole_reader(second, "Abs") is rewrite.producer(third)
    x = np.linspace(-2, 2, DIM, dtype=np.float32)[None]
    np.testing.assert_allclose(
        outputs(rewrite.serialize(), {"x": x})[0], 1 / (1 + np.exp(-np.maximum(x, 0))), rtol=1e-6
    )


def test_nodes_and_constants_that_nobody_needs_go() -> None:
    rewrite = Rewrite(Graph(gelu()))
    rewrite.add("Relu", ["x"], instead_of="y")
    left = onnx.load_model_from_string(rewrite.serialize()).graph
    assert [node.op_type for node in left.node] == ["Relu"]
    assert not left.initializer


def test_gelu_becomes_one_node() -> None:
    rewrite = Rewrite(Graph(gelu()))
    one_gelu(rewrite)
    assert operators(rewrite) == {"Gelu": 1, "Identity": 1}
    x = np.linspace(-6, 6, DIM, dtype=np.float32)[None]
    np.testing.assert_allclose(outputs(rewrite.serialize(), {"x": x})[0], outputs(gelu(), {"x": x})[0], atol=1e-6)


def test_what_only_looks_like_gelu_stays() -> None:
    rewrite = Rewrite(Graph(gelu(half=0.25)))
    one_gelu(rewrite)
    assert "Gelu" not in operators(rewrite)


def as_optimised(model: bytes, folder: Path) -> set[str]:
    """The operators that ONNX Runtime makes of a model when it opens it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node}


def test_onnx_runtime_leaves_a_residual_sum_alone(tmp_path: Path) -> None:
    net = Net()
    y = net.norm(net.add("Add", "x", net.add("Relu", "x")), DIM)
    model = net.model({"x": (TensorProto.FLOAT, [4, DIM])}, {"y": y})
    assert "SkipLayerNormalization" in as_optimised(model, tmp_path)
    rewrite = Rewrite(Graph(model))
    unfused_residual_norm(rewrite)
    assert as_optimised(rewrite.serialize(), tmp_path) == {"Relu", "Sum", "LayerNormalization"}


@pytest.mark.parametrize(
    ("op", "operands", "expected"),
    [("Mul", ("x", 3.0), 3.0), ("Mul", (3.0, "x"), 3.0), ("Div", ("x", 4.0), 0.25), ("Div", (4.0, "x"), None)],
)
def test_factors_are_found_on_either_side(op: str, operands: tuple[object, object], expected: float | None) -> None:
    net = Net()
    y = net.add(op, *(value if isinstance(value, str) else np.array(value) for value in operands))
    rewrite = Rewrite(Graph(net.model({"x": (TensorProto.FLOAT, [DIM])}, {"y": y})))
    assert rewrite.scaled(rewrite.nodes[0]) == (None if expected is None else ("x", expected))
