"""Calibration sees the values that the graph has, batch by batch, and holds no more than a batch."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import helper

from edgefuse.optimize.calibrate import observe, overflowing, watch
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.runtime.errors import BundleError
from tests.optimize_fixtures import PARTS, inputs_of, outputs


def test_observed_ranges_are_those_of_the_values() -> None:
    graph = Graph(PARTS["text"])
    inputs = inputs_of("text", batch=6)
    halves = [{name: array[start : start + 3] for name, array in inputs.items()} for start in (0, 3)]
    name = graph.nodes[-1].input[0]  # what the output is made of
    seen = observe(graph, [name], halves)[name]
    expected = outputs(PARTS["text"], inputs)[0]
    assert seen.histogram.largest == pytest.approx(np.abs(expected).max(), rel=1e-5)
    assert seen.histogram.counts.sum() == expected.size
    assert seen.shape == (1, *expected.shape[1:])


def test_one_batch_is_held_at_a_time() -> None:
    graph = Graph(PARTS["audio"])
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def batches() -> Iterator[dict[str, np.ndarray]]:
        nonlocal most
        for _ in range(8):
            batch = inputs_of("audio", batch=2)
            alive.append(weakref.ref(batch["audio"]))
            yield batch
            del batch
            most = max(most, sum(reference() is not None for reference in alive))

    observe(graph, ["log"], batches())
    assert most <= 2


def test_nan_on_a_sample_is_refused() -> None:
    graph = Graph(PARTS["audio"])
    inputs = {"audio": np.full((1, 640), np.nan, np.float32)}
    with pytest.raises(BundleError, match="log is NaN or infinite"):
        observe(graph, ["log"], [inputs])


def test_values_that_fp16_cannot_hold_are_found() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["wide"], name="makes"),
        helper.make_node("Mul", ["wide", "small"], ["tame"], name="reads"),
        helper.make_node("Relu", ["tame"], ["y"], name="innocent"),
    ]
    graph = Graph(
        helper.make_model(
            helper.make_graph(
                nodes,
                "part",
                [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
                [helper.make_tensor_value_info("y", FLOAT, ["batch", 4])],
                [helper.make_tensor("big", FLOAT, [], [1e5]), helper.make_tensor("small", FLOAT, [], [1e-5])],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
    )
    assert overflowing(graph, {"x": np.ones((2, 4), np.float32)}) == {"makes", "reads"}
    assert overflowing(graph, {"x": np.full((2, 4), 1e-3, np.float32)}) == set()


def test_values_are_watched_batch_by_batch() -> None:
    graph = Graph(PARTS["text"])
    inputs = inputs_of("text", batch=6)
    halves = [{name: array[start : start + 3] for name, array in inputs.items()} for start in (0, 3)]
    output = graph.outputs[0]
    seen = list(watch(graph, [output, "scores"], halves))
    assert [set(values) for values in seen] == [{output, "scores"}] * 2
    together = np.concatenate([values[output] for values in seen])
    np.testing.assert_allclose(together, outputs(PARTS["text"], inputs)[0], atol=1e-5)
    assert list(watch(graph, [], halves)) == []


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    graph = Graph(PARTS["image"])
    names = [node.output[0] for node in graph.nodes if node.op_type in ("Conv", "Relu", "Mul")]

    def peak_bytes(count: int) -> int:
        tracemalloc.start()
        try:
            observe(graph, names, (inputs_of("image", batch=8) for _ in range(count)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak_bytes(4), peak_bytes(64)
    held = sum(array.nbytes for array in next(watch(graph, names, [inputs_of("image", batch=8)])).values())
    assert many < few + held  # keeping what it sees would add sixty times that
