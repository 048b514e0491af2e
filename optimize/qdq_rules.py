"""Q/DQ nodes that TensorRT refuses, or takes and computes otherwise: in another type, in float, or slower than float.

Measured with TensorRT-RTX 1.7.1 (what the parser says, and the kernels of the compiled plan); what concerns TensorRT
10.3 is read from the sources of onnx-tensorrt 10.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from edgefuse.optimize.finding import TARGETS, Finding, Severity, before
from edgefuse.optimize.operators import FLOATS, QUANTIZED, imported_type, name_of
from edgefuse.optimize.view import Scope, View, attribute, elements, label

_NEW = tuple(target for target in TARGETS if target not in before(10, 10))  # their parser knows uint8 constants
_FOUR_BITS = frozenset({int(TensorProto.INT4), int(TensorProto.UINT4), int(TensorProto.FLOAT4E2M1)})
SMALLEST_NORMAL: dict[int, float] = {
    TensorProto.FLOAT16: 2.0**-14,
    TensorProto.FLOAT: 2.0**-126,
    TensorProto.BFLOAT16: 2.0**-126,
}
_SYMMETRIC = "quantize symmetrically to int8 (activation and weight symmetric, zero point 0), or `edgefuse check --fix`"


def qdq_findings(view: View) -> Iterator[Finding]:
    """Everything about the single Q and DQ nodes of `view`, and about each pair."""
    for scope in view.scopes():
        for node in scope.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 1:
                for rule in (_data_type, _zero_point, _output_type, _scale, _scale_type, _axis):
                    yield from rule(scope, node, view.opset)
                if node.op_type == "DequantizeLinear":
                    yield from _pair(scope, node)


def _found(
    node: NodeProto, rule: str, severity: Severity, effect: str, mend: str, targets: tuple[str, ...] = TARGETS
) -> Finding:
    return Finding(label(node), rule, severity, effect, mend, targets)


def _data_type(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    """The first input: floats for Q, INT8 and what TensorRT quantizes to for DQ."""
    kind, is_constant = scope.type(node.input[0]), scope.tensor(node.input[0]) is not None
    if node.op_type == "QuantizeLinear":
        if kind and kind not in FLOATS:
            effect = f"it quantizes {name_of(kind)}; TensorRT quantizes floats"
            yield _found(node, "quantized-type", "refused", effect, "cast to float before it")
    elif kind == TensorProto.INT32:
        effect = "it dequantizes int32, which TensorRT does not"
        mend = "keep biases in float: quantize with QuantizeBias=False, or `edgefuse check --fix`"
        yield _found(node, "int32-bias", "refused", effect, mend)
    elif kind == TensorProto.UINT8 and (is_constant or imported_type(scope, node.input[0]) == TensorProto.UINT8):
        effect = "it dequantizes uint8, which TensorRT does not"
        yield _found(node, "uint8-quantization", "refused", effect, _SYMMETRIC)
    elif kind and kind not in QUANTIZED and kind != TensorProto.UINT8:
        effect = f"it dequantizes {name_of(kind)}, which TensorRT does not"
        yield _found(node, "quantized-type", "refused", effect, _SYMMETRIC)
    stored = scope.type(node.input[2]) if len(node.input) > 2 else attribute(node, "output_dtype", 0)
    if stored in _FOUR_BITS and (elements(scope.shape(node.input[0])) or 0) % 2:
        effect = "4-bit quantization of an odd number of elements"
        yield _found(node, "odd-four-bit", "refused", effect, "pad it to an even number")


def _zero_point(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    name = node.input[2] if len(node.input) > 2 else ""
    is_q = node.op_type == "QuantizeLinear"
    if not name:
        if is_q and not attribute(node, "output_dtype", 0):
            effect = "it has no zero point: ONNX then means uint8, TensorRT makes int8 and cuts all codes at 127"
            yield _found(node, "missing-zero-point", "silent", effect, "give it an int8 zero point of 0")
        return
    zeros, kind = scope.array(name), scope.type(name)
    if zeros is not None and np.any(zeros.astype(np.float32) != 0):
        effect = f"its zero point is {np.ravel(zeros.astype(np.float32))[0]:g}; TensorRT has no other than 0"
        yield _found(node, "nonzero-zero-point", "refused", effect, _SYMMETRIC)
    elif kind == TensorProto.UINT8 and is_q:
        effect = "it is uint8: TensorRT warns, makes int8 of it and cuts all codes at 127, where ONNX goes to 255"
        yield _found(node, "uint8-quantization", "silent", effect, _SYMMETRIC, _NEW)
        effect = "it is uint8, which TensorRT before 10.10 does not quantize to"
        yield _found(node, "uint8-quantization", "refused", effect, _SYMMETRIC, before(10, 10))
    elif kind and kind not in QUANTIZED and kind not in (TensorProto.UINT8, TensorProto.INT32):
        effect = f"it quantizes to {name_of(kind)}, which TensorRT does not"
        yield _found(node, "quantized-type", "refused", effect, _SYMMETRIC)
    if kind == TensorProto.FLOAT8E4M3FN:  # the parser drops its zero point
        effect = "it quantizes to FP8, which GPUs before SM 89 have not (no Orin, no Ampere)"
        yield _found(node, "fp8-hardware", "note", effect, "quantize to int8 for those")
    elif name not in scope.static:
        effect = "its zero point is computed when the model runs; the builder needs a constant"
        yield _found(node, "computed-zero-point", "refused", effect, "make it a constant 0")
    points, scales = elements(scope.shape(name)), elements(scope.shape(node.input[1]))
    if points is not None and scales is not None and points != scales:
        effect = f"it has {scales} scales and {points} zero points"
        yield _found(node, "scale-count", "refused", effect, "give it as many zero points as scales")


def _output_type(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    kind = attribute(node, "output_dtype", 0)
    allowed = QUANTIZED if node.op_type == "QuantizeLinear" else FLOATS - {TensorProto.DOUBLE}
    if kind and kind not in allowed:
        effect = f"its output_dtype is {name_of(kind)}, which TensorRT does not support here"
        yield _found(node, "quantized-type", "refused", effect, _SYMMETRIC)
    scale = scope.type(node.input[1])
    if node.op_type == "DequantizeLinear" and kind in allowed and scale and scale != kind:
        effect = (
            f"its output is {name_of(kind)}, its scale {name_of(scale)}: TensorRT 10.16 cannot infer the type on Orin "
            "(NVIDIA/TensorRT#4832)"
        )
        mend = "give the scale the type of the output"
        yield _found(node, "scale-type", "refused", effect, mend, ("10.16",))
        effect = f"TensorRT before 10.12 does not know output_dtype and gives {name_of(scale)}, the type of the scale"
        yield _found(node, "scale-type", "silent", effect, mend, before(10, 12))


def _scale(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    """Scales that are computed, not positive, not finite, or too small for their type."""
    scales = scope.array(node.input[1])
    if scales is None:
        effect = "its scale is computed when the model runs: nothing fuses with it, all round it stays float"
        yield _found(node, "computed-scale", "silent", effect, "make the scale a constant (static quantization)")
        return
    values = scales.astype(np.float64)
    if not values.size or not np.all(values > 0):
        odd = "none at all" if not values.size else f"{np.ravel(values[~(values > 0)])[0]:g}"
        mend = "use positive scales; a dead channel gets a small one such as 1e-4 (`edgefuse check --fix`)"
        yield _found(node, "non-positive-scale", "refused", f"a scale is {odd}; TensorRT wants all positive", mend)
    elif not np.all(np.isfinite(values)):
        effect = "a scale is infinite: every code becomes 0, every value inf or NaN"
        yield _found(node, "infinite-scale", "silent", effect, "calibrate again; some activation overflowed")
    else:
        kind = _scale_kind(scope, node)
        smallest = float(values.min())
        if smallest < SMALLEST_NORMAL.get(kind, 0.0):
            lost = "becomes 0" if kind == TensorProto.FLOAT16 and smallest <= 2.0**-25 else "loses bits"
            effect = f"a scale of {smallest:.2e} {lost} in {name_of(kind)}, whose smallest normal number is larger"
            mend = f"raise it to {SMALLEST_NORMAL[kind]:.1e} (`edgefuse check --fix`): the codes are 0 there anyway"
            yield _found(node, "subnormal-scale", "silent", effect, mend)


def _scale_kind(scope: Scope, node: NodeProto) -> int:
    """The type in which the scale is used: Q casts it to the type of its data."""
    data, scale = scope.type(node.input[0]), scope.type(node.input[1])
    return data if node.op_type == "QuantizeLinear" and data == TensorProto.FLOAT16 else scale


def _scale_type(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    """Q and its DQ should have scales of the type of the data: a DQ gives out what its scale is."""
    if node.op_type != "QuantizeLinear":
        return
    data, scale = scope.type(node.input[0]), scope.type(node.input[1])
    if data in FLOATS and scale in FLOATS and data != scale and TensorProto.DOUBLE not in (data, scale):
        effect = (
            f"its data are {name_of(data)}, its scale {name_of(scale)}: TensorRT gives {name_of(scale)} out of the DQ "
            f"and computes what follows in it"
        )
        mend = "make all scales of the type of the data (opset 19 or later), or `edgefuse check --fix`"
        yield _found(node, "scale-type", "silent", effect, mend)


def _axis(scope: Scope, node: NodeProto, opset: int) -> Iterator[Finding]:
    """Per-channel scales: for weights only, along the axis of the outputs."""
    scales, shape = scope.shape(node.input[1]), scope.shape(node.input[0])
    if scales is None or elements(scales) in (None, 1):
        return
    if len(scales) > 1:
        effect = "its scales are blocked, which TensorRT documents for INT4 and FP4 only"
        yield _found(node, "blocked-scale", "note", effect, "use one scale per output channel")
        return
    axis = attribute(node, "axis", 1 if opset >= 13 else 0)
    if shape is not None and -len(shape) <= axis < len(shape) and shape[axis] not in (None, scales[0]):
        effect = f"it has {scales[0]} scales for an axis of {shape[axis]}"
        yield _found(node, "scale-count", "refused", effect, "give it one scale per channel of its axis")
        return
    if node.op_type == "QuantizeLinear" and scope.tensor(node.input[0]) is None:
        effect = "an activation has a scale per channel: its readers run in float, without a warning"
        yield _found(node, "per-channel-activation", "silent", effect, "use one scale per activation")
    elif node.op_type == "DequantizeLinear":
        yield from _weight_axis(scope, node, axis)


def _weight_axis(scope: Scope, node: NodeProto, axis: int) -> Iterator[Finding]:
    rank = len(scope.shape(node.input[0]) or ())
    for reader in scope.readers.get(node.output[0], ()):
        place = list(reader.input).index(node.output[0])
        wanted = {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(reader.op_type, -1)
        if reader.op_type == "Gemm":
            wanted = 0 if attribute(reader, "transB", 0) else 1
        if place == 1 and rank and wanted >= 0 and axis % rank != wanted:
            effect = (
                f"the scales of its weight stand along axis {axis % rank}, {reader.op_type} wants {wanted}: "
                "it runs in float, without a warning"
            )
            mend = f"quantize the weight along axis {wanted}, its outputs"
            yield _found(reader, "wrong-weight-axis", "silent", effect, mend)


def _pair(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    quantize = scope.producers.get(node.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear" or len(quantize.input) < 2:
        return
    scales: list[NDArray[Any] | None] = [scope.array(one.input[1]) for one in (quantize, node)]
    if scales[0] is not None and scales[1] is not None and not np.array_equal(np.ravel(scales[0]), np.ravel(scales[1])):
        effect = "its scale is not that of the QuantizeLinear before it: the pair stays unfused float arithmetic"
        yield _found(
            node, "scale-mismatch", "silent", effect, "give both the same scale; put a Mul behind for a factor"
        )
