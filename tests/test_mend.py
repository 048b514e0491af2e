"""Tests of mend.py: what is mended is found no more, and computes what it did, as ONNX Runtime sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgefuse.optimize.ask_parser import ask
from edgefuse.optimize.mend import mend
from edgefuse.optimize.preflight import check, inspect
from edgefuse.optimize.view import View
from edgefuse.runtime.errors import BundleError
from tests.check_models import CASES, F16, F32, FLOAT, HALF, I8, U8, Draft, layer_norm, masked, pair, single
from tests.optimize_fixtures import outputs

MENDED = {
    "zero point 3": "nonzero-zero-point",
    "uint8, zero point 128": "nonzero-zero-point",
    "uint8, zero point 0": "uint8-quantization",
    "no zero point": "missing-zero-point",
    "FP32 scale for FP16": "scale-type",
    "scale 0": "non-positive-scale",
    "FP16 scale 1e-8": "non-positive-scale",
    "FP16 scale 1e-6": "subnormal-scale",
    "int32 bias": "int32-bias",
    "uint8 codes": "uint8-quantization",
    "FP16 * FP32 constant": "mixed-types",
    "LayerNorm, FP32 gamma": "mixed-types",
    "mask of FP32's least": "huge-mask",
    "mask of -inf": "infinite-mask",
    "mask of -inf in FP16": "infinite-mask",
}
MODELS = {case.name: case.model for case in CASES}


def mended(model: bytes) -> bytes:
    return mend(View(model))[0]


def run(model: bytes, **inputs: Any) -> Any:
    (result,) = outputs(model, inputs, exact_qdq=True)
    return result


@pytest.mark.parametrize("name", MENDED)
def test_what_is_mended_is_found_no_more(name: str) -> None:
    before, after = inspect(MODELS[name]), inspect(mended(MODELS[name]))
    assert MENDED[name] in {finding.rule for finding in before}
    assert after == []


def test_the_parser_takes_what_was_mended() -> None:
    pytest.importorskip("tensorrt_rtx")
    _, answers = ask([mended(MODELS[name]) for name in MENDED])
    assert [answer.says for answer in answers] == [""] * len(MENDED)


@pytest.mark.parametrize("case", [case for case in CASES if case.rule is None], ids=lambda case: case.name)
def test_what_is_well_is_left_as_it_is(case: Any) -> None:
    model, done = mend(View(case.model))
    assert done == []
    (before, after) = (onnx.load_model_from_string(one).graph for one in (case.model, model))
    assert [node.op_type for node in before.node] == [node.op_type for node in after.node]
    assert [numpy_helper.to_array(one).tolist() for one in before.initializer] == [
        numpy_helper.to_array(one).tolist() for one in after.initializer
    ]


@pytest.mark.parametrize("zero", [U8(0), U8(128), U8(37), I8(-20), None])
def test_a_range_is_kept_when_quantization_becomes_symmetric(zero: Any) -> None:
    model = pair(zero=zero, shape=(512,))
    point = 0 if zero is None else int(zero)
    low, high = ((0, 255), (-128, 127))[zero is not None and zero.dtype == I8]
    x = np.linspace(0.1 * (low - point), 0.1 * (high - point), 512).astype(F32)
    before, after = run(model, x=x), run(mended(model), x=x)
    step = 0.1 * max(point - low, high - point) / 127
    assert np.abs(before - x).max() <= 0.05 + 1e-6
    assert np.abs(after - x).max() <= step / 2 + 1e-6
    assert step <= 0.201


@pytest.mark.parametrize(
    ("codes", "zero", "exact"),
    [
        (np.array([0, 128, 255], U8), U8(128), True),
        (np.array([0, 60, 127], U8), U8(0), True),
        (np.array([0, 60, 255], U8), U8(0), False),
        (np.array([-128, 3, 127], I8), I8(3), False),
    ],
)
def test_weights_become_int8_exactly_where_they_fit(codes: Any, zero: Any, exact: bool) -> None:
    draft = Draft()
    weight = draft.add("DequantizeLinear", codes, F32(0.1), zero)
    model = draft.bytes(draft.add("Add", draft.input("x", FLOAT, 3), weight))
    before, after = (run(one, x=np.zeros(3, F32)) for one in (model, mended(model)))
    assert np.abs(before - after).max() <= (1e-6 if exact else np.abs(before).max() / 254 + 1e-6)


def test_a_dead_channel_keeps_the_others() -> None:
    weight = np.array([[3, 0], [4, 0]], I8)
    draft = Draft()
    made = draft.add("DequantizeLinear", weight, np.array([0.5, 1e-9], F16), np.zeros(2, I8), axis=1)
    model = draft.bytes(draft.add("MatMul", draft.input("x", HALF, 1, 2), made), kind=HALF)
    assert {finding.rule for finding in inspect(model)} == {"non-positive-scale"}
    x = np.array([[1, 5]], F16)
    assert run(mended(model), x=x).tolist() == [[11.5, 0.0]]


def test_tiny_weights_are_rounded_anew_and_not_blown_up() -> None:
    draft = Draft()
    made = draft.add("DequantizeLinear", np.array([127, -127], I8), F16(1e-6), I8(0))
    model = draft.bytes(draft.add("Mul", draft.input("x", HALF, 2), made), kind=HALF)
    result = run(mended(model), x=np.ones(2, F16))
    assert np.abs(result.astype(F32) - np.array([1.27e-4, -1.27e-4])).max() <= 6.2e-5 / 2


def test_an_int32_bias_becomes_the_same_floats() -> None:
    draft = Draft()
    bias = draft.add("DequantizeLinear", np.array([100, -7], np.int32), np.array([0.1, 0.01], F32), axis=0)
    model = draft.bytes(draft.add("Add", draft.input("x", FLOAT, 1, 2), bias))
    zero = np.zeros((1, 2), F32)
    assert run(mended(model), x=zero) == pytest.approx(run(model, x=zero))
    assert [node.op_type for node in onnx.load_model_from_string(mended(model)).graph.node] == ["Add"]


def test_a_row_masked_throughout_is_no_longer_nan() -> None:
    model = masked(F32(-np.inf))
    inputs = {"m": np.zeros((2, 4), bool), "x": np.ones((2, 4), F32)}
    assert np.isnan(run(model, **inputs)).all()
    assert run(mended(model), **inputs) == pytest.approx(0.25)
    inputs["m"] = np.eye(2, 4).astype(bool)
    assert run(mended(model), **inputs).tolist() == run(model, **inputs).tolist()


def test_pixels_are_cast_before_they_are_transposed() -> None:
    draft = Draft()
    planes = draft.add("Transpose", draft.input("x", TensorProto.UINT8, 1, 4, 5, 3), perm=[0, 3, 1, 2])
    model = draft.bytes(draft.add("Cast", planes, to=FLOAT))
    assert "refused" in {finding.severity for finding in inspect(model)}
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), U8)
    assert inspect(mended(model)) == []
    assert np.array_equal(run(mended(model), x=pixels), run(model, x=pixels))


def test_outputs_that_nothing_reads_go_and_others_stay() -> None:
    unread = single("LayerNormalization", (FLOAT, 2, 4), np.ones(4, F32), outputs=2)
    graph = onnx.load_model_from_string(unread).graph
    del graph.output[1]
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    assert inspect(mended(model.SerializeToString())) == []
    assert {finding.rule for finding in inspect(mended(unread))} == {"extra-output"}


def test_what_needs_a_decision_is_left_and_reported(tmp_path: Path) -> None:
    path, fixed = tmp_path / "model.onnx", tmp_path / "mended.onnx"
    path.write_bytes(layer_norm(HALF, F16(1e-5)))
    result = check(path, fix=fixed)
    assert result["verdict"] == "silent"
    assert result["mended"] == []
    assert fixed.exists()


def test_the_file_is_mended_and_checked_again(tmp_path: Path) -> None:
    path, fixed = tmp_path / "model.onnx", tmp_path / "mended.onnx"
    path.write_bytes(pair(zero=U8(128)))
    result = check(path, fix=fixed)
    assert result["verdict"] == "ok"
    assert result["mended"] == ["QuantizeLinear_0: it is symmetric int8 now, of the same range"]
    assert check(fixed) == {"verdict": "ok", "findings": []}
    with pytest.raises(BundleError, match="cannot be written"):
        check(path, fix=path / "mended.onnx")
