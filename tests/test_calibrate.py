"""Calibration: histograms that run along equal one histogram over everything, and thresholds lose least."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from edgefuse.optimize.calibrate import BINS, STEPS, Histogram, observe, overflowing
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.runtime.errors import BundleError
from tests.optimize_fixtures import PARTS, inputs_of, outputs

values = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


def histogram_of(*chunks: np.ndarray) -> Histogram:
    histogram = Histogram()
    for chunk in chunks:
        histogram.update(chunk)
    return histogram


@given(st.lists(values, min_size=1, max_size=6))
def test_the_running_histogram_counts_like_one_over_all_values(chunks: list[np.ndarray]) -> None:
    histogram = histogram_of(*chunks)
    everything = np.abs(np.concatenate(chunks).astype(np.float64))
    assert histogram.counts.sum() == everything.size
    assert histogram.largest == everything.max() <= histogram.limit
    # Counts below an edge may differ by values that lie on it, so compare at half a bin of distance.
    edges = np.linspace(0, histogram.limit, BINS + 1)
    for index in (BINS // 4, BINS // 2, BINS):
        below = histogram.counts[:index].sum()
        width = histogram.limit / BINS / 2
        assert (everything < edges[index] - width).sum() <= below <= (everything <= edges[index] + width).sum()


def test_memory_does_not_grow_with_the_range() -> None:
    histogram = histogram_of(*(np.array([2.0**power]) for power in range(-20, 20)))
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts.sum() == 40


def loss(samples: np.ndarray, threshold: float) -> float:
    """Mean square error of INT8 with that threshold, on the samples themselves."""
    scale = threshold / STEPS
    return float(((np.clip(np.rint(samples / scale), -STEPS, STEPS) * scale - samples) ** 2).mean())


@pytest.mark.parametrize("shape", ["uniform", "normal", "laplace", "outlier"])
def test_the_threshold_loses_hardly_more_than_the_best_one(shape: str) -> None:
    random = np.random.default_rng(0)
    samples = random.uniform(-1, 1, 20_000) if shape == "uniform" else random.standard_normal(20_000)
    if shape == "laplace":
        samples = random.laplace(size=20_000)
    if shape == "outlier":
        samples[0] = 40.0
    chosen = histogram_of(*np.split(samples, 20)).threshold()
    largest = np.abs(samples).max()
    best = min(loss(samples, share * largest) for share in np.linspace(0.05, 1, 400))
    assert loss(samples, chosen) <= 1.03 * best
    assert chosen <= largest


def test_a_range_without_outliers_is_not_clipped() -> None:
    samples = np.linspace(-3, 3, 5000)
    assert histogram_of(samples).threshold() == pytest.approx(3, rel=0.05)


def test_only_zeros_have_threshold_zero() -> None:
    assert histogram_of(np.zeros((2, 3), np.float32)).threshold() == 0.0
    assert histogram_of(np.zeros(3), np.array([2.0])).largest == 2.0


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
