"""Tiny models with one fault each, for `edgefuse check`: what rule must find it, and how bad it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

F32, F16, I8, U8, I32 = np.float32, np.float16, np.int8, np.uint8, np.int32
TENTH, ZERO = F32(0.1), I8(0)
HALF, FLOAT, INT64, UINT8 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8


class Draft:
    """Writes a graph node by node and checks nothing."""

    def __init__(self, opset: int = 19) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []

    def input(self, name: str, kind: int, *shape: int | str) -> str:
        """A graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def add(self, op: str, *inputs: str | ArrayLike, outputs: int = 1, **attributes: Any) -> Any:
        """A node named after its number; arrays become initializers. Returns the names of its outputs."""
        number = len(self.nodes)
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        made = [f"v{number}"] if outputs == 1 else [f"v{number}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, name=f"{op}_{number}", **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: ArrayLike) -> str:
        """An initializer."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def quantized(self, value: str | ArrayLike, scale: ArrayLike = TENTH, **attributes: Any) -> str:
        """`value` behind a symmetric int8 Q and DQ."""
        zeros = np.zeros(np.shape(scale), I8)
        codes = self.add("QuantizeLinear", value, np.asarray(scale), zeros, **attributes)
        return str(self.add("DequantizeLinear", codes, np.asarray(scale), zeros, **attributes))

    def bytes(self, *outputs: str, kind: int = FLOAT) -> bytes:
        """The model."""
        told = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, told, self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.example", 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


@dataclass(frozen=True)
class Case:
    """One model."""

    name: str
    module: str  # whose rule it is
    rule: str | None  # None: nothing is wrong
    severity: str  # refused, silent, note, or ok
    model: bytes
    parsed: bool | None = None  # what RTX's parser says, where that is not the opposite of refused


CASES: list[Case] = []


def case(module: str, rule: str | None, severity: str, parsed: bool | None = None) -> Callable[..., Any]:
    def register(make: Callable[[], bytes]) -> Callable[[], bytes]:
        CASES.append(Case(make.__name__, module, rule, severity, make(), parsed))
        return make

    return register


def pair(
    data: int = FLOAT,
    scale: ArrayLike = TENTH,
    zero: ArrayLike | None = ZERO,
    opset: int = 19,
    shape: Sequence[int] = (2, 3, 4, 4),
    dq_scale: ArrayLike | None = None,
    **attributes: Any,
) -> bytes:
    """One Q and DQ."""
    draft = Draft(opset)
    x = draft.input("x", data, *shape)
    zeros = [] if zero is None else [zero]
    codes = draft.add("QuantizeLinear", x, scale, *zeros, **attributes)
    out = draft.add("DequantizeLinear", codes, scale if dq_scale is None else dq_scale, *zeros, **attributes)
    kind = HALF if np.asarray(scale).dtype == F16 else FLOAT
    return draft.bytes(out, kind=kind)


def table(module: str, rows: Sequence[tuple[str, str | None, str, Callable[[], bytes]]]) -> None:
    CASES.extend(Case(name, module, rule, severity, make()) for name, rule, severity, make in rows)


table(
    "qdq_rules",
    [
        ("symmetric int8", None, "ok", pair),
        ("symmetric int8 in FP16", None, "ok", lambda: pair(HALF, F16(0.1))),
        ("zero point 3", "nonzero-zero-point", "refused", lambda: pair(zero=I8(3))),
        ("uint8, zero point 128", "nonzero-zero-point", "refused", lambda: pair(zero=U8(128))),
        ("uint8, zero point 0", "uint8-quantization", "silent", lambda: pair(zero=U8(0))),
        ("no zero point", "missing-zero-point", "silent", lambda: pair(zero=None)),
        ("int16", "quantized-type", "refused", lambda: pair(zero=np.int16(0), opset=21)),
        ("FP32 scale for FP16", "scale-type", "silent", lambda: pair(HALF)),
        ("FP16 scale for FP32", "scale-type", "silent", lambda: pair(FLOAT, F16(0.1))),
        ("scale 0", "non-positive-scale", "refused", lambda: pair(scale=F32(0))),
        ("scale -1", "non-positive-scale", "refused", lambda: pair(scale=F32(-1))),
        ("scale NaN", "non-positive-scale", "refused", lambda: pair(scale=F32(np.nan))),
        ("scale infinite", "infinite-scale", "silent", lambda: pair(scale=F32(np.inf))),
        ("FP16 scale 1e-8", "non-positive-scale", "refused", lambda: pair(HALF, F16(1e-8))),
        ("FP16 scale 1e-6", "subnormal-scale", "silent", lambda: pair(HALF, F16(1e-6))),
        ("FP32 scale 1e-9 for FP16", "subnormal-scale", "silent", lambda: pair(HALF, F32(1e-9), opset=18)),
        ("FP32 scale 1e-6", None, "ok", lambda: pair(scale=F32(1e-6))),
        ("DQ with another scale", "scale-mismatch", "silent", lambda: pair(dq_scale=F32(0.2))),
        ("int32 quantized", "quantized-type", "refused", lambda: pair(TensorProto.INT32)),
        (
            "activation per channel",
            "per-channel-activation",
            "silent",
            lambda: pair(scale=np.full(3, 0.1, F32), zero=np.zeros(3, I8)),
        ),
        (
            "3 scales, 1 zero point",
            "scale-count",
            "refused",
            lambda: pair(scale=np.full(3, 0.1, F32)),
        ),
        (
            "2 scales for 3 channels",
            "scale-count",
            "refused",
            lambda: pair(scale=np.full(2, 0.1, F32), zero=np.zeros(2, I8)),
        ),
        ("output_dtype uint8", "quantized-type", "refused", lambda: pair(zero=None, opset=21, output_dtype=UINT8)),
    ],
)


def dequantized(codes: ArrayLike, zero: ArrayLike | None = None, opset: int = 19) -> bytes:
    draft = Draft(opset)
    zeros = [] if zero is None else [zero]
    weight = draft.add("DequantizeLinear", codes, F32(0.1), *zeros)
    return draft.bytes(draft.add("Add", draft.input("x", FLOAT, 2), weight))


table(
    "qdq_rules",
    [
        ("int8 codes", None, "ok", lambda: dequantized(np.array([1, 2], I8))),
        ("int32 bias", "int32-bias", "refused", lambda: dequantized(np.array([1, 2], I32))),
        ("uint8 codes", "uint8-quantization", "refused", lambda: dequantized(np.array([1, 2], U8), U8(0))),
        (
            "int16 codes",
            "quantized-type",
            "refused",
            lambda: dequantized(np.array([1, 2], np.int16), np.int16(0), 21),
        ),
    ],
)


@case("qdq_rules", "computed-scale", "silent")
def computed_scale() -> bytes:
    draft = Draft()
    x, scale = draft.input("x", FLOAT, 2, 3), draft.input("s", FLOAT)
    codes = draft.add("QuantizeLinear", x, scale, I8(0))
    return draft.bytes(draft.add("DequantizeLinear", codes, scale, I8(0)))


@case("qdq_rules", "computed-zero-point", "refused", parsed=True)  # it is the builder that refuses
def computed_zero_point() -> bytes:
    draft = Draft()
    x, zero = draft.input("x", FLOAT, 2, 3), draft.input("z", TensorProto.INT8)
    codes = draft.add("QuantizeLinear", x, F32(0.1), zero)
    return draft.bytes(draft.add("DequantizeLinear", codes, F32(0.1), zero))


@case("qdq_rules", "odd-four-bit", "refused")
def three_codes_of_four_bits() -> bytes:
    draft = Draft(21)
    draft.constants += [
        helper.make_tensor("codes", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("zero", TensorProto.INT4, [], [0]),
    ]
    weight = draft.add("DequantizeLinear", "codes", F32(0.1), "zero")
    return draft.bytes(draft.add("Mul", draft.input("x", FLOAT, 3), weight))


@case("qdq_rules", "scale-type", "refused", parsed=True)  # TensorRT 10.16 on Orin
def scale_of_another_type_than_the_output() -> bytes:
    draft = Draft(23)
    codes = draft.add("QuantizeLinear", draft.input("x", FLOAT, 2, 3), F32(0.1), I8(0))
    return draft.bytes(draft.add("DequantizeLinear", codes, F32(0.1), I8(0), output_dtype=HALF), kind=HALF)


def conv(activation: bool, weight: bool, axis: int = 0, size: int = 8, channels: int = 4) -> bytes:
    draft = Draft()
    x = draft.input("x", FLOAT, "batch", channels, size, size)
    kernel: Any = np.ones((channels, channels, 3, 3), F32)
    if weight:
        kernel = draft.quantized(kernel, np.full(channels, 0.1, F32), axis=axis)
    return draft.bytes(draft.add("Conv", draft.quantized(x) if activation else x, kernel, pads=[1] * 4))


def product(rows: int | str, columns: int = 8, axis: int = 1, quantize: bool = True, op: str = "MatMul") -> bytes:
    draft = Draft()
    shape = ("batch", 8) if op == "Gemm" else ("batch", rows, 8)
    weight: Any = np.ones((8, columns), F32)
    if quantize:
        weight = draft.quantized(weight, np.full((8, columns)[axis], 0.1, F32), axis=axis)
    return draft.bytes(draft.add(op, draft.quantized(draft.input("x", FLOAT, *shape)), weight))


table(
    "qdq_rules",
    [
        ("Conv weight along axis 1", "wrong-weight-axis", "silent", lambda: conv(True, True, axis=1)),
        ("MatMul weight along axis 0", "wrong-weight-axis", "silent", lambda: product(4, axis=0)),
    ],
)
table(
    "placement_rules",
    [
        ("INT8 Conv", None, "ok", lambda: conv(True, True)),
        ("Conv of one pixel", "gemv", "silent", lambda: conv(True, True, size=1)),
        ("Conv, weight only", "weight-only", "silent", lambda: conv(False, True)),
        ("Conv, activation only", "activation-only", "silent", lambda: conv(True, False)),
        ("INT8 MatMul", None, "ok", lambda: product(4)),
        ("INT8 MatMul of unknown rows", None, "ok", lambda: product("rows")),
        ("MatMul of one row", "gemv", "silent", lambda: product(1)),
        ("Gemm at batch 1", "gemv", "silent", lambda: product(1, op="Gemm")),
        ("MatMul to one column", "gemv", "silent", lambda: product(4, columns=1)),
        ("MatMul, activation only", "activation-only", "silent", lambda: product(4, quantize=False)),
    ],
)


def attention(*quantized: str, tokens: int = 16) -> bytes:
    draft = Draft()
    q, k, v = (draft.input(name, FLOAT, 1, 2, *shape) for name, shape in
               (("q", (tokens, 8)), ("k", (8, tokens)), ("v", (tokens, 8))))  # fmt: skip
    given = {name: draft.quantized(name) if name in quantized else name for name in (q, k, v)}
    scores = draft.add("Mul", draft.add("MatMul", given["q"], given["k"]), F32(0.3))
    share = draft.add("Softmax", scores, axis=-1)
    share = draft.quantized(share, F32(1 / 127)) if "softmax" in quantized else share
    return draft.bytes(draft.add("MatMul", share, given["v"]))


EVERY = ("q", "k", "v", "softmax")
table(
    "placement_rules",
    [
        ("float attention", None, "ok", attention),
        ("INT8 attention", None, "ok", lambda: attention(*EVERY)),
        ("attention, Q and K only", "partial-attention", "silent", lambda: attention("q", "k")),
        ("attention, all but softmax", "partial-attention", "silent", lambda: attention("q", "k", "v")),
        ("INT8 attention of 600 tokens", "long-attention", "silent", lambda: attention(*EVERY, tokens=600)),
    ],
)


def single(op: str, *inputs: Any, opset: int = 20, outputs: int = 1, kind: int = FLOAT, **attributes: Any) -> bytes:
    """One node; an input is a constant array or (type, sizes)."""
    draft = Draft(opset)
    names = [draft.input(f"i{i}", x[0], *x[1:]) if isinstance(x, tuple) else x for i, x in enumerate(inputs)]
    made = draft.add(op, *names, outputs=outputs, **attributes)
    return draft.bytes(*([made] if outputs == 1 else made), kind=kind)


X, X16, IMAGE = (FLOAT, 2, 4), (HALF, 2, 4), (FLOAT, 1, 3, 8, 8)
table(
    "parser_rules",
    [
        ("Relu", None, "ok", lambda: single("Relu", X)),
        ("QLinearMatMul", "unsupported-operator", "refused", lambda: single(
            "QLinearMatMul", (TensorProto.INT8, 2, 2), F32(1), I8(0), (TensorProto.INT8, 2, 2), F32(1), I8(0), F32(1),
            I8(0), kind=TensorProto.INT8)),
        ("ConvInteger", "unsupported-operator", "refused", lambda: single(
            "ConvInteger", (TensorProto.INT8, 1, 1, 4, 4), np.ones((1, 1, 3, 3), I8), kind=TensorProto.INT32)),
        ("MatMulInteger", "unsupported-operator", "refused", lambda: single(
            "MatMulInteger", (TensorProto.INT8, 2, 2), (TensorProto.INT8, 2, 2), kind=TensorProto.INT32)),
        ("QLinearConv", "unsupported-operator", "refused", lambda: single(
            "QLinearConv", (TensorProto.INT8, 1, 1, 4, 4), F32(1), I8(0), np.ones((1, 1, 3, 3), I8), F32(1), I8(0),
            F32(1), I8(0), kind=TensorProto.INT8)),
        ("operator of nobody", "unsupported-operator", "refused", lambda: single("Frobnicate", X)),
        ("NonZero, a plugin", "unsupported-operator", "refused", lambda: single("NonZero", X, kind=INT64)),
        ("int16 input", "input-type", "refused", lambda: single("Cast", (TensorProto.INT16, 2), to=FLOAT)),
        ("int16 constant", "constant-type", "refused", lambda: single("Add", X, np.ones(4, np.int16))),
        ("int64 input", "int64-input", "note", lambda: single("Cast", (INT64, 2), to=FLOAT)),
        ("Conv of int32", "operator-type", "refused", lambda: single(
            "Conv", (TensorProto.INT32, 1, 3, 8, 8), np.ones((4, 3, 3, 3), I32), kind=TensorProto.INT32)),
        ("uint8 added", "operator-type", "refused", lambda: single("Add", (UINT8, 2), (UINT8, 2), kind=UINT8)),
        ("FP16 * FP32 constant", "mixed-types", "refused", lambda: single("Mul", X16, F32(2), kind=HALF)),
        ("LayerNorm, FP32 gamma", "mixed-types", "refused", lambda: single(
            "LayerNormalization", X16, np.ones(4, F32), np.zeros(4, F32), kind=HALF)),
        ("Concat of two types", "mixed-types", "refused", lambda: single("Concat", X, X16, axis=0)),
        ("int32 == int64", "mixed-types", "refused", lambda: single(
            "Equal", (TensorProto.INT32, 2), (INT64, 2), kind=TensorProto.BOOL)),
        ("FP16 ** FP32", None, "ok", lambda: single("Pow", X16, X, kind=HALF)),
        ("uint8 transposed", "operator-type", "refused", lambda: single("Transpose", (UINT8, 2, 4), kind=UINT8)),
        ("LayerNorm with mean", "extra-output", "refused", lambda: single(
            "LayerNormalization", X, np.ones(4, F32), outputs=2)),
        ("MaxPool with indices", "extra-output", "refused", lambda: single(
            "MaxPool", IMAGE, outputs=2, kernel_shape=[2, 2])),
        ("dilated MaxPool", "unsupported-attribute", "refused", lambda: single(
            "MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2])),
        ("Resize, antialias", "unsupported-attribute", "refused", lambda: single(
            "Resize", IMAGE, "", np.array([1, 1, 2, 2], F32), antialias=1)),
        ("axes given at run time", "needs-constant", "refused", lambda: single("ReduceMean", X, (INT64, 1))),
        ("Resize by a float input", "size-from-float", "refused", lambda: single("Resize", IMAGE, "", (FLOAT, 4))),
        ("vector times stack", "unsupported-form", "refused", lambda: single("MatMul", (FLOAT, 3), (FLOAT, 4, 3, 2))),
        ("Mod of floats", "unsupported-form", "refused", lambda: single("Mod", X, X)),
    ],
)  # fmt: skip


@case("parser_rules", "plugin", "note", parsed=False)  # TensorRT-RTX has no plugins
def plugin_of_nvidia() -> bytes:
    return single("EfficientNMS_TRT", X)


@case("parser_rules", "unsupported-operator", "refused")
def dynamic_quantization() -> bytes:
    draft = Draft()
    codes, scale, zero = draft.add("DynamicQuantizeLinear", draft.input("x", FLOAT, 2, 3), outputs=3)
    return draft.bytes(draft.add("DequantizeLinear", codes, scale, zero))


@case("parser_rules", "uint8-intermediate", "refused")
def uint8_in_the_middle() -> bytes:
    draft = Draft()
    whole = draft.add("Cast", draft.input("x", FLOAT, 8), to=UINT8)
    return draft.bytes(draft.add("Cast", whole, to=FLOAT))


@case("parser_rules", None, "ok")
def uint8_input_cast_first() -> bytes:
    draft = Draft()
    pixels = draft.add("Cast", draft.input("x", UINT8, 1, 8, 8, 3), to=FLOAT)
    return draft.bytes(draft.add("Transpose", pixels, perm=[0, 3, 1, 2]))


@case("parser_rules", "dangling-input", "refused")
def an_input_that_nothing_makes() -> bytes:
    draft = Draft()
    draft.input("x", FLOAT, 2)
    return draft.bytes(draft.add("Relu", "ghost"))


def branches(op: str) -> bytes:
    """An If whose branches apply `op` to a value of the graph around."""
    bodies = [
        helper.make_graph(
            [helper.make_node(op, ["x"], [f"{name}_out"], name=f"{op}_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", FLOAT, None)],
        )
        for name in ("yes", "no")
    ]
    draft = Draft()
    draft.input("x", FLOAT, 2, 2)
    asked = draft.input("asked", TensorProto.BOOL)
    return draft.bytes(draft.add("If", asked, then_branch=bodies[0], else_branch=bodies[1]))


@case("parser_rules", "dangling-output", "refused")
def an_output_that_nothing_makes() -> bytes:
    draft = Draft()
    return draft.bytes(draft.add("Relu", draft.input("x", FLOAT, 2)), "ghost")


@case("parser_rules", "invalid-node", "refused")
def a_matmul_of_one() -> bytes:
    draft = Draft()
    return draft.bytes(draft.add("MatMul", draft.input("x", FLOAT, 2)))


@case("parser_rules", "unsupported-operator", "refused")
def unsupported_inside_an_if() -> bytes:
    return branches("Det")


def masked(value: Any, kind: int = FLOAT) -> bytes:
    draft = Draft()
    mask, scores = draft.input("m", TensorProto.BOOL, 2, 4), draft.input("x", kind, 2, 4)
    return draft.bytes(draft.add("Softmax", draft.add("Where", mask, scores, value)), kind=kind)


def layer_norm(kind: int, epsilon: Any) -> bytes:
    draft = Draft()
    x = draft.input("x", kind, 2, 4)
    centred = draft.add("Sub", x, draft.add("ReduceMean", x, np.array([-1])))
    variance = draft.add("ReduceMean", draft.add("Mul", centred, centred), np.array([-1]))
    return draft.bytes(draft.add("Div", centred, draft.add("Sqrt", draft.add("Add", variance, epsilon))), kind=kind)


def cast_constant(value: float) -> bytes:
    draft = Draft()
    constant = draft.add("Cast", F32(value), to=HALF)
    return draft.bytes(draft.add("Mul", draft.input("x", HALF, 2), constant), kind=HALF)


table(
    "numeric_rules",
    [
        ("mask of -1e4", None, "ok", lambda: masked(F32(-1e4))),
        ("mask of FP32's least", "huge-mask", "note", lambda: masked(np.finfo(F32).min)),
        ("mask of -inf", "infinite-mask", "silent", lambda: masked(F32(-np.inf))),
        ("mask of -inf in FP16", "infinite-mask", "silent", lambda: masked(F16(-np.inf), HALF)),
        ("NaN constant", "nan-constant", "silent", lambda: single("Add", X, np.array([1, np.nan, 1, 1], F32))),
        ("infinite FP16 weight", "infinite-constant", "silent", lambda: single(
            "MatMul", X16, np.full((4, 4), np.inf, F16), kind=HALF)),
        ("constant of 1e6 cast to FP16", "constant-beyond-fp16", "silent", lambda: cast_constant(1e6)),
        ("epsilon of 1e-12 cast to FP16", "constant-beyond-fp16", "silent", lambda: cast_constant(1e-12)),
        ("constant of 2 cast to FP16", None, "ok", lambda: cast_constant(2)),
        ("LayerNorm written out", None, "ok", lambda: layer_norm(FLOAT, F32(1e-5))),
        ("LayerNorm written out in FP16", "fp16-layernorm", "silent", lambda: layer_norm(HALF, F16(1e-5))),
        ("its epsilon gone", "vanished-epsilon", "silent", lambda: layer_norm(HALF, F16(1e-12))),
        ("opset 26", "opset-too-new", "silent", lambda: single("Relu", X, opset=26)),
        ("opset 7", "opset-too-old", "silent", lambda: single("Relu", X, opset=7)),
        ("another domain's Gelu", "foreign-operator", "silent", lambda: single("Gelu", X, domain="com.example")),
        ("seed", "ignored-attribute", "note", lambda: single("RandomNormalLike", X, seed=1.0)),
    ],
)  # fmt: skip


@case("numeric_rules", "ignored-attribute", "silent")
def batch_first_lstm() -> bytes:
    weights = np.ones((1, 16, 3), F32), np.ones((1, 16, 4), F32)
    return single("LSTM", (FLOAT, 2, 5, 3), *weights, hidden_size=4, layout=1)
