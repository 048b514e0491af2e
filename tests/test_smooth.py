"""SmoothQuant changes nothing in float, makes INT8 better where it acts, and acts only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefuse.optimize.calibrate import observe
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.plan import summary
from edgefuse.optimize.qdq import find_sites, insert
from edgefuse.optimize.smooth import smooth, smoothing_factors
from tests.optimize_fixtures import Net, outputs, rtx_kernels

DIM, LENGTH = 32, 8
OUTLIER = 40.0  # one channel of a trained transformer is that much larger than the others


def inputs(batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).standard_normal((batch, LENGTH, DIM)).astype(np.float32)}


def layer(*, residual: bool, outlier: float = OUTLIER, gemm: bool = False) -> bytes:
    """LayerNormalization with one large channel, two products and perhaps a residual addition behind it."""
    net = Net(4)
    scale, shift = np.ones(DIM), 0.1 * net.random.standard_normal(DIM)
    scale[3] = outlier
    source = net.add("Reshape", "x", np.array([-1, DIM])) if gemm else "x"
    normed = net.add("LayerNormalization", source, scale, shift, name="norm", axis=-1, epsilon=1e-5)
    if gemm:
        first = net.add("Gemm", normed, net.weight(DIM, DIM), name="first")
        second = net.add("Gemm", normed, net.weight(DIM, DIM), net.weight(DIM), name="second", transB=1)
    else:
        first, second = (net.add("MatMul", normed, net.weight(DIM, DIM), name=name) for name in ("first", "second"))
    mixed = net.add("Mul", first, net.add("Sigmoid", second))
    return net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": net.add("Add", mixed, normed) if residual else mixed})


def batches() -> list[dict[str, NDArray[Any]]]:
    return [inputs(8, seed) for seed in range(1, 5)]


def quantized(graph: Graph) -> Graph:
    sites = find_sites(graph)
    seen = observe(graph, {site.activation for site in sites if site.activation}, batches())
    return insert(graph, sites, {name: found.histogram.threshold() for name, found in seen.items()})


def error(model: bytes, reference: bytes) -> float:
    ours, exact = (outputs(m, inputs(16), exact_qdq=True)[0] for m in (model, reference))
    return float(((ours - exact) ** 2).sum() / (exact**2).sum())


def test_the_factors_are_those_of_the_papers_example() -> None:
    """Figure 5 of arXiv 2211.10438."""
    activations = np.array([[1, -16, 2, 6], [-2, 8, -1, -9]], np.float32)
    weights = np.array([[2, 1, -2], [1, -1, -1], [2, -1, -2], [-1, -1, 1]], np.float32)
    factors = smoothing_factors(np.abs(activations).max(axis=0), np.abs(weights).max(axis=1), 0.5)
    np.testing.assert_allclose(factors, [1, 4, 1, 3])


@given(st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=5), st.floats(0.0625, 0.9375, width=32))
def test_factors_are_positive_and_finite_also_for_dead_channels(largest: list[float], alpha: float) -> None:
    values = np.array(largest, np.float32)
    for factors in (smoothing_factors(values, values[::-1], alpha), smoothing_factors(values, 0 * values, alpha)):
        assert np.isfinite(factors).all()
        assert np.isfinite(1 / factors).all()
        assert (factors > 0).all()


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_outputs_are_the_same_in_float(residual: bool, gemm: bool) -> None:
    model = layer(residual=residual, gemm=gemm)
    graph, done = smooth(Graph(model), find_sites(Graph(model)), batches())
    assert [sorted(found.nodes) for found in done] == [["first", "second"]]
    np.testing.assert_allclose(outputs(graph.serialize(), inputs(4))[0], outputs(model, inputs(4))[0], atol=1e-5)


def test_scales_move_into_the_normalisation_where_only_products_read_it() -> None:
    model = layer(residual=False)
    graph, _ = smooth(Graph(model), find_sites(Graph(model)), batches())
    assert [node.op_type for node in graph.nodes] == [node.op_type for node in Graph(model).nodes]
    norm = next(node for node in graph.nodes if node.name == "norm")
    gamma = graph.array(norm.input[1])
    assert gamma[3] / np.median(gamma) < OUTLIER / 3
    assert "norm" not in graph.types  # what is compared by name must not be another value
    assert {node.name for node in graph.consumers(norm.output[0])} == {"first", "second"}


def test_a_residual_addition_reads_the_unscaled_normalisation() -> None:
    model = layer(residual=True)
    graph, _ = smooth(Graph(model), find_sites(Graph(model)), batches())
    assert {node.op_type for node in graph.consumers("norm")} == {"Mul", "Add"}
    scaled = next(node for node in graph.consumers("norm") if node.op_type == "Mul").output[0]
    assert {node.name for node in graph.consumers(scaled)} == {"first", "second"}


@pytest.mark.parametrize("residual", [False, True])
def test_int8_loses_less_with_an_outlier_and_as_much_as_promised(residual: bool) -> None:
    model = layer(residual=residual)
    graph, (done,) = smooth(Graph(model), find_sites(Graph(model)), batches())
    before, after = (error(quantized(g).serialize(), model) for g in (Graph(model), graph))
    assert after < 0.5 * before
    assert done.error_left < 0.5


def test_a_layer_without_outliers_is_left_alone() -> None:
    model = layer(residual=True, outlier=1.0)
    graph = Graph(model)
    smoothed, done = smooth(graph, find_sites(graph), batches())
    assert done == []
    assert smoothed is graph


def test_a_weight_that_others_read_too_is_left_alone() -> None:
    net = Net(4)
    scale = np.ones(DIM)
    scale[3] = OUTLIER
    weight = net.constant(net.weight(DIM, DIM))
    normed = net.add("LayerNormalization", "x", scale, np.zeros(DIM), name="norm", axis=-1)
    tied = net.add("MatMul", net.add("Relu", net.add("MatMul", normed, weight)), weight)
    model = net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": tied})
    assert smooth(Graph(model), find_sites(Graph(model)), batches())[1] == []


def test_tensorrt_rtx_scales_in_the_kernel_that_quantizes(tmp_path: Path) -> None:
    model = layer(residual=True)
    smoothed, _ = smooth(Graph(model), find_sites(Graph(model)), batches())
    before, after = (
        summary(rtx_kernels(to_fp16(quantized(graph)).serialize(), tmp_path))["kernels"]
        for graph in (Graph(model), smoothed)
    )
    assert after <= before
