"""Numbers that FP16 cannot hold, operators that overflow in it, and versions that TensorRT reads by other rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from edgefuse.optimize.finding import TARGETS, Finding, Severity
from edgefuse.optimize.operators import TAKEN, name_of
from edgefuse.optimize.view import ONNX, Scope, View, attribute, label

LARGEST_FP16 = 65504.0
SMALLEST_FP16 = 2.0**-24
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_REAL = (*_HALF, TensorProto.FLOAT, TensorProto.DOUBLE)

# Newest opset that each target's parser knows: operators.md of onnx-tensorrt 10.1 and 10.15, release notes of 11.4 and
# 11.5 (25 from 11.5 on); for TensorRT-RTX what was tried. No parser compares: it reads a newer model by older rules.
OPSETS = {"10.3": (9, 20), "10.16": (9, 24), "11": (9, 24), "rtx": (9, 25)}


def numeric_findings(view: View) -> Iterator[Finding]:
    """Everything about single numbers, and about the model as a whole."""
    yield from _opset(view)
    for name in view.functions:
        if name in TAKEN:
            effect = f"the local function {name} has the name of an ONNX operator, and TensorRT takes that instead"
            yield Finding(name, "foreign-operator", "silent", effect, "give the function another name")
    for scope in view.scopes():
        for name in scope.tensors:
            yield from _constant(scope, name)
        for node in scope.nodes:
            for rule in (_foreign, _cast, _normalisation, _ignored):
                yield from rule(scope, node)


def _opset(view: View) -> Iterator[Finding]:
    for newest in sorted({limits[1] for limits in OPSETS.values()}):
        targets = tuple(target for target in TARGETS if OPSETS[target][1] == newest < view.opset)
        if targets:
            effect = f"opset {view.opset}; the parser knows up to {newest} and reads the model by those rules"
            mend = f"export with opset {newest} or less, or convert with onnx.version_converter"
            yield Finding("", "opset-too-new", "silent", effect, mend, targets)
    if view.opset < 9:
        effect = f"opset {view.opset}; TensorRT is documented from 9 on"
        yield Finding("", "opset-too-old", "silent", effect, "convert it with onnx.version_converter")


def _foreign(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    if node.domain not in ONNX and node.op_type in TAKEN:
        effect = f"{node.domain}.{node.op_type} is taken for ONNX's {node.op_type}: TensorRT looks at the name only"
        yield Finding(label(node), "foreign-operator", "silent", effect, "check that both mean the same, and export it")


def _constant(scope: Scope, name: str) -> Iterator[Finding]:
    """NaN, infinity, and what becomes infinite in FP16. Scales have rules of their own."""
    tensor = scope.tensors[name]
    readers = scope.readers.get(name, [])
    if tensor.data_type not in _REAL or not readers or all(node.op_type == "DequantizeLinear" for node in readers):
        return
    low, high = _range(scope.weights.array(tensor))
    masks = any(node.op_type in ("Where", "Add", "Sub", "Mul") for node in readers)
    half = tensor.data_type in _HALF
    found: tuple[str, Severity, str] | None = None
    if np.isnan(low) or np.isnan(high):
        found = "nan-constant", "silent", "it holds NaN"
    elif low == -np.inf and masks:
        found = "infinite-mask", "silent", "it masks with -inf: a row that is masked throughout becomes NaN"
    elif np.isinf(low) or np.isinf(high):
        found = "infinite-constant", "silent" if half else "note", f"it holds infinity in {name_of(tensor.data_type)}"
    elif masks and low < -LARGEST_FP16 and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
        found = "huge-mask", "note", f"it masks with {low:.1e}, which is -inf in FP16"
    if found is not None:
        rule, severity, effect = found
        mend = "use -1e4, whose exp() is 0 too (`edgefuse check --fix`)" if masks else "look where it comes from"
        for node in readers[:1]:
            yield Finding(label(node), rule, severity, f"{effect} ({name!r})", mend)


def _range(array: NDArray[Any]) -> tuple[float, float]:
    """Smallest and largest number; NaN where there is one."""
    if not array.size:
        return 0.0, 0.0
    if array.dtype == np.float16:  # numpy compares FP16 slowly: finite ones have no full exponent
        codes = array.view(np.uint16) & 0x7C00
        if codes.max() < 0x7C00:
            return 0.0, 0.0
    return float(array.min()), float(array.max())


def _cast(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """A constant that is cast to FP16 when the engine is built."""
    if node.op_type != "Cast" or attribute(node, "to", 0) != TensorProto.FLOAT16 or not node.input:
        return
    array = scope.array(node.input[0])
    if array is None or array.dtype.kind != "f" or not array.size:
        return
    largest = float(np.abs(array.astype(np.float64)).max())
    if np.isfinite(largest) and largest > LARGEST_FP16:
        effect = f"it casts a constant of {largest:.1e} to FP16, where it is infinite"
        yield Finding(label(node), "constant-beyond-fp16", "silent", effect, "clip the constant, or keep it in FP32")
    elif 0 < largest < SMALLEST_FP16 and array.size == 1:
        effect = f"it casts a constant of {largest:.1e} to FP16, where it is 0"
        yield Finding(label(node), "constant-beyond-fp16", "silent", effect, "raise it to 6e-8, or keep it in FP32")


def _normalisation(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """LayerNorm or RMSNorm written out in FP16: Sqrt(ReduceMean(square) + epsilon)."""
    if node.op_type != "Sqrt" or scope.type(node.input[0]) != TensorProto.FLOAT16:
        return
    plus = scope.producers.get(node.input[0])
    if plus is None or plus.op_type != "Add":
        return
    means = [scope.producers.get(name) for name in plus.input]
    mean = next((one for one in means if one is not None and one.op_type == "ReduceMean"), None)
    square = scope.producers.get(mean.input[0]) if mean is not None else None
    if square is None or square.op_type not in ("Pow", "Mul"):
        return
    effect = "a LayerNorm written out in FP16: the mean of the squares overflows at 256 times a standard deviation"
    mend = "use the LayerNormalization operator (opset 17), which computes in FP32 inside"
    yield Finding(label(node), "fp16-layernorm", "silent", effect, mend)
    epsilon = next((array for name in plus.input if (array := scope.array(name)) is not None), None)
    if epsilon is not None and not np.any(epsilon):
        effect = "its epsilon is 0 in FP16: a row of equal values becomes NaN"
        yield Finding(label(node), "vanished-epsilon", "silent", effect, mend)


def _ignored(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """Attributes that the parser does not look at."""
    if node.op_type in ("LSTM", "GRU", "RNN") and attribute(node, "layout", 0):
        effect = f"{node.op_type} with layout=1 is read as layout=0: batch and time change places"
        yield Finding(label(node), "ignored-attribute", "silent", effect, "transpose round it and use layout=0")
    if node.op_type.startswith("Random") and any(found.name == "seed" for found in node.attribute):
        effect = "TensorRT ignores the seed"
        yield Finding(label(node), "ignored-attribute", "note", effect, "feed the random numbers as an input")
