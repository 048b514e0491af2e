"""Bias correction: INT8 keeps the mean of every output channel, whatever the batches, and no other node changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefuse.optimize.bias_correction import corrected, mean_shifts
from edgefuse.optimize.calibrate import observe
from edgefuse.optimize.fp16 import front_end
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.qdq import find_sites, insert
from tests.optimize_fixtures import PARTS, Net, inputs_of, outputs

DIM = 16


def inputs(batch: int, seed: int) -> dict[str, NDArray[Any]]:
    x = np.random.default_rng(seed).standard_normal((batch, DIM, 6, 6)) + 0.7
    return {"x": x.astype(np.float32)}


def model_of(op: str, *, bias: bool = True) -> bytes:
    """One layer over [B, DIM, 6, 6], its weights so uneven that INT8 shifts the mean."""
    net = Net(6)
    weight = net.weight(DIM, DIM) ** 3
    if op == "Conv":
        given = [net.weight(DIM)] if bias else []
        return net.model(
            {"x": (FLOAT, [DIM, 6, 6])}, {"y": net.add("Conv", "x", weight[:, :, None, None], *given, name="layer")}
        )
    rows = net.add("Reshape", net.add("Transpose", "x", perm=[0, 2, 3, 1]), np.array([-1, DIM]))
    if op == "Gemm":
        y = net.add("Gemm", rows, weight, net.weight(DIM), name="layer", transB=1)
    else:
        y = net.add("Add", net.weight(DIM), net.add("MatMul", rows, weight, name="layer"))
    back = net.add("Reshape", y, np.array([-1, 6, 6, DIM]))
    return net.model({"x": (FLOAT, [DIM, 6, 6])}, {"y": net.add("Transpose", back, perm=[0, 3, 1, 2])})


def correct_biases(graph: Graph, thresholds: dict[str, float], batches: list[dict[str, NDArray[Any]]]) -> Graph:
    sites = find_sites(graph, front_end(graph))
    return corrected(graph, sites, mean_shifts(graph, sites, thresholds, batches))


def batches(*sizes: int) -> list[dict[str, NDArray[Any]]]:
    whole = inputs(24, seed=0)["x"]
    return [{"x": part} for part in np.split(whole, np.cumsum(sizes)[:-1])]


def thresholds_of(graph: Graph) -> dict[str, float]:
    names = {site.activation for site in find_sites(graph) if site.activation}
    return {
        name: seen.histogram.threshold("percentile-99.9") for name, seen in observe(graph, names, batches(24)).items()
    }


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_the_mean_of_every_channel_is_that_of_fp32(op: str) -> None:
    model = model_of(op)
    thresholds = thresholds_of(Graph(model))
    better = correct_biases(Graph(model), thresholds, batches(8, 8, 8))
    samples = inputs(24, seed=0)

    def shift(graph: Graph) -> NDArray[Any]:
        int8 = outputs(insert(graph, find_sites(graph), thresholds).serialize(), samples, exact_qdq=True)[0]
        return np.asarray((int8 - outputs(model, samples)[0]).mean(axis=(0, 2, 3)))  # [C]

    before, after = shift(Graph(model)), shift(better)
    assert np.abs(before).max() > 1e-3
    np.testing.assert_allclose(after, 0, atol=1e-5)


def test_a_convolution_without_bias_gets_one() -> None:
    model = model_of("Conv", bias=False)
    graph = correct_biases(Graph(model), thresholds_of(Graph(model)), batches(24))
    (node,) = graph.nodes[:1]
    assert graph.array(node.input[2]).shape == (DIM,)


def test_the_batches_make_no_difference() -> None:
    model = model_of("Conv")
    thresholds = thresholds_of(Graph(model))
    biases = []
    for sizes in ([24], [8, 8, 8], [20, 4]):
        graph = correct_biases(Graph(model), thresholds, batches(*sizes))
        biases.append(graph.array(graph.nodes[0].input[2]))
    np.testing.assert_allclose(biases[1], biases[0], atol=1e-6)
    np.testing.assert_allclose(biases[2], biases[0], atol=1e-6)


@pytest.mark.parametrize("part", ["image", "audio", "text"])
def test_only_biases_change_in_a_part(part: str) -> None:
    graph = Graph(PARTS[part])
    sites = find_sites(graph, front_end(graph))
    seen = observe(graph, {site.activation for site in sites if site.activation}, [inputs_of(part, 8)])
    thresholds = {name: found.histogram.threshold() for name, found in seen.items()}
    better = correct_biases(Graph(PARTS[part]), thresholds, [inputs_of(part, 8)])
    assert [(node.name, node.op_type) for node in better.nodes] == [(node.name, node.op_type) for node in graph.nodes]
    changed = sum(list(a.input) != list(b.input) for a, b in zip(better.nodes, graph.nodes, strict=True))
    assert 0 < changed <= len(sites)
    np.testing.assert_allclose(
        outputs(better.serialize(), inputs_of(part))[0], outputs(PARTS[part], inputs_of(part))[0], atol=0.2
    )


def test_only_the_sites_that_become_int8_are_corrected() -> None:
    graph = Graph(PARTS["audio"])
    sites = find_sites(graph, front_end(graph))
    seen = observe(graph, {site.activation for site in sites if site.activation}, [inputs_of("audio", 8)])
    thresholds = {name: found.histogram.threshold() for name, found in seen.items()}
    shifts = mean_shifts(graph, sites, thresholds, [inputs_of("audio", 8)])
    assert set(shifts) == {site.node for site in sites}
    for chosen in ([], sites[1:2]):
        before = {name: list(node.input) for node in graph.nodes for name in [node.name]}
        after = corrected(graph, chosen, shifts)
        assert sum(list(node.input) != before[node.name] for node in after.nodes) == len(chosen)
