"""Post-training quantization of one part for TensorRT: calibrate, smooth, correct, place Q/DQ, FP16 around it.

`python -m edgefuse.optimize.ptq part.onnx samples.npz folder --method mse entropy` runs it with every choice open, for
benchmarks/peers/quantizers.py; `edgefuse quantize` takes the defaults, which are the choices that paid there.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgefuse.optimize.bias_correction import correct_biases
from edgefuse.optimize.calibrate import Observed, observe, overflowing
from edgefuse.optimize.fp16 import front_end, to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.histogram import DEFAULT, METHODS
from edgefuse.optimize.qdq import Product, Site, find_products, find_sites, insert, refusal, skip_inputs
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


def int8_part(part: Calibrated, *, method: str = DEFAULT, bias_batches: Iterable[Tensors] | None = None) -> bytes:
    """The part in INT8 where it may be and FP16 around it, as ONNX.

    Args:
        part: what `calibrate_part` found.
        method: a key of histogram.METHODS.
        bias_batches: calibration inputs to correct the biases on; None leaves them.
    """
    thresholds, graph = part.thresholds(method), part.graph
    if bias_batches is not None:
        graph = correct_biases(graph, part.placed, thresholds, bias_batches)
    return to_fp16(insert(graph, part.placed, thresholds), part.fp32_nodes).serialize()


def _from_file(path: Path) -> Batches:
    """Batches of the arrays in an .npz file, one array per input, samples first."""
    arrays = dict(np.load(path))

    def batches() -> Iterator[Tensors]:
        for start in range(0, len(next(iter(arrays.values()))), BATCH):
            yield {name: array[start : start + BATCH] for name, array in arrays.items()}

    return batches


def main(argv: Sequence[str] | None = None) -> None:
    """Write folder/fp16.onnx and folder/<method>.onnx for each method; prints what it took as one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", type=Path, help="the FP32 part, ONNX")
    parser.add_argument("samples", type=Path, help="an .npz of calibration inputs, samples first")
    parser.add_argument("folder", type=Path, help="where the INT8 parts go")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=[DEFAULT])
    parser.add_argument("--convolutions", action="store_true", help="INT8 convolutions too")
    parser.add_argument("--smooth", action="store_true", help="SmoothQuant where it helps")
    parser.add_argument("--correct-biases", action="store_true")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    batches = _from_file(options.samples)
    model = options.part.read_bytes()
    part = calibrate_part(model, batches, convolutions=options.convolutions, smoothing=options.smooth)
    (options.folder / "fp16.onnx").write_bytes(to_fp16(Graph(model), part.fp32_nodes).serialize())
    for method in options.method:
        bias_batches = batches() if options.correct_biases else None
        (options.folder / f"{method}.onnx").write_bytes(int8_part(part, method=method, bias_batches=bias_batches))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    told = {"seconds": round(time.perf_counter() - started, 1), "peak_mb": peak_mb, "smoothed": len(part.smoothed)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
