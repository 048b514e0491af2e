"""The plan parser: what is written is read back in each of its forms, what is not a plan is no plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
# What TensorRT 10 writes for a type, alone or with a layout (trt-engine-explorer, activations.py).
LAYOUTS = {
    "Half": ["Half", "Row major linear FP16 format", "Channel major FP16 format where channel % 8 == 0."],
    "Float": ["Float", "Row major linear FP32", "Thirty-two wide channel vectorized row major FP32 format"],
    "Int8": ["Int8", "Thirty-two wide channel vectorized row major Int8 format", "Channel major INT8 format"],
    "Bool": ["Bool", "Row major linear BOOL"],
    "Int32": ["Int32", "Row major linear Int32", "Row major linear INT32 format"],
}


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
    event = "EventId: 8, " if kernel.kind in ("signal", "wait") else ""
    return (
        f"Name: {kernel.name}, LayerType: {kernel.kind}, Inputs: {listed(kernel.inputs)}, "
        f"Constants: {listed(kernel.constants)}, Outputs: {listed(kernel.outputs)}, TacticName: __tactic_0x1, "
        f"StreamId: {kernel.stream}, {event}Metadata: {metadata}"
    )


def log_of(*plans: list[Kernel]) -> str:
    blocks = ["\n".join(["[4] Layers:", *map(written, plan), "", "I/O Tensors:"]) for plan in plans]
    return "\n".join(["[3] Engine generation completed in 0.3 seconds.", *blocks, "Engine Metadata:"])


def inspected(plan: list[Kernel], major: int, escaped: bool = True) -> str:
    """A plan as the engine inspector of TensorRT 10 or 11 answers."""

    def tensor(t: Tensor) -> dict[str, Any]:
        place = {"Name": t.name, "Location": "Device", "Dimensions": list(t.dims)}
        if major == 10:
            return {**place, "Format/Datatype": LAYOUTS.get(t.type, [t.type])[-1]}
        return {**place, "Strides": [1], "Datatype": t.type, "Format": "Row major linear format (kLINEAR)"}

    layers = [
        {
            "Name": kernel.name,
            "LayerType": kernel.kind,
            "Inputs": list(map(tensor, kernel.inputs)),
            "Constants": list(map(tensor, kernel.constants)),
            "Outputs": list(map(tensor, kernel.outputs)),
            "TacticName": "__tactic_0x1",
            "StreamId": kernel.stream,
            "Metadata": "\x1e".join(f"[ONNX Layer: {name}]" for name in kernel.onnx_nodes),
        }
        for kernel in plan
    ]
    ends = {"Bindings": ["image", "logits"]}
    if major == 11:
        ends = {"I/O Tensors": [{"Name": "image", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3]}]}  # type: ignore[list-item]
    document = json.dumps({"Layers": layers, **ends})
    return document if escaped else document.replace("\\u001e", "\x1e")


@given(st.lists(kernels, max_size=5))
def test_a_written_plan_is_read_back(plan: list[Kernel]) -> None:
    assert parse_layers(log_of(plan)) == plan


@given(st.lists(kernels, max_size=4), st.sampled_from([10, 11]), st.booleans())
def test_an_inspected_plan_is_read_back(plan: list[Kernel], major: int, escaped: bool) -> None:
    """Both with control characters escaped and with the raw ones that TensorRT writes."""
    assert parse_layers(inspected(plan, major, escaped)) == plan


@given(st.lists(kernels, max_size=3), st.lists(kernels, max_size=3))
def test_the_last_plan_counts(first: list[Kernel], last: list[Kernel]) -> None:
    assert parse_layers(log_of(first, last)) == last
    assert parse_layers(f"{log_of(first)}\n{inspected(last, 10)}\n[3] more is said") == last
    assert parse_layers(f"{inspected(first, 11)}\n{log_of(last)}") == last


@given(st.text(max_size=300))
def test_other_text_has_no_kernels(text: str) -> None:
    assert parse_layers(text) == []
    assert parse_layers(f"Layers:\n{text}") == []
    assert parse_layers('{"Layers": [' + text) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Name", "LayerType", "Inputs", "Outputs", "Dimensions", "Datatype", "Weights", "StreamId"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_a_document_of_another_form_raises_nothing(layers: Any) -> None:
    found = parse_layers(json.dumps({"Layers": layers}))
    assert all(isinstance(kernel, Kernel) for kernel in found)
    assert isinstance(summary(found), dict)


@pytest.mark.parametrize("text", ['{"Layers": ["a + b", "c"], "Bindings": []}', '{"Layers": ' + "[" * 99_999, "[]"])
def test_names_alone_a_cut_and_endless_lists_have_no_kernels(text: str) -> None:
    assert parse_layers(text) == []


@given(st.lists(kernels, min_size=1, max_size=2), st.floats(0, 1))
def test_a_plan_that_is_cut_off_raises_nothing(plan: list[Kernel], share: float) -> None:
    for text in (log_of(plan), inspected(plan, 11)):
        assert len(parse_layers(text[: int(share * len(text))])) <= len(plan)


@pytest.mark.parametrize(("type_", "words"), [(key, word) for key, words in LAYOUTS.items() for word in words])
def test_the_words_of_tensorrt_10_are_types(type_: str, words: str) -> None:
    tensor = {"Name": "x", "Location": "Device", "Dimensions": [1, 3], "Format/Datatype": words}
    text = json.dumps({"Layers": [{"Name": "k", "LayerType": "Reformat", "Inputs": [tensor], "Outputs": []}]})
    assert parse_layers(text)[0].inputs == (Tensor("x", (1, 3), type_),)


def test_a_convolution_of_the_inspector_has_its_weights() -> None:
    """A layer as in NVIDIA's documentation of the engine inspector, and one whose sizes are open."""
    vectors = "Thirty-two wide channel vectorized row major Int8 format."
    layer = {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [16, 512, 28, 28], "Format/Datatype": vectors}],
        "Outputs": [{"Name": "y", "Dimensions": [16, 256, 28, 28], "Format/Datatype": vectors}],
        "ParameterType": "Convolution",
        "Weights": {"Type": "Int8", "Count": 131072},
        "Bias": {"Type": "Float", "Count": 256},
        "TacticValue": "0x11bde0e1d9f2f35d",
        "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
    }
    free = {"Name": "x", "Dimensions": [-1, 8], "Format/Datatype": "N/A due to dynamic shapes"}
    shuffle = {"Name": "s", "LayerType": "Shuffle", "Inputs": [free], "Outputs": []}
    convolution, open_ended = parse_layers(json.dumps({"Layers": [layer, shuffle], "Bindings": ["x", "y"]}))
    assert convolution.constants == (Tensor("weights", (131072,), "Int8"), Tensor("bias", (256,), "Float"))
    assert convolution.bytes_touched == 16 * 28 * 28 * (512 + 256) + 131072 + 4 * 256
    assert (convolution.precision, convolution.onnx_nodes) == ("Int8", ("conv", "relu"))
    assert open_ended.bytes_touched is None


def test_a_verbose_log_of_tensorrt_10_is_read() -> None:
    """Its lines as in NVIDIA/TensorRT#4397: one field for type and layout, no constants; convolutions say more."""
    log = (
        "[04/18/2025-03:51:19] [V] [TRT] Layers:\n"
        "Name: __myl_Gath_myl0_0, LayerType: kgen, Inputs: [ { Name: ids, Dimensions: [1,40], Format/Datatype: Int32 }"
        ", { Name: w, Dimensions: [21,8], Format/Datatype: Half }], Outputs: [ { Name: y, Dimensions: [1,40,8], "
        "Format/Datatype: Half }], TacticName: __myl_Gath_0x1, StreamId: 0, Metadata: [ONNX Layer: /emb/Gather]\n"
        "Name: {ForeignNode[/a.../b]}, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: "
        "[1,3,8,8], Format/Datatype: Row major linear FP16 format }], Outputs: [ { Name: z, Location: Device, "
        "Dimensions: [1,4,8,8], Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], ParameterType: "
        "Convolution, Kernel: [3,3], Weights: {Type: Half, Count: 108}, Bias: {Type: Half, Count: 4}, TacticName: t, "
        "StreamId: 1, Metadata: \n\nBindings:\nids\n"
    )
    gather, convolution = parse_layers(log)
    assert gather.inputs == (Tensor("ids", (1, 40), "Int32"), Tensor("w", (21, 8), "Half"))
    assert gather.onnx_nodes == ("/emb/Gather",)
    assert (convolution.name, convolution.stream) == ("{ForeignNode[/a.../b]}", 1)
    assert convolution.bytes_touched == 2 * (3 * 64 + 108 + 4 + 4 * 64)


def kernel_of(kind: str = "gemm", name: str = "k", dims: tuple[int, ...] = (1, 10), type_: str = "Half") -> Kernel:
    return Kernel(name, kind, (Tensor("x", dims, type_),), (Tensor("w", (10, 4), "Int8"),), (), 0, ())


@pytest.mark.parametrize("kind", NOT_KERNELS)
def test_events_and_folded_layers_are_no_kernels(kind: str) -> None:
    plan = [kernel_of(), kernel_of(kind), kernel_of("kgen", "_gemm_mha_v2_myl0_7")]
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
