"""Any ONNX model as something that can be asked, also one that is broken, foreign, huge or full of inner graphs.

graph.py edits our own parts and refuses all others; here as little as possible is refused. The large weights leave the
model before its types and shapes are inferred, since onnx copies a model several times over for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from edgefuse.optimize.onnx_reader import bodies, graphs_in, inferred, inlined, parsed
from edgefuse.optimize.schemas import fault
from edgefuse.optimize.weights import Weights
from edgefuse.runtime.errors import BundleError

Shape = tuple[int | None, ...]  # None: a size that only the running model knows
ONNX = ("", "ai.onnx")  # both names mean the standard operators
_CASTS = {
    kind: helper.tensor_dtype_to_np_dtype(kind)
    for kind in TensorProto.DataType.values()
    if kind not in (TensorProto.UNDEFINED, TensorProto.STRING)
}
_KINDS = tuple(kind for kind in AttributeProto.AttributeType.values() if kind != AttributeProto.UNDEFINED)
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"})


class View:
    """A model, its weights apart.

    Args:
        model: a serialized ONNX model.
        folder: where weights that are not in the model itself are; None where there can be none.

    Raises:
        BundleError: not ONNX, cut off, or its weights are missing or not as many as their shape says.
    """

    def __init__(self, model: bytes, folder: Path | None = None) -> None:
        whole = parsed(model)
        self.weights = Weights(whole, folder)
        self.functions = [function.name for function in whole.functions]
        self.model = inferred(inlined(whole))
        self.opset = max((int(entry.version) for entry in self.model.opset_import if entry.domain in ONNX), default=1)
        self.main = Scope(self.model.graph, self.weights, self.opset)

    def scopes(self) -> Iterator[Scope]:
        """The main graph, then the graphs inside its nodes, and inside theirs."""
        waiting = [self.main]
        while waiting:
            scope = waiting.pop()
            yield scope
            waiting += scope.inner

    @cached_property
    def at_batch_1(self) -> Scope:
        """The main graph with the first size of every input 1, where it is not fixed, and so wherever it has a name."""
        model = ModelProto()
        model.CopyFrom(self.model)
        model.graph.ClearField("value_info")
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.type.HasField("tensor_type")]
        batch = {dims[0].dim_param for dims in shapes if dims and not dims[0].HasField("dim_value")}
        for dim in (dim for dims in shapes for index, dim in enumerate(dims) if index == 0 or dim.dim_param):
            if not dim.HasField("dim_value") and dim.dim_param in batch:
                dim.dim_value = 1
        return Scope(inferred(model).graph, self.weights, self.opset)

    def serialize(self) -> bytes:
        """The model as it is now, with its weights, its local functions in line and without inferred types."""
        whole = ModelProto()
        whole.CopyFrom(self.model)
        for graph in graphs_in(whole.graph):
            graph.ClearField("value_info")
        self.weights.put_back(whole)
        try:
            return bytes(whole.SerializeToString())
        except (EncodeError, ValueError):
            raise BundleError("the model is over 2 GB, more than one ONNX file can hold; mend what made it") from None


class Scope:
    """One graph: the main one, or the body of an If, Loop or Scan. Names it does not define are its parent's."""

    def __init__(self, graph: GraphProto, weights: Weights, opset: int, parent: Scope | None = None) -> None:
        self.graph, self.weights, self.parent = graph, weights, parent
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.producers: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        self._values = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
        self.malformed = [(node, told) for node in graph.node if (told := fault(node, opset))]
        odd = {id(node) for node, _ in self.malformed}
        self.nodes = [node for node in graph.node if id(node) not in odd]
        for node in self.nodes:
            self.producers.update((name, node) for name in node.output if name)
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            if node.op_type == "Constant" and len(node.output) == 1 and (tensor := _constant(node)) is not None:
                self.tensors[node.output[0]] = tensor
        self.inner = [Scope(body, weights, opset, self) for node in self.nodes for body in bodies(node)]

    def knows(self, name: str) -> bool:
        """Whether anything defines `name` here or around."""
        here = name in self.producers or name in self.tensors or name in self.inputs
        return here or (self.parent is not None and self.parent.knows(name))

    def tensor(self, name: str) -> TensorProto | None:
        """The constant `name`, None where it is computed; its content may be apart, see `array`."""
        if name in self.tensors:
            return self.tensors[name]
        if self.parent is None or name in self.producers or name in self._values:
            return None
        return self.parent.tensor(name)

    def array(self, name: str) -> NDArray[Any] | None:
        """The content of a constant, also behind Identity and Cast nodes; None where it is computed.

        Raises:
            BundleError: the constant is damaged.
        """
        kinds, seen = [], set[str]()
        while (tensor := self.tensor(name)) is None:
            node = self.producers.get(name)
            if node is None or node.op_type not in ("Identity", "Cast") or name in seen:
                return None
            seen.add(name)
            if node.op_type == "Cast":
                kinds.append(attribute(node, "to", 0))
            name = node.input[0]
        array = self.weights.array(tensor)
        with np.errstate(over="ignore", invalid="ignore"):
            for kind in reversed([kind for kind in kinds if kind in _CASTS]):
                array = array.astype(_CASTS[kind])
        return array

    def type(self, name: str) -> int:
        """Element type, a number of TensorProto.DataType; 0 where it is unknown or no tensor."""
        tensor = self.tensor(name)
        if tensor is not None:
            return int(tensor.data_type)
        if name in self._values:
            return int(self._values[name].type.tensor_type.elem_type)
        return self.parent.type(name) if self.parent is not None else 0

    def shape(self, name: str) -> Shape | None:
        """Sizes of a tensor; None where not even their number is known."""
        tensor = self.tensor(name)
        if tensor is not None:
            return tuple(tensor.dims)
        if name in self._values:
            kind = self._values[name].type.tensor_type
            if not kind.HasField("shape"):
                return None
            return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        return self.parent.shape(name) if self.parent is not None else None

    @cached_property
    def static(self) -> frozenset[str]:
        """What can be computed before the model runs: constants, sizes of fixed shapes, and what is made of those."""
        found = set(self.parent.static if self.parent is not None else ())
        found.update(self.tensors)
        for node in self.nodes:
            sizes = node.op_type in ("Shape", "Size") and None not in (self.shape(node.input[0]) or (None,))
            if sizes or (node.op_type not in RANDOM and all(name in found for name in node.input if name)):
                found.update(node.output)
        return frozenset(found - {""})


def elements(shape: Shape | None) -> int | None:
    """How many elements a tensor has; None where that is not known."""
    sizes = [size for size in shape or () if size is not None]
    return prod(sizes) if shape is not None and len(sizes) == len(shape) else None


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute, strings as str; `default` also where it is of another kind than that."""
    for found in node.attribute:
        if found.name == name and not found.ref_attr_name and found.type in _KINDS:
            value = helper.get_attribute_value(found)
            value = value.decode(errors="replace") if isinstance(value, bytes) else value
            return value if default is None or isinstance(value, type(default)) else default
    return default


def label(node: NodeProto) -> str:
    """What to call a node: its name, else its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)


def _constant(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node makes; None for the forms that TensorRT has not."""
    for found in node.attribute:
        if found.name == "value" and found.type == AttributeProto.TENSOR:
            tensor: TensorProto = found.t
            return tensor
        if found.name in ("value_float", "value_floats", "value_int", "value_ints"):
            value = np.asarray(helper.get_attribute_value(found))
            kind = TensorProto.FLOAT if "float" in found.name else TensorProto.INT64
            return helper.make_tensor(node.output[0], kind, value.shape, value.ravel().tolist())
    return None
