"""What FP16 cannot hold: values that overflow it on real samples, and constants that it clamps or loses.

Asked of the FP32 graph. ONNX Runtime computes most of FP16 in FP32 on a CPU, so what overflows on a GPU goes unseen in
the FP16 part itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgefuse.optimize.calibrate import FP16_HEADROOM, watch
from edgefuse.optimize.fp16 import LARGEST_FP16, fp16_array
from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.runtime.backend import Tensors

VANISHED = 0.01  # of a constant's largest value; what is smaller beside it may become 0 without a word
OVERFLOWS, NEAR, FITS = "overflows", "less than 4x below", "fits"  # FP16's largest value


def scan(graph: Graph, fp32_nodes: Collection[str], batches: Iterable[Tensors]) -> list[dict[str, Any]]:
    """The nodes whose values or constants FP16 does not hold; the one with the largest value where all are fine.

    Args:
        graph: the FP32 part.
        fp32_nodes: names of the nodes that the FP16 form leaves in FP32; they are safe, and told last.
        batches: real inputs, batch first; one batch is held at a time.

    Returns:
        Rows of {node, op, largest, effect, in}; `largest` is the largest magnitude that was seen.

    Raises:
        BundleError: a value is NaN or infinite already in FP32.
    """
    names = [name for node in graph.nodes for name in node.output if graph.types.get(name) == FLOAT]
    largest = dict.fromkeys(names, 0.0)
    for values in watch(graph, names, batches):
        for name, array in values.items():
            largest[name] = max(largest[name], float(np.abs(array).max(initial=0.0)))
    rows = []
    for node in graph.nodes:
        reached = max((largest.get(name, 0.0) for name in node.output), default=0.0)
        effect = OVERFLOWS if reached > LARGEST_FP16 else NEAR if reached > FP16_HEADROOM else FITS
        rows.append(_row(node, reached, effect, fp32_nodes))
    rows.sort(key=lambda row: -row["largest"])
    bad = [row for row in rows if row["effect"] != FITS]
    for node in graph.nodes:
        if node.name not in fp32_nodes:
            constants = [name for name in node.input if name in graph.initializers and graph.types[name] == FLOAT]
            effects = [_constant_effect(graph.array(name)) for name in constants]
            bad += [_row(node, size, effect, fp32_nodes) for size, effect in effects if effect]
    return sorted(bad, key=lambda row: row["in"]) or rows[:1]  # fp16 before fp32


def _row(node: NodeProto, largest: float, effect: str, fp32_nodes: Collection[str]) -> dict[str, Any]:
    computed = "fp32" if node.name in fp32_nodes else "fp16"
    return {"node": node.name, "op": node.op_type, "largest": largest, "effect": effect, "in": computed}


def _constant_effect(constant: NDArray[np.float32]) -> tuple[float, str]:
    """The largest magnitude of a constant, and what `fp16_array` does to it, "" where that is nothing to mention."""
    sizes = np.abs(constant)
    largest = float(sizes.max(initial=0.0))
    clamped = int((sizes > LARGEST_FP16).sum())
    lost = sizes[(fp16_array(constant) == 0) & (constant != 0)]
    if clamped:
        return largest, f"{clamped} of {constant.size} clamped"
    return largest, f"{lost.size} of {constant.size} become 0" if lost.max(initial=0.0) > VANISHED * largest else ""
