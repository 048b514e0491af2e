"""Blame: a planted bad node is named, whatever is planted, and a rewritten one is not accused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgefuse.optimize.blame import OTHERS, Culprit, blame
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.qdq import find_sites
from edgefuse.optimize.smooth import smooth
from tests.optimize_fixtures import DIM, LENGTH, PARTS, Net, image_part, inputs_of
from tests.test_swap import int8_form


def halves(batch: dict[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    return [{name: array[rows] for name, array in batch.items()} for rows in (slice(0, 4), slice(4, 8))]


def culprits_of(part: str, other: Graph, model: bytes | None = None) -> list[Culprit]:
    batches = halves(inputs_of(part, batch=8))
    return blame(Graph(model or PARTS[part]), other, batches, f"{part}_tokens").culprits


def set_constant(graph: Graph, name: str, array: NDArray[Any]) -> None:
    graph.initializers[name].CopyFrom(numpy_helper.from_array(array, name))
    for tensor in graph.model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(graph.initializers[name])


def reader_of_weight(graph: Graph, nth: int) -> tuple[str, str]:
    """A quantized node and the scale of its weight."""
    scales = [
        node for node in graph.nodes if node.op_type == "DequantizeLinear" and node.input[0] in graph.initializers
    ]
    (reader,) = graph.consumers(scales[nth].output[0])
    return reader.name, scales[nth].input[1]


@pytest.mark.parametrize("part", ["image", "audio", "text"])
@pytest.mark.parametrize("nth", [0, 2, -1])
def test_a_damaged_weight_scale_is_found(part: str, nth: int) -> None:
    other = int8_form(PARTS[part], inputs_of(part, batch=8))
    node, scale = reader_of_weight(other, nth)
    set_constant(other, scale, (1.5 * other.array(scale)).astype(other.array(scale).dtype))
    worst = culprits_of(part, other)[0]
    assert (worst.swap.node, worst.swap.precision) == (node, "int8")
    assert worst.share > 0.5
    assert worst.own.sqnr_db is not None
    assert worst.own.sqnr_db < 25  # 6 at the product itself, more where a saturating node behind it hides some


@pytest.mark.parametrize("factor", [0.1, 10.0], ids=["clips", "coarse"])
def test_a_damaged_activation_scale_is_found_and_its_codes_are_told(factor: float) -> None:
    batch = inputs_of("text", batch=8)
    other = int8_form(PARTS["text"], batch)
    quantizer = [node for node in other.nodes if node.op_type == "QuantizeLinear"][-1]
    scale = quantizer.input[1]
    set_constant(other, scale, (factor * other.array(scale)).astype(np.float16))
    found = blame(Graph(PARTS["text"]), other, halves(batch), "text_tokens")
    (reader,) = other.consumers(other.consumers(quantizer.output[0])[0].output[0])
    assert found.culprits[0].swap.node == reader.name
    clipped = {name: codes.row()["clipped"] for name, codes in found.codes.items()}
    assert (max(clipped, key=clipped.__getitem__) == f"other/{quantizer.output[0]}") == (factor < 1)
    assert (max(clipped.values()) > 0.3) == (factor < 1)


def test_a_value_that_overflows_fp16_is_found() -> None:
    """One channel is 60,000 times as large and its weights make up for it: FP32 does not mind."""
    model = image_part(6e4)
    other = int8_form(model, inputs_of("image", batch=8), spared=tuple(f"matmul_{n}" for n in range(99)))
    worst = culprits_of("image", other, model)[0]
    assert (worst.swap.op, worst.swap.precision) == ("Mul", "fp16")
    assert worst.own.not_finite > 0


def test_a_healthy_part_has_no_outstanding_culprit() -> None:
    other = int8_form(PARTS["text"], inputs_of("text", batch=8))
    found = culprits_of("text", other)
    int8 = [culprit for culprit in found if culprit.swap.precision == "int8"]
    assert len(found) == len(int8) + OTHERS
    assert sum(culprit.share for culprit in found) == pytest.approx(1)
    assert found == sorted(found, key=lambda culprit: -culprit.alone.noise)
    assert all(culprit.own.sqnr_db and culprit.own.sqnr_db > 25 for culprit in int8)
    assert max(culprit.share for culprit in found if culprit not in int8) < 0.01


def test_a_perfect_copy_has_no_culprits() -> None:
    found = blame(Graph(PARTS["text"]), Graph(PARTS["text"]), halves(inputs_of("text", batch=8)), "text_tokens")
    assert (found.culprits, found.codes) == ([], {})


def outlier_layer() -> bytes:
    """LayerNormalization with one large channel, two products, and a third one behind them."""
    net = Net(4)
    scale = np.ones(DIM)
    scale[3] = 40.0
    normed = net.add("LayerNormalization", "x", scale, np.zeros(DIM), name="norm", axis=-1, epsilon=1e-5)
    first, second = (net.add("MatMul", normed, net.weight(DIM, DIM), name=name) for name in ("first", "second"))
    mixed = net.add("Mul", first, net.add("Sigmoid", second))
    return net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": net.add("MatMul", mixed, net.weight(DIM, DIM), name="third")})


def test_a_mask_that_fp16_writes_otherwise_is_not_accused() -> None:
    """Masked scores are -3.4e38 in the text part and -1e4 in FP16; the Softmax behind makes 0 of either."""
    batches = halves(inputs_of("text", batch=8))
    found = blame(Graph(PARTS["text"]), to_fp16(Graph(PARTS["text"])), batches, "text_tokens").culprits
    assert not [culprit for culprit in found if culprit.own.not_finite]
    assert all(culprit.share < 1e-6 for culprit in found if (culprit.own.sqnr_db or 99) < 50)


def test_a_value_that_smoothquant_wrote_otherwise_is_not_accused() -> None:
    model = outlier_layer()
    batch = {"x": np.random.default_rng(0).standard_normal((8, LENGTH, DIM)).astype(np.float32)}
    smoothed, done = smooth(Graph(model), find_sites(Graph(model)), [batch])
    assert [row.activation for row in done] == ["norm"]
    other = int8_form(smoothed.serialize(), batch)
    node, scale = reader_of_weight(other, -1)
    assert node == "third"
    set_constant(other, scale, (1.1 * other.array(scale)).astype(np.float16))
    worst, *others = blame(Graph(model), other, halves(batch), "y").culprits
    assert worst.swap.node == "third"
    assert {culprit.swap.node for culprit in others if culprit.swap.precision == "int8"} == {"first", "second"}
    assert not [culprit for culprit in others if (culprit.own.sqnr_db or 99) < 25]
