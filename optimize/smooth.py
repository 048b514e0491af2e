"""SmoothQuant: outliers move from the activations, which share one INT8 scale, into the weights, which have many.

Xiao et al. 2022, "SmoothQuant" (arXiv 2211.10438), eq. 3 and 4: X W = (X / s) (s W) with
s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) for each input channel j. In float nothing changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgefuse.optimize.calibrate import watch
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.histogram import STEPS, Histogram
from edgefuse.optimize.qdq import Site, quantize_weight
from edgefuse.runtime.backend import Tensors

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # the paper takes 0.5 for most models; each layer takes its best here
WORTH_IT = 0.9  # a layer is smoothed where at most this share of its squared INT8 error is left
_ROWS_PER_BATCH, _ROWS = 16, 512  # of each activation, kept to measure that error on
_SMALLEST = 1e-5  # a channel without a value, or without weights, is not scaled beyond this

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Smoothing:
    """What was done to the inputs of one activation's readers."""

    activation: str
    nodes: tuple[str, ...]  # the products that read it
    alpha: float
    error_left: float  # the squared error of their INT8 products over that without smoothing, on calibration rows


class _Seen:
    """The largest magnitude of each channel of an activation, and some of its rows."""

    def __init__(self, channels: int) -> None:
        self.largest = np.zeros(channels, np.float32)  # [K]
        self._rows: list[Floats] = []
        self._random = np.random.default_rng(0)

    def update(self, values: Floats) -> None:
        rows = values.reshape(-1, values.shape[-1])  # [R, K]
        np.maximum(self.largest, np.maximum(rows.max(axis=0), -rows.min(axis=0)), out=self.largest)
        if len(self._rows) * _ROWS_PER_BATCH < _ROWS:
            self._rows.append(rows[self._random.integers(0, len(rows), _ROWS_PER_BATCH)])

    @property
    def rows(self) -> Floats:
        return np.concatenate(self._rows)  # [R, K]


def smooth(graph: Graph, sites: Collection[Site], batches: Iterable[Tensors]) -> tuple[Graph, list[Smoothing]]:
    """Smooth the layers of `graph` whose INT8 products come out better for it.

    Layers are the matrix products that read one LayerNormalization. Where nothing else reads it, its scale and bias
    take 1 / s; else, as in DistilBERT with its residual after the normalisation, a Mul before the products does, which
    TensorRT computes in the kernel that quantizes.

    Args:
        graph: the FP32 part.
        sites: what may be INT8; to be found again afterwards, since activations change their names.
        batches: calibration inputs, batch first; one batch is held at a time.

    Returns:
        The graph, and what was done to it.

    Raises:
        BundleError: a value is NaN or infinite on a sample.
    """
    layers = _layers(graph, sites)
    seen: dict[str, _Seen] = {}
    for values in watch(graph, layers, batches):
        for name, array in values.items():
            seen.setdefault(name, _Seen(array.shape[-1])).update(array)
    done, factors = [], {}
    for name, of_layer in layers.items():
        if name in seen:
            found = _best(seen[name], [_rows_in(graph, site) for site in of_layer])
            if found is not None:
                alpha, left, factors[name] = found
                done.append(Smoothing(name, tuple(site.node for site in of_layer), alpha, left))
    return (_rewritten(graph, layers, factors) if done else graph), done


def _layers(graph: Graph, sites: Collection[Site]) -> dict[str, list[Site]]:
    """LayerNormalization output -> the products that read it, whose weights nobody else reads."""
    layers = defaultdict(list)
    for site in sites:
        producer = graph.producers.get(site.activation or "")
        normalised = producer is not None and producer.op_type == "LayerNormalization"
        if normalised and site.op in ("MatMul", "Gemm") and graph.readers[site.weight] == 1:
            layers[str(site.activation)].append(site)
    return dict(layers)


def _rows_in(graph: Graph, site: Site) -> Floats:
    """The weight with a row per input channel. [K, N]"""
    weight: Floats = graph.array(site.weight)
    return weight if site.axis == 1 else weight.T


def smoothing_factors(activations: Floats, weights: Floats, alpha: float) -> Floats:
    """Eq. 4: by what each channel's activations are divided and its weights multiplied.

    Args:
        activations: [K], the largest magnitude of each channel.
        weights: [K], the largest magnitude of each channel's weights.
        alpha: share of the difficulty that moves into the weights, in (0, 1).
    """
    safe = np.maximum(activations, _SMALLEST) ** alpha / np.maximum(weights, _SMALLEST) ** (1 - alpha)  # [K]
    return np.maximum(safe, _SMALLEST).astype(np.float32)


def _best(seen: _Seen, weights: Sequence[Floats]) -> tuple[float, float, Floats] | None:
    """The alpha, the share of the error that it leaves and its factors; None where no alpha is worth it."""
    together = np.concatenate(weights, axis=1)  # [K, N]
    rows = seen.rows  # [R, K]
    plain = _error(rows, together, np.ones_like(seen.largest))
    largest = np.abs(together).max(axis=1)  # [K]
    tried = {alpha: smoothing_factors(seen.largest, largest, alpha) for alpha in ALPHAS}
    errors = {alpha: _error(rows, together, factors) for alpha, factors in tried.items()}
    alpha = min(errors, key=errors.__getitem__)
    return (alpha, errors[alpha] / plain, tried[alpha]) if errors[alpha] < WORTH_IT * plain else None


def _error(rows: Floats, weight: Floats, factors: Floats) -> float:
    """Squared error of the INT8 product of `rows` and `weight` with these factors between them."""
    smoothed = rows / factors  # [R, K]
    histogram = Histogram()
    histogram.update(smoothed)
    step = max(histogram.threshold(), 1e-30) / STEPS
    quantized = np.clip(np.rint(smoothed / step), -STEPS, STEPS) * step  # [R, K]
    codes, scales = quantize_weight(weight * factors[:, None], axis=1)
    return float(((quantized @ (codes * scales) - rows @ weight) ** 2).sum())


def _rewritten(graph: Graph, layers: Mapping[str, Sequence[Site]], factors: Mapping[str, Floats]) -> Graph:
    """The graph with `factors` between the activations and the weights of their layers."""
    graph = graph.draft()
    changed: dict[str, dict[str, str]] = defaultdict(dict)  # node -> its input or output -> the new one
    inserted: dict[str, NodeProto] = {}  # activation -> the Mul behind it
    for name, factor in factors.items():
        norm, smoothed = graph.producers[name], graph.unused_name(f"{name}_smoothed")
        for site in layers[name]:
            scaled = graph.array(site.weight) * (factor[:, None] if site.axis == 1 else factor)
            weight = graph.add_initializer(f"{site.weight}_smoothed", scaled)
            changed[site.node] |= {site.weight: weight, name: smoothed}
        constants = [value for value in norm.input[1:] if value]  # scale, and bias where there is one
        if graph.readers[name] == len(layers[name]) and all(value in graph.initializers for value in constants):
            for value in constants:
                changed[norm.name][value] = graph.add_initializer(f"{value}_smoothed", graph.array(value) / factor)
            changed[norm.name][name] = smoothed  # a value that is another one has another name
        else:
            inverse = graph.add_initializer(f"{name}_inverse", 1 / factor)
            inserted[name] = helper.make_node("Mul", [name, inverse], [smoothed], name=smoothed)
    nodes = []
    for node in graph.nodes:
        new = NodeProto()
        new.CopyFrom(node)
        names = changed[node.name]
        new.input[:] = [names.get(value, value) for value in node.input]
        new.output[:] = [names.get(value, value) for value in node.output]
        nodes.append(new)
        nodes += [inserted[value] for value in node.output if value in inserted]
    return graph.rebuilt(nodes)
