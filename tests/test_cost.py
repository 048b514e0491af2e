"""Costs: timed where a device is, else what the plan says; the estimated one ranks forms by what plans show."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgefuse.optimize import cost as module
from edgefuse.optimize.cost import Cost, compiled_cost, cost_source, estimated_cost, timed_cost
from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.plan import summary
from edgefuse.optimize.qdq import find_sites, insert
from edgefuse.optimize.timed import Device, Timing
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


ORIN = Device("Orin", 87, "10.3.0")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_device", lambda: None)


@pytest.mark.parametrize(
    ("installed", "source", "cost_of"),
    [(True, "the plan of TensorRT-RTX for SM 86", compiled_cost), (False, "estimated from the graph", estimated_cost)],
)
@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_source_of_costs_is_the_compiler_where_it_is_installed(
    installed: bool, source: str, cost_of: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    told, function = cost_source()
    assert source in told
    assert "timed" not in told
    assert function is cost_of


def test_where_the_device_is_there_forms_are_timed_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_device", lambda: ORIN)
    told, function = cost_source()
    assert told == (
        "timed on Orin, TensorRT 10.3.0, batch 1, median of 40 blocks of 10 runs, in turn with the part's first form"
    )
    assert isinstance(function, partial)
    assert function.func is timed_cost
    assert function.args[0].device == ORIN
    _, another = cost_source()
    assert isinstance(another, partial)
    assert another.args[0] is not function.args[0]  # each part is timed in turn with a form of its own


def test_a_gpu_that_cannot_be_timed_on_is_told_beside_what_is_read_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> Device:
        raise EngineError("cuda.bindings.runtime: not installed")

    monkeypatch.setattr(module, "find_device", lacking)
    told, function = cost_source()
    assert told.endswith("batch 1; not timed on the GPU: cuda.bindings.runtime: not installed")
    assert function is compiled_cost


class Timed:
    """In the place of a Timer: what it tells."""

    def __init__(self, plan: str) -> None:
        self.timing = Timing(120.0, 2.0, plan)

    def time(self, model: bytes) -> Timing:
        assert model == b"onnx"
        return self.timing


@pytest.mark.parametrize("size", [8, -1])
def test_a_timed_cost_is_what_was_measured_and_what_the_plan_tells(size: int) -> None:
    tensor = {"Name": "x", "Dimensions": [size], "Datatype": "Half"}
    plan = json.dumps({"Layers": [{"Name": "k", "LayerType": "gemm", "Inputs": [tensor], "Outputs": [tensor]}]})
    cost = timed_cost(Timed(plan), b"onnx")  # type: ignore[arg-type]
    assert cost == Cost(1, 32 if size == 8 else None, 120.0, 2.0)
    assert cost.us == 120.0


def test_a_plan_that_tells_nothing_leaves_the_time() -> None:
    assert timed_cost(Timed(""), b"onnx") == Cost(None, None, 120.0, 2.0)  # type: ignore[arg-type]


def measured(us: float, spread_us: float = 0.0) -> Cost:
    return Cost(None, None, us, spread_us)


def test_a_difference_within_either_spread_is_none() -> None:
    assert measured(95, 4).beats(measured(100, 4))
    assert not measured(95, 6).beats(measured(100, 4))
    assert not measured(95, 4).beats(measured(100, 6))
    assert not measured(100).beats(measured(95))


def test_a_saving_of_less_than_a_five_hundredth_is_not_worth_it() -> None:
    assert not measured(99.9).beats(measured(100))
    assert measured(99.7).beats(measured(100))


@pytest.mark.parametrize(
    ("now", "before", "told"),
    [
        (Cost(3, 1000), Cost(5, 4000), "makes -2 kernels and -3 kB"),
        (
            Cost(3, 1000, 90.0, 1.0),
            Cost(5, 4000, 100.0, 2.0),
            "takes -10.0 us (spread 2.0) and makes -2 kernels and -3 kB",
        ),
        (Cost(3, None, 90.0, 1.0), Cost(5, 4000, 88.0, 0.5), "takes +2.0 us (spread 1.0) and makes -2 kernels"),
        (measured(90), measured(90), "takes +0.0 us (spread 0.0)"),
    ],
)
def test_the_difference_of_two_forms_is_told_as_far_as_it_is_known(now: Cost, before: Cost, told: str) -> None:
    assert now.against(before) == told
