"""What values each activation takes on real samples: seen batch by batch, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.optimize.histogram import Histogram
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.errors import BundleError

FP16_HEADROOM = 65504 / 4  # other samples may reach four times what was seen


class Observed:
    """What calibration saw of one activation."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)  # at batch 1
        self.histogram = Histogram()


def observe(graph: Graph, tensors: Iterable[str], batches: Iterable[Tensors]) -> dict[str, Observed]:
    """Run `graph` in ONNX Runtime over `batches` and watch `tensors`.

    Args:
        graph: the FP32 part.
        tensors: names of float values inside of it.
        batches: input tensors, batch first; one batch is held at a time.

    Raises:
        BundleError: a value is NaN or infinite on a sample.
    """
    observed: dict[str, Observed] = {}
    for values in watch(graph, tensors, batches):
        for name, array in values.items():
            if name not in observed:
                observed[name] = Observed((1, *array.shape[1:]))
            observed[name].histogram.update(array)
    return observed


def watch(graph: Graph, tensors: Iterable[str], batches: Iterable[Tensors]) -> Iterator[dict[str, NDArray[Any]]]:
    """The values that `tensors` of `graph` take, batch after batch.

    Args and errors are those of `observe`.
    """
    names = sorted(set(tensors))
    if not names:
        return
    session = open_session(_with_outputs(graph, names))
    for batch in batches:
        values = dict(zip(names, session.run(names, dict(batch)), strict=True))
        for name, array in values.items():
            # The extremes tell: NaN spreads to both, and they need no array of their own as isfinite does.
            if array.size and not np.isfinite((array.min(), array.max())).all():
                raise BundleError(
                    f"{name} is NaN or infinite on a calibration sample; train and export the model again"
                )
        yield values


def overflowing(graph: Graph, batch: Tensors) -> set[str]:
    """Names of the nodes that make or read a value which comes near FP16's largest number on `batch`.

    They have to stay FP32: what overflows on a GPU may go unseen on a CPU, where ONNX Runtime has few FP16 kernels and
    computes in FP32 between them.
    """
    names = [name for node in graph.nodes for name in node.output if graph.types.get(name) == FLOAT]
    arrays = open_session(_with_outputs(graph, names)).run(names, dict(batch))
    wide = {name for name, array in zip(names, arrays, strict=True) if np.abs(array).max(initial=0) > FP16_HEADROOM}
    return {node.name for node in graph.nodes if wide.intersection(node.input) or wide.intersection(node.output)}


def _with_outputs(graph: Graph, names: Sequence[str]) -> bytes:
    """The serialized model with `names` as outputs too: protobuf merges messages that follow each other."""
    more = ModelProto()
    more.graph.output.extend(
        helper.make_tensor_value_info(name, graph.types[name], None) for name in names if name not in graph.outputs
    )
    return bytes(graph.model.SerializeToString() + more.SerializeToString())
