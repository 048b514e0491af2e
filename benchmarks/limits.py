"""The roofline model (Williams, Waterman, Patterson 2009, Roofline: An Insightful Visual Performance Model, CACM 52).

A device computes at its peak at most, and at most as fast as its memory brings the operands: what can be attained is
min(peak, bandwidth x intensity). Turned around, work takes max(operations / peak, bytes / bandwidth) at least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgefuse.benchmarks.gpu_peaks import Device

LABEL = "bound, not measured"
NOT_PUBLISHED = "not published"  # why a bound is None: a peak of the device
NOT_TOLD = "the plan does not tell"  # or operations, bytes or precision of a kernel
LIMITS = ("compute_us", "memory_us", "bound_us")


def intensity(flops: float, moved_bytes: float) -> float:
    """Operations per byte."""
    return flops / moved_bytes


def attainable(peak_flops: float, bytes_per_s: float, flops_per_byte: float) -> float:
    """Operations a second: min(peak, bandwidth x intensity)."""
    return min(peak_flops, bytes_per_s * flops_per_byte)


def kernel_bound(work: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """The least time of one kernel on a device.

    Args:
        work: {flops, bytes, precision}, as optimize/work.py tells them.
        device: its published peaks.

    Returns:
        {compute_us, memory_us, bound_us, why}: bound_us is the larger of the two. All three are None where `why` is
        not empty.
    """
    flops, moved = work["flops"], work["bytes"]
    if flops is None or moved is None or (flops and not work["precision"]):
        return {**dict.fromkeys(LIMITS), "why": NOT_TOLD}
    peak = device.peak_flops(work["precision"]) if flops else 1.0  # what multiplies nothing needs no peak
    if peak is None or device.peak_bytes is None:
        return {**dict.fromkeys(LIMITS), "why": NOT_PUBLISHED}
    compute_us, memory_us = flops / peak * 1e6, moved / device.peak_bytes * 1e6
    return {"compute_us": compute_us, "memory_us": memory_us, "bound_us": max(compute_us, memory_us), "why": ""}


def total(bounds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over kernels, or parts, that run one after the other; None with the first `why` where one has it."""
    every = list(bounds)
    why = next((bound["why"] for bound in every if bound["why"]), "")
    return {**{name: None if why else sum(bound[name] for bound in every) for name in LIMITS}, "why": why}
