"""Reads ONNX bytes, lets onnx put local functions in line and find out types; what goes wrong is told in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, inliner, shape_inference

from edgefuse.optimize.weights import one_line
from edgefuse.runtime.errors import BundleError


def parsed(model: bytes) -> ModelProto:
    """The model.

    Raises:
        BundleError: it is no ONNX model, or only a part of one.
    """
    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        raise BundleError("it is no ONNX model, or a part of one (protobuf cannot read it); export it again") from None
    if not proto.ir_version or not (proto.graph.node or proto.graph.output):
        raise BundleError("it is no ONNX model (no graph in it); export it again")
    if not all(isinstance(text, str) for text in _texts(proto)):  # protobuf gives bytes where they are not UTF-8
        raise BundleError("it is a damaged ONNX model (names that are not text); export it again")
    return proto


def _texts(model: ModelProto) -> Iterator[str | bytes]:
    """Every name in a model."""
    yield from (entry.domain for entry in model.opset_import)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
        yield from _texts_of(function.node)
    for graph in graphs_in(model.graph):
        yield from (tensor.name for tensor in graph.initializer)
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        yield from _texts_of(graph.node)


def _texts_of(nodes: Iterable[NodeProto]) -> Iterator[str | bytes]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def inlined(model: ModelProto) -> ModelProto:
    """The model without local functions: TensorRT's parser, too, steps into them.

    Raises:
        BundleError: a function calls itself, or is called with what it does not take.
    """
    calls = {
        (function.domain, function.name): {(node.domain, node.op_type) for node in function.node}
        for function in model.functions
    }
    while leaves := [key for key, called in calls.items() if not called & calls.keys()]:
        for key in leaves:
            del calls[key]
    if calls:
        raise BundleError(f"its local function {next(iter(calls))[1]!r} calls itself; export the model again")
    try:
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # onnx has no base class for what its C++ raises
        raise BundleError(f"its local functions do not fit together ({one_line(error)}); export it again") from None


def inferred(model: ModelProto) -> ModelProto:
    """The model with the types and shapes that onnx can find out; as it is where onnx gives up."""
    for data_prop in (True, False):
        try:
            return shape_inference.infer_shapes(model, data_prop=data_prop)
        except Exception:  # onnx has no base class for what its C++ raises; the rules do with what is told
            continue
    return model


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs_in(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all inside it."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs_in(body)
