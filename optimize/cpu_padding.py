"""A text part that stops after the last word: on a CPU, padding up to a fixed length costs as much as words do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from edgefuse.optimize.cpu_rewrite import Rewrite
from edgefuse.runtime.bundle import SENSOR_TENSORS

IDS, MASK = SENSOR_TENSORS["text"]
# What computes each word alone, and attention, whose node hides padding itself.
ANY_LENGTH = frozenset(
    {"Add", "Sub", "Sum", "Mul", "Div", "Cast", "Where", "Unsqueeze", "Identity", "Relu", "Sigmoid", "Tanh", "Erf"}
    | {"Gather", "LayerNormalization", "MatMul", "Gelu", "MultiHeadAttention"}
)


def without_padding(rewrite: Rewrite) -> None:
    """Cut ids and mask [B, L] behind the longest text of the batch; tokens [B, L, D] are filled up with zeros again.

    A part in which padding might have a say in the answer stays as it is.
    """
    if rewrite.inputs != [IDS, MASK] or not all(_takes_any_length(rewrite, node) for node in rewrite.nodes):
        return
    length = int(rewrite.shape(MASK)[1])
    padded = [output for output in rewrite.outputs if rewrite.shape(output)[1:2] == (length,)]
    if not all(_is_zero_at_padding(rewrite, output) for output in padded):
        return
    nodes = list(rewrite.nodes)
    count = _longest(rewrite, length)
    for sensor in (IDS, MASK):
        cut = _first(rewrite, sensor, count, 1)
        for node in nodes:
            node.input[:] = [cut if name == sensor else name for name in node.input]
    _cut_positions(rewrite, nodes, count, length)
    for output in padded:
        missing = rewrite.add("Sub", [np.array([length]), count])
        ends = rewrite.add("Concat", [np.zeros(4, np.int64), missing, np.zeros(1, np.int64)], axis=0)
        rewrite.add("Pad", [rewrite.set_aside(output), ends], instead_of=output)
    rewrite.sweep()


def _longest(rewrite: Rewrite, length: int) -> str:
    """The number of words of the longest text, at least 1: int64 [1]."""
    places = rewrite.add("Mul", [MASK, np.arange(1, length + 1, dtype=np.int32)])  # [B, L]
    last = rewrite.add("ReduceMax", [places], keepdims=0)
    return rewrite.add("Cast", [rewrite.add("Max", [last, np.ones(1, np.int32)])], to=TensorProto.INT64)


def _first(rewrite: Rewrite, value: str, count: str, axis: int) -> str:
    return rewrite.add("Slice", [value, np.array([0]), count, np.array([axis])])


def _cut_positions(rewrite: Rewrite, nodes: Sequence[NodeProto], count: str, length: int) -> None:
    """Position embeddings: the indices [1, L] of a Gather, or a constant [1, L, D] that is added."""
    for node in nodes:
        for index, name in enumerate(node.input):
            constant = rewrite.constant(name)
            dimensions = 2 if node.op_type == "Gather" else 3
            if constant is not None and constant.ndim == dimensions and constant.shape[:2] == (1, length):
                node.input[index] = _first(rewrite, name, count, 1)


def _takes_any_length(rewrite: Rewrite, node: NodeProto) -> bool:
    if node.op_type == "ReduceSum":  # over the words
        return _is_zero_at_padding(rewrite, node.input[0])
    if node.op_type == "Slice":  # of columns, as those of Q, K and V in one product
        axes = rewrite.constant(node.input[3]) if len(node.input) > 3 else None
        return axes is not None and axes.tolist() == [2]
    return node.op_type in ANY_LENGTH


def _is_zero_at_padding(rewrite: Rewrite, value: str) -> bool:
    """Whether `value` is the mask, or was multiplied by it."""
    node = rewrite.producer(value)
    if value == MASK or node is None:
        return value == MASK
    if node.op_type in ("Cast", "Unsqueeze", "Identity"):
        return _is_zero_at_padding(rewrite, node.input[0])
    return node.op_type == "Mul" and any(_is_zero_at_padding(rewrite, factor) for factor in node.input)
