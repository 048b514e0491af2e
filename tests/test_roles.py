"""Which kernels a better graph would not have: small plans by hand, in the names that real plans have."""

from __future__ import annotations

import pytest

from edgefuse.optimize.plan import Kernel, Tensor
from edgefuse.optimize.roles import (
    ACTIVATION,
    COPY,
    DEQUANTIZE,
    EPILOGUE,
    MENDS,
    PADDING,
    REFORMAT,
    REQUANTIZE,
    WEIGHTS,
    computes_in,
    surplus,
)

OPS = {
    "product": "MatMul", "q": "QuantizeLinear", "dq": "DequantizeLinear", "bias": "Add", "silu": "Sigmoid",
    "norm": "LayerNormalization", "turn": "Transpose", "softmax": "Softmax", "gate": "HardSigmoid",
    "pool": "ReduceMean",
}  # fmt: skip
Size = tuple[str, tuple[int, ...]]  # type and dimensions
HALF = ("Half", (1, 8, 16))
CODES = ("Int8", (1, 8, 16))


def tensor(name: str, kind: Size) -> Tensor:
    return Tensor(name, kind[1], kind[0])


def kernel(
    name: str,
    nodes: str,
    reads: dict[str, Size],
    makes: dict[str, Size],
    constants: dict[str, Size] | None = None,
    kind: str = "kgen",
) -> Kernel:
    inputs, outputs, fixed = (tuple(tensor(*item) for item in part.items()) for part in (reads, makes, constants or {}))
    return Kernel(name, kind, inputs, fixed, outputs, 0, tuple(nodes.split()))


GEMM = kernel("product_myl0_0", "product dq", {"x": CODES}, {"y": HALF}, {"w": ("Int8", (16, 16))}, "gemm")
SCALE = {"scale": ("Half", (1, 16))}


def causes(after: Kernel, products: tuple[Kernel, ...] = (GEMM,)) -> list[tuple[str, str]]:
    """The causes and nodes at fault in a plan of `products` and one kernel more."""
    found = surplus([*products, after], set(range(len(products))), OPS)
    return [(surplus.cause, surplus.node) for surplus in found]


@pytest.mark.parametrize(
    ("words", "nodes", "made", "cause", "node"),
    [
        ("MulMinMaxRounCast", "q", CODES, REQUANTIZE, "q"),
        ("MulCastMulMinMaxRounCast", "product q", CODES, REQUANTIZE, "q"),
        ("MoveReshTran", "turn", HALF, REFORMAT, "turn"),
        ("MulAddReshTranMove", "product bias turn", HALF, EPILOGUE, "product"),
        ("MulAddSiluMulMinMaxRounCast", "product silu q", CODES, ACTIVATION, "silu"),
    ],
)
def test_a_kernel_that_only_dresses_a_product_is_surplus(
    words: str, nodes: str, made: Size, cause: str, node: str
) -> None:
    assert causes(kernel(f"__myl_{words}_myl0_1", nodes, {"y": HALF}, {"z": made}, SCALE)) == [(cause, node)]


@pytest.mark.parametrize(
    ("words", "nodes", "reads", "made"),
    [
        ("MulAddAdd", "product bias", {"y": HALF, "skip": HALF}, HALF),  # adds two branches
        ("SlicMulMoveSlicMulMoveAdd", "bias", {"y": HALF}, HALF),  # no constants: squares and their sum
        ("MulAddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd", "norm", {"y": HALF}, HALF),  # normalises
        ("MulAddMinMaxMulMoveMean", "gate pool", {"y": HALF}, HALF),  # pools
        ("MulAddMinMaxMul", "gate", {"y": HALF}, ("Half", (1, 8, 16, 9))),  # a gate meets its planes
        ("Silu", "silu", {"other": HALF}, HALF),  # behind no product
    ],
)
def test_a_kernel_with_work_of_its_own_is_not(words: str, nodes: str, reads: dict[str, Size], made: Size) -> None:
    constants = None if words.startswith("Slic") else SCALE
    assert causes(kernel(f"__myl_{words}_myl0_1", nodes, reads, {"z": made}, constants)) == []


def test_a_transpose_without_a_node_and_a_weight_that_is_made_each_run_are_surplus() -> None:
    assert causes(kernel("__myl_Tran_myl0_1", "", {"other": HALF}, {"z": HALF})) == [(REFORMAT, "")]
    assert causes(kernel("__myl_CastMulCast_myl0_1", "dq", {}, {"z": HALF}, {"w": CODES})) == [(WEIGHTS, "dq")]


def test_events_are_no_surplus() -> None:
    assert causes(kernel("__myl_Tran_myl0_1", "", {"y": HALF}, {"z": HALF}, kind="signal")) == []


@pytest.mark.parametrize(
    ("read", "made", "cause"),
    [
        ("Row major linear FP32", "Int8", REQUANTIZE),
        ("Int8", "Half", DEQUANTIZE),
        ("Half", "Half", REFORMAT),
        ("Float", "Half", REFORMAT),
    ],
)
def test_a_reformat_layer_of_tensorrt_10(read: str, made: str, cause: str) -> None:
    layer = kernel("Reformatting CopyNode", "", {"y": (read, (1, 8))}, {"z": (made, (1, 8))}, kind="Reformat")
    assert causes(layer) == [(cause, "")]


def test_copies_beside_a_fused_attention_have_their_own_mends() -> None:
    heads = dict.fromkeys(("query", "key", "value"), ("Half", (4, 8, 40)))
    attention = kernel("_gemm_mha_v2_myl0_1", "softmax", heads, {"mixed": ("Int8", (4, 8, 40))})
    padded = kernel("__myl_MoveConc_myl0_0", "softmax", {"narrow": ("Half", (4, 8, 36))}, {"value": heads["value"]})
    copied = kernel("__myl_MoveReshTran_myl0_2", "turn", {"mixed": ("Int8", (4, 8, 40))}, {"z": ("Int8", (8, 160))})
    cut = kernel("__myl_SlicMoveReshTran_myl0_2", "turn", {"mixed": ("Int8", (4, 8, 40))}, {"z": ("Int8", (8, 144))})
    found = surplus([padded, attention, copied, cut], set(), OPS)
    assert [(item.cause, item.node) for item in found] == [(PADDING, "softmax"), (COPY, "turn"), (PADDING, "turn")]


def test_every_cause_has_a_mend() -> None:
    listed = {ACTIVATION, COPY, DEQUANTIZE, EPILOGUE, PADDING, REFORMAT, REQUANTIZE, WEIGHTS}
    assert set(MENDS) == listed
    assert all(MENDS.values())


@pytest.mark.parametrize(
    ("product", "type_"),
    [
        (GEMM, "Int8"),
        (kernel("g", "", {"x": HALF}, {"y": HALF}, {"w": ("Int8", (16, 16))}, "gemm"), "Half"),  # weights alone
        (kernel("g", "", {"x": CODES, "w": ("Half", (16, 16))}, {"y": HALF}, kind="runtime_fusion"), "Half"),
        (kernel("g", "", {"x": HALF, "skip": CODES}, {"y": HALF}, {"w": ("Half", (16, 16))}, "correlation"), "Half"),
        (kernel("g", "", {"x": CODES}, {"y": HALF}, kind="gemm"), "Int8"),  # a plan without weights
        (kernel("g", "", {"x": ("Float", (1, 8))}, {"y": HALF}, {"one": ("Half", (1,))}, "gemm"), "Float"),
        (kernel("g", "", {"q": CODES, "k": CODES, "v": CODES, "mask": HALF}, {"y": CODES}), "Int8"),
        (kernel("g", "", {}, {"y": HALF}), ""),
    ],
)
def test_a_product_computes_in_int8_only_with_codes_on_both_sides(product: Kernel, type_: str) -> None:
    assert computes_in(product) == type_
