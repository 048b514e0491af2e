"""Q/DQ where INT8 does not come of it, or costs more than it saves; the rules of NVIDIA's ModelOpt, tried on plans.

All of these are silent: TensorRT computes what the model says, in float or with more kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from edgefuse.optimize.finding import Finding
from edgefuse.optimize.view import Scope, Shape, View, elements, label

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
LONGEST_INT8_ATTENTION = 512  # tokens: ModelOpt 0.47, find_nodes_from_mha_to_exclude
_BETWEEN = frozenset({"Mul", "Div", "Add", "Sub", "Where", "Cast", "Reshape"})  # scores ... Softmax


def placement_findings(view: View) -> Iterator[Finding]:
    """What the Q/DQ round products do not reach."""
    for scope in view.scopes():
        in_attention = set[int]()
        for node in scope.nodes:
            if node.op_type == "Softmax":
                yield from _attention(scope, node, in_attention)
        for node in scope.nodes:
            if node.op_type in _PRODUCTS and len(node.input) > 1 and id(node) not in in_attention:
                yield from _product(view, scope, node)


def _silent(node: NodeProto, rule: str, effect: str, mend: str) -> Finding:
    return Finding(label(node), rule, "silent", effect, mend)


def _dequantized(scope: Scope, name: str) -> bool:
    node = scope.producers.get(name)
    return node is not None and node.op_type == "DequantizeLinear"


def _is_weight(scope: Scope, name: str) -> bool:
    """A constant, or one behind a Q and DQ."""
    return name in scope.static


def _product(view: View, scope: Scope, node: NodeProto) -> Iterator[Finding]:
    first, second = (_dequantized(scope, name) for name in node.input[:2])
    if first and second:
        if scope is view.main and (rows := _rows_or_columns(view.at_batch_1, node)) is not None:
            effect = f"a matrix-vector product ({rows} at batch 1), to which INT8 only adds kernels"
            yield _silent(node, "gemv", effect, "leave out its Q and DQ: it stays FP16")
    elif second and _is_weight(scope, node.input[1]) and node.op_type.startswith("Conv"):
        effect = "its weight is quantized and its activation is not: a float convolution and a kernel that dequantizes"
        yield _silent(node, "weight-only", effect, "quantize its activation too, or leave the weight in float")
    elif first and not second and not _is_weight(scope, node.input[0]):
        effect = "its activation is quantized and its weight is not: it runs in float behind a Q and DQ"
        yield _silent(node, "activation-only", effect, "quantize its weight too, or take the Q and DQ away")


def _rows_or_columns(scope: Scope, node: NodeProto) -> str | None:
    """Which side of a product is 1; None where none is, or a size is not known.

    Args:
        scope: the graph at batch 1.
    """
    result: Shape | None = scope.shape(node.output[0])
    if result is None or len(result) < 2:
        return None
    if node.op_type.startswith("Conv"):
        return "one pixel" if elements(result[2:]) == 1 else None
    if elements(result[:-1]) == 1:
        return "one row"
    return "one column" if result[-1] == 1 else None


def _attention(scope: Scope, softmax: NodeProto, in_attention: set[int]) -> Iterator[Finding]:
    """Both products of an attention quantize all four inputs, or none; anything between loses the fused kernel."""
    scores = _scores(scope, softmax)
    contexts = [node for node in _behind(scope, softmax) if node.op_type == "MatMul"]
    if scores is None or not contexts:
        return
    for context in contexts:
        in_attention.update((id(scores), id(context)))
        inputs = [*scores.input[:2], *context.input[:2]]
        quantized = [_dequantized(scope, name) for name in inputs]
        if any(quantized) and not all(quantized):
            effect = (
                f"{sum(quantized)} of the 4 inputs of this attention (Q, K, V, softmax) are quantized; "
                "only 0 or 4 of 4 fuse into one kernel"
            )
            mend = "quantize all four, each DQ right before its MatMul (scaling and transposing before the Q), or none"
            yield _silent(context, "partial-attention", effect, mend)
        shape = scope.shape(softmax.output[0]) or (None,)
        if all(quantized) and (shape[-1] or 0) > LONGEST_INT8_ATTENTION:
            effect = f"INT8 attention over {shape[-1]} tokens; it fuses up to {LONGEST_INT8_ATTENTION}"
            yield _silent(context, "long-attention", effect, "leave the two products in FP16")


def _scores(scope: Scope, softmax: NodeProto) -> NodeProto | None:
    """The MatMul of two activations whose product, scaled and masked, enters a Softmax."""
    waiting, seen = list(softmax.input[:1]), set[str]()
    while waiting:
        name = waiting.pop()
        node = scope.producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "MatMul":
            return None if any(_is_weight(scope, source) for source in node.input) else node
        if node.op_type in _BETWEEN:
            waiting += node.input
    return None


def _behind(scope: Scope, node: NodeProto) -> Iterator[NodeProto]:
    """The readers of a value, through a Q and DQ, a Cast or a Dropout."""
    waiting, seen = [node.output[0]], set[str]()
    while waiting:
        name = waiting.pop()
        for reader in scope.readers.get(name, ()):
            through = reader.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast", "Dropout", "Where", "Identity")
            if through and reader.output[0] not in seen:
                seen.add(reader.output[0])
                waiting.append(reader.output[0])
            elif not through:
                yield reader
