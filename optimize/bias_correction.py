"""Bias correction: INT8 shifts the mean of what a layer puts out, and the layer's bias can take the shift back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721), section
4.2 and appendix D, the empirical form: the mean shift of each output channel, measured on calibration samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgefuse.optimize.calibrate import watch
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.qdq import Site, fp16_scale, quantize_weight
from edgefuse.runtime.backend import Tensors

Floats = NDArray[np.float32]


def mean_shifts(
    graph: Graph, sites: Collection[Site], thresholds: Mapping[str, float], batches: Iterable[Tensors]
) -> dict[str, Floats]:
    """By how much INT8 lowers the mean of each output channel of each site: node -> [C].

    Every site is measured on the FP32 activations, all in one pass: once the layers before it are corrected, the mean
    of what reaches it is the FP32 one. So the shift of a site is the same whatever else becomes INT8.

    Args:
        graph: the FP32 part.
        sites: what may become INT8; embedding tables and sites without a bias have no shift.
        thresholds: activation -> magnitude that becomes 127.
        batches: calibration inputs, batch first; one batch is held at a time.

    Raises:
        BundleError: a value is NaN or infinite on a sample.
    """
    graph = graph.draft()
    measured = {site.node: site for site in sites if site.activation and _bias_holder(graph, site) is not None}
    nodes: list[NodeProto] = []
    quantized: dict[str, str] = {}  # activation -> its round trip through INT8
    lost: dict[str, str] = {}  # convolution -> value that holds what it loses in the mean [C]
    rows: dict[str, str] = {}  # activation of a product, or its round trip -> value that holds its mean row [K]
    for node in graph.nodes:
        nodes.append(node)
        site = measured.get(node.name)
        if site is None or site.activation is None:
            continue
        if site.activation not in quantized:
            quantized[site.activation] = _round_trip(graph, nodes, site.activation, thresholds[site.activation])
        if site.op == "Conv":
            lost[site.node] = _compared(graph, nodes, node, site, quantized[site.activation])
            continue
        for value in (site.activation, quantized[site.activation]):
            if value not in rows:
                rows[value] = _mean(graph, nodes, value, [-1, site.shape[1 - site.axis]], [0])
    watched = [*lost.values(), *rows.values()]
    totals: dict[str, Floats] = dict.fromkeys(watched, np.zeros(1, np.float32))
    sizes: list[int] = []
    for values in watch(graph.rebuilt(nodes), watched, _sized(batches, sizes)):
        totals = {value: totals[value] + values[value] * np.float32(sizes[-1]) for value in watched}
    means = {value: total / np.float32(sum(sizes)) for value, total in totals.items()}
    shifts = {name: means[value] for name, value in lost.items()}
    for site in measured.values():
        if site.activation is not None and site.op != "Conv":
            exact, rounded = means[rows[site.activation]], means[rows[quantized[site.activation]]]  # [K]
            shifts[site.node] = _product_shift(graph, site, exact, rounded)
    return shifts


def _product_shift(graph: Graph, site: Site, exact: Floats, rounded: Floats) -> Floats:
    """Mean of x @ W minus that of the INT8 product, from the mean rows of x: a product is linear. [N]"""
    weight = graph.array(site.weight)
    codes, scales = quantize_weight(weight, site.axis)
    in_int8 = codes * np.expand_dims(scales, 1 - site.axis)
    if site.axis == 0:  # [N, K]
        weight, in_int8 = weight.T, in_int8.T
    shift: Floats = exact @ weight - rounded @ in_int8
    return shift


def corrected(graph: Graph, sites: Collection[Site], shifts: Mapping[str, Floats]) -> Graph:
    """The graph with the biases of `sites` raised by their `shifts`, for them to become INT8; still FP32."""
    graph = graph.draft()
    changed: dict[str, NodeProto] = {}
    for site in sites:
        holder = _bias_holder(graph, site)
        if holder is not None and site.node in shifts:
            node, index = holder
            shift = shifts[site.node]
            bias = graph.array(node.input[index]) if index < len(node.input) else np.zeros_like(shift)
            new = NodeProto()
            new.CopyFrom(node)
            raised = graph.add_initializer(f"{site.node}_corrected_bias", bias + shift)
            new.input[:] = [*node.input[:index], raised, *node.input[index + 1 :]]
            changed[node.name] = new
    return graph.rebuilt([changed.get(node.name, node) for node in graph.nodes]) if changed else graph


def _sized(batches: Iterable[Tensors], sizes: list[int]) -> Iterator[Tensors]:
    """The batches, the size of each noted when it is handed out: the last one may be smaller."""
    for batch in batches:
        sizes.append(len(next(iter(batch.values()))))
        yield batch


def _bias_holder(graph: Graph, site: Site) -> tuple[NodeProto, int] | None:
    """The node that adds the bias of a site, and which of its inputs that is."""
    node = next(node for node in graph.nodes if node.name == site.node)
    channels = site.shape[site.axis]
    if site.op == "Conv":
        return node, 2
    if site.op == "Gemm" and len(node.input) > 2:
        beta = next((attribute.f for attribute in node.attribute if attribute.name == "beta"), 1.0)
        return (node, 2) if beta == 1.0 and _is_vector(graph, node.input[2], channels) else None
    readers = graph.consumers(node.output[0])
    if site.op == "MatMul" and len(readers) == 1 == graph.readers[node.output[0]] and readers[0].op_type == "Add":
        for index, value in enumerate(readers[0].input):
            if _is_vector(graph, value, channels):
                return readers[0], index
    return None


def _is_vector(graph: Graph, value: str, size: int) -> bool:
    return value in graph.initializers and tuple(graph.initializers[value].dims) == (size,)


def _round_trip(graph: Graph, nodes: list[NodeProto], activation: str, threshold: float) -> str:
    """Append a Q/DQ pair of `activation`; returns its output."""
    scale = graph.add_initializer(f"{activation}_shift_scale", fp16_scale(threshold))
    zero = graph.add_initializer(f"{activation}_shift_zero", np.int8(0))
    codes, back = graph.unused_name(f"{activation}_shift_q"), graph.unused_name(f"{activation}_shift_dq")
    nodes.append(helper.make_node("QuantizeLinear", [activation, scale, zero], [codes], name=codes))
    nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zero], [back], name=back))
    return back


def _compared(graph: Graph, nodes: list[NodeProto], node: NodeProto, site: Site, activation: str) -> str:
    """Append the INT8 twin of a convolution and the mean per channel of FP32 minus INT8; returns its name. [C]"""
    codes, scales = quantize_weight(graph.array(site.weight), site.axis)
    others = tuple(axis for axis in range(codes.ndim) if axis != site.axis)
    weight = graph.add_initializer(f"{site.weight}_shift", codes * np.expand_dims(scales, others))
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.name = twin.output[0] = graph.unused_name(f"{node.name}_shift_twin")
    twin.input[:2] = [activation, weight]
    nodes.append(twin)
    difference = graph.unused_name(f"{node.name}_shift_lost")
    nodes.append(helper.make_node("Sub", [node.output[0], twin.output[0]], [difference], name=difference))
    return _mean(graph, nodes, difference, [0, site.shape[site.axis], -1], [0, 2])


def _mean(graph: Graph, nodes: list[NodeProto], value: str, shape: list[int], axes: list[int]) -> str:
    """Append the mean of `value`, reshaped to `shape`, over `axes`; returns its name."""
    flat, mean = (graph.unused_name(f"{value}_shift_{what}") for what in ("flat", "mean"))
    to, over = (graph.add_initializer(f"{value}_shift_ints", np.array(ints)) for ints in (shape, axes))
    nodes.append(helper.make_node("Reshape", [value, to], [flat], name=flat))
    nodes.append(helper.make_node("ReduceMean", [flat, over], [mean], name=mean, keepdims=0))
    return mean
