"""Compiles one part in a process of its own: a compiler that crashes or eats the memory takes nothing else with it.

Started by build_engine.py as `python -m edgefuse.optimize.compiler`. The first line of stdin is the job as JSON, the
ONNX bytes follow. Each line of stdout is one JSON object: {"phase": name}, {"total": steps}, {"completed": steps}, and
at the end {"built": {...}} or {"error": "..."}. Everything TensorRT says goes to stderr, which is the part's log.

One code for TensorRT 10.3 to 11 and TensorRT-RTX: only names that all of them have, the rest by getattr.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.files import write_atomic

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # target -> the module that compiles for it
_HOW_TO_GET = {
    "tensorrt-rtx": "pip install 'edgefuse[rtx]'",
    "tensorrt": "on a Jetson use JetPack's (python3 -m venv --system-site-packages), "
    "elsewhere pip install 'edgefuse[tensorrt]' where the GPU is",
}
MAX_WORKSPACE_BYTES = 2 << 30
_NO_DRIVER = re.compile(r"\[?checkMacros.*?\(cudaError 35:[^)]*\)+")  # said after every error where there is no GPU


@dataclass(frozen=True, slots=True)
class Job:
    """What to compile, and where to put it."""

    target: str  # key of PACKAGES
    sm: tuple[int, ...]  # compute capabilities, for tensorrt-rtx only
    max_batch: int  # the profile is batch 1 to max_batch, best at 1
    engine: str  # path to write


def main() -> None:
    """Read a job from stdin, compile it, say on stdout how it went."""
    # Libraries that print must not get between the JSON lines.
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    document = json.loads(sys.stdin.buffer.readline())
    job = Job(**{**document, "sm": tuple(document["sm"])})
    try:
        built = compile_part(job, sys.stdin.buffer.read(), report)
        print(json.dumps({"built": built}), file=report)
    except EngineError as error:
        print(json.dumps({"error": str(error)}), file=report)


def compile_part(job: Job, model: bytes, report: TextIO) -> dict[str, Any]:
    """Build the engine of `job` and write it; returns {engine_sha256, seconds}.

    Raises:
        EngineError: the parser or the builder refuses; says why in one line.
    """
    trt = load_package(job.target)
    started = time.perf_counter()
    logger = _logger(trt)
    engine = _serialized_engine(trt, logger, job, model, job.max_batch, report)
    seconds = time.perf_counter() - started
    try:
        write_atomic(job.engine, engine)
    except OSError as error:
        raise EngineError(f"{job.engine} cannot be written ({error.strerror}); free some space") from None
    if job.target == "tensorrt-rtx" and job.max_batch > 1:
        # A plan for many batches leaves sizes open; the ahead-of-time compiler is quick enough to ask again for one.
        _serialized_engine(trt, logger, job, model, 1, report)
    return {"engine_sha256": hashlib.sha256(engine).hexdigest(), "seconds": seconds}


def load_package(target: str) -> Any:
    """The TensorRT module that compiles for `target`.

    Raises:
        EngineError: it is not installed, or cannot be loaded.
    """
    package = PACKAGES[target]
    try:
        return importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            found = f"needs the Python package {package}, which is not installed"
        else:
            found = f"needs the Python package {package}, which cannot be loaded ({_one_line(str(error))})"
        raise EngineError(f"--target {target} {found}: {_HOW_TO_GET[target]}") from None


def gpu_sm() -> tuple[int, ...]:
    """Compute capability of the first GPU, 87 for 8.7; () where CUDA or its Python package cannot tell."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
        told = [cuda.cudaDeviceGetAttribute(attribute, 0) for attribute in (
            cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
            cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
        )]  # fmt: skip
    except (ImportError, RuntimeError):  # RuntimeError: no driver
        return ()
    (error, major), (_, minor) = told
    return (major * 10 + minor,) if error == cuda.cudaError_t.cudaSuccess else ()


def workspace_bytes() -> int:
    """Half of the free memory and at most 2 GiB: on a Jetson, GPU and CPU share it, and more fails in the middle."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return MAX_WORKSPACE_BYTES
    free_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min(MAX_WORKSPACE_BYTES, free_kib * 1024 // 2)


def _serialized_engine(trt: Any, logger: Any, job: Job, model: bytes, max_batch: int, report: TextIO) -> bytes:
    try:
        builder = trt.Builder(logger)
    except TypeError:  # its constructor returned nothing
        raise EngineError(
            f"{job.target} found no usable GPU here ({logger.last_errors()}); build where the GPU is"
        ) from None
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 is always strongly typed
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise EngineError(f"{job.target} {trt.__version__} refuses the graph: {parser_errors(errors)}")
    config = _config(trt, builder, job, report)
    if profile := _profile(builder, network, max_batch):
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{job.target} {trt.__version__} could not build it: {logger.last_errors()}")
    return bytes(plan)


def _config(trt: Any, builder: Any, job: Job, report: TextIO) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes())
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the plan then names the ONNX nodes
    config.clear_flag(trt.BuilderFlag.TF32)  # it would round the FP32 of the log-mel front end to 10 bits
    config.progress_monitor = _progress_monitor(trt, report)
    if job.target == "tensorrt-rtx":
        known = {f"SM{number}" for number in job.sm}.intersection(dir(trt.ComputeCapability))
        if missing := [number for number in job.sm if f"SM{number}" not in known]:
            have = sorted(int(name[2:]) for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name))
            raise EngineError(
                f"tensorrt-rtx {trt.__version__} has no SM {missing[0]}, only {', '.join(map(str, have))}; "
                "for a Jetson use --target tensorrt on the board"
            )
        config.num_compute_capabilities = len(job.sm)
        for index, number in enumerate(job.sm):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), index)
    return config


def _profile(builder: Any, network: Any, max_batch: int) -> Any:
    """Batch 1 to `max_batch`, tuned for 1; None where every size of the graph is fixed."""
    profile = builder.create_optimization_profile()
    free = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = list(tensor.shape)
        if -1 in shape:
            free = True
            bounds = [[size if dim == -1 else dim for dim in shape] for size in (1, 1, max_batch)]
            profile.set_shape(tensor.name, *bounds)
    return profile if free else None


def parser_errors(errors: list[Any]) -> str:
    """All of a parser's errors in one line, each with its node."""
    told = []
    for error in errors:
        where = f"{error.node_operator()} {error.node_name()!r}: " if error.node_name() else ""
        told.append(where + _one_line(error.desc()))
    return "; ".join(told) or "it does not say why; see the log"


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # its base is known when it runs
        """Writes everything to stderr and remembers the errors; one per process, TensorRT keeps the first."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            print(f"[{int(severity)}] {message}", file=sys.stderr)
            line = _one_line(message)
            if int(severity) <= 1 and line:
                self.errors.append(line)

        def last_errors(self) -> str:
            return "; ".join(self.errors[-3:]) or "it does not say why"

    return Logger()


def _progress_monitor(trt: Any, report: TextIO) -> Any:
    class Progress(trt.IProgressMonitor):  # type: ignore[misc]  # its base is known when it runs
        """Turns the builder's phases into JSON lines; the steps of the outermost phase are the progress."""

        def __init__(self) -> None:
            super().__init__()
            self.outermost = ""

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._say(phase=name)
            if parent is None:
                self.outermost = name
                self._say(total=steps)

        def step_complete(self, name: str, step: int) -> bool:
            if name == self.outermost:
                self._say(completed=step + 1)
            return True

        def phase_finish(self, name: str) -> None:
            pass  # what follows says its own name

        def _say(self, **event: Any) -> None:
            print(json.dumps(event), file=report)

    return Progress()


def _one_line(text: str) -> str:
    return " ".join(_NO_DRIVER.sub("", text).split())


if __name__ == "__main__":
    main()
