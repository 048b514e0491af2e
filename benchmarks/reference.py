"""Builds the reference model from nothing and counts what the compiler makes of it: `python benchmarks/reference.py`.

MobileNetV3-small 224 + Conformer 4 x 144 (2 s) + DistilBERT 6 x 768 (32 tokens, 30,522 rows), random weights, batch 1,
TensorRT-RTX for SM 86. Every step is the command a user would type, in a process of its own, with its time and peak
memory. Writes benchmarks/results/reference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefuse.benchmarks.environment import describe_environment
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.show import show

RESULT = Path(__file__).parent / "results" / "reference.json"
SM = "86"
JUDGED = "64"  # validation lines: random weights have no accuracy to lose


@dataclass(frozen=True, slots=True)
class Step:
    """What one command printed and took."""

    result: dict[str, Any]
    seconds: float
    peak_mb: float  # largest resident memory of its process


def reference(folder: Path, calibration: int) -> dict[str, Any]:
    """Train (no epochs), export, quantize, check and build in `folder`, which is reused where it holds the run already.

    Returns:
        {rows: what the issue asks beside what was measured, parts, steps, environment}.
    """
    run, bundle = folder / "run", folder / "bundle"
    steps = {"train": _run("train", "reference", "--out", str(run))}
    steps["export"] = _run("export", str(run), "--out", str(bundle))
    counts = ("--calibration", str(calibration), "--validation", JUDGED)
    steps["quantize"] = _run("quantize", str(bundle), "--gate", "0", *counts)
    steps["check"] = _run("check", str(bundle))
    target = ("--target", "tensorrt-rtx", "--sm", SM, "--max-batch", "1")
    steps["build"] = _run("build", str(bundle), *target, "--explain")
    engines = steps["build"].result["engines"]
    opened = Bundle.open(bundle)
    share = opened.size("trt") / opened.size("fp32")
    linear = [engine["audit"]["macs"]["linear"] for engine in engines if "linear" in engine["audit"]["macs"]]
    in_int8 = sum(part["macs"] * part["int8"] for part in linear) / sum(part["macs"] for part in linear)
    attentions = [engine["audit"]["attention"] for engine in engines]
    fused = f"{sum(found['fused'] for found in attentions)} of {sum(found['expected'] for found in attentions)}"
    rows = [
        _row("kernels, four engines together", sum(engine["kernels"] for engine in engines), "<= 235"),
        _row("megabytes touched", sum(engine["bytes_touched"] for engine in engines) / 1e6, "<= 92"),
        _row("attentions fused", fused, "10 of 10"),
        _row("share of Linear MACs in INT8", in_int8, ">= 0.95"),
        _row("weights, trt parts against fp32", share, "<= 0.30"),
        _row(f"peak MB of quantize, {calibration} calibration samples", steps["quantize"].peak_mb, "<= 2500"),
        _row("seconds to build the engines", steps["build"].seconds, "<= 15"),
        _row("seconds of edgefuse check", steps["check"].seconds, "<= 2"),
        _row("verdict of edgefuse check", steps["check"].result["verdict"], "ok"),
    ]
    parts = [{key: engine[key] for key in ("path", "kernels", "bytes_touched", "seconds")} for engine in engines]
    told = {name: {"seconds": step.seconds, "peak_mb": step.peak_mb} for name, step in steps.items()}
    return {"rows": rows, "parts": parts, "steps": told, "environment": describe_environment()}


def _row(what: str, measured: Any, asked: str) -> dict[str, Any]:
    return {"what": what, "measured": measured, "asked": asked}


def _run(*arguments: str) -> Step:
    """Run `edgefuse ... --json`; its progress goes to our stderr."""
    command = [sys.executable, "-m", "edgefuse.runtime.cli", *arguments, "--json"]
    print(f"edgefuse {' '.join(arguments)}", file=sys.stderr)
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if not lines:
        sys.exit(f"edgefuse {arguments[0]} ended with exit code {child.returncode}; see above")
    return Step(json.loads(lines[-1]), seconds, usage.ru_maxrss / 1024)


def main() -> None:
    """Run it, print the table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/reference"), help="where the run and the bundle go")
    parser.add_argument("--calibration", type=int, default=512, help="training lines to calibrate on")
    options = parser.parse_args()
    result = reference(options.folder, options.calibration)
    write_atomic(RESULT, json.dumps(result, indent=2).encode())
    show({"measured": result["rows"], "steps": result["steps"]})


if __name__ == "__main__":
    main()
