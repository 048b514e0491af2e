"""Mends what is mechanical of what the checks find: `edgefuse check --fix`.

Each function below, and in mend_qdq.py, is one kind of mend. It edits the model in place and tells what it did; types
change on the way, so every one of them gets a fresh view. What is not here needs a decision, or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from edgefuse.optimize import mend_qdq
from edgefuse.optimize.form_rules import OUTPUTS
from edgefuse.optimize.fp16 import LARGEST_FP16, MASKED
from edgefuse.optimize.view import Scope, View, label


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
                node.input[index] = mend_qdq.add_constant(scope, finite, f"{name}_finite")
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
    mend_qdq.biases,
    mend_qdq.weights,
    mend_qdq.activations,
    mend_qdq.scale_types,
    mend_qdq.mixed_scales,
    _masks,
)


def _copy(node: NodeProto) -> NodeProto:
    new = NodeProto()
    new.CopyFrom(node)
    return new
