"""The plan parser: what is written is read back, what is not a plan is no plan, a real log is understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.optimize.fp16 import to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.plan import BITS, NOT_KERNELS, Kernel, Tensor, parse_layers, summary
from tests.optimize_fixtures import PARTS, rtx_kernels

names = st.text(
    st.characters(codec="utf-8", exclude_characters=",[]{}\n\r\x1e\x1f", exclude_categories=["Cc", "Cs"]), min_size=1
)
node_names = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1).filter(
    lambda name: "[" not in name
)
tensors = st.builds(
    Tensor, names, st.lists(st.integers(-1, 4096), max_size=5).map(tuple), st.sampled_from(sorted(BITS))
)
kernels = st.builds(
    Kernel,
    name=names,
    kind=st.sampled_from(["gemm", "correlation", "kgen", "runtime_fusion", "shape_call", *NOT_KERNELS]),
    inputs=st.lists(tensors, max_size=3).map(tuple),
    constants=st.lists(tensors, max_size=3).map(tuple),
    outputs=st.lists(tensors, max_size=2).map(tuple),
    stream=st.integers(0, 8),
    onnx_nodes=st.lists(node_names, max_size=4).map(tuple),
)


def written(kernel: Kernel) -> str:
    """A kernel as TensorRT-RTX 1.7 prints it."""

    def listed(tensors: tuple[Tensor, ...]) -> str:
        shown = (
            f"{{ Name: {t.name}, Dimensions: [{','.join(map(str, t.dims))}], Strides: [1], StrideOrder: [0], "
            f"Datatype: {t.type}, Format: (Linear) Row major linear format }}"
            for t in tensors
        )
        return f"[ {', '.join(shown)}]" if tensors else "[]"

    metadata = "\x1f".join(f"[ONNX Layer: {name}]" for name in kernel.onnx_nodes)
    return (
        f"Name: {kernel.name}, LayerType: {kernel.kind}, Inputs: {listed(kernel.inputs)}, "
        f"Constants: {listed(kernel.constants)}, Outputs: {listed(kernel.outputs)}, TacticName: __tactic_0x1, "
        f"StreamId: {kernel.stream}, Metadata: {metadata}"
    )


def log_of(*plans: list[Kernel]) -> str:
    blocks = ["\n".join(["[4] Layers:", *map(written, plan), "", "I/O Tensors:"]) for plan in plans]
    return "\n".join(["[3] Engine generation completed in 0.3 seconds.", *blocks, "Engine Metadata:"])


@given(st.lists(kernels, max_size=5))
def test_a_written_plan_is_read_back(plan: list[Kernel]) -> None:
    assert parse_layers(log_of(plan)) == plan


@given(st.lists(kernels, max_size=3), st.lists(kernels, max_size=3))
def test_the_last_plan_counts(first: list[Kernel], last: list[Kernel]) -> None:
    assert parse_layers(log_of(first, last)) == last


@given(st.text(max_size=300))
def test_other_text_has_no_kernels(text: str) -> None:
    assert parse_layers(text) == []
    assert parse_layers(f"Layers:\n{text}") == []


def kernel_of(kind: str = "gemm", name: str = "k", dims: tuple[int, ...] = (1, 10), type_: str = "Half") -> Kernel:
    return Kernel(name, kind, (Tensor("x", dims, type_),), (Tensor("w", (10, 4), "Int8"),), (), 0, ())


def test_signals_and_waits_are_no_kernels() -> None:
    plan = [kernel_of(), kernel_of("signal"), kernel_of("wait"), kernel_of("kgen", "_gemm_mha_v2_myl0_7")]
    assert summary(plan) == {"kernels": 2, "bytes_touched": 2 * (20 + 40), "fused_attention": 1}


def test_free_sizes_and_unknown_types_make_no_number() -> None:
    assert summary([kernel_of(dims=(-1, 10))])["bytes_touched"] is None
    assert summary([kernel_of(type_="Sparkle")])["bytes_touched"] is None
    assert summary([]) == {"kernels": None, "bytes_touched": None, "fused_attention": 0}


@pytest.mark.parametrize(("type_", "size"), [("Float", 40), ("Half", 20), ("Int8", 10), ("Int4", 5), ("Int64", 80)])
def test_bytes_follow_the_type(type_: str, size: int) -> None:
    assert Tensor("x", (10,), type_).size_bytes == size
    assert Tensor("scalar", (), type_).size_bytes == max(1, size // 10)


def test_the_narrowest_type_read_is_the_precision() -> None:
    assert kernel_of().precision == "Int8"
    assert Kernel("k", "kgen", (Tensor("i", (1,), "Int32"),), (), (Tensor("o", (1,), "Half"),), 0, ()).precision == ""


def test_a_real_plan_is_understood(tmp_path: Path) -> None:
    graph = to_fp16(Graph(PARTS["text"]))
    plan = rtx_kernels(graph.serialize(), tmp_path, batch=8)
    told = summary(plan)
    assert told["kernels"] == len(plan) > 5
    assert told["fused_attention"] == 1
    weights = sum(graph.array(name).nbytes for name in graph.initializers)
    assert told["bytes_touched"] > weights  # each weight is read, and activations come on top
    computed = {name for kernel in plan for name in kernel.onnx_nodes}
    assert {node.name for node in graph.nodes if node.op_type in ("MatMul", "Softmax", "Erf", "Gather")} <= computed
