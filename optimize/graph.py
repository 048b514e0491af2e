"""An ONNX graph that can be asked and edited: who makes a value, who reads it, what type it has."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgefuse.runtime.errors import BundleError

FLOAT = int(TensorProto.FLOAT)
FLOAT16 = int(TensorProto.FLOAT16)
_SMALL = 256  # elements of a constant whose values may say a shape


class Graph:
    """One part while it is edited.

    Args:
        model: a serialized ONNX model, or a model, which the graph keeps and edits.

    Raises:
        BundleError: not ONNX, not valid, or with control flow, whose inner graphs are not edited.
    """

    def __init__(self, model: bytes | ModelProto) -> None:
        try:
            self.model = _inferred(onnx.load_model_from_string(model) if isinstance(model, bytes) else model)
        except Exception as error:  # protobuf and onnx share no base class
            raise BundleError(
                f"the part is not a valid ONNX graph ({_one_line(error)}); export the bundle again"
            ) from None
        _refuse_control_flow(self.model.graph)
        _constants_to_initializers(self.model.graph)
        self._index()

    def _index(self) -> None:
        graph = self.model.graph
        self.nodes: list[NodeProto] = list(graph.node)  # in topological order, as ONNX demands
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.producers: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: Counter[str] = Counter(name for node in self.nodes for name in node.input if name)
        self.readers.update(self.outputs)
        self.types: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.types.update({name: tensor.data_type for name, tensor in self.initializers.items()})
        self._shapes: dict[str, tuple[int, ...]] = {
            value.name: tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._names = {*self.types, *self.producers, *(node.name for node in self.nodes)}
        seen: set[str] = set()
        for node in self.nodes:  # nodes are found by name, which ONNX lets be empty or shared
            if not node.name or node.name in seen:
                node.name = self.unused_name(node.name or node.op_type)
            seen.add(node.name)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next(int(entry.version) for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))

    def consumers(self, value: str) -> list[NodeProto]:
        """The nodes that read `value`."""
        return [node for node in self.nodes if value in node.input]

    def array(self, initializer: str) -> NDArray[Any]:
        """The content of an initializer."""
        return numpy_helper.to_array(self.initializers[initializer])

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape of `value` at batch 1: a size that is free counts as 1; () where it is not known."""
        if value in self.initializers:
            return tuple(self.initializers[value].dims)
        return self._shapes.get(value, ())

    def size_bytes(self, value: str) -> int:
        """Bytes of `value` at batch 1."""
        kind = self.types.get(value, FLOAT)
        return int(prod(self.shape(value)) * helper.tensor_dtype_to_np_dtype(kind).itemsize)

    def unused_name(self, wish: str) -> str:
        """`wish`, or `wish` with a number where that name is taken; it is taken from now on."""
        name, number = wish, 1
        while name in self._names:
            name, number = f"{wish}_{number}", number + 1
        self._names.add(name)
        return name

    def add_initializer(self, wish: str, array: NDArray[Any]) -> str:
        """Add a constant; returns its name."""
        name = self.unused_name(wish)
        self.initializers[name] = numpy_helper.from_array(np.asarray(array), name)
        self.types[name] = self.initializers[name].data_type
        return name

    def draft(self) -> Graph:
        """This graph once more, sharing its content: what a pass adds to the draft, this one does not get."""
        draft = copy.copy(self)
        draft.initializers, draft.types, draft._names = dict(self.initializers), dict(self.types), set(self._names)
        return draft

    def rebuilt(self, nodes: Iterable[NodeProto], *, opset: int | None = None) -> Graph:
        """A new graph of `nodes` (in topological order) with the same inputs and outputs; unused constants go.

        Raises:
            BundleError: the nodes do not fit together.
        """
        model = helper.make_model(
            GraphProto(name=self.model.graph.name),
            opset_imports=[helper.make_opsetid("", opset or self.opset)],
            ir_version=self.model.ir_version,
            producer_name="edgefuse",
        )
        graph = model.graph  # filled only now, since make_model copies what it is given
        graph.node.extend(nodes)
        graph.input.extend(self.model.graph.input)
        graph.output.extend(self.model.graph.output)
        used = {name for node in graph.node for name in node.input}
        graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in used)
        return Graph(model)

    def serialize(self) -> bytes:
        """The ONNX bytes, without what only a reader of the graph wants: inferred types and the exporter's notes."""
        model = ModelProto()
        model.CopyFrom(self.model)
        model.graph.ClearField("value_info")
        for node in model.graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
        return bytes(model.SerializeToString())


def _inferred(model: ModelProto) -> ModelProto:
    """`model` itself, with the type and shape of every value.

    The inference works on serialized copies and of a large constant it wants the shape only, so those stay behind:
    with them a model of 260 MB would take 1.3 GB and three seconds for every edit.
    """
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.CopyFrom(GraphProto(name=model.graph.name, node=model.graph.node))
    for field in ("input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        is_large = prod(tensor.dims) > _SMALL
        shape_only = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        light.graph.initializer.append(shape_only if is_large else tensor)
    inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True)
    for field in ("output", "value_info"):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(inferred.graph, field))
    return model


def _refuse_control_flow(graph: GraphProto) -> None:
    for node in graph.node:
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise BundleError(
                f"node {node.name!r} is a {node.op_type}, parts must have no control flow; "
                "export the model without data-dependent branches"
            )


def _constants_to_initializers(graph: GraphProto) -> None:
    """Constant nodes and initializers mean the same; one form is enough to think about."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else _as_array(value)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _as_array(value: Any) -> NDArray[Any]:
    """The other forms of a Constant: value_int(s) are int64, value_float(s) float32."""
    array = np.asarray(value)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
