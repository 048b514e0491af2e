"""Merges the three products that make Q, K and V of an attention into one.

Exact but for the order of sums. One quantized input serves one large product, and the kernel behind it splits the
heads of all three, where there were three kernels. The form matters: the result is reshaped to [B, L, 3, H, d],
transposed and indexed. Behind a Split of the last axis TensorRT-RTX 1.7 undoes the merge, and then computes in float on
weights that it dequantizes at every run. It does so too where one Transpose of four axes turns K; torch's exporter
turns K between two Reshapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from edgefuse.optimize.graph import FLOAT, Graph

HEADS_FIRST = [0, 2, 1, 3]  # [B, L, H, d] to [B, H, L, d]


@dataclass(frozen=True, slots=True)
class _Branch:
    """One of Q, K and V: x @ weight + bias, reshaped to [B, L, H, d] and transposed to [B, H, L, d]."""

    nodes: tuple[NodeProto, ...]  # MatMul, Add, Reshape, Transpose
    weight: str  # initializer [D, H * d]
    bias: str  # initializer [H * d]
    shape: tuple[int, ...]  # that the Reshape asks for: -1, L, H, d

    @property
    def product(self) -> NodeProto:
        """The first of its nodes."""
        return self.nodes[0]


def merge_attention(graph: Graph) -> Graph:
    """The graph with one product for Q, K and V wherever they are made from the same value in the same shape."""
    groups: dict[tuple[str, tuple[int, ...]], list[_Branch]] = defaultdict(list)
    for node in graph.nodes:
        branch = _branch(graph, node)
        if branch is not None:
            groups[node.input[0], branch.shape].append(branch)
    merged = [branches for branches in groups.values() if len(branches) > 1]
    if not merged:
        return graph
    first = {branches[0].product.name: branches for branches in merged}
    gone = {node.name for branches in merged for branch in branches for node in branch.nodes}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.name in first:
            nodes += _merged(graph, first[node.name])
        elif node.name not in gone:
            nodes.append(node)
    return graph.rebuilt(nodes)


def _branch(graph: Graph, product: NodeProto) -> _Branch | None:
    if product.op_type != "MatMul" or not _is_constant(graph, product.input[1], ndim=2):
        return None
    nodes = [product]
    for op_type in ("Add", "Reshape", "Transpose"):
        readers = graph.consumers(nodes[-1].output[0])
        if len(readers) != 1 or readers[0].op_type != op_type or nodes[-1].output[0] in graph.outputs:
            return None
        nodes.append(readers[0])
    _, add, reshape, transpose = nodes
    bias = next((name for name in add.input if name != product.output[0]), "")
    shape = graph.initializers.get(reshape.input[1])
    if not _is_constant(graph, bias, ndim=1) or shape is None:
        return None
    target = tuple(int(size) for size in graph.array(reshape.input[1]))
    if len(target) != len(HEADS_FIRST) or [list(of.ints) for of in transpose.attribute] != [HEADS_FIRST]:
        return None
    widths = {graph.shape(product.input[1])[1], *graph.shape(bias), target[2] * target[3]}
    if len(widths) > 1:  # the Reshape splits more than the heads, or one bias serves all
        return None
    return _Branch(tuple(nodes), product.input[1], bias, target)


def _is_constant(graph: Graph, name: str, ndim: int) -> bool:
    tensor = graph.initializers.get(name)
    return tensor is not None and tensor.data_type == FLOAT and len(tensor.dims) == ndim


def _merged(graph: Graph, branches: Sequence[_Branch]) -> list[NodeProto]:
    source = branches[0].product.input[0]
    weight = np.concatenate([graph.array(branch.weight) for branch in branches], axis=1)  # [D, n * H * d]
    bias = np.concatenate([graph.array(branch.bias) for branch in branches])  # [n * H * d]
    batch, length, heads, width = branches[0].shape
    shape = np.array([batch, length, len(branches), heads, width], np.int64)
    wish = f"{branches[0].product.name}_qkv"
    names = [graph.unused_name(f"{wish}{end}") for end in ("", "_biased", "_split", "_heads")]
    constants = [
        graph.add_initializer(f"{wish}{end}", array)
        for end, array in (("_weight", weight), ("_bias", bias), ("_shape", shape))
    ]
    nodes = [
        helper.make_node("MatMul", [source, constants[0]], [names[0]], name=names[0]),
        helper.make_node("Add", [names[0], constants[1]], [names[1]], name=names[1]),
        helper.make_node("Reshape", [names[1], constants[2]], [names[2]], name=names[2]),  # [B, L, n, H, d]
        helper.make_node("Transpose", [names[2]], [names[3]], name=names[3], perm=[2, 0, 3, 1, 4]),  # [n, B, H, L, d]
    ]
    for number, branch in enumerate(branches):
        index = graph.add_initializer(f"{wish}_index", np.int64(number))
        name = graph.unused_name(f"{wish}_{number}")
        nodes.append(helper.make_node("Gather", [names[3], index], [branch.nodes[-1].output[0]], name=name, axis=0))
    return nodes
