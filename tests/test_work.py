"""The work of kernels and parts: against torch's counter and counts by hand, conserved over a real plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from torch.utils.flop_counter import FlopCounterMode

from edgefuse.optimize.plan import Kernel, Tensor
from edgefuse.optimize.work import Lookup, bundle_work, kernel_work, part_work
from edgefuse.runtime.bundle import HEAD, PartInfo, part_file
from edgefuse.runtime.engines import Sidecar, engine_file
from edgefuse.runtime.errors import EngineError
from tests.optimize_fixtures import DIM, LENGTH, PARTS, VOCABULARY, Net, rtx_kernels, write_parts_bundle

FLOAT, INT32 = int(TensorProto.FLOAT), int(TensorProto.INT32)
RTX = "tensorrt-rtx"


def one_product(rows: int, inner: int, columns: int) -> bytes:
    net = Net()
    return net.model({"x": (FLOAT, [rows, inner])}, {"y": net.add("MatMul", "x", net.weight(inner, columns), name="m")})


def kernel(
    *nodes: str, inputs: tuple[Tensor, ...] = (), constants: tuple[Tensor, ...] = (), kind: str = "gemm"
) -> Kernel:
    return Kernel("k", kind, inputs, constants, (Tensor("y", (1, 4), "Half"),), 0, nodes)


@pytest.mark.parametrize(("kernel_size", "groups"), [(3, 1), (1, 1), (3, 4)])
def test_flops_of_a_convolution_are_what_torch_counts(kernel_size: int, groups: int) -> None:
    net, pad = Net(), kernel_size // 2
    weight = net.weight(8, 4 // groups, kernel_size, kernel_size)
    out = net.add("Conv", "x", weight, group=groups, pads=[pad] * 4, strides=[2, 2])
    with FlopCounterMode(display=False) as counter:
        torch.conv2d(torch.zeros(1, 4, 10, 10), torch.tensor(weight), stride=2, padding=pad, groups=groups)
    assert part_work(net.model({"x": (FLOAT, [4, 10, 10])}, {"y": out}))["flops"] == counter.get_total_flops()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_product_is_two_operations_for_each_multiply_accumulate_and_moves_each_tensor_once(
    rows: int, inner: int, columns: int
) -> None:
    told = part_work(one_product(rows, inner, columns))
    assert told == {
        "flops": 2 * rows * inner * columns,
        "bytes": 4 * (rows * inner + inner * columns + rows * columns),
    }


def test_a_rewritten_part_is_counted_by_the_ends_and_products_of_what_it_was_made_from() -> None:
    reference = one_product(2, 3, 4)
    model = onnx.load_from_string(reference)
    model.graph.node[0].op_type, model.graph.node[0].domain = "FusedMatMul", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    fused = model.SerializeToString()
    assert part_work(fused)["flops"] != part_work(reference)["flops"], "the operator is not of ONNX"
    assert part_work(fused, reference) == part_work(reference)


def test_of_an_embedding_table_the_rows_taken_count() -> None:
    table = np.zeros((1000, 16))
    net = Net()
    model = net.model({"ids": (INT32, [5])}, {"y": net.add("Gather", table, "ids", name="embedding")})
    assert part_work(model) == {"flops": 0, "bytes": 5 * 4 + 5 * 16 * 4 + 5 * 16 * 4}  # ids, rows, result
    reading = kernel("embedding", constants=(Tensor("table", (1000, 16), "Half"),), kind="kgen")
    ((work,), _) = kernel_work([reading], model)
    assert work.bytes == 5 * 16 * 2 + 4 * 2


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 4096))
def test_no_more_of_a_table_is_spared_than_it_has(rows: int, taken: int, row_bytes: int) -> None:
    spared = Lookup("table", (rows, 1), taken).spared(rows * row_bytes)
    assert rows * row_bytes - spared == min(rows, taken) * row_bytes


def test_products_that_no_kernel_names_are_told_apart() -> None:
    works, unplaced = kernel_work([kernel("other")], one_product(2, 3, 4))
    assert [work.flops for work in works] == [0]
    assert unplaced == 2 * 2 * 3 * 4


def test_events_between_streams_are_no_work_and_a_product_has_the_precision_that_it_multiplies_in() -> None:
    codes = (Tensor("x", (2, 3), "Int8"),), (Tensor("w", (3, 4), "Int8"),)
    wait, product = kernel(kind="wait"), kernel("m", inputs=codes[0], constants=codes[1])
    ((work,), unplaced) = kernel_work([wait, product], one_product(2, 3, 4))
    assert (work.node, work.precision, work.flops, work.bytes, unplaced) == ("m", "Int8", 48, 6 + 12 + 8, 0)


def test_a_compiled_plan_has_all_flops_of_its_graph_and_reads_the_words_that_are_asked(tmp_path: Path) -> None:
    kernels = rtx_kernels(PARTS["text"], tmp_path)
    works, unplaced = kernel_work(kernels, PARTS["text"])
    assert sum(work.flops or 0 for work in works) == part_work(PARTS["text"])["flops"]
    assert unplaced == 0
    told = {work.kernel: work.bytes for work in works}
    reader = next(kernel for kernel in kernels if "embedding" in kernel.onnx_nodes)
    spared = (len(VOCABULARY) - LENGTH) * DIM * 4
    assert (reader.bytes_touched or 0) - (told[reader.name] or 0) == spared


def engine(folder: Path, part: str, sha256: str, plan: str) -> None:
    """An engine of which all that is known stands beside it."""
    path = engine_file(folder, RTX, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"engine")
    told = {"tensorrt_version": "1.7.1.116", "sm": (86,), "batch": (1, 1, 8), "kernels": 1, "bytes_touched": 1}
    sidecar = Sidecar(part=part, target=RTX, source_sha256=sha256, engine_sha256="", seconds=1, **told)
    path.with_suffix(".json").write_text(sidecar.model_dump_json())
    engine_file(folder, RTX, part, ".plan.json").write_text(plan)


def bundle_with_engine(folder: Path, sha256: str | None = None, plan: str | None = None) -> Path:
    """The small parts, of which the head is compiled: one kernel for one of its products."""
    bundle = write_parts_bundle(folder)
    listed = {part: PartInfo(file=part_file("trt", part), precision="fp16") for part in PARTS}
    files = {part_file("trt", part): model for part, model in PARTS.items()}
    bundle = bundle.updated(files, parts={**bundle.info.parts, "trt": listed})
    tensors = [{"Name": name, "Dimensions": [32, 32], "Datatype": "Half"} for name in ("a", "b")]
    layer = {"Name": "hidden", "LayerType": "gemm", "Inputs": tensors, "Outputs": tensors[:1]}
    document = {"Layers": [{**layer, "Metadata": "[ONNX Layer: hidden]"}], "I/O Tensors": []}
    plan = json.dumps(document) if plan is None else plan
    engine(folder, HEAD, sha256 or bundle.info.files[part_file("trt", HEAD)], plan)
    return folder


def test_a_bundle_tells_the_kernels_of_its_engines_and_the_work_of_its_cpu_parts(tmp_path: Path) -> None:
    told = bundle_work(bundle_with_engine(tmp_path / "bundle"))
    (head,) = told["engines"]
    assert (head["target"], head["part"]) == (RTX, HEAD)
    (work,) = head["kernels"]
    assert work == {"kernel": "hidden", "node": "hidden", "precision": "Half", "flops": 2 * 32 * 32, "bytes": 3 * 2048}
    assert head["unplaced_flops"] == part_work(PARTS[HEAD])["flops"] - 2 * 32 * 32
    assert told["parts"] == {"fp32": {part: part_work(model) for part, model in PARTS.items()}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "was not built from the head part"),
        ({"plan": "{}"}, "no plan beside it that can be read"),
    ],
)
def test_an_engine_of_other_parts_or_without_a_plan_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    folder = bundle_with_engine(tmp_path / "bundle", **changes)
    with pytest.raises(EngineError, match=rf"head\.engine .*{message}.*; run `edgefuse build "):
        bundle_work(folder)
