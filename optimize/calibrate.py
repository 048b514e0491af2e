"""What range each activation takes on real samples: histograms that run along, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from edgefuse.optimize.graph import FLOAT, Graph
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.errors import BundleError

BINS = 2048
STEPS = 127  # INT8 steps on each side of zero
FP16_HEADROOM = 65504 / 4  # other samples may reach four times what was seen
_CLIPS = 2.0 ** -np.linspace(0, 3, 49)  # shares of the largest value that `threshold` tries, 1 down to 1/8


class Histogram:
    """A running histogram of |x| over BINS equal bins; its range doubles when a larger value comes.

    Doubling merges the bins in pairs, so the counts are those of one histogram over all values at the final range.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0  # upper edge of the last bin
        self.largest = 0.0

    def update(self, values: NDArray[Any]) -> None:
        """Count `values`, any shape, all finite."""
        magnitudes = np.abs(values, dtype=np.float64).ravel()
        self.largest = max(self.largest, float(magnitudes.max(initial=0.0)))
        if self.limit == 0.0:
            self.limit = self.largest or 1.0  # only zeros so far: any range holds them
        while self.largest > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        self.counts += np.histogram(magnitudes, BINS, (0.0, self.limit))[0]

    def threshold(self) -> float:
        """The largest magnitude that INT8 should tell apart: where rounding plus clipping loses least in mean square.

        Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 3.1. The largest value itself is one
        of those tried, so a range without outliers is not clipped.
        """
        if self.largest == 0.0:
            return 0.0
        centres = (np.arange(BINS) + 0.5) * self.limit / BINS  # [BINS]
        tried = self.largest * _CLIPS  # [49]
        steps = tried[:, None] / STEPS  # [49, 1]
        rounded = np.minimum(np.rint(centres / steps), STEPS) * steps  # [49, BINS]
        losses = ((rounded - centres) ** 2 * self.counts).sum(axis=1)  # [49]
        return float(tried[losses.argmin()])


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
    names = sorted(set(tensors))
    if not names:
        return {}
    session = open_session(_with_outputs(graph, names))
    observed: dict[str, Observed] = {}
    for batch in batches:
        if not observed:
            single = session.run(names, {name: array[:1] for name, array in batch.items()})
            observed = {name: Observed(array.shape) for name, array in zip(names, single, strict=True)}
        for name, array in zip(names, session.run(names, dict(batch)), strict=True):
            if not np.isfinite(array).all():
                raise BundleError(
                    f"{name} is NaN or infinite on a calibration sample; train and export the model again"
                )
            observed[name].histogram.update(array)
    return observed


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
    model = ModelProto()
    model.CopyFrom(graph.model)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, graph.types[name], None) for name in names if name not in present
    )
    return bytes(model.SerializeToString())
