"""Mends of Q/DQ: symmetric int8, scales of the type of their data, no int32 biases. See mend.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from edgefuse.optimize.fp16 import fp16_array
from edgefuse.optimize.qdq import SMALLEST_SCALE
from edgefuse.optimize.qdq_rules import SMALLEST_NORMAL
from edgefuse.optimize.view import Scope, attribute, label

STEPS = 127  # codes on each side of 0
FP16_SCALES = 19  # the first opset that has them
_FREE = ("Cast", "Pow", "Pad", "BatchNormalization", "If", "Loop", "Scan")  # may have operands of two float types


def biases(scope: Scope, opset: int) -> Iterator[str]:
    """DequantizeLinear of a constant int32 -> the float constant."""
    for node in _nodes(scope, "DequantizeLinear"):
        if scope.type(node.input[0]) == TensorProto.INT32:
            codes, scale, zero = _arrays(scope, node)
            if codes is not None and scale is not None and _fits(node, codes, scale, zero):
                scope.graph.node.remove(node)
                values = (codes - _column(zero, node, codes.ndim)) * _column(scale, node, codes.ndim)
                add_constant(scope, values.astype(scale.dtype), node.output[0])
                yield f"{label(node)}: the int32 bias is a float constant now"


def weights(scope: Scope, opset: int) -> Iterator[str]:
    """DequantizeLinear of constant codes with a zero point, of uint8, or with a scale too small -> plain int8."""
    for node in _nodes(scope, "DequantizeLinear"):
        codes, scale, zero = _arrays(scope, node)
        kind = scope.type(node.input[0])
        if codes is None or scale is None or kind not in (TensorProto.INT8, TensorProto.UINT8):
            continue
        if not _fits(node, codes, scale, zero) or not np.all(scale >= 0):
            continue
        smallest = _smallest_scale(scope.type(node.input[1]))
        if kind == TensorProto.INT8 and not np.any(zero) and scale.min() >= smallest:
            continue
        rank = codes.ndim
        centred = codes.astype(np.float64) - _column(zero, node, rank)
        values = centred * _column(scale, node, rank).astype(np.float64)
        fits = centred.min() >= -STEPS - 1 and centred.max() <= STEPS and scale.min() >= smallest
        if not fits:
            others = tuple(i for i in range(rank) if scale.size == 1 or i != attribute(node, "axis", 1) % rank)
            largest = np.abs(values).max(axis=others).reshape(scale.shape)
            scale = np.maximum(largest / STEPS, smallest).astype(scale.dtype)
            centred = np.clip(np.rint(values / _column(scale, node, rank)), -STEPS, STEPS)
        _requantize(scope, node, scale)
        node.input[0] = add_constant(scope, centred.astype(np.int8), f"{node.input[0]}_int8")
        yield f"{label(node)}: its codes are int8 with zero point 0 now" + ("" if fits else ", rounded anew")


def activations(scope: Scope, opset: int) -> Iterator[str]:
    """Q with a zero point, of uint8 or with a scale too small, and its DQs -> symmetric int8 of the same range."""
    for node in _nodes(scope, "QuantizeLinear"):
        _, scale, zero = _arrays(scope, node)
        name = node.input[2] if len(node.input) > 2 else ""
        kind = scope.type(name) if name else attribute(node, "output_dtype", 0) or TensorProto.UINT8
        pairs = scope.readers.get(node.output[0], [])
        if scale is None or not scale.size or not np.all(scale >= 0) or zero.size not in (1, scale.size):
            continue
        if not np.all(np.isfinite(scale)) or any(reader.op_type != "DequantizeLinear" for reader in pairs):
            continue
        smallest = _smallest_scale(scope.type(node.input[1]))
        if kind not in (TensorProto.INT8, TensorProto.UINT8) or node.output[0] in scope.outputs:
            continue
        if kind == TensorProto.INT8 and not np.any(zero) and scale.min() >= smallest:
            continue
        low, high = (0, 255) if kind == TensorProto.UINT8 else (-128, 127)
        point = zero.astype(np.float64).reshape(-1)
        steps = np.maximum(point - low, high - point)
        symmetric = scale if kind == TensorProto.INT8 and not np.any(zero) else scale.reshape(-1) * steps / STEPS
        symmetric = np.maximum(symmetric, smallest).astype(scale.dtype).reshape(scale.shape)
        for one in (node, *pairs):
            _requantize(scope, one, symmetric)
        yield f"{label(node)}: it is symmetric int8 now, of the same range"


def scale_types(scope: Scope, opset: int) -> Iterator[str]:
    """Scales of FP32 round FP16 data -> FP16. Weights follow in mixed_scales."""
    if opset < FP16_SCALES:
        return
    for node in _nodes(scope, "QuantizeLinear"):
        data, scale = scope.type(node.input[0]), scope.array(node.input[1])
        if scale is not None and data == TensorProto.FLOAT16 and scale.dtype == np.float32:
            for one in (node, *scope.readers.get(node.output[0], [])):
                one.input[1] = add_constant(scope, _half_scale(scale), f"{one.input[1]}_fp16")
            yield f"{label(node)}: its scale is FP16 now, as its data"


def mixed_scales(scope: Scope, opset: int) -> Iterator[str]:
    """FP32 out of a weight's DQ beside an FP16 operand -> an FP16 scale; FP32 constants beside FP16 -> FP16."""
    for node in scope.nodes:
        kinds = {scope.type(name) for name in node.input}
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or not {1, 10} <= kinds or node.op_type in _FREE:
            continue
        for index, name in enumerate(node.input):
            maker, tensor = scope.producers.get(name), scope.tensor(name)
            if scope.type(name) != TensorProto.FLOAT:
                continue
            if tensor is not None:
                array = fp16_array(scope.weights.array(tensor))
                node.input[index] = add_constant(scope, array, f"{name}_fp16")
                yield f"{label(node)}: the constant {name} is FP16 now, as what it meets"
            elif maker is not None and maker.op_type == "DequantizeLinear" and opset >= FP16_SCALES:
                scale = scope.array(maker.input[1])
                if scale is not None and scale.dtype == np.float32 and scope.tensor(maker.input[0]) is not None:
                    maker.input[1] = add_constant(scope, _half_scale(scale), f"{maker.input[1]}_fp16")
                    yield f"{label(maker)}: its scale is FP16 now, as what it meets"


def _nodes(scope: Scope, op: str) -> list[NodeProto]:
    return [node for node in scope.nodes if node.op_type == op and len(node.input) > 1]


def _arrays(scope: Scope, node: NodeProto) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any]]:
    """Codes, scale and zero point of a Q or DQ; None what is computed, 0 where there is no zero point."""
    codes, scale = scope.array(node.input[0]), scope.array(node.input[1])
    zero = scope.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return codes, scale, np.zeros(1, np.int8) if zero is None else zero


def _fits(node: NodeProto, codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> bool:
    """Whether codes, scale and zero point belong together: per tensor, or per entry of an axis."""
    if not codes.size or scale.dtype.kind != "f" or not np.all(np.isfinite(scale)):
        return False
    axis = attribute(node, "axis", 1)
    per_axis = -codes.ndim <= axis < codes.ndim and scale.shape == (codes.shape[axis],)
    return (scale.size == 1 or per_axis) and zero.size in (1, scale.size)


def _column(array: NDArray[Any], node: NodeProto, rank: int) -> NDArray[Any]:
    """Scales or zero points in the shape that multiplies the codes along their axis."""
    if array.size == 1:
        return array.reshape(())
    shape = [1] * rank
    shape[attribute(node, "axis", 1) % rank] = -1
    return array.reshape(shape)


def _requantize(scope: Scope, node: NodeProto, scale: NDArray[Any]) -> None:
    """Give a Q or DQ `scale` and an int8 zero point of 0."""
    name = add_constant(scope, scale, f"{node.input[1]}_int8")
    zero = add_constant(scope, np.zeros(scale.shape, np.int8), f"{node.input[1]}_zero")
    node.input[:] = [node.input[0], name, zero]


def _smallest_scale(kind: int) -> float:
    return SMALLEST_SCALE if kind == TensorProto.FLOAT16 else SMALLEST_NORMAL[TensorProto.FLOAT]


def _half_scale(scale: NDArray[Any]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # what FP16 cannot hold becomes inf, which the check then names
        half: NDArray[np.float16] = np.maximum(scale, SMALLEST_SCALE).astype(np.float16)
    return half


def add_constant(scope: Scope, array: NDArray[Any], wish: str) -> str:
    """Add a constant to the graph; returns its name, `wish` unless that is taken."""
    name, number = wish, 1
    while name in scope.tensors or (name in scope.producers and name != wish) or name in scope.inputs:
        name, number = f"{wish}_{number}", number + 1
    scope.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    scope.tensors[name] = scope.graph.initializer[-1]
    return name
