"""FP16 for a strongly typed TensorRT: the types stand in the graph, no builder flag changes them.

Every float value becomes FP16 but for the front end (see `front_end`). No node gets operands of two float types: strong
typing refuses `fp16 * fp32` when it parses. LayerNormalization stays one node, which computes in FP32 inside.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from edgefuse.optimize.graph import FLOAT, FLOAT16, Graph
from edgefuse.runtime.bundle import MODALITY_TABLE

# Ids and masks have no arithmetic before the first weight.
SENSORS_WITH_FRONT_END = {name for row in MODALITY_TABLE.values() if row.has_front_end for name in row.tensors}
TRAINED = frozenset({"Conv", "MatMul", "Gemm", "LayerNormalization", "BatchNormalization"})
LARGEST_FP16 = 65504.0
SMALLEST_FP16 = 2.0**-24
MASKED = -1e4  # FP16's stand-in for minus infinity: added to a score it still fits, and exp() of it is 0


def front_end(graph: Graph) -> set[str]:
    """Names of the nodes between a sensor and the first trained weight; they stay FP32.

    For sound these are the windowed DFT, the power, the mel matrix, the Log and the normalisation after it: power
    spans more decades than FP16 has, and the Log turns its rounding into error. The DFT and mel matrices are constants
    and no trained weights, and the graph shows it: they stand before the Log. So a weight counts as trained where
    no Log comes after it. For pictures the front end is the cast and the pixel normalisation: FP16 would round each
    pixel twice, and a fused kernel computes it in FP32 for nothing.

    A node belongs to it when all its inputs are constants, a sensor's tensor, or outputs of nodes that belong to it.
    """
    before_log = _ancestors(graph, [node for node in graph.nodes if node.op_type == "Log"])
    inside = {name for name in graph.inputs if name in SENSORS_WITH_FRONT_END}
    names = set()
    for node in graph.nodes:
        computed = [name for name in node.input if name and name not in graph.initializers]
        trained = node.op_type in TRAINED and node.name not in before_log
        ends = trained or node.op_type == "QuantizeLinear"  # its scale has to be FP16 like the weights' that follow
        if computed and not ends and inside.issuperset(computed):
            inside.update(node.output)
            names.add(node.name)
    return names


def _ancestors(graph: Graph, nodes: Collection[NodeProto]) -> set[str]:
    """Names of all nodes that `nodes` depend on."""
    found: set[str] = set()
    wanted = {name for node in nodes for name in node.input}
    for node in reversed(graph.nodes):
        if wanted.intersection(node.output):
            found.add(node.name)
            wanted.update(node.input)
    return found


def to_fp16(graph: Graph, fp32_nodes: Collection[str] = ()) -> Graph:
    """The same graph in FP16, its inputs and outputs unchanged; the front end and `fp32_nodes` (names) stay FP32.

    Q/DQ scales become FP16 like everything else, so that every scale has the type of its DQ's output: where they
    differ, TensorRT 10.16 refuses the graph on Orin (NVIDIA/TensorRT#4832).

    Raises:
        BundleError: the graph holds an operator that has no FP16 form.
    """
    return _Conversion(graph, {*front_end(graph), *fp32_nodes}).run()


class _Conversion:
    """One sweep in topological order that remembers the float type that every value has by now."""

    def __init__(self, graph: Graph, fp32_nodes: Collection[str]) -> None:
        self.graph = graph
        self.fp32_nodes = fp32_nodes
        self.types = dict(graph.types)
        self.nodes: list[NodeProto] = []
        self.cast: dict[tuple[str, int], str] = {}  # (value, type) -> the same value in that type
        self.is_float = {name for name, kind in graph.types.items() if kind == FLOAT}

    def run(self) -> Graph:
        outputs = {name: self.graph.unused_name(f"{name}_fp16") for name in self.graph.outputs if name in self.is_float}
        for node in self.graph.nodes:
            self._convert(node, outputs)
        for name, computed in outputs.items():
            self.nodes.append(helper.make_node("Cast", [computed], [name], name=f"{name}_to_float32", to=FLOAT))
        return self.graph.rebuilt(self.nodes)

    def _convert(self, node: NodeProto, outputs: dict[str, str]) -> None:
        wanted = FLOAT if node.name in self.fp32_nodes else FLOAT16
        new = NodeProto()
        new.CopyFrom(node)
        # A Cast takes any type; casting its input first would only round twice.
        if node.op_type != "Cast":
            new.input[:] = [self._in_type(outputs.get(name, name), wanted, name) for name in node.input]
        else:
            new.input[:] = [outputs.get(name, name) for name in node.input]
        for index, name in enumerate(node.output):
            new.output[index] = outputs.get(name, name)
            if name in self.is_float:
                self.types[new.output[index]] = wanted
        if wanted == FLOAT16:
            _retype_attributes(new)
        self.nodes.append(new)

    def _in_type(self, value: str, wanted: int, original: str) -> str:
        """`value`, or its copy in the `wanted` float type."""
        if original not in self.is_float or self.types[value] == wanted:
            return value
        if (value, wanted) not in self.cast:
            self.cast[value, wanted] = self._converted(value, wanted)
        return self.cast[value, wanted]

    def _converted(self, value: str, wanted: int) -> str:
        suffix = "fp16" if wanted == FLOAT16 else "fp32"
        if value in self.graph.initializers:
            return self.graph.add_initializer(f"{value}_{suffix}", fp16_array(self.graph.array(value)))
        name = self.graph.unused_name(f"{value}_{suffix}")
        self.nodes.append(helper.make_node("Cast", [value], [name], name=name, to=wanted))
        return name


def fp16_array(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """`array` in FP16.

    A mask constant like -3.4e38 becomes MASKED, since -inf makes NaN of a fully masked row. A scalar too small for FP16
    is an epsilon under a division: it becomes SMALLEST_FP16 and not 0.
    """
    fitting = np.where(array < -LARGEST_FP16, MASKED, np.minimum(array, LARGEST_FP16))
    if array.size == 1 and 0 < array.max() < SMALLEST_FP16:
        fitting = np.full_like(fitting, SMALLEST_FP16)
    return fitting.astype(np.float16)


def _retype_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = FLOAT16
        if node.op_type == "ConstantOfShape" and attribute.t.data_type == FLOAT:
            attribute.t.CopyFrom(
                numpy_helper.from_array(fp16_array(numpy_helper.to_array(attribute.t)), attribute.t.name)
            )
