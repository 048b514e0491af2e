"""The FP32 graph of a part in which any node can be swapped for what another form of the part computes in its place.

Both forms name their values alike. For each float value that both have, the nodes of the other form that make it out of
earlier common values stand beside the FP32 node, and a switch chooses between the two. One session of this graph then
tells everything that is asked when a part lost accuracy:

- all switches off: what every node of the other form makes of exact inputs, so its own error and nobody else's;
- one switch on: what that error alone does to the output of the part;
- all switches on: the other form itself, its error that has piled up.

Comparing the two forms value by value would only give the last: behind the first bad node all values are bad, a sum or
a normalisation makes errors smaller or larger, and the node at fault is a guess. And since the values between two
swapped nodes really pass through FP16 here, a value that overflows does so, unlike in ONNX Runtime's FP16 on a CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgefuse.optimize.graph import FLOAT, FLOAT16, Graph

SWITCHES = "switches"  # the additional input, bool [S]: which swaps are on


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A QuantizeLinear of the other form; its names are outputs of the swappable graph."""

    values: str  # what it reads
    codes: str
    scale: NDArray[np.float32]
    zero: NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Swap:
    """One switch; `value` and `other` are outputs of the swappable graph."""

    value: str  # the value as it goes on, from whichever side the switch says
    other: str  # what the other form computes
    node: str  # of the FP32 graph, or the quantized nodes of the other one
    op: str
    precision: str  # int8 or fp16
    reads: frozenset[str]  # the common values that the other form computes it from
    quantizers: tuple[Quantizer, ...]


class Swappable:
    """Builds the graph.

    Args:
        reference: the FP32 part.
        other: another form of it.
        apart: values that bear the same name and mean something else in the other form; they are not swapped, what
            reads them is swapped together with what makes them.
        only: values to swap; None swaps all that differ.
    """

    def __init__(
        self, reference: Graph, other: Graph, apart: Collection[str] = (), only: Collection[str] | None = None
    ) -> None:
        self._reference, self._other, self._apart = reference, other, apart
        self._order = {name: index for index, node in enumerate(reference.nodes) for name in node.output}
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._made: set[str] = set()  # nodes of the other form that are in already
        self.swaps: list[Swap] = []
        for node in reference.nodes:
            floats = [name for name in node.output if reference.types.get(name) == FLOAT and self._is_given(name)]
            between = {name: self._between(name) for name in floats if only is None or name in only}
            different = {name: nodes for name, nodes in between.items() if self._differs(name, node, nodes)}
            kept = NodeProto()
            kept.CopyFrom(node)
            kept.output[:] = [_reference(name) if name in different else name for name in node.output]
            self._nodes.append(kept)
            for name, nodes in different.items():
                self._swap(name, node, nodes)

    def serialize(self, outputs: Sequence[str]) -> bytes:
        """The graph with these of its values as outputs."""
        opset = helper.make_opsetid("", max(self._reference.opset, self._other.opset))
        model = ModelProto(ir_version=self._other.model.ir_version, opset_import=[opset])
        graph = model.graph
        graph.name = "swappable"
        graph.input.extend(self._reference.model.graph.input)
        graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(self.swaps)]))
        graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        graph.node.extend(self._nodes)
        graph.initializer.extend((*self._reference.initializers.values(), *self._constants.values()))
        return bytes(model.SerializeToString())

    def _is_given(self, name: str, before: str | None = None) -> bool:
        """Whether both forms compute a value of this name, maybe in FP16, and this one does so `before` another."""
        kinds = self._reference.types.get(name), self._other.types.get(name)
        same = kinds[0] == kinds[1] or kinds == (FLOAT, FLOAT16)
        early = before is None or self._order.get(name, 0) < self._order[before]
        return same and early and name in self._order and name in self._other.producers and name not in self._apart

    def _between(self, value: str) -> list[NodeProto]:
        """The nodes of the other form that make `value` out of earlier values that both compute."""
        wanted, found = {value}, []
        for node in reversed(self._other.nodes):
            if wanted.intersection(node.output):
                found.append(node)
                wanted.update(name for name in node.input if not self._is_given(name, value))
        return found[::-1]

    def _differs(self, value: str, node: NodeProto, nodes: Sequence[NodeProto]) -> bool:
        if self._other.types[value] != self._reference.types[value]:
            return True  # the same node computes in FP16
        first, second = self._reference.initializers, self._other.initializers
        return list(nodes) != [node] or any(first.get(name) != second.get(name) for name in node.input)

    def _swap(self, value: str, node: NodeProto, nodes: Sequence[NodeProto]) -> None:
        """Add what the other form does, and the switch."""
        for theirs in nodes:
            self._add(theirs, value)
        computed = self._in_type(_other(value), self._other.types[value], self._reference.types[value])
        number, switch = f"{value}/number", f"{value}/switch"
        self._constants[number] = numpy_helper.from_array(np.array(len(self.swaps)), number)
        self._nodes.append(helper.make_node("Gather", [SWITCHES, number], [switch]))  # a scalar
        self._nodes.append(helper.make_node("Where", [switch, computed, _reference(value)], [value]))
        dequantized = {name for theirs in nodes if theirs.op_type == "DequantizeLinear" for name in theirs.output}
        readers = [theirs for theirs in nodes if dequantized.intersection(theirs.input)] or [node]
        quantizers = [self._quantizer(theirs, value) for theirs in nodes if theirs.op_type == "QuantizeLinear"]
        self.swaps.append(
            Swap(
                value=value,
                other=computed,
                node=" + ".join(reader.name for reader in readers),
                op=" + ".join(reader.op_type for reader in readers),
                precision="int8" if dequantized else "fp16",
                quantizers=tuple(quantizers),
                reads=frozenset(name for theirs in nodes for name in theirs.input if self._is_given(name, value)),
            )
        )

    def _add(self, node: NodeProto, value: str) -> None:
        """Add a node of the other form that helps to make `value`."""
        if node.name in self._made:
            return
        self._made.add(node.name)
        theirs = NodeProto()
        theirs.CopyFrom(node)
        theirs.name = _other(node.name)
        theirs.input[:] = [self._input(name, value) for name in node.input]
        theirs.output[:] = [name and _other(name) for name in node.output]
        self._nodes.append(theirs)

    def _input(self, name: str, value: str) -> str:
        if name in self._other.initializers:
            if _other(name) not in self._constants:
                constant = TensorProto()
                constant.CopyFrom(self._other.initializers[name])
                constant.name = _other(name)
                self._constants[constant.name] = constant
            return _other(name)
        if self._is_given(name, value):
            return self._in_type(name, self._reference.types[name], self._other.types[name])
        return name if name in self._other.inputs or not name else _other(name)

    def _in_type(self, name: str, found: int, wanted: int) -> str:
        """`name`, or a Cast of it that really rounds.

        ONNX Runtime takes a Cast away together with those that it puts round nodes without an FP16 kernel. It does not
        see through a Reshape.
        """
        if found == wanted:
            return name
        cast = f"{name}/{TensorProto.DataType.Name(wanted)}"
        if cast not in self._made:
            self._made.add(cast)
            inner, shape = f"{cast}/inner", f"{cast}/shape"
            half, end = (name, inner) if found == FLOAT16 else (inner, cast)
            down = [helper.make_node("Cast", [name], [inner], to=wanted)] if wanted == FLOAT16 else []
            same = [helper.make_node("Shape", [half], [shape]), helper.make_node("Reshape", [half, shape], [end])]
            up = [helper.make_node("Cast", [inner], [cast], to=wanted)] if found == FLOAT16 else []
            self._nodes += [*down, *same, *up]
        return cast

    def _quantizer(self, node: NodeProto, value: str) -> Quantizer:
        values, scale, zero = node.input
        return Quantizer(
            self._input(values, value), _other(node.output[0]), self._other.array(scale), self._other.array(zero)
        )


def _reference(name: str) -> str:
    return f"{name}/reference"


def _other(name: str) -> str:
    return f"other/{name}"
