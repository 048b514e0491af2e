"""The ceilings in the report: bounds of a decision on published GPUs, and what the parts reach of this CPU's peaks.

`python benchmarks/roofline.py BUNDLE` has the same of every kernel; the report keeps the largest ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgefuse.benchmarks.gpu_peaks import DEVICES
from edgefuse.benchmarks.limits import LABEL
from edgefuse.benchmarks.markup import NOT_KNOWN, byte_count, milliseconds
from edgefuse.benchmarks.roofline import NOTES, count, decision_bounds, engine_bounds, published
from edgefuse.benchmarks.section import Section, Table, not_measured
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import MissingExtraError

TITLE = "Ceilings"
LARGEST = 8  # kernels of each target
RANKED_BY = DEVICES[0]  # which kernel is the larger one depends on the device
_KEPT = ("target", "part", "unplaced_flops", "total")

Figures = Mapping[str, Any]


def measure_ceilings(bundle: Bundle, runs: int) -> dict[str, Any]:
    """The bounds of a bundle's engines on every known device, and its parts against this CPU's peaks.

    Args:
        bundle: an open bundle.
        runs: of each part and number of threads on the CPU.

    Returns:
        {label, notes, devices, ranked_by, engines: [{target, part, kernels, unplaced_flops, total}], decision: {target:
        {device: total}}, no_bounds: [why there are none or not all], largest: {target: [kernel]}, cpu}, as of
        roofline.roofline; {not_measured: why} where onnx is not installed.

    Raises:
        BundleError: a part is damaged.
    """
    try:
        counted = count(bundle.folder)
    except MissingExtraError as error:
        return {"not_measured": str(error)}
    from edgefuse.benchmarks.cpu_share import cpu_shares  # builds its products with onnx, which is known to be here now

    engines = [engine_bounds(engine, DEVICES) for engine in counted["engines"]]
    targets = list(dict.fromkeys(engine["target"] for engine in engines))
    lacking = {target: _lacking(bundle, engines, target) for target in targets}
    return {
        "label": LABEL,
        "notes": list(NOTES),
        "devices": [published(device) for device in DEVICES],
        "ranked_by": RANKED_BY.key,
        "engines": [{**{key: each[key] for key in _KEPT}, "kernels": len(each["kernels"])} for each in engines],
        "decision": {target: decision_bounds(engines, target, DEVICES) for target in targets if not lacking[target]},
        "no_bounds": list(_no_bounds(lacking, counted["refused"])),
        "largest": {target: _largest(engines, target) for target in targets},
        "cpu": cpu_shares(bundle, counted["parts"], runs),
    }


def _lacking(bundle: Bundle, engines: Sequence[Figures], target: str) -> list[str]:
    built = {engine["part"] for engine in engines if engine["target"] == target}
    return [part for part in (*bundle.info.modalities, HEAD) if part not in built]


def _no_bounds(lacking: Mapping[str, Sequence[str]], refused: str) -> Iterator[str]:
    if refused:
        yield refused
    elif not lacking:
        yield "no engine in this bundle, so no bound for a GPU; edgefuse build makes them"
    for target, parts in lacking.items():
        if parts:
            yield f"{target} has no engine of {', '.join(parts)}, so no bound of a whole decision"


def _largest(engines: Sequence[Figures], target: str) -> list[dict[str, Any]]:
    every = [
        {"part": engine["part"], **kernel}
        for engine in engines
        if engine["target"] == target
        for kernel in engine["kernels"]
        if kernel["bound_us"][RANKED_BY.key] is not None
    ]
    return sorted(every, key=lambda kernel: -float(kernel["bound_us"][RANKED_BY.key]))[:LARGEST]


def section(report: Mapping[str, Any]) -> Section:
    """The section for one report, as `bench` returns it."""
    found = report["ceilings"]
    if "not_measured" in found:
        return not_measured(TITLE, found["not_measured"])
    return Section(TITLE, _tables(found), _lines(found))


def _lines(found: Figures) -> list[str]:
    """What has to be said with the figures, a sentence each."""
    told = [f"No bound: {why}." for why in found["no_bounds"]]
    lost = sum(engine["unplaced_flops"] for engine in found["engines"])
    if lost:
        told.append(f"{lost / 1e6:.2f} MFLOP of products that no kernel names are in no bound.")
    if found["decision"]:
        told += [f"{LABEL.capitalize()}: {note}." for note in found["notes"]]
    return [*told, *(f"CPU, measured: {note}." for note in found["cpu"]["notes"])]


def _tables(found: Figures) -> list[Table]:
    """The bounds, the kernels with the largest ones, where the peaks are from, and the CPU's peaks and shares."""
    bounds = [_decisions(found), _kernels(found), _sources(found)] if found["decision"] else []
    return [*bounds, _peaks(found["cpu"]), _shares(found["cpu"])]


def _decisions(found: Figures) -> Table:
    names = {device["key"]: f"{device['name']}, {device['mode']}" for device in found["devices"]}
    rows = [
        [names[key], target, LABEL if not bound["why"] else bound["why"]]
        + [_us(bound[limit]) for limit in ("compute_us", "memory_us", "bound_us")]
        for target, bounds in found["decision"].items()
        for key, bound in bounds.items()
    ]
    head = ["Device", "Engines", "What it is", "Compute, us", "Memory, us", "Bound, us"]
    return Table(f"Least time of one decision from every sensor: {LABEL}", head, rows, 3)


def _kernels(found: Figures) -> Table:
    ranked, rows = next(each for each in found["devices"] if each["key"] == found["ranked_by"]), []
    for target, bounds in found["decision"].items():
        whole = bounds[ranked["key"]]["bound_us"]
        for kernel in found["largest"][target]:
            bound = kernel["bound_us"][ranked["key"]]
            share = f"{100 * bound / whole:.1f}" if whole else NOT_KNOWN
            ratio = NOT_KNOWN if kernel["intensity"] is None else f"{kernel['intensity']:.1f}"
            work = [f"{kernel['flops'] / 1e6:.2f}", byte_count(kernel["bytes"]), ratio]
            name = kernel["node"] or kernel["kernel"]
            rows.append([name, f"{target} {kernel['part']}", kernel["precision"], LABEL, *work, _us(bound), share])
    caption = f"Kernels with the largest bound on {ranked['name']}, {ranked['mode']}: {LABEL}"
    head = ["Node", "Engine", "In", "What it is", "MFLOP", "Bytes", "FLOP/byte", "Bound, us", "Of the decision, %"]
    return Table(caption, head, rows, 4)


def _sources(found: Figures) -> Table:
    rows = [[f"{each['name']}, {each['mode']}", each["source"], each["follows"]] for each in found["devices"]]
    return Table("Published peaks that the bounds rest on", ["Device", "Source", "How they follow"], rows, 3)


def _peaks(cpu: Figures) -> Table:
    rows = [
        [threads, *(f"{peak[rate] / 1e9:.1f}" for rate in ("fp32_flops", "int8_flops", "stream_bytes"))]
        for threads, peak in cpu["peaks"].items()
    ]
    head = ["Threads", "FP32 GEMM, GFLOP/s", "INT8 GEMM, GOP/s", "Stream, GB/s"]
    return Table("Peaks of this CPU, measured in this run", head, rows, 1)


def _shares(cpu: Figures) -> Table:
    rows = []
    for row in cpu["parts"]:
        reached = [NOT_KNOWN] * 4
        if row["flops_per_s"] is not None:
            shares = [f"{100 * row[share]:.1f}" for share in ("share_of_peak", "share_of_roofline")]
            reached = [f"{row['intensity']:.1f}", f"{row['flops_per_s'] / 1e9:.2f}", *shares]
        flops = NOT_KNOWN if row["flops"] is None else f"{row['flops'] / 1e6:.2f}"
        told = [f"{row['part_set']} {row['part']}", row["precision"], str(row["threads"]), flops]
        rows.append([*told, milliseconds(row["latency"]["p50_ms"]), *reached])
    head = ["Part", "In", "Threads", "MFLOP", "p50, ms", "FLOP/byte", "GFLOP/s", "Of the peak, %", "Of the roofline, %"]
    return Table("What the parts reach of them, measured", head, rows, 2)


def _us(value: float | None) -> str:
    return milliseconds(value)  # three digits fit microseconds as well
