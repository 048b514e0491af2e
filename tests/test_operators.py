"""Tests of operators.py and the parser rules against TensorRT-RTX's own parser, on thousands of models not ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgefuse.optimize.operators import PLUGINS, RTX_REFUSES, SINCE, TAKEN, TENSORS
from tests import parser_agreement


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx")
    return parser_agreement.measure()


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return dict(json.loads(parser_agreement.TABLE.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["node tests", "retyped"])
def test_the_verdict_is_the_parsers_in_99_of_100(name: str, measured: dict[str, Any]) -> None:
    numbers = measured["sets"][name]
    assert numbers["models"] > 1500
    assert numbers["agree"] / numbers["models"] >= 0.99, numbers["differ"]


@pytest.mark.slow
def test_the_disagreements_are_those_committed(measured: dict[str, Any], committed: dict[str, Any]) -> None:
    if (measured["parser"], measured["onnx"]) != (committed["parser"], committed["onnx"]):
        pytest.skip("another parser or other node tests: python -m tests.parser_agreement makes the table anew")
    assert measured == committed


def test_no_disagreement_is_a_crash(committed: dict[str, Any]) -> None:
    rows = [row for numbers in committed["sets"].values() for row in numbers["differ"].values()]
    assert {row["parser"] for row in rows} <= {"takes it", "refuses it"}


def test_the_tables_speak_of_operators_that_are_taken() -> None:
    assert TAKEN.keys() >= {*SINCE, *PLUGINS, *RTX_REFUSES}
    assert all(types and types <= TENSORS for types in TAKEN.values())
    assert not {"QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"} & TAKEN.keys()
