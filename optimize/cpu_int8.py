"""Dynamic INT8 for ONNX Runtime's CPU: weights as int8, activations quantized while running, no calibration.

onnxruntime.quantization does the same, but for tables with a scale per row, and by files and nodes that ONNX Runtime
has to recognise and fuse when it opens the part; here stand the fused ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from edgefuse.optimize.cpu_rewrite import MICROSOFT, Rewrite, attribute
from edgefuse.optimize.fp16 import front_end
from edgefuse.optimize.graph import Graph

# Weights of 7 bits: on x86 without VNNI the products of 8-bit ones saturate, so other CPUs would answer differently.
WEIGHT_STEPS = 63
TABLE_STEPS = 127  # table rows are only scaled back
SMALLEST_SIDE = 16  # of a matrix; below it, quantizing costs more than it saves


def dynamic_int8(model: bytes) -> bytes:
    """The same part with INT8 matrix products and tables, its front end (see fp16.front_end) in float.

    Returns:
        `model` itself where there is nothing to quantize.
    """
    graph = Graph(model)
    in_float = front_end(graph)
    rewrite = Rewrite(graph)
    codes: dict[str, list[str]] = {}  # activation -> its codes, scale and zero point, shared by its readers
    for node in list(rewrite.nodes):
        if node.op_type == "Gather":
            _quantize_table(rewrite, node)
        elif node.name not in in_float:
            _quantize_product(rewrite, node, codes)
    return rewrite.serialize() if rewrite.is_changed else model


def _quantize_product(rewrite: Rewrite, node: NodeProto, codes: dict[str, list[str]]) -> None:
    """A MatMul or Gemm with a constant matrix, and the bias after it, become one node."""
    matrix = _matrix(rewrite, node)
    if matrix is None or min(matrix.shape) < SMALLEST_SIDE:
        return
    bias, output = _bias(rewrite, node, matrix.shape[1])
    x = node.input[0]
    if x not in codes:
        codes[x] = rewrite.add_many("DynamicQuantizeLinear", [x], 3)
    quantized, scale, zero = codes[x]
    weight, scales = _quantized(matrix, 0, WEIGHT_STEPS)
    inputs: list[str | NDArray[Any]] = [quantized, weight, scale, scales, zero, np.zeros(scales.shape, np.int8), *bias]
    rewrite.add("MatMulIntegerToFloat", inputs, instead_of=output, domain=MICROSOFT)


def _matrix(rewrite: Rewrite, node: NodeProto) -> NDArray[np.float32] | None:
    """The constant [inputs, outputs] that a MatMul or a plain Gemm multiplies by."""
    matrix = rewrite.constant(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
    if matrix is None or matrix.ndim != 2 or rewrite.constant(node.input[0]) is not None:
        return None
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
            return None
        return matrix.T if attribute(node, "transB", 0) else matrix
    return matrix


def _bias(rewrite: Rewrite, node: NodeProto, width: int) -> tuple[list[str], str]:
    """The bias that is added to a product, if it is a constant [width], and the value after that addition."""
    output = node.output[0]
    if node.op_type == "Gemm":
        return list(node.input[2:]), output
    addition = rewrite.sole_reader(output, "Add")
    for name in addition.input if addition else ():
        constant = rewrite.constant(name)
        if addition is not None and constant is not None and constant.shape == (width,):
            return [name], addition.output[0]
    return [], output


def _quantize_table(rewrite: Rewrite, node: NodeProto) -> None:
    """An embedding table becomes int8 with a scale per row."""
    table = rewrite.constant(node.input[0])
    is_table = table is not None and table.dtype == np.float32 and table.ndim == 2
    if table is None or not is_table or attribute(node, "axis", 0) != 0 or min(table.shape) < SMALLEST_SIDE:
        return
    codes, scales = _quantized(table, 1, TABLE_STEPS)
    rows = rewrite.add("Cast", [rewrite.add("Gather", [codes, node.input[1]])], to=TensorProto.FLOAT)
    scale = rewrite.add("Gather", [scales[:, None], node.input[1]])  # [..., 1]
    rewrite.add("Mul", [rows, scale], instead_of=node.output[0])


def _quantized(array: NDArray[np.float32], axis: int, steps: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes from -steps to steps, and the scale of each line along `axis`: array ~ codes * scales."""
    largest = np.maximum(np.abs(array).max(axis=axis), np.finfo(np.float32).tiny * steps)
    scales = (largest / steps).astype(np.float32)
    return np.rint(array / np.expand_dims(scales, axis)).astype(np.int8), scales
