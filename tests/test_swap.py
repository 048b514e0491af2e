"""The swappable graph: all switches off is FP32, all on is the other form, one on is that node alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgefuse.optimize import qdq
from edgefuse.optimize.calibrate import observe
from edgefuse.optimize.fp16 import front_end, to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.swap import SWITCHES, Swappable
from edgefuse.runtime.backend_onnx import open_session
from tests.optimize_fixtures import DIM, PARTS, Net, inputs_of, outputs

ENCODERS = ("image", "audio", "text")


def int8_form(model: bytes, batch: dict[str, NDArray[Any]], spared: tuple[str, ...] = ()) -> Graph:
    """INT8 at every site but those of `spared` nodes, FP16 around them."""
    graph = Graph(model)
    sites = [site for site in qdq.find_sites(graph, front_end(graph)) if site.node not in spared]
    watched = {site.activation for site in sites if site.activation} | set(qdq.skip_inputs(graph, sites).values())
    seen = observe(graph, watched, [batch])
    return to_fp16(qdq.insert(graph, sites, {name: found.histogram.threshold() for name, found in seen.items()}))


class Runs:
    """Runs a swappable graph with some switches on."""

    def __init__(self, swappable: Swappable, *names: str) -> None:
        self.names, self.count = names, len(swappable.swaps)
        self.session = open_session(swappable.serialize(names), threads=1, exact_qdq=True)

    def __call__(self, batch: dict[str, NDArray[Any]], *on: int) -> list[NDArray[Any]]:
        switches = np.isin(np.arange(self.count), on)
        return list(self.session.run(list(self.names), {**batch, SWITCHES: switches}))


@pytest.mark.parametrize("part", ENCODERS)
def test_off_is_the_fp32_part_and_on_is_the_other_form(part: str) -> None:
    batch = inputs_of(part, batch=8)
    other = int8_form(PARTS[part], batch)
    swappable = Swappable(Graph(PARTS[part]), other)
    run = Runs(swappable, f"{part}_tokens")
    (off,), (on,) = run(batch), run(batch, *range(run.count))
    (exact,), (theirs,) = outputs(PARTS[part], batch), outputs(other.serialize(), batch, exact_qdq=True)
    np.testing.assert_allclose(off, exact, atol=1e-5)
    error = np.abs(theirs - exact).mean()
    assert np.abs(on - theirs).mean() < 0.5 * error  # ONNX Runtime rounds to FP16 at fewer places: some codes flip
    assert np.abs(on - exact).mean() == pytest.approx(error, rel=0.2)


def text_in_int8_and_fp32(nodes: Collection[str] | None = None) -> Graph:
    """The text part with INT8 at these nodes, at all sites where None."""
    graph = Graph(PARTS["text"])
    sites = [site for site in qdq.find_sites(graph) if nodes is None or site.node in nodes]
    seen = observe(graph, {site.activation for site in sites if site.activation}, [inputs_of("text", batch=8)])
    return qdq.insert(graph, sites, {name: found.histogram.threshold() for name, found in seen.items()})


def test_without_fp16_in_it_on_is_exactly_the_other_form() -> None:
    batch, other = inputs_of("text", batch=8), text_in_int8_and_fp32()
    swappable = Swappable(Graph(PARTS["text"]), other)
    sites = {site.node for site in qdq.find_sites(Graph(PARTS["text"]))}
    assert {swap.node for swap in swappable.swaps} == sites  # nothing else differs
    assert {swap.precision for swap in swappable.swaps} == {"int8"}
    run = Runs(swappable, "text_tokens")
    np.testing.assert_allclose(
        run(batch, *range(run.count))[0], outputs(other.serialize(), batch, exact_qdq=True)[0], atol=1e-5
    )


def test_one_switch_is_one_node() -> None:
    """Against the same part with Q/DQ at one site only."""
    batch = inputs_of("text", batch=8)
    swappable = Swappable(Graph(PARTS["text"]), text_in_int8_and_fp32())
    run = Runs(swappable, "text_tokens")
    for number in (0, 3, len(swappable.swaps) - 1):
        alone = text_in_int8_and_fp32([swappable.swaps[number].node])
        np.testing.assert_allclose(
            run(batch, number)[0], outputs(alone.serialize(), batch, exact_qdq=True)[0], atol=1e-5
        )


def test_an_equal_part_has_nothing_to_swap_and_a_changed_constant_has() -> None:
    graph = Graph(PARTS["text"])
    assert Swappable(Graph(PARTS["text"]), graph).swaps == []
    node = next(node for node in graph.nodes if node.op_type == "LayerNormalization")
    name = node.input[1]
    graph.initializers[name].raw_data = (2 * graph.array(name)).tobytes()
    assert [swap.node for swap in Swappable(Graph(PARTS["text"]), graph).swaps] == [node.name]


def test_every_quantizer_of_the_other_form_is_told_once_per_reader() -> None:
    batch = inputs_of("text", batch=8)
    other = int8_form(PARTS["text"], batch)
    swappable = Swappable(Graph(PARTS["text"]), other)
    told = {quantizer.codes.removeprefix("other/") for swap in swappable.swaps for quantizer in swap.quantizers}
    assert told == {node.output[0] for node in other.nodes if node.op_type == "QuantizeLinear"}
    quantizer = next(quantizer for swap in swappable.swaps for quantizer in swap.quantizers)
    run = Runs(swappable, quantizer.values, quantizer.codes)
    values, codes = run(batch)
    expected = np.clip(np.rint(values.astype(np.float32) / quantizer.scale.astype(np.float32)), -128, 127)
    assert codes.dtype == np.int8
    assert np.abs(codes - expected).max() <= 1  # FP16 division may fall on the other side of a half


def test_products_that_were_merged_are_swapped_together() -> None:
    """Two products of the FP32 graph, one of twice the width and a Split in the other form."""
    net, both = Net(4), Net(4)
    first, second = net.weight(DIM, DIM), net.weight(DIM, DIM)
    a, b = net.add("MatMul", "x", first, name="a"), net.add("MatMul", "x", second, name="b")
    model = net.model({"x": (TensorProto.FLOAT, [DIM])}, {"y": net.add("Sub", net.add("Relu", a), b, name="minus")})
    wide = both.add("MatMul", "x", np.concatenate([first, 2 * second], axis=1), name="wide")
    both.nodes.append(helper.make_node("Split", [wide], ["a", "b"], name="split", axis=1, num_outputs=2))
    merged = both.model(
        {"x": (TensorProto.FLOAT, [DIM])}, {"y": both.add("Sub", both.add("Relu", "a"), "b", name="minus")}
    )
    swappable = Swappable(Graph(model), Graph(merged))
    assert [swap.value for swap in swappable.swaps] == ["a", "b"]
    x = np.random.default_rng(0).standard_normal((3, DIM)).astype(np.float32)
    run = Runs(swappable, "y")
    np.testing.assert_allclose(run({"x": x}, 0, 1)[0], outputs(merged, {"x": x})[0], atol=1e-5)
    np.testing.assert_allclose(run({"x": x}, 0)[0], outputs(model, {"x": x})[0], atol=1e-5)  # only b was doubled
