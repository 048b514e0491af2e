"""Mends what is mechanical of what the checks find: `edgefuse check --fix`.

Each function below is one kind of mend. It edits the model in place and tells what it did; types change on the way, so
every one of them gets a fresh view. What is not here needs a decision, or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from edgefuse.optimize.fp16 import LARGEST_FP16, MASKED, fp16_array
from edgefuse.optimize.parser_rules import OUTPUTS
from edgefuse.optimize.qdq import SMALLEST_SCALE
from edgefuse.optimize.qdq_rules import SMALLEST_NORMAL
from edgefuse.optimize.view import Scope, View, attribute, label

STEPS = 127  # codes on each side of 0
FP16_SCALES = 19  # the first opset that has them


def mend(view: View) -> tuple[bytes, list[str]]:
    """The mended model, and what was done to it, one sentence each.

    Quantization that was not symmetric keeps its range and gets coarser steps, at most half as many: measure again.

    Raises:
        BundleError: the model is over 2 GB.
    """
    done: list[str] = []
    for kind in _MENDS:
        told = [sentence for scope in view.scopes() for sentence in kind(scope, view.opset)]
        if told:
            done += told
            view = View(view.serialize())
    return view.serialize(), done


def _biases(scope: Scope, opset: int) -> Iterator[str]:
    """DequantizeLinear of a constant int32 -> the float constant."""
    for node in _nodes(scope, "DequantizeLinear"):
        if scope.type(node.input[0]) == TensorProto.INT32:
            codes, scale, zero = _arrays(scope, node)
            if codes is not None and scale is not None and _fits(node, codes, scale, zero):
                scope.graph.node.remove(node)
                values = (codes - _column(zero, node, codes.ndim)) * _column(scale, node, codes.ndim)
                _initializer(scope, values.astype(scale.dtype), node.output[0])
                yield f"{label(node)}: the int32 bias is a float constant now"


def _weights(scope: Scope, opset: int) -> Iterator[str]:
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
        node.input[0] = _initializer(scope, centred.astype(np.int8), f"{node.input[0]}_int8")
        yield f"{label(node)}: its codes are int8 with zero point 0 now" + ("" if fits else ", rounded anew")


def _activations(scope: Scope, opset: int) -> Iterator[str]:
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


def _scale_types(scope: Scope, opset: int) -> Iterator[str]:
    """Scales of FP32 round FP16 data -> FP16. Weights follow in _mixed_scales."""
    if opset < FP16_SCALES:
        return
    for node in _nodes(scope, "QuantizeLinear"):
        data, scale = scope.type(node.input[0]), scope.array(node.input[1])
        if scale is not None and data == TensorProto.FLOAT16 and scale.dtype == np.float32:
            for one in (node, *scope.readers.get(node.output[0], [])):
                one.input[1] = _initializer(scope, _half_scale(scale), f"{one.input[1]}_fp16")
            yield f"{label(node)}: its scale is FP16 now, as its data"


def _mixed_scales(scope: Scope, opset: int) -> Iterator[str]:
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
                node.input[index] = _initializer(scope, array, f"{name}_fp16")
                yield f"{label(node)}: the constant {name} is FP16 now, as what it meets"
            elif maker is not None and maker.op_type == "DequantizeLinear" and opset >= FP16_SCALES:
                scale = scope.array(maker.input[1])
                if scale is not None and scale.dtype == np.float32 and scope.tensor(maker.input[0]) is not None:
                    maker.input[1] = _initializer(scope, _half_scale(scale), f"{maker.input[1]}_fp16")
                    yield f"{label(maker)}: its scale is FP16 now, as what it meets"


def _masks(scope: Scope, opset: int) -> Iterator[str]:
    """Minus infinity, or FP32's least, as a mask -> -1e4."""
    for node in scope.nodes:
        if node.op_type not in ("Where", "Add", "Mul"):
            continue
        for index, name in enumerate(node.input):
            tensor = scope.tensor(name)
            if tensor is None or tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
                continue
            array = scope.weights.array(tensor)
            if array.size and array.min() < -LARGEST_FP16:
                finite = np.where(array < -LARGEST_FP16, MASKED, array).astype(array.dtype)
                node.input[index] = _initializer(scope, finite, f"{name}_finite")
                yield f"{label(node)}: it masks with {MASKED:g} now"


def _outputs(scope: Scope, opset: int) -> Iterator[str]:
    """Outputs that nothing reads and TensorRT does not give -> gone."""
    for node in scope.nodes:
        allowed = OUTPUTS.get(node.op_type, len(node.output))
        extra = [name for name in node.output[allowed:] if name]
        if extra and not any(name in scope.readers or name in scope.outputs for name in extra):
            del node.output[allowed:]
            yield f"{label(node)}: its unused outputs are gone"


def _uint8_inputs(scope: Scope, opset: int) -> Iterator[str]:
    """Transpose or Reshape of uint8, then Cast -> Cast first."""
    for node in scope.nodes:
        readers = scope.readers.get(node.output[0], []) if node.output else []
        moves = node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
        if moves and scope.type(node.input[0]) == TensorProto.UINT8 and [one.op_type for one in readers] == ["Cast"]:
            cast = readers[0]
            source, between, result = node.input[0], node.output[0], cast.output[0]
            cast.input[0], cast.output[0] = source, between
            node.input[0], node.output[0] = between, result
            order = list(scope.graph.node)
            order.remove(cast)
            order.insert(order.index(node), cast)
            copies = [_copy(one) for one in order]
            del scope.graph.node[:]
            scope.graph.node.extend(copies)
            yield f"{label(cast)}: the uint8 input is cast first now"
            return  # the nodes are copies now


_MENDS: tuple[Callable[[Scope, int], Iterator[str]], ...] = (
    _uint8_inputs,
    _outputs,
    _biases,
    _weights,
    _activations,
    _scale_types,
    _mixed_scales,
    _masks,
)
_FREE = ("Cast", "Pow", "Pad", "BatchNormalization", "If", "Loop", "Scan")  # may have operands of two float types


def _nodes(scope: Scope, op: str) -> list[NodeProto]:
    return [node for node in scope.nodes if node.op_type == op and len(node.input) > 1]


def _copy(node: NodeProto) -> NodeProto:
    new = NodeProto()
    new.CopyFrom(node)
    return new


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
    name = _initializer(scope, scale, f"{node.input[1]}_int8")
    zero = _initializer(scope, np.zeros(scale.shape, np.int8), f"{node.input[1]}_zero")
    node.input[:] = [node.input[0], name, zero]


def _smallest_scale(kind: int) -> float:
    return SMALLEST_SCALE if kind == TensorProto.FLOAT16 else SMALLEST_NORMAL[TensorProto.FLOAT]


def _half_scale(scale: NDArray[Any]) -> NDArray[np.float16]:
    half: NDArray[np.float16] = np.maximum(scale, SMALLEST_SCALE).astype(np.float16)
    return half


def _initializer(scope: Scope, array: NDArray[Any], wish: str) -> str:
    """Add a constant to the graph; returns its name, `wish` unless that is taken."""
    name, number = wish, 1
    while name in scope.tensors or (name in scope.producers and name != wish) or name in scope.inputs:
        name, number = f"{wish}_{number}", number + 1
    scope.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    scope.tensors[name] = scope.graph.initializer[-1]
    return name
