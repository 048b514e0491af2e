"""Says which kernels of a plan a better graph would not have: those that only convert, rescale or activate.

A kernel that the compiler generated carries the operators that it runs in its name, four letters each:
`__myl_MulAddSiluMulMinMaxRounCast_myl0_13` scales, adds a bias, applies SiLU and quantizes. Its metadata name the ONNX
nodes, those whose scale or bias it applies included, so both are asked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from edgefuse.optimize.plan import Kernel, Tensor

# The cause of a kernel that need not be, and the mend.
REQUANTIZE = "requantize"
DEQUANTIZE = "dequantize"
REFORMAT = "reformat"
COPY = "attention's result copied"
PADDING = "attention's heads padded"
WEIGHTS = "weights dequantized every run"
ACTIVATION = "activation not fused"
EPILOGUE = "scale and bias not fused"
MENDS = {
    REQUANTIZE: "put the Q behind a node whose kernel can write codes (LayerNormalization, an activation), or leave "
    "its reader in FP16",
    DEQUANTIZE: "give its reader codes (Q/DQ on all that it multiplies), or leave its producer in FP16",
    REFORMAT: "let both neighbours use one layout and type; move a transpose next to a node that computes, and pool "
    "with AveragePool instead of ReduceMean",
    COPY: "quantize all four inputs of the attention's products, or leave the product behind it in FP16",
    PADDING: "make the width of a head a multiple of 8",
    WEIGHTS: "quantize the activation too, or keep the weight in float; splitting a product's result along its "
    "channels does it as well: reshape to heads first and split those",
    ACTIVATION: "TensorRT-RTX fuses activations into FP16 products, not into INT8 ones; where a ReduceMean over planes "
    "follows, pool with AveragePool",
    EPILOGUE: "scales per channel, and biases before a transpose, are applied behind the product; make one product of "
    "those that read the same, as Q, K and V",
}

ACTIVATIONS = frozenset({
    "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Sigmoid",
    "Softplus", "Tanh",
})  # fmt: skip
_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "LayerNormalization", "LogSoftmax", "MaxPool", "Softmax"})
_FLOATS = ("FP8", "Half", "BFloat16", "Float")
_NODES = {  # the operators among which the node at fault is
    REQUANTIZE: {"QuantizeLinear"},
    DEQUANTIZE: {"DequantizeLinear"},
    WEIGHTS: {"DequantizeLinear"},
    REFORMAT: {"Transpose", "Concat", "Slice", "Split", "Cast"},
    COPY: {"Transpose"},
    PADDING: {"Softmax"},
    ACTIVATION: ACTIVATIONS,
    EPILOGUE: {"MatMul", "Gemm", "Conv"},
}

_GENERATED = re.compile(r"__myl_(\w+?)_myl\d")
_WORD = re.compile(r"[A-Z][a-z0-9]*")
_QUANTIZING = re.compile(r"(Mul)?MinMaxRounCast")
_MOVING = frozenset({"Cast", "Conc", "Copy", "Expa", "Move", "Resh", "Slic", "Sque", "Tran", "Unsq"})
_SCALING = frozenset({"Add", "Mul"})
_REDUCING = frozenset({"Argm", "Exp", "Gath", "Maxr", "Mean", "Sum"})
_MOVING_KINDS = ("Reformat", "Shuffle", "Slice", "Concat", "Cast", "Quantize", "Dequantize", "Copy")  # of TensorRT 10


@dataclass(frozen=True, slots=True)
class Surplus:
    """A kernel that a better graph would not have."""

    cause: str  # a key of MENDS
    kernel: Kernel
    node: str  # the ONNX node at fault; "" where the plan names none


def surplus(kernels: Sequence[Kernel], products: Collection[int], ops: Mapping[str, str]) -> list[Surplus]:
    """The kernels that only convert, rescale or activate what another kernel could have given in that form.

    Args:
        kernels: of one plan.
        products: indices of those that multiply matrices or convolve.
        ops: operator of each ONNX node.
    """
    makers = {tensor.name: index for index, kernel in enumerate(kernels) for tensor in kernel.outputs}
    fused = [kernel for kernel in kernels if kernel.is_fused_attention]
    beside_attention = {tensor.name for kernel in fused for tensor in (*kernel.inputs, *kernel.outputs)}
    found = []
    for index, kernel in enumerate(kernels):
        if index in products or not kernel.is_launched or kernel.is_fused_attention:
            continue
        before = {t.name: kernels[makers[t.name]] for t in kernel.inputs if makers.get(t.name) in products}
        cause = _cause(kernel, before, ops)
        if cause == REFORMAT and beside_attention.intersection(t.name for t in (*kernel.inputs, *kernel.outputs)):
            cause = PADDING if _words(kernel) & {"Conc", "Slic"} else COPY
        if cause:
            named = [node for node in kernel.onnx_nodes if ops.get(node) in _NODES[cause]]
            found.append(Surplus(cause, kernel, next(iter(named or kernel.onnx_nodes), "")))
    return found


def computes_in(kernel: Kernel) -> str:
    """The type that a product's kernel multiplies in: Int8 only where what it multiplies is Int8 on both sides."""
    read = (*kernel.inputs, *kernel.constants)
    codes = sum(tensor.type == "Int8" for tensor in read)
    if codes >= 2 or (codes == 1 and len(read) == 1):  # a plan may leave the weights out
        return "Int8"
    types = {tensor.type for tensor in read if prod(tensor.dims) != 1}
    return next((name for name in _FLOATS if name in types), "")


def _cause(kernel: Kernel, before: Mapping[str, Kernel], ops: Mapping[str, str]) -> str:
    """Why the kernel need not be; "" where it has work of its own. `before`: tensor -> the product that made it."""
    words = _words(kernel)
    if not kernel.inputs and kernel.constants and kernel.outputs:
        return WEIGHTS
    if kernel.kind in _MOVING_KINDS or (words and words <= _MOVING):
        return _conversion(kernel)
    if not before:
        return ""
    if words and words <= _MOVING | _SCALING:
        alone = all(tensor.name in before for tensor in kernel.inputs)  # else it adds two branches
        codes = all(tensor.type == "Int8" for tensor in kernel.outputs)
        return (REQUANTIZE if codes else EPILOGUE) if alone and kernel.constants else ""
    run = {ops.get(node, "") for node in kernel.onnx_nodes}
    reduces = run & _POOLING or words & _REDUCING or any(op.startswith("Reduce") for op in run)
    made = min(_size(tensor) for product in before.values() for tensor in product.outputs)
    widens = any(_size(tensor) > made for tensor in kernel.outputs)  # a gate, made small, meets its planes
    return ACTIVATION if run & ACTIVATIONS and not (reduces or widens) else ""


def _conversion(kernel: Kernel) -> str:
    read = {tensor.type for tensor in kernel.inputs}
    written = {tensor.type for tensor in kernel.outputs}
    if "Int8" in written and not read <= {"Int8"}:
        return REQUANTIZE
    return DEQUANTIZE if "Int8" in read and written & set(_FLOATS) else REFORMAT


def _words(kernel: Kernel) -> set[str]:
    """The operators in a generated kernel's name, those that quantize its result left out."""
    match = _GENERATED.match(kernel.name)
    return set(_WORD.findall(_QUANTIZING.sub("Cast", match[1]))) if match else set()


def _size(tensor: Tensor) -> int:
    return prod(tensor.dims)
