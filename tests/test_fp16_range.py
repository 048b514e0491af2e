"""The FP16 scan: what overflows and which constants are lost is named, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from edgefuse.optimize.fp16 import front_end
from edgefuse.optimize.fp16_range import scan
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.runtime.errors import BundleError
from tests.optimize_fixtures import DIM, PARTS, Net, image_part, inputs_of


def test_a_value_that_overflows_is_named_with_what_it_reaches() -> None:
    graph = Graph(image_part(6e4))
    (row,) = [row for row in scan(graph, (), [inputs_of("image", 8)]) if row["effect"] == "overflows"]
    assert (row["node"], row["op"], row["in"]) == ("mul_19", "Mul", "fp16")
    assert 65504 < row["largest"] < 1e6


def test_it_is_the_largest_of_all_batches_that_counts() -> None:
    net = Net()
    model = net.model({"x": (FLOAT, [1])}, {"y": net.add("Mul", "x", np.float32(2), name="double")})
    batches = [{"x": np.array([[value]], np.float32)} for value in (1.0, -3e4, 5.0)]
    (row,) = scan(Graph(model), (), batches)[:1]
    assert (row["node"], row["largest"], row["effect"]) == ("double", 6e4, "less than 4x below")
    assert scan(Graph(model), (), batches[::2])[0]["effect"] == "fits"


def test_what_stays_in_fp32_is_told_last_as_safe() -> None:
    graph = Graph(image_part(6e4))
    rows = scan(graph, {"mul_19"}, [inputs_of("image", 8)])
    assert rows[-1]["in"] == "fp32"
    assert {row["in"] for row in rows[:-1]} <= {"fp16"}


@pytest.mark.parametrize("part", ["image", "audio"])
def test_a_sane_part_gives_its_largest_value_alone(part: str) -> None:
    graph = Graph(PARTS[part])
    (row,) = scan(graph, front_end(graph), [inputs_of(part, 8)])
    assert row["effect"] == "fits"
    assert row["largest"] > 0


@pytest.mark.parametrize(
    ("constant", "effect"),
    [
        (np.full(DIM, 1e-9), f"{DIM} of {DIM} become 0"),
        (np.append(np.full(DIM - 1, 1e-6), 2e-8), f"1 of {DIM} become 0"),
        (np.append(np.ones(DIM - 1), 1e5), f"1 of {DIM} clamped"),
    ],
    ids=["all", "one", "large"],
)
def test_a_constant_that_fp16_loses_is_named(constant: np.ndarray, effect: str) -> None:
    net = Net()
    net.add("Mul", "x", constant, name="scaled")
    model = net.model({"x": (FLOAT, [DIM])}, {"y": "scaled"})
    rows = scan(Graph(model), (), [{"x": np.full((2, DIM), 0.1, np.float32)}])
    assert [row["effect"] for row in rows if row["node"] == "scaled"] == [effect]
    (safe,) = scan(Graph(model), {"scaled"}, [{"x": np.zeros((2, DIM), np.float32)}])
    assert safe["effect"] == "fits"


@pytest.mark.parametrize("constant", [np.append(np.ones(DIM - 1), 1e-12), np.array(1e-12)], ids=["tiny", "epsilon"])
def test_tiny_weights_beside_others_and_epsilons_are_no_finding(constant: np.ndarray) -> None:
    net = Net()
    net.add("Add", "x", constant, name="sum")
    (row,) = scan(Graph(net.model({"x": (FLOAT, [DIM])}, {"y": "sum"})), (), [{"x": np.ones((2, DIM), np.float32)}])
    assert row["effect"] == "fits"


def test_a_part_that_is_not_finite_in_fp32_is_refused() -> None:
    net = Net()
    model = net.model({"x": (FLOAT, [1])}, {"y": net.add("Log", "x", name="log")})
    with pytest.raises(BundleError, match="log is NaN or infinite"):
        scan(Graph(model), (), [{"x": np.array([[-1.0]], np.float32)}])
