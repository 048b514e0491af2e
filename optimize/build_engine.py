"""Compile the parts of a bundle: `python optimize/build_engine.py bundle --target tensorrt-rtx`, as `edgefuse build`.

TensorRT runs in a child process for each part (compile_process.py). An engine that is there already and still fits its
part, compiler, machine and options is kept; one that is built anew takes its place only when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgefuse.optimize.audit import audit, brief
from edgefuse.optimize.compile_process import run_compiler
from edgefuse.optimize.compiler import Job
from edgefuse.optimize.plan import parse_layers, summary
from edgefuse.optimize.preflight import inspect
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.bundle import HEAD, Bundle, part_file
from edgefuse.runtime.engines import COMPILED_SET, Sidecar, engine_file, read_sidecar, staged_file, write_sidecar
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.machine import PLATFORM, find_gpu
from edgefuse.runtime.trt_package import load_package

PORTABLE_SM = (80, 86, 89, 120)  # what TensorRT-RTX builds for unless told: Ampere, Ada and Blackwell
_CPU_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}


@dataclass(frozen=True, slots=True)
class Options:
    """What all engines of one build have in common."""

    target: str  # tensorrt-rtx or tensorrt
    version: str  # of TensorRT
    sm: tuple[int, ...]  # compute capabilities of the GPUs
    gpu: str | None  # name of the GPU, where engines are tuned for one
    cuda: str | None  # newest CUDA of its driver
    max_batch: int  # largest batch
    optimization_level: int | None  # 0 to 5, TensorRT's default where None


def build(
    bundle_folder: str | Path,
    *,
    target: str = "tensorrt-rtx",
    sm: Sequence[int] = (),
    max_batch: int = 8,
    optimization_level: int | None = None,
    explain: bool = False,
) -> dict[str, Any]:
    """Compile every trt part for `target`; for "cpu", open and warm every cpu part in ONNX Runtime.

    Args:
        bundle_folder: a bundle that `edgefuse quantize` has been over.
        target: "tensorrt-rtx" (any machine, also without a GPU), "tensorrt" (this machine's GPU) or "cpu".
        sm: compute capabilities to build for, 86 for 8.6; PORTABLE_SM where empty. tensorrt-rtx only.
        max_batch: largest batch that the engines take; they are tuned for batch 1.
        optimization_level: how long TensorRT searches for fast kernels, 0 to 5; its default, 3, where None. tensorrt
            only: the plans of TensorRT-RTX are the same at every level.
        explain: give each engine its audit too: what the compiler made of INT8, and why (audit.py).

    Returns:
        {engines: [{path, target, kernels, bytes_touched, seconds, reused}]}; kernels and bytes for one example. With
        `explain` each engine has its audit, and explained and causes say it in short.

    Raises:
        BundleError: no bundle, or no parts for this target in it.
        EngineError: the compiler is not installed, refuses a part, or died.
    """
    bundle = Bundle.open(bundle_folder)
    if sm and target != "tensorrt-rtx":
        raise EngineError(f"--sm is for tensorrt-rtx; {target} compiles for the machine it runs on: leave --sm out")
    if optimization_level is not None and target != "tensorrt":
        raise EngineError(f"--optimization-level is for tensorrt; {target} has no levels: leave it out")
    if explain and target == "cpu":
        raise EngineError("--explain reads TensorRT's plan; ONNX Runtime has none: leave it out for --target cpu")
    parts = (*bundle.info.modalities, HEAD)
    bundle.part_info("cpu" if target == "cpu" else COMPILED_SET, HEAD)  # refuse a missing part set now
    if target == "cpu":
        return {"engines": [_warm(bundle, part) for part in parts]}
    options = _options(target, sm, max_batch, optimization_level)
    columns = (
        TextColumn("{task.description:<6}"),
        BarColumn(),
        TextColumn("{task.fields[phase]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        engines = [_engine(bundle, part, options, progress, explain) for part in parts]
    return {"engines": engines, **(brief(dict(zip(parts, engines, strict=True))) if explain else {})}


def _options(target: str, sm: Sequence[int], max_batch: int, optimization_level: int | None) -> Options:
    version = str(load_package(target).__version__)
    if target == "tensorrt-rtx":  # one engine for many GPUs, drivers and systems
        return Options(target, version, tuple(sorted(set(sm) or PORTABLE_SM)), None, None, max_batch, None)
    with contextlib.suppress(EngineError):  # the compiler will say what is wrong with the GPU
        gpu = find_gpu()
        return Options(target, version, (gpu.sm,), gpu.name, gpu.cuda, max_batch, optimization_level)
    return Options(target, version, (), None, None, max_batch, optimization_level)


def _engine(bundle: Bundle, part: str, options: Options, progress: Progress, explain: bool) -> dict[str, Any]:
    """Build one engine, or keep the one that is there."""
    source = bundle.part(COMPILED_SET, part)
    task = progress.add_task(part, total=1.0, phase="")
    wanted = _wanted(bundle, part, options, source)
    sidecar = _fitting(bundle.folder, wanted)
    reused = sidecar is not None
    if sidecar is None:
        sidecar = _compile(bundle.folder, wanted, options, source, progress, task)
    progress.update(task, completed=1.0, phase="kept" if reused else "done")
    told = {"kernels": sidecar.kernels, "bytes_touched": sidecar.bytes_touched, "seconds": sidecar.seconds}
    path = engine_file(bundle.folder, options.target, part)
    explained = {"audit": sidecar.audit} if explain else {}
    return {"path": str(path), "target": options.target, **told, "reused": reused, **explained}


def _wanted(bundle: Bundle, part: str, options: Options, source: bytes) -> dict[str, Any]:
    """What the sidecar of an engine must say that is not to be built again."""
    return {
        "part": part,
        "target": options.target,
        "tensorrt_version": options.version,
        "sm": options.sm,
        "gpu": options.gpu,
        "cuda": options.cuda,
        "platform": PLATFORM,
        "batch": (1, 1, options.max_batch),
        "precision": bundle.part_info(COMPILED_SET, part).precision,
        "optimization_level": options.optimization_level,
        "source_sha256": hashlib.sha256(source).hexdigest(),
    }


def _fitting(folder: Path, wanted: dict[str, Any]) -> Sidecar | None:
    """The sidecar of an engine that is there, whole, and all that is `wanted`."""
    sidecar = read_sidecar(folder, wanted["target"], wanted["part"])
    if sidecar is None or any(getattr(sidecar, key) != value for key, value in wanted.items()):
        return None
    try:
        data = engine_file(folder, sidecar.target, sidecar.part).read_bytes()
    except OSError:
        return None
    return sidecar if hashlib.sha256(data).hexdigest() == sidecar.engine_sha256 else None


def _compile(
    folder: Path, wanted: dict[str, Any], options: Options, source: bytes, progress: Progress, task: TaskID
) -> Sidecar:
    """Build one engine in a process of its own and put it in the place of the old one."""
    part, target = wanted["part"], options.target
    _refuse(part, source, options, progress)
    staged, log = staged_file(folder, target, part), engine_file(folder, target, part, ".failed.log")
    staged.parent.mkdir(parents=True, exist_ok=True)
    cache = str(_timing_cache(folder, options)) if target == "tensorrt" else None
    job = Job(target, options.sm, options.max_batch, str(staged), cache, options.optimization_level)
    try:
        built = run_compiler(
            job,
            source,
            log,
            show=lambda phase, done: progress.update(task, completed=done, phase=phase),
            warn=lambda note: progress.console.print(f"{part}: {note}", style="yellow", markup=False),
        )
    except EngineError as error:
        raise EngineError(f"{part}: {error} (log: {log})") from None
    plan = built.pop("plan")
    kernels = parse_layers(plan or log.read_text(errors="replace"))
    told = {**summary(kernels), "audit": audit(kernels, source), "opset": _opset(source)}
    sidecar = Sidecar.model_validate({**wanted, **built, **told})
    write_sidecar(folder, sidecar)
    log.replace(engine_file(folder, target, part, ".log"))
    plan_file = engine_file(folder, target, part, ".plan.json")
    plan_file.unlink(missing_ok=True)  # of the engine before
    if plan is not None:
        write_atomic(plan_file, plan.encode())
    return sidecar


def _refuse(part: str, source: bytes, options: Options, progress: Progress) -> None:
    """Say before the compiler runs what it would refuse, or take and silently do otherwise (preflight.py)."""
    found = inspect(source, (_checked_version(options),))
    told = [f"{finding.node or 'the graph'}: {finding.effect}; {finding.mend}" for finding in found]
    refused = [line for line, finding in zip(told, found, strict=True) if finding.severity == "refused"]
    if refused:
        more = f" (and {len(refused) - 1} more, see `edgefuse check`)" if len(refused) > 1 else ""
        raise EngineError(f"{part}: {options.target} {options.version} would refuse it: {refused[0]}{more}")
    for line, finding in zip(told, found, strict=True):
        if finding.severity == "silent":
            progress.console.print(f"{part}: {line}", style="yellow", markup=False)


def _checked_version(options: Options) -> str:
    """The version of `edgefuse check` that stands for the installed one."""
    if options.target == "tensorrt-rtx":
        return "rtx"
    here = tuple(map(int, re.findall(r"\d+", options.version)[:2]))
    return "11" if here >= (11, 0) else "10.16" if here >= (10, 16) else "10.3"


def _timing_cache(folder: Path, options: Options) -> Path:
    """One file per TensorRT and GPU: what one has timed tells nothing of another."""
    name = re.sub(r"[^\w.]+", "-", f"{options.version}-{options.gpu or 'gpu'}-sm{'-'.join(map(str, options.sm))}")
    return engine_file(folder, options.target, f"timing-{name}", ".cache")


def _opset(source: bytes) -> int:
    opsets = onnx.load_model_from_string(source).opset_import
    return next(int(entry.version) for entry in opsets if entry.domain in ("", "ai.onnx"))


def _warm(bundle: Bundle, part: str) -> dict[str, Any]:
    """Open a cpu part and run it once on zeros."""
    started = time.perf_counter()
    session = open_session(bundle.part("cpu", part))
    inputs = {
        value.name: np.zeros([dim if isinstance(dim, int) else 1 for dim in value.shape], _CPU_TYPES[value.type])
        for value in session.get_inputs()
    }
    session.run(None, inputs)
    seconds = time.perf_counter() - started
    path = str(bundle.folder / part_file("cpu", part))
    return {"path": path, "target": "cpu", "kernels": None, "bytes_touched": None, "seconds": seconds, "reused": False}


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["build", *sys.argv[1:]])
