"""Rewrites an FP32 part for ONNX Runtime's CPU kernels: the same function but for rounding, in fewer and faster nodes.

Every rule here was measured to pay. The nodes that only ONNX Runtime knows are in its domain com.microsoft, so nothing
but cpu parts may hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgefuse.optimize.graph import Graph

MICROSOFT = "com.microsoft"


class Rewrite:
    """A graph while rules rewrite it: a new node takes over the name of the value that it computes better.

    Types, shapes and readers of a value therefore stay as they were; what nobody reads any more goes with `sweep`.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._shapes = {
            value.name: tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim)
            for value in (*graph.model.graph.input, *graph.model.graph.value_info, *graph.model.graph.output)
        }
        self._shapes.update({name: tuple(tensor.dims) for name, tensor in graph.initializers.items()})
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.is_changed = False
        self.nodes: list[NodeProto] = []
        for node in graph.nodes:
            self.nodes.append(NodeProto())
            self.nodes[-1].CopyFrom(node)

    def producer(self, value: str) -> NodeProto | None:
        """The node that computes `value`; None for inputs and constants."""
        return next((node for node in self.nodes if value in node.output), None)

    def readers(self, value: str) -> list[NodeProto]:
        """The nodes that read `value`."""
        return [node for node in self.nodes if value in node.input]

    def sole_reader(self, value: str, op: str) -> NodeProto | None:
        """The one node that reads `value`, if it is an `op` and nothing else needs the value."""
        readers = self.readers(value)
        only = len(readers) == 1 and readers[0].op_type == op and value not in self.outputs
        return readers[0] if only else None

    def shape(self, value: str) -> tuple[int | str, ...]:
        """Sizes of `value`, a name where the size is open; () where nothing is known."""
        return self._shapes.get(value, ())

    def constant(self, value: str) -> NDArray[Any] | None:
        """The content of a constant, None for all other values."""
        return self._graph.array(value) if value in self._graph.initializers else None

    def scaled(self, node: NodeProto) -> tuple[str, float] | None:
        """What a node multiplies by one number, and that number; None for all other nodes."""
        if node.op_type not in ("Mul", "Div"):
            return None
        left, right = (self.constant(name) for name in node.input)
        if right is not None and right.size == 1:
            number = float(right.item())
            return node.input[0], number if node.op_type == "Mul" else 1 / number
        if left is not None and left.size == 1 and node.op_type == "Mul":
            return node.input[1], float(left.item())
        return None

    def add(
        self,
        op: str,
        inputs: Sequence[str | NDArray[Any]],
        *,
        instead_of: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node with one output; arrays become constants.

        Args:
            op: operator.
            inputs: names of values, or arrays.
            instead_of: the value that it computes from now on; None makes a new one.
            domain: of the operator.
            **attributes: of the node.

        Returns:
            The name of its output.
        """
        if instead_of is not None and self.producer(instead_of) is not None:
            self.set_aside(instead_of)
        output = instead_of or self._graph.unused_name(op)
        self._append(op, inputs, [output], domain, attributes)
        return output

    def add_many(self, op: str, inputs: Sequence[str | NDArray[Any]], outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs; returns their names."""
        names = [self._graph.unused_name(f"{op}_{index}") for index in range(outputs)]
        self._append(op, inputs, names, "", attributes)
        return names

    def _append(
        self,
        op: str,
        inputs: Sequence[str | NDArray[Any]],
        outputs: Sequence[str],
        domain: str,
        attributes: Mapping[str, Any],
    ) -> None:
        names = [
            value if isinstance(value, str) else self._graph.add_initializer(f"{op}_constant", value)
            for value in inputs
        ]
        node = helper.make_node(op, names, outputs, name=self._graph.unused_name(f"{op}_node"), domain=domain)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        self.is_changed = True

    def set_aside(self, value: str) -> str:
        """Give what computes `value` another name for it, which is returned; who reads `value` waits for a new node."""
        old, name = self.producer(value), self._graph.unused_name(f"{value}_before")
        assert old is not None
        old.output[list(old.output).index(value)] = name
        return name

    def sweep(self) -> None:
        """Drop the nodes that no output needs, and put the others in topological order."""
        makers = {name: node for node in self.nodes for name in node.output}
        ordered: dict[str, NodeProto] = {}
        stack = [(name, False) for name in reversed(self.outputs)]
        while stack:
            value, is_ready = stack.pop()
            node = makers.get(value)
            if node is None or node.name in ordered:
                continue
            if is_ready:
                ordered[node.name] = node
            else:
                stack.append((value, True))
                stack.extend((name, False) for name in reversed(node.input))
        self.nodes = list(ordered.values())

    def model(self, nodes: Sequence[NodeProto], inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
        """The ONNX bytes of some nodes, with the constants that they use."""
        used = dict.fromkeys(name for node in nodes for name in node.input)
        constants = [self._graph.initializers[name] for name in used if name in self._graph.initializers]
        graph = helper.make_graph(nodes, self._graph.model.graph.name, inputs, outputs, constants)
        opsets = [helper.make_opsetid("", self._graph.opset), helper.make_opsetid(MICROSOFT, 1)]
        version = self._graph.model.ir_version
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="edgefuse")
        return bytes(model.SerializeToString())

    def serialize(self) -> bytes:
        """The ONNX bytes of the whole, as it is now."""
        self.sweep()
        return self.model(self.nodes, self._graph.model.graph.input, self._graph.model.graph.output)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, `default` where it is not given."""
    found = (helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name)
    return next(found, default)


def one_gelu(rewrite: Rewrite) -> None:
    """x * (0.5 * (1 + erf(x / sqrt 2))), five passes over the widest values of a transformer, becomes one Gelu.

    ONNX Runtime fuses other ways to write it, but not this one of torch's exporter.
    """
    for erf in [node for node in rewrite.nodes if node.op_type == "Erf"]:
        inside = rewrite.scaled(rewrite.producer(erf.input[0]) or erf)
        shifted = rewrite.sole_reader(erf.output[0], "Add")
        halved = rewrite.sole_reader(shifted.output[0], "Mul") if shifted else None
        product = rewrite.sole_reader(halved.output[0], "Mul") if halved else None
        if inside is None or shifted is None or halved is None or product is None:
            continue
        x, factor = inside
        ones = [array for array in map(rewrite.constant, shifted.input) if array is not None]
        half = rewrite.scaled(halved)
        is_gelu = np.isclose(factor, 0.5**0.5) and np.all(ones[0] == 1) and half is not None and half[1] == 0.5
        if is_gelu and x in product.input:
            rewrite.add("Gelu", [x], instead_of=product.output[0], domain=MICROSOFT)
    rewrite.sweep()


def unfused_residual_norm(rewrite: Rewrite) -> None:
    """Keep ONNX Runtime (1.32) from fusing Add and LayerNormalization: its fused CPU kernel takes four times as long.

    It does not fuse a Sum, which is the same addition.
    """
    for norm in [node for node in rewrite.nodes if node.op_type == "LayerNormalization"]:
        residual = rewrite.producer(norm.input[0])
        if residual is not None and residual.op_type == "Add":
            rewrite.add("Sum", residual.input, instead_of=norm.input[0])
    rewrite.sweep()
