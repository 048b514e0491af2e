"""Compile the parts of a bundle: `python optimize/build_engine.py bundle --target tensorrt-rtx`, as `edgefuse build`.

TensorRT runs in a child process for each part (compiler.py). An engine that is there already and still fits its part,
compiler, GPUs and batch is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edgefuse.optimize.compiler import Job, gpu_sm, load_package, workspace_bytes
from edgefuse.optimize.plan import parse_layers, summary
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.bundle import HEAD, Bundle, part_file
from edgefuse.runtime.engines import COMPILED_SET, Sidecar, engine_file, read_sidecar
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.files import write_atomic

PORTABLE_SM = (80, 86, 89, 120)  # what TensorRT-RTX builds for unless told: Ampere, Ada and Blackwell
_CPU_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}


def build(
    bundle_folder: str | Path, *, target: str = "tensorrt-rtx", sm: Sequence[int] = (), max_batch: int = 8, explain: bool = False
) -> dict[str, Any]:
    """Compile every trt part for `target`; for "cpu", open and warm every cpu part in ONNX Runtime.

    Args:
        bundle_folder: a bundle that `edgefuse quantize` has been over.
        target: "tensorrt-rtx" (any machine, also without a GPU), "tensorrt" (this machine's GPU) or "cpu".
        sm: compute capabilities to build for, 86 for 8.6; PORTABLE_SM where empty. tensorrt-rtx only.
        max_batch: largest batch that the engines take; they are tuned for batch 1.

    Returns:
        {engines: [{path, target, kernels, bytes_touched, seconds, reused}]}; kernels and bytes for one example.

    Raises:
        BundleError: no bundle, or no parts for this target in it.
        EngineError: the compiler is not installed, refuses a part, or died.
    """
    bundle = Bundle.open(bundle_folder)
    if sm and target != "tensorrt-rtx":
        raise EngineError(f"--sm is for tensorrt-rtx; {target} compiles for the machine it runs on: leave --sm out")
    parts = (*bundle.info.modalities, HEAD)
    bundle.part_info("cpu" if target == "cpu" else COMPILED_SET, HEAD)  # refuse a missing part set now
    if target == "cpu":
        return {"engines": [_warm(bundle, part) for part in parts]}
    version = str(load_package(target).__version__)
    gpus = tuple(sorted(set(sm) or PORTABLE_SM)) if target == "tensorrt-rtx" else gpu_sm()
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<6}"),
        BarColumn(),
        TextColumn("{task.fields[phase]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        engines = [_engine(bundle, part, target, version, gpus, max_batch, progress) for part in parts]
    return {"engines": engines}


def _engine(
    bundle: Bundle, part: str, target: str, version: str, sm: tuple[int, ...], max_batch: int, progress: Progress
) -> dict[str, Any]:
    """Build one engine, or keep the one that is there."""
    source = bundle.part(COMPILED_SET, part)
    task = progress.add_task(part, total=None, phase="")
    path = engine_file(bundle.folder, target, part)
    wanted = {
        "part": part,
        "target": target,
        "tensorrt_version": version,
        "sm": sm,
        "batch": (1, 1, max_batch),
        "source_sha256": hashlib.sha256(source).hexdigest(),
    }
    sidecar = _fitting(bundle.folder, wanted)
    reused = sidecar is not None
    if sidecar is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = engine_file(bundle.folder, target, part, ".log")
        built = _compile(Job(target, sm, max_batch, str(path)), source, log, part, progress, task)
        plan = summary(parse_layers(log.read_text(errors="replace")))
        sidecar = Sidecar.model_validate({**wanted, **built, **plan})
        write_atomic(engine_file(bundle.folder, target, part, ".json"), sidecar.model_dump_json(indent=2).encode())
    progress.update(task, total=1, completed=1, phase="kept" if reused else "done")
    told = {"kernels": sidecar.kernels, "bytes_touched": sidecar.bytes_touched, "seconds": sidecar.seconds}
    return {"path": str(path), "target": target, **told, "reused": reused}


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


def _compile(job: Job, model: bytes, log: Path, part: str, progress: Progress, task: Any) -> dict[str, Any]:
    """Run the compiler's process to its end; returns what it says it built."""
    command = [sys.executable, "-m", "edgefuse.optimize.compiler"]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}  # a crash then leaves its Python stack in the log
    pipe = subprocess.PIPE
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, start_new_session=True
        ) as child,
    ):
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died before it read the part: see below how
                child.stdin.write(json.dumps(asdict(job)).encode() + b"\n" + model)
                child.stdin.close()
            answer = _follow(child.stdout, progress, task)
            code = child.wait()
        finally:
            child.kill()  # ctrl-C reaches only this process, since the child has its own session
    if "built" in answer:
        return dict(answer["built"])
    raise EngineError(f"{part}: {answer['error'] if 'error' in answer else _death(job.target, code)} (log: {log})")


def _follow(lines: IO[bytes], progress: Progress, task: Any) -> dict[str, Any]:
    """Show the child's progress until it ends; returns its last word, {} where it had none."""
    answer: dict[str, Any] = {}
    for line in lines:
        event = json.loads(line)
        if "total" in event or "completed" in event or "phase" in event:
            progress.update(task, **event)
        else:
            answer = event
    return answer


def _death(target: str, code: int) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    memory = f"it had {workspace_bytes() / 2**20:.0f} MiB to work with"
    return (
        f"the {target} compiler {how} and said no more; {memory}: if that is little, close other programs or build "
        "with --max-batch 1, else report the last lines of its log"
    )


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
