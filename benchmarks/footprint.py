"""What a bundle costs a device: bytes on disk, memory, and the time to the first answer, each in a fresh process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgefuse.runtime.bundle import Bundle, part_file
from edgefuse.runtime.engines import COMPILED_SET, read_sidecar

MODULE = "edgefuse.benchmarks.footprint"  # run as a script, it measures its own memory
Inputs = Mapping[str, str]  # sensor -> path of the picture or sound, or the text itself


def sizes(bundle: Bundle, part_sets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Bytes on disk of each part set: {part set: {bytes, ratio, parts: {part: bytes}}}; ratio is against fp32."""
    reference = bundle.size("fp32")
    return {
        part_set: {
            "bytes": bundle.size(part_set),
            "ratio": round(bundle.size(part_set) / reference, 4),
            "parts": {
                part: (bundle.folder / info.file).stat().st_size for part, info in bundle.info.parts[part_set].items()
            },
        }
        for part_set in part_sets
    }


def memory(bundle: Bundle, part_set: str, inputs: Inputs, runs: int, progress: Callable[[], None]) -> dict[str, Any]:
    """Resident memory of fresh processes that load one part set and answer once: medians of `runs`, in bytes.

    `imported` is the process after its imports, `answered` after its first answer, `model` the difference: what the
    parts, ONNX Runtime's arena and the decoded sensors take.
    """
    found = []
    for _ in range(runs):
        found.append(json.loads(_run_module(MODULE, str(bundle.folder), part_set, json.dumps(inputs))))
        progress()
    middle = {key: int(statistics.median(run[key] for run in found)) for key in ("imported", "answered")}
    return {
        "imported_bytes": middle["imported"],
        "answered_bytes": middle["answered"],
        "model_bytes": middle["answered"] - middle["imported"],
        "runs": runs,
    }


def predict_arguments(folder: Path, inputs: Inputs) -> list[str]:
    """The arguments of `edgefuse` that answer these inputs once."""
    return [
        "predict",
        str(folder),
        *(f"--{sensor}={value}" for sensor, value in inputs.items()),
    ]  # a text may begin with -


def cold_start(bundle: Bundle, inputs: Inputs, runs: int, progress: Callable[[], None]) -> dict[str, Any]:
    """Wall seconds from starting `edgefuse predict` in a fresh process to its end: {median_s, runs_s}.

    It takes the parts it takes by itself: cpu where the bundle has them. The files are in the page cache, since
    measuring read them before; the first start after a boot reads the disk as well.
    """
    runs_s = []
    for _ in range(runs):
        begin = time.perf_counter()
        _run_module("edgefuse.runtime.cli", *predict_arguments(bundle.folder, inputs), "--json")
        runs_s.append(round(time.perf_counter() - begin, 3))
        progress()
    return {"median_s": round(statistics.median(runs_s), 3), "runs_s": runs_s}


def engines(bundle: Bundle, gpu: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands beside every engine of the bundle, and its median in ms where `gpu.measure_engines` could ask it."""
    found = []
    for path in sorted(bundle.folder.glob("engines/*/*.engine")):
        target, part = path.parent.name, path.stem
        stage = gpu.get(target, {}).get("stages", {}).get(part)
        latency = stage["p50_ms"] if stage else "not measured"
        row = {"target": target, "part": part, "bytes": path.stat().st_size, "latency": latency}
        sidecar = read_sidecar(bundle.folder, target, part)
        if sidecar is not None:
            told = ("tensorrt_version", "sm", "kernels", "bytes_touched", "seconds", "audit")
            fits = sidecar.source_sha256 == bundle.info.files.get(part_file(COMPILED_SET, part))
            row |= {**sidecar.model_dump(include=set(told)), "built_from_these_parts": fits}
        found.append(row)
    return found


def _run_module(module: str, *arguments: str) -> str:
    """Standard output of a module run in a fresh interpreter; what it says on stderr is passed on."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _measure_self(folder: str, part_set: str, inputs: Inputs) -> dict[str, int]:
    """Resident bytes of this process after its imports and after one answer."""
    import onnxruntime  # noqa: F401  (part of the baseline, not of the model)
    import psutil

    from edgefuse.runtime.backend_onnx import OnnxBackend
    from edgefuse.runtime.predictor import Predictor

    process = psutil.Process()
    imported = process.memory_info().rss
    bundle = Bundle.open(folder)
    with OnnxBackend(bundle, part_set) as backend:
        Predictor(bundle, backend).predict(**inputs)
        return {"imported": imported, "answered": process.memory_info().rss}


if __name__ == "__main__":
    print(json.dumps(_measure_self(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
