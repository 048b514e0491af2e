"""The ceilings of a bundle: the least time of its compiled plans on published GPUs, and what it reaches of this CPU.

    python benchmarks/roofline.py runs/demo/bundle [--devices orin-nano rtx-4090] [--runs 100] [--out FILE] [--json]

A GPU's figure is always a bound from its published peaks (gpu_peaks.py) and the compiler's plan; no GPU is asked. On
the CPU peaks and latencies are measured in one run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgefuse.benchmarks.environment import describe_environment
from edgefuse.benchmarks.gpu_peaks import DEVICES, Device
from edgefuse.benchmarks.latency import least_queries
from edgefuse.benchmarks.limits import LABEL, intensity, kernel_bound, total
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BundleError, EdgefuseError, EngineError, MissingExtraError, OptionError
from edgefuse.runtime.files import write_atomic

COUNTER = "edgefuse.optimize.work"  # in a process of its own: no room but optimize/ reads ONNX graphs
NOTES = (
    "launches, waits between streams and the host are not in a bound; kernels are summed as if none ran beside another",
    "the memory side takes every tensor from memory: a kernel that finds its own in the L2 cache can be faster; the "
    "compute side holds whatever the caches do",
    "elementwise operations, softmax and norms count by their bytes only; of a looked-up table the rows taken count",
    "the plan is the one that was compiled, whatever the device: another GPU's compiler may fuse otherwise",
)


def roofline(folder: str | Path, devices: Sequence[str] = (), runs: int = 100) -> dict[str, Any]:
    """Ceilings of every engine on `devices`, and of every fp32 and cpu part on this machine's CPU.

    Args:
        folder: of the bundle.
        devices: keys of gpu_peaks.DEVICES; all where empty.
        runs: of each part on the CPU.

    Returns:
        {label, devices: [fields of Device that it rests on], engines: [{target, part, kernels, unplaced_flops, total}],
        decision: {target: {device: total}}, cpu: as cpu_share.cpu_shares, environment, notes}; a total is
        {device: {compute_us, memory_us, bound_us, why}}.

    Raises:
        OptionError: an unknown device, or too few runs.
        MissingExtraError: onnx is not installed.
        EdgefuseError: no bundle, a damaged part, or an engine that was built from other parts.
    """
    chosen = _chosen(devices)
    if runs < least_queries(50):
        raise OptionError(f"--runs {runs} is too few for a median; ask for {least_queries(50)} or more")
    bundle = Bundle.open(folder)
    work = count(bundle.folder)
    if work["refused"]:
        raise EngineError(work["refused"])
    from edgefuse.benchmarks.cpu_share import cpu_shares  # builds its products with onnx, which is known to be here now

    engines = [engine_bounds(engine, chosen) for engine in work["engines"]]
    targets = dict.fromkeys(engine["target"] for engine in engines)
    return {
        "label": LABEL,
        "notes": list(NOTES),
        "devices": [published(device) for device in chosen],
        "engines": engines,
        "decision": {target: decision_bounds(engines, target, chosen) for target in targets},
        "environment": describe_environment(),
        "cpu": cpu_shares(bundle, work["parts"], runs),
    }


def engine_bounds(engine: Mapping[str, Any], devices: Sequence[Device]) -> dict[str, Any]:
    """An engine of optimize/work.py with the bound of each kernel in us, and of them together, on each device."""
    kernels = []
    bounds: dict[str, list[dict[str, Any]]] = {device.key: [] for device in devices}
    for kernel in engine["kernels"]:
        for device in devices:
            bounds[device.key].append(kernel_bound(kernel, device))
        known = kernel["flops"] is not None and kernel["bytes"]
        ratio = intensity(kernel["flops"], kernel["bytes"]) if known else None
        kernels.append(
            {**kernel, "intensity": ratio, "bound_us": {key: of[-1]["bound_us"] for key, of in bounds.items()}}
        )
    return {**engine, "kernels": kernels, "total": {key: total(of) for key, of in bounds.items()}}


def decision_bounds(engines: Sequence[Mapping[str, Any]], target: str, devices: Sequence[Device]) -> dict[str, Any]:
    """All parts of one decision, one after the other: {device: total}."""
    mine = [engine["total"] for engine in engines if engine["target"] == target]
    return {device.key: total(each[device.key] for each in mine) for device in devices}


def _chosen(keys: Sequence[str]) -> list[Device]:
    known = {device.key: device for device in DEVICES}
    for key in keys:
        if key not in known:
            raise OptionError(f"--devices {key!r} is unknown; choose from {', '.join(known)}")
    return [known[key] for key in dict.fromkeys(keys or known)]


def published(device: Device) -> dict[str, Any]:
    """What a bound rests on, with its sources."""
    names = (
        "key",
        "name",
        "mode",
        "int8_tops",
        "fp16_tflops",
        "fp32_tflops",
        "memory_gb_s",
        "source",
        "urls",
        "follows",
    )
    return {name: getattr(device, name) for name in names}


def count(folder: Path) -> dict[str, Any]:
    """What optimize/work.py counts in a bundle: {parts, engines, refused}.

    Raises:
        MissingExtraError: onnx is not installed.
        BundleError: a damaged part.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("counting a graph's work needs onnx: pip install 'edgefuse[optimize]'")
    command = [sys.executable, "-m", COUNTER, str(folder)]
    counted = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if "error" in counted:
        raise BundleError(counted["error"])
    return dict(counted)


def _show(result: Mapping[str, Any]) -> None:
    if not result["engines"]:
        print("no engines in this bundle, so no bounds for GPUs: run `edgefuse build` first")
    for target, bounds in result["decision"].items():
        parts = [engine for engine in result["engines"] if engine["target"] == target]
        print(f"{target}, us for one example: {LABEL}")
        print(
            f"{'device':18}{'compute':>10}{'memory':>10}{'bound':>10}  of which {', '.join(p['part'] for p in parts)}"
        )
        for key, bound in bounds.items():
            each = ", ".join(_us(part["total"][key]["bound_us"]).strip() for part in parts)
            figures = "".join(_us(bound[name]) for name in ("compute_us", "memory_us", "bound_us"))
            print(f"{key:18}{bound['why'] if bound['why'] else figures + '  ' + each}")
    for device in result["devices"] if result["engines"] else ():
        print(f"{device['key']}: {device['name']}, {device['mode']}; {device['source']}; {device['follows']}")
    for note in result["notes"] if result["engines"] else ():
        print(f"- {note}")
    _show_cpu(result["cpu"], result["environment"])


def _show_cpu(cpu: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    print(f"{environment['cpu']}, load {environment['load_at_start']} at the start: measured")
    for threads, peaks in cpu["peaks"].items():
        rates = f"FP32 {peaks['fp32_flops'] / 1e9:.1f} GFLOP/s, INT8 {peaks['int8_flops'] / 1e9:.1f} GOP/s"
        print(f"threads {threads}: {rates}, memory {peaks['stream_bytes'] / 1e9:.1f} GB/s")
    head = ("MFLOP", "FLOP/byte", "p50 ms", "GFLOP/s", "of peak", "of roofline")
    print(f"{'part':22}{'threads':>8}" + "".join(f"{name:>12}" for name in head))
    for row in cpu["parts"]:
        name = f"{row['part_set']} {row['part']}"
        figures = f"{'':12}{'':12}{row['latency']['p50_ms']:12.3f}"
        if row["flops_per_s"] is not None:
            figures = f"{row['flops'] / 1e6:12.2f}{row['intensity']:12.2f}{row['latency']['p50_ms']:12.3f}"
            figures += f"{row['flops_per_s'] / 1e9:12.2f}{row['share_of_peak']:12.1%}{row['share_of_roofline']:12.1%}"
        print(f"{name:22}{row['threads']:>8}{figures}")
    for note in cpu["notes"]:
        print(f"- {note}")


def _us(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:10.2f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--devices", nargs="+", default=(), help="keys of gpu_peaks.py; all where left out")
    parser.add_argument("--runs", type=int, default=100, help="of each part on the CPU")
    parser.add_argument("--out", type=Path, help="write the figures here")
    parser.add_argument("--json", action="store_true", help="print them as one JSON document in the last line")
    given = parser.parse_args()
    try:
        result = roofline(given.bundle, given.devices, given.runs)
    except EdgefuseError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    _show(result)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(given.out, (json.dumps(result, indent=1) + "\n").encode())
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
