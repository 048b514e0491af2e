"""Costs: the compiled one is what the plan says, the estimated one ranks forms by what plans show."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgefuse.optimize import cost as module
from edgefuse.optimize.cost import Cost, compiled_cost, cost_source, estimated_cost
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.plan import summary
from edgefuse.optimize.qdq import find_sites, insert
from edgefuse.runtime.errors import EngineError
from tests.optimize_fixtures import Net, rtx_kernels

INT32 = int(onnx.TensorProto.INT32)
ROWS, INPUTS, OUTPUTS = 10, 32, 48


def product() -> Graph:
    net = Net()
    value = net.add("MatMul", "x", net.weight(INPUTS, OUTPUTS), name="product")
    return Graph(net.model({"x": (FLOAT, [ROWS, INPUTS])}, {"y": net.add("Relu", value)}))


def convolution() -> Graph:
    net = Net()
    value = net.add("Conv", "x", net.weight(OUTPUTS, INPUTS, 3, 3), net.weight(OUTPUTS), name="conv", pads=[1] * 4)
    return Graph(net.model({"x": (FLOAT, [INPUTS, 8, 8])}, {"y": net.add("Relu", value)}))


def table() -> Graph:
    net = Net()
    rows = net.add("Gather", net.weight(5000, INPUTS), "ids", name="table")
    return Graph(net.model({"ids": (INT32, [ROWS])}, {"y": net.add("Relu", rows)}))


def fp16(graph: Graph, int8: Collection[str] = ()) -> bytes:
    """The graph in FP16, its nodes named `int8` in INT8."""
    sites = [site for site in find_sites(graph) if site.node in int8]
    thresholds = {site.activation: 3.0 for site in sites if site.activation}
    return to_fp16(insert(graph.draft(), sites, thresholds) if sites else graph.draft()).serialize()


def test_the_figure_is_launches_and_the_time_of_the_bytes() -> None:
    assert Cost(kernels=2, bytes_touched=680_000).us == pytest.approx(2 * 3.0 + 10.0)  # 68 GB/s are 68 kB per us


def test_a_product_is_one_kernel_with_its_operands_and_half_the_bytes_in_fp16() -> None:
    numbers = ROWS * INPUTS + INPUTS * OUTPUTS + ROWS * OUTPUTS
    assert estimated_cost(product().serialize()) == Cost(1, 4 * numbers)
    assert estimated_cost(fp16(product())) == Cost(1, 2 * numbers)


def test_an_int8_product_reads_codes_writes_fp16_and_rescales_it_in_a_second_kernel() -> None:
    read, result = ROWS * INPUTS + INPUTS * OUTPUTS, 2 * ROWS * OUTPUTS
    assert estimated_cost(fp16(product(), {"product"})) == Cost(2, read + 3 * result)


def test_an_int8_convolution_writes_fp32_and_adds_more_than_it_saves() -> None:
    plain, int8 = (estimated_cost(fp16(convolution(), names)) for names in ((), {"conv"}))
    result = OUTPUTS * 8 * 8
    read = INPUTS * 8 * 8 + OUTPUTS * INPUTS * 9
    assert plain == Cost(1, 2 * (read + OUTPUTS + result))
    assert int8 == Cost(2, read + 2 * OUTPUTS + 2 * result + 3 * 2 * result)
    assert int8.us > plain.us


def test_an_int8_table_stays_one_kernel_of_half_the_bytes() -> None:
    plain, int8 = (estimated_cost(fp16(table(), names)) for names in ((), {"table"}))
    assert plain.kernels == int8.kernels == 1
    assert plain.bytes_touched - int8.bytes_touched == 5000 * INPUTS


def test_what_has_no_weights_is_taken_for_part_of_another_kernel() -> None:
    net = Net()
    value = net.add("Relu", net.add("Add", "x", net.weight(4)))
    assert estimated_cost(net.model({"x": (FLOAT, [4])}, {"y": value})) == Cost(0, 0)


def test_a_compiled_cost_is_the_summary_of_the_plan(tmp_path: Path) -> None:
    model = fp16(product(), {"product"})
    told = summary(rtx_kernels(model, tmp_path))
    assert compiled_cost(model) == Cost(told["kernels"], told["bytes_touched"])
    assert told["kernels"] > 0


def test_a_model_that_does_not_compile_is_an_engine_error() -> None:
    net = Net()
    codes = net.add("QuantizeLinear", "x", np.array(0.1), np.int8(5))
    value = net.add("DequantizeLinear", codes, np.array(0.1), np.int8(5))
    with pytest.raises(EngineError, match="Non-zero zero point"):
        compiled_cost(net.model({"x": (FLOAT, [4])}, {"y": value}, opset=19))


def test_a_plan_that_cannot_be_read_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_compiler", lambda job, model, log, *_: log.write_text("a log of another version"))
    with pytest.raises(EngineError, match="cannot be read; uninstall tensorrt-rtx to estimate costs") as caught:
        compiled_cost(b"")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("installed", "source", "cost_of"),
    [(True, "the plan of TensorRT-RTX for SM 86", compiled_cost), (False, "estimated from the graph", estimated_cost)],
)
def test_the_source_of_costs_is_the_compiler_where_it_is_installed(
    installed: bool, source: str, cost_of: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    told, function = cost_source()
    assert source in told
    assert function is cost_of
