"""The large constants of a model, held apart from its graph, so that the graph stays small enough to copy."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import to_array

from edgefuse.runtime.errors import BundleError

LARGE = 4096  # bytes; what is smaller may be a shape, and shape inference reads those
_BITS = dict.fromkeys((TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1), 4) | dict.fromkeys(
    (getattr(TensorProto, name) for name in ("UINT2", "INT2") if hasattr(TensorProto, name)), 2
)
_MARK = "edgefuse weights "  # in the doc_string of a tensor without content: the number of its content


class Weights:
    """Takes the large constants out of `model`, and keeps those of other files on the disk.

    Raises:
        BundleError: a constant is missing, or has not as many bytes as its shape says.
    """

    def __init__(self, model: ModelProto, folder: Path | None) -> None:
        self._content: list[Any] = []  # bytes, or a mapped file
        for tensor in tensors_of(model):
            tensor.ClearField("doc_string")
            if tensor.data_location == TensorProto.EXTERNAL:
                self._take(tensor, _mapped(tensor, folder))
            elif tensor.data_type != TensorProto.STRING:
                self._check_and_take(tensor)

    def array(self, tensor: TensorProto) -> NDArray[Any]:
        """The content of a tensor of the model, also where it was taken out of it; to be read only.

        Raises:
            BundleError: it has not as many numbers as its shape says.
        """
        try:
            return self._array(tensor)
        except ValueError as error:
            raise BundleError(f"the constant {tensor.name!r} is damaged ({error}); export it again") from None

    def _array(self, tensor: TensorProto) -> NDArray[Any]:
        if not tensor.doc_string.startswith(_MARK):
            return np.asarray(to_array(tensor))
        content = self._content[int(tensor.doc_string.removeprefix(_MARK))]
        if tensor.data_type not in _BITS and sys.byteorder == "little":  # as ONNX stores numbers: nothing to copy
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            return np.asarray(np.frombuffer(content, kind).reshape(tensor.dims))
        whole = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        whole.raw_data = bytes(content)
        return np.asarray(to_array(whole))

    def put_back(self, model: ModelProto) -> None:
        """Give every tensor of `model`, which came from the model of this object, its content."""
        for tensor in tensors_of(model):
            if tensor.doc_string.startswith(_MARK):
                tensor.raw_data = bytes(self._content[int(tensor.doc_string.removeprefix(_MARK))])
                tensor.ClearField("doc_string")

    def _check_and_take(self, tensor: TensorProto) -> None:
        needed = _needed_bytes(tensor)
        try:
            content = tensor.raw_data if tensor.HasField("raw_data") else to_array(tensor).tobytes()
        except (ValueError, TypeError, OverflowError):
            content = b""
        has = len(content) if tensor.HasField("raw_data") or _BITS.get(tensor.data_type) is None else needed
        if has != needed:
            raise BundleError(
                f"its constant {tensor.name!r} has {has} bytes where its shape needs {needed}; export it again"
            )
        if needed > LARGE:
            self._take(tensor, content)

    def _take(self, tensor: TensorProto, content: Any) -> None:
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
        tensor.doc_string = f"{_MARK}{len(self._content)}"
        self._content.append(content)


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant of a model: initializers and attributes, also of inner graphs and local functions."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            if attribute.type == AttributeProto.GRAPH:
                yield from _tensors_of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _tensors_of_graph(graph)


def _needed_bytes(tensor: TensorProto) -> int:
    """Bytes that the shape of a tensor asks for."""
    try:
        bits = _BITS.get(tensor.data_type) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError, ValueError):
        raise BundleError(
            f"its constant {tensor.name!r} has the unknown type {tensor.data_type}; export it again with this onnx"
        ) from None
    return int(prod(tensor.dims) * bits + 7) // 8


def _mapped(tensor: TensorProto, folder: Path | None) -> NDArray[np.uint8]:
    """The content of a tensor that lies in another file, read when it is used."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = told.get("location", "")
    if folder is None or not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise BundleError(
            f"its constant {tensor.name!r} is in another file ({location or 'not named'}) that cannot be reached; "
            "save the model as one file"
        )
    needed = _needed_bytes(tensor)
    try:
        offset, length = int(told.get("offset") or 0), int(told.get("length") or needed)
        size = (folder / location).stat().st_size
        if length != needed or offset < 0 or offset + length > size:
            raise BundleError(
                f"its constant {tensor.name!r} needs {needed} bytes from byte {offset} of {location}, "
                f"which has {size}; copy both files again"
            )
        if not needed:
            return np.zeros(0, np.uint8)
        return np.memmap(folder / location, np.uint8, "r", offset, (needed,))
    except (OSError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(
            f"its weights are in {location}, which cannot be read ({one_line(error)}); copy that file beside the model"
        ) from None


def one_line(error: Exception) -> str:
    """What an exception says, on one line and not without end."""
    return " ".join(str(error).split())[:200]
