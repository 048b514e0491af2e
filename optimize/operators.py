"""The operators that TensorRT's ONNX parser takes, with which types and since when.

Three sources, in this order: every operator of ONNX's own node tests in every type, given to the parser of TensorRT-RTX
1.7.1 (tests/test_operators.py measures that again); the support matrix of onnx-tensorrt 10.15, docs/operators.md; and
for "since" its changelog and TensorRT's release notes. The parser looks at an operator's name only, not its domain.
"""

from __future__ import annotations

from onnx import TensorProto

from edgefuse.optimize.view import Scope

_T = TensorProto

# DOUBLE becomes FLOAT. The parser lets INT8, FP8, INT4 and FP4 pass wherever it takes floats: the builder judges those.
FLOATS = frozenset({_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE})
QUANTIZED = frozenset({_T.INT8, _T.FLOAT8E4M3FN, _T.INT4, _T.FLOAT4E2M1})
INTEGERS = frozenset({_T.INT32, _T.INT64})
BOOL = frozenset({_T.BOOL})
UINT8 = frozenset({_T.UINT8})
TENSORS = FLOATS | QUANTIZED | INTEGERS | BOOL | UINT8  # all that TensorRT has a word for

# Types of the first input -> operators. Where a row is narrower than the matrix, the parser of TensorRT-RTX was.
_ROWS: tuple[tuple[frozenset[int], str], ...] = (
    (
        FLOATS | QUANTIZED,
        """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Conv ConvTranspose Cos Cosh Einsum Elu
        Erf Exp Floor Gelu Gemm GroupNormalization HardSigmoid ImageScaler InstanceNormalization IsInf IsNaN
        LayerNormalization LeakyRelu Log LogSoftmax LRN MatMul MaxPool ParametricSoftplus PRelu Reciprocal Resize Round
        ScaledTanh Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
        Upsample""",
    ),
    (
        FLOATS | QUANTIZED | INTEGERS,
        """Abs Add ArgMax ArgMin DepthToSpace Div GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
        Less LessOrEqual Max Min Mod Mul Neg ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
        ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu RMSNormalization Sign SpaceToDepth Sub Sum TopK""",
    ),
    (
        TENSORS - UINT8,
        """Concat Expand EyeLike Flatten Gather GatherElements GatherND OneHot Pad Reshape ReverseSequence Scatter
        ScatterElements ScatterND Slice Split Squeeze Tile Transpose Trilu Unsqueeze""",
    ),
    (TENSORS, "Cast CastLike Dropout Equal Identity If Pow Scan Shape Size"),
    (FLOATS, "Attention GRU LpNormalization LpPool LSTM Mean Mish QuantizeLinear RNN RotaryEmbedding TensorScatter"),
    (TENSORS - UINT8, "NonZero RandomNormalLike RandomUniformLike"),
    (frozenset({_T.FLOAT, _T.FLOAT16, _T.DOUBLE}), "DeformConv GridSample NonMaxSuppression RoiAlign STFT DFT"),
    (FLOATS, "Celu MeanVarianceNormalization"),
    (FLOATS | QUANTIZED, "Hardmax"),
    (FLOATS | {_T.INT8}, "HardSwish"),
    (FLOATS | {_T.INT8} | INTEGERS, "Shrink"),
    (FLOATS | INTEGERS, "Clip CumSum Range"),
    (QUANTIZED, "DequantizeLinear"),
    (INTEGERS, "BlackmanWindow ConstantOfShape HammingWindow HannWindow Loop"),
    (BOOL, "And Not Or Where Xor"),
    (TENSORS, "Constant RandomNormal RandomUniform"),
)
TAKEN: dict[str, frozenset[int]] = {op: types for types, ops in _ROWS for op in ops.split()}

# Newer than TensorRT 10.3: the version that has it first. Swish and DFT: release notes of 11.0 and 11.2.
SINCE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), (10, 4)),
    "STFT": (10, 5),
    "Attention": (10, 14),
    **dict.fromkeys(("RotaryEmbedding", "RMSNormalization", "TensorScatter"), (10, 15)),
    "Swish": (11, 0),
    "DFT": (11, 2),
}

# Implemented by plugins, of which TensorRT-RTX has none.
PLUGINS = frozenset({"DeformConv", "NonZero", "RoiAlign"})

# Types that the matrix has and the parser of TensorRT-RTX refuses: its own constants do not fit them.
RTX_REFUSES: dict[str, frozenset[int]] = {
    **dict.fromkeys(("GRU", "LpNormalization", "LpPool", "Mish", "HardSwish", "Shrink"), frozenset({_T.BFLOAT16})),
    **dict.fromkeys(("Celu", "MeanVarianceNormalization"), frozenset({_T.FLOAT16, _T.BFLOAT16})),
    "NonMaxSuppression": frozenset({_T.FLOAT16}),
    "Relu": frozenset({_T.INT32}),
}

# Used in messages.
INSTEAD = {
    "QLinearConv": "quantize in the Q/DQ format (QuantFormat.QDQ, symmetric int8), not in the operator format",
    "QLinearMatMul": "quantize in the Q/DQ format (QuantFormat.QDQ, symmetric int8), not in the operator format",
    "ConvInteger": "quantize statically in the Q/DQ format: TensorRT has no dynamic quantization to INT8",
    "MatMulInteger": "quantize statically in the Q/DQ format: TensorRT has no dynamic quantization to INT8",
    "DynamicQuantizeLinear": "quantize statically in the Q/DQ format: TensorRT has no dynamic quantization to INT8",
    "DFT": "write it as a MatMul or Conv with the DFT matrix as weights",
    "SwiGLU": "write it as Split, Sigmoid and Mul, which TensorRT fuses",
    "NonZero": "use masks (Where, Mul) of fixed size instead",
}


def name_of(kind: int) -> str:
    """FLOAT, INT8, ...; for messages."""
    return str(TensorProto.DataType.Name(kind)) if kind in TensorProto.DataType.values() else f"type {kind}"


# They give out what they take in.
_MOVES = frozenset(
    ("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose")
) | {"Unsqueeze"}


def imported_type(scope: Scope, name: str) -> int:
    """The type that a value has for the parser: uint8 constants become INT32, quantized uint8 INT8, DOUBLE FLOAT."""
    kind = scope.type(name)
    if kind == TensorProto.DOUBLE:
        return int(TensorProto.FLOAT)
    if kind != TensorProto.UINT8:
        return kind
    if scope.tensor(name) is not None:
        return int(TensorProto.INT32)
    node, seen = scope.producers.get(name), set[str]()
    while node is not None and node.op_type in _MOVES and node.input and node.input[0] not in seen:
        seen.add(node.input[0])
        node = scope.producers.get(node.input[0])
    return int(TensorProto.INT8) if node is not None and node.op_type == "QuantizeLinear" else kind
