"""INT8 for TensorRT: which nodes may compute in it, and the QuantizeLinear/DequantizeLinear pairs that say so.

The placement follows NVIDIA's own rules (ModelOpt's onnx/quantization, TensorRT's explicit quantization): Q/DQ stand on
the inputs of weighted nodes only, so that activations and normalisations stay fused to what is before them; one
activation that feeds several nodes has one Q. Everything is symmetric, since TensorRT knows no other zero point than 0,
and weights are stored as int8, four times smaller. Biases stay float: TensorRT refuses int32 biases behind a DQ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.histogram import STEPS

SMALLEST_SCALE = 6.2e-5  # just above FP16's smallest normal number; below it a scale loses bits, 1 / scale overflows
SMALLEST_TABLE = 100_000  # entries; the gather of a smaller one joins the next kernel, but not in INT8
OPSET = 19  # the first with FP16 scales; TensorRT 10.3 reads up to 20


@dataclass(frozen=True, slots=True)
class Site:
    """A node whose weight, and mostly its activation, may become INT8."""

    node: str
    op: str  # MatMul, Gemm, Conv, or Gather for an embedding table
    activation: str | None  # the value to quantize before the node; None where the other input is an index
    weight: str  # an initializer
    shape: tuple[int, ...]  # of the weight
    axis: int  # of the weight: the axis that has a scale per entry
    groups: int = 1  # of a convolution


@dataclass(frozen=True, slots=True)
class Product:
    """One of the two products of an attention: Q and K, or the softmax of that and V. INT8 wants both, or none."""

    node: str
    inputs: tuple[str, str]


def find_products(graph: Graph, excluded: Collection[str] = ()) -> list[Product]:
    """The products of every whole attention, but for those named in `excluded`."""
    products = []
    for mix in graph.nodes:
        softmax = graph.producers.get(mix.input[0]) if mix.op_type == "MatMul" else None
        if softmax is None or softmax.op_type != "Softmax":
            continue
        scores: NodeProto | None = softmax
        while scores is not None and scores.op_type in ("Softmax", "Add", "Mul", "Div", "Where"):
            behind = scores.input[1 if scores.op_type == "Where" else 0]
            scores = graph.producers.get(behind)
        if scores is None or scores.op_type != "MatMul" or {scores.name, mix.name} & set(excluded):
            continue
        if not {*scores.input, *mix.input} & set(graph.initializers):
            products += [Product(node.name, (node.input[0], node.input[1])) for node in (scores, mix)]
    return products


def find_sites(graph: Graph, excluded: Collection[str] = ()) -> list[Site]:
    """The nodes that multiply by a constant float matrix or look up its rows, but for those named in `excluded`."""
    sites = []
    for node in graph.nodes:
        table = node.op_type == "Gather" and _attribute(node, "axis", 0) == 0
        product = node.op_type in ("MatMul", "Gemm", "Conv") and not _attribute(node, "transA", 0)
        if node.name in excluded or not (table or product):
            continue
        weight, activation = node.input[0 if table else 1], None if table else node.input[0]
        tensor = graph.initializers.get(weight)
        if tensor is None or tensor.data_type != FLOAT or activation in graph.initializers:
            continue
        shape = tuple(tensor.dims)
        if len(shape) == 2 or (node.op_type == "Conv" and len(shape) > 2):
            rows_out = table or node.op_type == "Conv" or _attribute(node, "transB", 0)
            groups = _attribute(node, "group", 1)
            sites.append(Site(node.name, node.op_type, activation, weight, shape, 0 if rows_out else 1, groups))
    return sites


def refusal(site: Site, activation: tuple[int, ...]) -> str | None:
    """Why `site` had better stay FP16, or None (ModelOpt 0.47, find_nodes_from_{convs,matmul}_to_exclude).

    Args:
        site: what `find_sites` found.
        activation: shape of its activation at batch 1, () for a table.
    """
    if site.op == "Gather":
        return None if prod(site.shape) >= SMALLEST_TABLE else "a table so small that INT8 only adds a kernel"
    is_convolution = site.op == "Conv"
    if prod(activation[2:] if is_convolution else activation[:-1]) == 1:
        return "a matrix-vector product, to which INT8 only adds kernels"
    outputs, inputs = site.shape[:2] if site.axis == 0 else site.shape[::-1]
    kernel = site.shape[2:]
    if site.groups > 1:
        fits = outputs % 8 == 0 and min(kernel) >= 3
    elif is_convolution and min(outputs, inputs) < 16:
        fits = (outputs % 8 == 0 or inputs % 8 == 0) and max(outputs, inputs) >= 16 and len(set(kernel)) == 1
    else:
        fits = min(outputs, inputs) >= 16
    return None if fits else "too few channels for INT8 kernels"


def skip_inputs(graph: Graph, sites: Collection[Site]) -> dict[str, str]:
    """Residual additions after INT8 convolutions: Add node -> its skip input, which wants Q/DQ.

    Then convolution, addition and requantization fuse; with a float skip the convolution's output stays float. The
    branch is an input that a quantized convolution computes for this Add alone, the skip is the other one.
    """
    convolutions = {site.node for site in sites if site.op == "Conv"}
    skips = {}
    for node in graph.nodes:
        if node.op_type != "Add" or any(name in graph.initializers for name in node.input):
            continue
        for branch, skip in (tuple(node.input), tuple(node.input)[::-1]):
            producer = graph.producers.get(branch)
            if producer is not None and producer.name in convolutions and graph.readers[branch] == 1:
                skips[node.name] = skip
                break
    return skips


def fp16_scale(largest: NDArray[np.float32] | float) -> NDArray[np.float32]:
    """The scale that maps `largest` to 127, rounded to what FP16 can hold exactly; never below SMALLEST_SCALE."""
    scale: NDArray[np.float32] = np.maximum(np.asarray(largest, np.float32) / STEPS, SMALLEST_SCALE)
    return scale.astype(np.float16).astype(np.float32)


def quantize_weight(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """INT8 codes of `weight` and one scale for each entry of `axis`: weight ~ codes * scale."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = fp16_scale(np.abs(weight).max(axis=others))  # [weight.shape[axis]]
    codes = np.rint(weight / np.expand_dims(scales, others))
    return np.clip(codes, -STEPS, STEPS).astype(np.int8), scales


def insert(
    graph: Graph, sites: Collection[Site], thresholds: Mapping[str, float], products: Collection[Product] = ()
) -> Graph:
    """The graph with its `sites`, the residual additions between them, and the `products` of attentions in INT8.

    Args:
        graph: the FP32 part.
        sites: what may be INT8.
        thresholds: activation -> magnitude that becomes 127; every activation of `sites` and `products`, and every skip
            input.
        products: of attentions, both of each.
    """
    return _Insertion(graph, sites, thresholds, products).run()


class _Insertion:
    """One sweep in topological order; Q/DQ stand right before their first reader."""

    def __init__(
        self, graph: Graph, sites: Collection[Site], thresholds: Mapping[str, float], products: Collection[Product]
    ) -> None:
        self.graph = graph
        self.sites = {site.node: site for site in sites}
        self.products = {product.node for product in products}
        self.skips = skip_inputs(graph, sites)
        self.thresholds = thresholds
        self.nodes: list[NodeProto] = []
        self.quantized: dict[str, str] = {}  # activation -> its output of DQ
        self.weights: dict[tuple[str, int], tuple[str, ...]] = {}  # (initializer, axis) -> inputs of its DQ

    def run(self) -> Graph:
        for node in self.graph.nodes:
            new = NodeProto()
            new.CopyFrom(node)
            if site := self.sites.get(node.name):
                replaced = {site.weight: self._weight(site)}
                if site.activation is not None:
                    replaced[site.activation] = self._activation(site.activation)
                new.input[:] = [replaced.get(name, name) for name in node.input]
            elif node.name in self.products:
                new.input[:] = [self._activation(name) for name in node.input]
            elif skip := self.skips.get(node.name):
                new.input[:] = [self._activation(skip) if name == skip else name for name in node.input]
            self.nodes.append(new)
        return self.graph.rebuilt(self.nodes, opset=max(OPSET, self.graph.opset))

    def _activation(self, value: str) -> str:
        if value not in self.quantized:
            scale = self.graph.add_initializer(f"{value}_scale", fp16_scale(self.thresholds[value]))
            zero = self.graph.add_initializer(f"{value}_zero", np.int8(0))
            codes = self._append("QuantizeLinear", [value, scale, zero], f"{value}_q")
            self.quantized[value] = self._append("DequantizeLinear", [codes, scale, zero], f"{value}_dq")
        return self.quantized[value]

    def _weight(self, site: Site) -> str:
        """A DQ for each reader, since TensorRT fuses a DQ into one node; they share the codes."""
        key = site.weight, site.axis
        if key not in self.weights:
            codes, scales = quantize_weight(self.graph.array(site.weight), site.axis)
            zeros = np.zeros(scales.shape, np.int8)
            named = (("q", codes), ("scale", scales), ("zero", zeros))
            self.weights[key] = tuple(self.graph.add_initializer(f"{site.weight}_{end}", array) for end, array in named)
        return self._append("DequantizeLinear", self.weights[key], f"{site.weight}_dq", axis=site.axis)

    def _append(self, op: str, inputs: Collection[str], wish: str, **attributes: Any) -> str:
        name = self.graph.unused_name(wish)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
