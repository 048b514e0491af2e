"""The audit: what real plans of TensorRT-RTX must be found to hold, and shares worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from rich.console import Console

from edgefuse.optimize.audit import FLOAT_ANYWAY, NOT_FUSED, audit, brief
from edgefuse.optimize.fp16 import front_end, to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.plan import Kernel, Tensor, summary
from edgefuse.optimize.qdq import find_sites, insert, skip_inputs
from edgefuse.optimize.roles import ACTIVATION, COPY, EPILOGUE, REQUANTIZE, WEIGHTS
from edgefuse.runtime.show import show
from tests.optimize_fixtures import PARTS, Net, rtx_kernels
from tests.test_plan import kernels

FLOAT = int(TensorProto.FLOAT)
DIM, LENGTH, HEADS = 32, 8, 2
Audited = tuple[dict[str, Any], list[Kernel]]


def transformer() -> bytes:
    """Two layers: attention, and a feed-forward of two products, each behind a LayerNormalization."""
    net = Net(4)
    x = "x"
    for layer in range(2):
        y = net.norm(x, DIM)
        query, key, value = (
            net.add("Transpose", net.add("Reshape", net.linear(y, DIM, DIM), np.array([-1, LENGTH, HEADS, 16])), perm=p)
            for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scores = net.add("Mul", net.add("MatMul", query, key), np.array(0.25))
        mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1, name=f"softmax{layer}"), value)
        joined = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([-1, LENGTH, DIM]))
        x = net.add("Add", net.linear(joined, DIM, DIM), x)
        hidden = net.add("Relu", net.linear(net.norm(x, DIM), DIM, 2 * DIM))
        x = net.add("Add", net.linear(hidden, 2 * DIM, DIM), x)
    return net.model({"x": (FLOAT, [LENGTH, DIM])}, {"y": net.norm(x, DIM)})


def quantized(model: bytes) -> bytes:
    """`model` with Q/DQ wherever they may be; the scales decide nothing in a plan."""
    graph = Graph(model)
    sites = find_sites(graph, front_end(graph))
    watched = {site.activation for site in sites if site.activation} | set(skip_inputs(graph, sites).values())
    return to_fp16(insert(graph, sites, dict.fromkeys(watched, 4.0))).serialize()


def weight_only() -> bytes:
    """A convolution whose weight alone is quantized."""
    net = Net()
    codes = net.constant(np.random.default_rng(0).integers(-127, 128, (32, 32, 3, 3)).astype(np.int8))
    ends = net.constant(np.full(32, 0.01)), net.constant(np.zeros(32, np.int8))
    weight = net.add("DequantizeLinear", codes, *ends, axis=0, name="weight_dq")
    out = net.add("Relu", net.add("Conv", "x", weight, pads=[1] * 4, name="conv"))
    return to_fp16(Graph(net.model({"x": (FLOAT, [32, 14, 14])}, {"y": out}, opset=19))).serialize()


def split_behind_the_product() -> bytes:
    """One INT8 product whose result is split along its channels, a form that makes the compiler give INT8 up."""
    net = Net()
    ends = net.constant(np.array(0.05)), net.constant(np.array(0, np.int8))
    codes = net.constant(np.random.default_rng(0).integers(-127, 128, (64, 192)).astype(np.int8))
    channels = net.constant(np.full(192, 0.01)), net.constant(np.zeros(192, np.int8))
    weight = net.add("DequantizeLinear", codes, *channels, axis=1, name="weight_dq")
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", net.norm("x", 64), *ends), *ends)
    product = net.add("Add", net.add("MatMul", x, weight, name="packed"), net.weight(192))
    parts = net.add("Split", product, outputs=3, axis=-1, num_outputs=3)
    perms = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    query, key, value = (
        net.add("Transpose", net.add("Reshape", part, np.array([-1, 16, 4, 16])), perm=perm)
        for part, perm in zip(parts, perms, strict=True)
    )
    share = net.add("Softmax", net.add("Mul", net.add("MatMul", query, key), np.array(0.25)), axis=-1)
    mixed = net.add("Transpose", net.add("MatMul", share, value), perm=[0, 2, 1, 3])
    out = net.add("Add", net.add("Reshape", mixed, np.array([-1, 16, 64])), "x")
    return to_fp16(Graph(net.model({"x": (FLOAT, [16, 64])}, {"y": out}, opset=19))).serialize()


MODELS: dict[str, Callable[[], bytes]] = {
    "fp32": transformer,
    "fp16": lambda: to_fp16(Graph(transformer())).serialize(),
    "int8": lambda: quantized(transformer()),
    "convolutions": lambda: quantized(PARTS["image"]),
    "audio": lambda: quantized(PARTS["audio"]),
    "weight only": weight_only,
    "split": split_behind_the_product,
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Audited]:
    """The audit of a model's real plan, and the plan; each is compiled once."""
    done: dict[str, Audited] = {}

    def get(name: str) -> Audited:
        if name not in done:
            model = MODELS[name]()
            plan = rtx_kernels(model, tmp_path_factory.mktemp("plan"))
            done[name] = audit(plan, model), plan
        return done[name]

    return get


@pytest.mark.parametrize(("name", "share"), [("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8")])
def test_the_linear_products_of_a_transformer_run_as_asked(
    audited: Callable[[str], Audited], name: str, share: str
) -> None:
    told, _ = audited(name)
    linear = LENGTH * (4 * DIM * DIM + 2 * DIM * 2 * DIM) * 2  # by hand: Q, K, V, the output, the feed-forward; twice
    of_activations = 2 * HEADS * LENGTH * LENGTH * 16 * 2
    assert told["macs"]["linear"]["macs"] == linear
    assert told["macs"]["of two activations"]["macs"] == of_activations
    assert told["macs"]["linear"][share] == 1
    assert told["macs"]["linear"]["share"] == pytest.approx(linear / (linear + of_activations))
    assert told["macs"]["all"]["not_found"] == 0
    assert told["macs"]["all"]["asked"] == (pytest.approx(told["macs"]["all"]["int8"]) if name == "int8" else 0)


def test_attention_is_fused_in_fp16_and_not_in_fp32(audited: Callable[[str], Audited]) -> None:
    told, _ = audited("fp32")
    assert told["attention"] == {"expected": 2, "fused": 0, "missing": ["softmax0", "softmax1"]}
    missing = [finding for finding in told["findings"] if finding["cause"] == NOT_FUSED]
    assert [finding["node"] for finding in missing] == ["softmax0", "softmax1"]
    assert all(finding["kernels"] >= 3 and "FP16" in finding["mend"] for finding in missing)
    for name in ("fp16", "int8"):
        told, plan = audited(name)
        assert told["attention"] == {"expected": 2, "fused": 2, "missing": []}
        assert summary(plan)["fused_attention"] == 2
        assert NOT_FUSED not in told["causes"]


def test_what_int8_costs_a_transformer_is_told(audited: Callable[[str], Audited]) -> None:
    told, plan = audited("int8")
    assert told["causes"][EPILOGUE]["kernels"] == 6  # the scales of Q, K and V
    assert told["causes"][ACTIVATION]["kernels"] == 2
    assert told["causes"][COPY]["kernels"] == 2
    fp16, _ = audited("fp16")
    assert ACTIVATION not in fp16["causes"]
    assert told["headline"].startswith(f"kernels: {len(plan)}, touching ")
    assert "of the multiply-accumulates run in INT8 (linear 100.0 %)" in told["headline"]
    assert "0.0 % of the multiply-accumulates run in INT8 (linear not asked for)" in fp16["headline"]


def test_int8_convolutions_show_the_kernels_that_requantize(audited: Callable[[str], Audited]) -> None:
    told, plan = audited("convolutions")
    assert told["macs"]["convolution"]["int8"] == 1
    found = [finding["kernel"] for finding in told["findings"] if finding["cause"] == REQUANTIZE]
    assert {"__myl_MulMinMaxRounCast", "__myl_MulCastMulMinMaxRounCast"} == {name.split("_myl0")[0] for name in found}
    by_name = {kernel.name: kernel for kernel in plan}
    for finding in told["findings"]:
        if finding["cause"] == REQUANTIZE:
            assert finding["node"].endswith("_q")
            assert finding["bytes"] == by_name[finding["kernel"]].bytes_touched


def test_a_weight_dequantized_every_run_is_found(audited: Callable[[str], Audited]) -> None:
    told, _ = audited("weight only")
    (finding,) = [finding for finding in told["findings"] if finding["cause"] == WEIGHTS]
    assert finding["node"] == "weight_dq"
    assert finding["bytes"] > 32 * 32 * 9 * 3  # codes in, FP16 out
    assert told["macs"]["convolution"]["fp16"] == 1
    assert told["macs"]["convolution"]["asked"] == 0


def test_a_product_that_gave_int8_up_is_found(audited: Callable[[str], Audited]) -> None:
    told, _ = audited("split")
    linear = told["macs"]["linear"]
    assert (linear["macs"], linear["int8"], linear["fp16"], linear["asked"]) == (16 * 64 * 192, 0, 1, 1)
    assert [finding["node"] for finding in told["findings"] if finding["cause"] == FLOAT_ANYWAY] == ["packed"]
    assert told["causes"][WEIGHTS]["kernels"] == 1


def test_the_front_end_of_sound_stays_fp32(audited: Callable[[str], Audited]) -> None:
    told, _ = audited("audio")
    dft = 34 * 39 * 32  # 39 windows of 32 samples through 34 filters
    mel = 39 * 17 * 16
    assert told["macs"]["all"]["fp32"] * told["macs"]["all"]["macs"] == pytest.approx(dft + mel)
    assert told["macs"]["all"]["not_found"] == 0


def test_an_audit_is_plain_data_that_adds_up(audited: Callable[[str], Audited]) -> None:
    told, plan = audited("int8")
    assert json.loads(json.dumps(told)) == told
    launched = [kernel for kernel in plan if kernel.is_launched]
    assert told["kernels"] == len(launched) == sum(row["kernels"] for row in told["streams"].values())
    assert told["bytes_touched"] == sum(row["bytes"] for row in told["streams"].values())
    sizes = sorted((kernel.bytes_touched or 0 for kernel in launched), reverse=True)
    assert [row["bytes"] for row in told["largest"]] == sizes[:8]
    for share in told["macs"].values():
        assert sum(share[name] for name in ("int8", "fp16", "fp32", "not_found")) == pytest.approx(1)
    for cause, row in told["causes"].items():
        findings = [finding for finding in told["findings"] if finding["cause"] == cause]
        assert row["kernels"] == sum(finding["kernels"] for finding in findings)
        assert row["bytes"] == sum(finding["bytes"] for finding in findings)


def test_an_audit_can_be_shown_to_a_person(audited: Callable[[str], Audited]) -> None:
    told, _ = audited("int8")
    page = StringIO()
    show(told, Console(file=page, width=160))
    lines = [line.strip() for line in page.getvalue().splitlines()]
    assert lines[0].split()[0] == "headline"
    assert any(line.startswith("linear ") for line in lines)
    assert any(line.startswith(EPILOGUE) for line in lines)


def test_a_build_is_told_in_short_with_the_node_that_costs_most(audited: Callable[[str], Audited]) -> None:
    told, _ = audited("convolutions")
    short = brief({"image": {"audit": told}, "head": {"audit": None}})
    assert short["explained"][0] == {"part": "image", "headline": told["headline"]}
    assert short["explained"][1] == {"part": "head", "headline": "the compiler told no plan"}
    assert [row["cause"] for row in short["causes"]] == list(told["causes"])
    (row,) = [row for row in short["causes"] if row["cause"] == REQUANTIZE]
    assert (row["part"], row["node"], row["costs"]) == ("image", "mul_19_q", "kernels: 2, 0.9 kB")


def matmul(dims: tuple[int, ...], type_: str = "Int8", name: str = "matmul_myl0_0") -> Kernel:
    tensors = (Tensor("x", dims, type_),), (Tensor("w", (4, 4), type_),), (Tensor("y", dims, "Half"),)
    return Kernel(name, "gemm", *tensors, 0, ())


def one_product() -> bytes:
    net = Net()
    return net.model({"x": (FLOAT, [6, 4])}, {"y": net.add("MatMul", "x", net.weight(4, 4), name="matmul")})


ONE_PRODUCT, TEXT = one_product(), quantized(PARTS["text"])


def test_a_kernel_without_metadata_is_known_by_its_name() -> None:
    for name in ("matmul_myl0_0", "matmul_U12_myl0_3", "other+matmul_myl0_0", "matmul + relu"):
        told = audit([matmul((1, 6, 4), name=name)], ONE_PRODUCT)
        assert told["macs"]["all"]["int8"] == 1, name
    assert audit([matmul((1, 6, 4), name="matmul_2_myl0_0")], ONE_PRODUCT)["macs"]["all"]["not_found"] == 1


def test_sizes_that_are_open_make_no_number() -> None:
    told = audit([matmul((-1, 6, 4))], ONE_PRODUCT)
    assert (told["kernels"], told["bytes_touched"]) == (1, None)
    assert told["macs"]["all"]["int8"] == 1
    assert told["streams"] == {"0": {"kernels": 1, "bytes": None}}
    moved = Kernel("__myl_Tran_myl0_1", "kgen", matmul((-1, 6, 4)).outputs, (), (), 0, ())
    short = brief({"x": {"audit": audit([matmul((-1, 6, 4)), moved], ONE_PRODUCT)}})
    assert short["causes"][0]["costs"] == "kernels: 1, an unknown number of bytes"
    assert "an unknown number of bytes" in told["headline"]


@given(st.lists(kernels, max_size=4), st.booleans())
def test_no_plan_makes_an_audit_fail(plan: list[Kernel], attention: bool) -> None:
    """A build must not end because the compiler says something new."""
    told = audit(plan, TEXT if attention else ONE_PRODUCT)
    assert json.loads(json.dumps(told))["headline"]
    assert brief({"text": {"audit": told}})["explained"]


def test_a_plan_that_cannot_be_read_says_so() -> None:
    told = audit([], ONE_PRODUCT)
    assert told["headline"] == "the compiler told nothing of its kernels, so nothing can be said of INT8"
    assert told["macs"]["all"]["not_found"] == 1


def test_a_part_without_products_has_no_shares(tmp_path: Path) -> None:
    net = Net()
    told = audit([matmul((1, 6, 4))], net.model({"x": (FLOAT, [6, 4])}, {"y": net.add("Relu", "x")}))
    assert told["macs"] == {}
    assert told["headline"] == "kernels: 1, touching 0.1 kB"
