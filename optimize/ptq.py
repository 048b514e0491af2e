"""Post-training quantization of one part: what of it may be INT8 for TensorRT, and the ranges of its activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgefuse.optimize.calibrate import Observed, observe, overflowing
from edgefuse.optimize.fp16 import front_end
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.histogram import DEFAULT
from edgefuse.optimize.qdq import Product, Site, find_products, find_sites, refusal, skip_inputs
from edgefuse.optimize.smooth import Smoothing, smooth
from edgefuse.runtime.backend import Tensors

BATCH = 8
LONGEST_ATTENTION = 512  # tokens: TensorRT fuses no longer one in INT8 (ModelOpt 0.47, find_nodes_from_mha_to_exclude)
_CONVOLUTIONS = "INT8 convolutions cost TensorRT-RTX more kernels and more bytes than FP16 ones"

Batches = Callable[[], Iterable[Tensors]]  # the calibration inputs, from the start at every call


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A part ready to become INT8."""

    graph: Graph  # FP32
    fp32_nodes: set[str]  # nodes whose values FP16 may not hold
    reasons: dict[Site, str | None]  # why a site stays FP16, None where it may be INT8
    products: list[Product]  # of attentions that may be INT8
    observed: dict[str, Observed]  # of every activation that may be quantized
    smoothed: list[Smoothing]

    @property
    def placed(self) -> list[Site]:
        """The sites that may be INT8."""
        return [site for site, reason in self.reasons.items() if reason is None]

    def thresholds(self, method: str = DEFAULT) -> dict[str, float]:
        """Activation -> magnitude that becomes 127; `method` is a key of histogram.METHODS."""
        found = {name: seen.histogram.threshold(method) for name, seen in self.observed.items()}
        return {name: 1.0 if _is_share(self.graph, name) else limit for name, limit in found.items()}


def calibrate_part(model: bytes, batches: Batches, *, convolutions: bool, smoothing: bool) -> Calibrated:
    """Find what of a part may be INT8 and the ranges of its activations.

    Args:
        model: the FP32 part.
        batches: the calibration inputs, at least one batch.
        convolutions: let convolutions be INT8 too, not only matrix products and embedding tables.
        smoothing: let SmoothQuant move outliers into the weights where that helps.

    Raises:
        BundleError: the part makes NaN of a sample.
    """
    graph = Graph(model)
    wide = overflowing(graph, next(iter(batches())))
    excluded = front_end(graph) | wide
    smoothed: list[Smoothing] = []
    if smoothing:
        graph, smoothed = smooth(graph, find_sites(graph, excluded), batches())
    sites = find_sites(graph, excluded)
    products = find_products(graph, excluded)
    watched = {site.activation for site in sites if site.activation} | set(skip_inputs(graph, sites).values())
    watched |= {name for product in products for name in product.inputs}
    observed = observe(graph, watched, batches())
    reasons: dict[Site, str | None] = {}
    for site in sites:
        unwanted = _CONVOLUTIONS if site.op == "Conv" and not convolutions else None
        reasons[site] = unwanted or refusal(site, observed[site.activation].shape if site.activation else ())
    long = any(observed[name].shape[-2] > LONGEST_ATTENTION for product in products for name in product.inputs)
    return Calibrated(graph, wide, reasons, [] if long else products, observed, smoothed)


def _is_share(graph: Graph, value: str) -> bool:
    """Whether `value` comes from a Softmax: its range is known, and ModelOpt gives it the scale 1 / 127 too."""
    producer = graph.producers.get(value)
    return producer is not None and producer.op_type == "Softmax"
