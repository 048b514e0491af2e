"""Text parts that stop after the last word give the same tokens, and do so only where padding has no say."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgefuse.optimize.cpu_parts import fused
from tests.optimize_fixtures import DIM, LENGTH, PARTS, VOCABULARY, Net, operators, outputs


def text_part(pool: str, *, masked: bool = True, looked_up: bool = True) -> bytes:
    """Words and their places through a Linear; the sum over the words, their mean, or every word's token."""
    net = Net(6)
    words = net.add("Gather", net.weight(len(VOCABULARY), DIM), "input_ids")
    table = net.weight(2 * LENGTH, DIM)
    places = net.add("Gather", table, np.arange(LENGTH)[None]) if looked_up else table[None, :LENGTH]  # [1, L, D]
    x = net.norm(net.linear(net.norm(net.add("Add", words, places), DIM), DIM, DIM), DIM)
    real = net.add("Unsqueeze", net.add("Cast", "attention_mask", to=TensorProto.FLOAT), np.array([2]))  # [B, L, 1]
    kept = net.add("Mul", x, real) if masked else x
    if pool == "mean":
        summed = net.add("ReduceSum", kept, np.array([1]))
        kept = net.add("Div", summed, net.add("Add", net.add("ReduceSum", real, np.array([1])), np.array(1e-6)))
    inputs = {name: (int(TensorProto.INT32), [LENGTH]) for name in ("input_ids", "attention_mask")}
    return net.model(inputs, {"text_tokens": kept})


MODELS = [text_part(pool, looked_up=looked_up) for pool in ("mean", "all") for looked_up in (True, False)]
CUT = [fused(model) for model in MODELS]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, LENGTH), min_size=1, max_size=4), model=st.integers(0, len(MODELS) - 1))
def test_padding_changes_no_token(lengths: list[int], model: int) -> None:
    mask = (np.arange(LENGTH) < np.array(lengths)[:, None]).astype(np.int32)  # [B, L]
    ids = np.random.default_rng(0).integers(1, len(VOCABULARY), mask.shape).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert operators(CUT[model])["Slice"] == 3  # ids, mask, places
    np.testing.assert_allclose(outputs(CUT[model], inputs)[0], outputs(MODELS[model], inputs)[0], atol=1e-5)


def test_only_words_are_computed() -> None:
    model = onnx.load_model_from_string(fused(text_part("all")))
    product = next(node.output[0] for node in model.graph.node if node.op_type == "MatMul")
    model.graph.output.append(onnx.helper.make_tensor_value_info(product, TensorProto.FLOAT, None))
    mask = np.zeros((2, LENGTH), np.int32)
    mask[0, :2], mask[1, :3] = 1, 1
    found = outputs(model.SerializeToString(), {"input_ids": np.ones_like(mask), "attention_mask": mask})
    assert found[0].shape == (2, LENGTH, DIM)
    assert found[1].shape == (2, 3, DIM)


UNMASKED = [text_part(pool, masked=False) for pool in ("mean", "all")]


@pytest.mark.parametrize("model", [*UNMASKED, *PARTS.values()])
def test_padding_that_has_a_say_stays(model: bytes) -> None:
    assert "ReduceMax" not in operators(fused(model))


@pytest.mark.parametrize(("axis", "is_cut"), [(2, True), (1, False)])
def test_columns_of_a_merged_product_may_be_taken_apart_but_words_may_not(axis: int, is_cut: bool) -> None:
    net = Net(6)
    words = net.add("Gather", net.weight(len(VOCABULARY), DIM), "input_ids")  # [B, L, D]
    half = DIM // 2 if axis == 2 else LENGTH // 2
    first = net.add("Slice", words, np.array([0]), np.array([half]), np.array([axis]))
    second = net.add("Slice", words, np.array([half]), np.array([2 * half]), np.array([axis]))
    joined = net.add("Add", first, second)  # [B, L, D / 2], or [B, L / 2, D]
    real = net.add("Unsqueeze", net.add("Cast", "attention_mask", to=TensorProto.FLOAT), np.array([2]))  # [B, L, 1]
    real = real if axis == 2 else net.add("Slice", real, np.array([0]), np.array([half]), np.array([1]))
    inputs = {name: (int(TensorProto.INT32), [LENGTH]) for name in ("input_ids", "attention_mask")}
    model = net.model(inputs, {"text_tokens": net.add("Mul", joined, real)})

    assert ("ReduceMax" in operators(fused(model))) == is_cut
