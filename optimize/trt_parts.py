"""Makes the candidates of a part for TensorRT: FP16, and for an encoder INT8 with FP16 around it."""

from __future__ import annotations

from collections import Counter

from edgefuse.optimize.calibrate import observe, overflowing
from edgefuse.optimize.fp16 import front_end, to_fp16
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.judge import Candidate
from edgefuse.optimize.qdq import Site, find_sites, insert, refusal, skip_inputs
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.samples import Samples

CALIBRATION_BATCH = 8
FP16, INT8 = "fp16", "int8+fp16"
_CONVOLUTIONS = "INT8 convolutions cost TensorRT-RTX more kernels and more bytes than FP16 ones"
_HEAD = "FP16: one row at a time goes through the head, where INT8 only adds kernels"


def head_candidate(model: bytes) -> Candidate:
    """The head in FP16."""
    return Candidate(FP16, to_fp16(Graph(model)).serialize(), exact_qdq=True, note=_HEAD)


def encoder_candidates(model: bytes, samples: Samples, *, convolutions: bool) -> list[Candidate]:
    """An encoder in FP16, then in INT8 + FP16 where any of its nodes may be INT8.

    Args:
        model: the FP32 part.
        samples: what to calibrate on.
        convolutions: let convolutions be INT8 too, not only matrix products and embedding tables.

    Raises:
        ManifestError: there is no sample.
        BundleError: the part makes NaN of one.
    """
    if not len(samples):
        raise ManifestError(f"no training line has {samples.modality}, which the model reads; calibration needs some")
    graph = Graph(model)
    wide = overflowing(graph, next(samples.batches(CALIBRATION_BATCH)))
    sites = find_sites(graph, front_end(graph) | wide)
    watched = {site.activation for site in sites if site.activation} | set(skip_inputs(graph, sites).values())
    observed = observe(graph, watched, samples.batches(CALIBRATION_BATCH))
    reasons: dict[Site, str | None] = {}
    for site in sites:
        unwanted = _CONVOLUTIONS if site.op == "Conv" and not convolutions else None
        reasons[site] = unwanted or refusal(site, observed[site.activation].shape if site.activation else ())
    placed = [site for site, reason in reasons.items() if reason is None]
    note = _note(reasons)
    candidates = [Candidate(FP16, to_fp16(graph, wide).serialize(), exact_qdq=True, note=note)]
    if placed:
        thresholds = {name: seen.histogram.threshold() for name, seen in observed.items()}
        quantized = to_fp16(insert(graph, placed, thresholds), wide)
        candidates.append(Candidate(INT8, quantized.serialize(), exact_qdq=True, note=note))
    return candidates


def _note(reasons: dict[Site, str | None]) -> str:
    """What is INT8 and what is not, in one line for the contract."""
    counts = Counter((reason, site.op) for site, reason in reasons.items())
    return "; ".join(
        f"{count} {op} in FP16 ({reason})" if reason else f"{count} {op} in INT8"
        for (reason, op), count in counts.items()
    )
