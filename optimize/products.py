"""What a graph multiplies: every convolution and matrix product with its multiply-accumulates, and every attention.

Counted at batch 1: for each element of a convolution's output one per weight of its filter, for each element of a
matrix product one per element of the row, for each step of a recurrent layer one per weight of its gates (Sze et al.
2017, Efficient Processing of Deep Neural Networks, III).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from edgefuse.optimize.view import Scope, attribute, elements, label

LINEAR, CONVOLUTION, ATTENTION = "linear", "convolution", "of two activations"
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_RECURRENT = ("GRU", "LSTM", "RNN")
_PASSED_BY = frozenset({
    "Add", "Cast", "DequantizeLinear", "Div", "Dropout", "Expand", "Identity", "Mul", "QuantizeLinear", "Sub", "Where",
})  # fmt: skip  # what may stand between an attention's products and its softmax


@dataclass(frozen=True, slots=True)
class Product:
    """One node that multiplies."""

    node: str  # its name
    op: str  # MatMul, Gemm, Conv, ConvTranspose, GRU, LSTM, RNN
    kind: str  # LINEAR: a matrix product with a constant weight; CONVOLUTION; ATTENTION
    macs: int | None  # multiply-accumulates at batch 1, None where a size is free
    wants_int8: bool  # both of what it multiplies comes out of a DequantizeLinear


@dataclass(frozen=True, slots=True)
class Attention:
    """A softmax between two products of activations."""

    softmax: str
    scores: str  # the product before it
    mixed: str  # the product behind it
    nodes: frozenset[str]  # these three


def products(scope: Scope) -> list[Product]:
    """The nodes that multiply matrices, convolve or recur, in order; `scope` is a graph at batch 1 (view.py)."""
    found = []
    for node in scope.nodes:
        if node.op_type in (*_CONVOLUTIONS, *_RECURRENT, "MatMul", "Gemm") and not _is_constant(node, scope):
            wants_int8 = all(_dequantized(name, scope) for name in node.input[:2])
            found.append(Product(label(node), node.op_type, _kind(node, scope), _macs(node, scope), wants_int8))
    return found


def attentions(scope: Scope) -> list[Attention]:
    """The softmaxes between two products of activations, in order."""
    found = []
    for node in scope.nodes:
        if node.op_type == "Softmax":
            before = next((_products_before(node.input[0], scope)), None)
            behind = next((_products_behind(node.output[0], scope)), None)
            if before is not None and behind is not None:
                names = label(node), label(before), label(behind)
                found.append(Attention(*names, frozenset(names)))
    return found


def _kind(node: NodeProto, scope: Scope) -> str:
    if node.op_type in _CONVOLUTIONS:
        return CONVOLUTION
    return LINEAR if any(name in scope.static for name in node.input[:2]) else ATTENTION


def _is_constant(node: NodeProto, scope: Scope) -> bool:
    """Whether it is computed before the model runs."""
    return node.output[0] in scope.static


def _macs(node: NodeProto, scope: Scope) -> int | None:
    left, right, out = (scope.shape(name) for name in (node.input[0], node.input[1], node.output[0]))
    if not left or not right:
        return None
    if node.op_type in _RECURRENT:  # input [steps, batch, .] whatever the layout; both weights [directions, gates, .]
        steps, gates, again = elements(left[:2]), elements(right), elements(scope.shape(node.input[2]))
        return None if steps is None or gates is None or again is None else steps * (gates + again)
    if node.op_type in _CONVOLUTIONS:
        turned = node.op_type == "ConvTranspose"  # there each element of the input meets the filter
        places, filter_size = elements(left if turned else out), elements(right[1:])
        return None if places is None or filter_size is None else places * filter_size
    row = left[0] if node.op_type == "Gemm" and attribute(node, "transA", 0) else left[-1]
    places = elements(out)
    return None if places is None or row is None else places * row


def _dequantized(name: str, scope: Scope) -> bool:
    """Whether a DequantizeLinear makes it, but for its shape."""
    node = scope.producers.get(name)
    while node is not None and node.op_type in ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"):
        node = scope.producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _products_before(name: str, scope: Scope) -> Iterator[NodeProto]:
    """The products of activations that `name` is made of, through what _PASSED_BY names."""
    waiting, seen = [name], set[str]()
    while waiting:
        node = scope.producers.get(waiting.pop())
        if node is None or label(node) in seen:
            continue
        seen.add(label(node))
        if node.op_type == "MatMul" and _kind(node, scope) == ATTENTION:
            yield node
        elif node.op_type in _PASSED_BY:
            waiting += [given for given in node.input if given and given not in scope.static]


def _products_behind(name: str, scope: Scope) -> Iterator[NodeProto]:
    """The products of activations that read `name`, through what _PASSED_BY names."""
    waiting, seen = [name], set[str]()
    while waiting:
        for node in scope.readers.get(waiting.pop(), []):
            if label(node) in seen:
                continue
            seen.add(label(node))
            if node.op_type == "MatMul" and _kind(node, scope) == ATTENTION:
                yield node
            elif node.op_type in _PASSED_BY:
                waiting += node.output
