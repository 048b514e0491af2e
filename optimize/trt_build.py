"""Builds an engine with TensorRT's own API: the names that TensorRT 10.3 to 11 and TensorRT-RTX all have.

Imported in the compiler's process only, where the module `tensorrt` may be TensorRT-RTX (see trt_package.py of
runtime/). What not all of them have is asked for by getattr; tests/test_trt_conformance.py lets mypy read this file
against each version.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import tensorrt as trt  # type: ignore[import-not-found,import-untyped,unused-ignore]

from edgefuse.optimize.compiler import Job, Report, parser_errors, workspace_bytes
from edgefuse.optimize.trt_callbacks import Logger, Progress
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.trt_errors import plain


def build(job: Job, model: bytes, report: Report) -> dict[str, Any]:
    """Build the engine of `job` from an ONNX `model` and write it.

    Returns:
        {engine_sha256, seconds, profiles} as the sidecar has them, for tensorrt also hardware_compatibility; and plan:
        TensorRT's own account of its kernels as JSON, None where it gives none.

    Raises:
        EngineError: the parser or the builder refuses, or the disk is full; says why in one line.
    """
    logger = Logger()
    # A plan for many batches leaves sizes open; the ahead-of-time compiler is quick enough to ask again for one.
    batches = (job.max_batch, 1) if job.target == "tensorrt-rtx" and job.max_batch > 1 else (job.max_batch,)
    progress = Progress(report, len(batches))
    report(phase="Reading the graph", done=0.0)
    started = time.perf_counter()
    engine, facts = _engine(job, model, job.max_batch, logger, progress, report)
    seconds = time.perf_counter() - started
    _write(job.engine, engine)
    plan = None  # TensorRT-RTX has it in its log
    if job.target == "tensorrt":
        plan = _plan(engine, facts["profiles"], logger, report)
    for batch in batches[1:]:
        _engine(job, model, batch, logger, progress, report)
    return {"engine_sha256": hashlib.sha256(engine).hexdigest(), "seconds": seconds, "plan": plan, **facts}


def _engine(
    job: Job, model: bytes, max_batch: int, logger: Logger, progress: Progress, report: Report
) -> tuple[bytes, dict[str, Any]]:
    """The serialized engine, and what the sidecar says of it."""
    try:
        builder = trt.Builder(logger)
    except TypeError:  # its constructor returned nothing
        raise EngineError(
            f"{job.target} found no usable GPU here ({plain(logger.errors)}); build where the GPU is"
        ) from None
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 is always strongly typed
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise EngineError(f"{job.target} {trt.__version__} refuses the graph: {parser_errors(errors)}")
    config = _config(builder, job, progress)
    profiles = _profiles(network, max_batch)
    if profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            why = plain(logger.errors)
            raise EngineError(f"{job.target} {trt.__version__} takes no batch of 1 to {max_batch}: {why}")
    cache = _load_timing_cache(config, job, logger, report)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{job.target} {trt.__version__} could not build it: {plain(logger.errors)}")
    if cache is not None:
        _save_timing_cache(cache, config, report)
    facts: dict[str, Any] = {"profiles": profiles}
    if job.target == "tensorrt":  # TensorRT-RTX has none, and says so
        facts["hardware_compatibility"] = config.hardware_compatibility_level.name
    return bytes(plan), facts


def _config(builder: trt.Builder, job: Job, progress: Progress) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes())
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the plan then names the ONNX nodes
    config.clear_flag(trt.BuilderFlag.TF32)  # it would round the FP32 of the log-mel front end to 10 bits
    config.progress_monitor = progress
    if job.optimization_level is not None:
        config.builder_optimization_level = job.optimization_level
    if job.target == "tensorrt-rtx":
        _choose_gpus(config, job)
    return config


def _choose_gpus(config: Any, job: Job) -> None:
    """Say which GPUs to build for; only TensorRT-RTX can be told."""
    kinds = getattr(trt, "ComputeCapability")  # noqa: B009 (TensorRT has no such name)
    known = {int(name[2:]) for name in dir(kinds) if re.fullmatch(r"SM\d+", name)}
    if missing := set(job.sm) - known:
        raise EngineError(
            f"tensorrt-rtx {trt.__version__} has no SM {min(missing)}, only {', '.join(map(str, sorted(known)))}; "
            "for a Jetson use --target tensorrt on the board"
        )
    config.num_compute_capabilities = len(job.sm)
    for index, number in enumerate(job.sm):
        if not config.set_compute_capability(getattr(kinds, f"SM{number}"), index):
            raise EngineError(f"tensorrt-rtx {trt.__version__} does not build for SM {number}; leave it out of --sm")


def _profiles(network: trt.INetworkDefinition, max_batch: int) -> dict[str, list[list[int]]]:
    """Smallest, best and largest shape of each input whose batch is free: 1, 1 and `max_batch`."""
    profiles = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = list(tensor.shape)
        if -1 in shape:
            profiles[tensor.name] = [[size if dim == -1 else dim for dim in shape] for size in (1, 1, max_batch)]
    return profiles


def _load_timing_cache(config: trt.IBuilderConfig, job: Job, logger: Logger, report: Report) -> Path | None:
    """Give the builder what was timed before; returns the cache's path, None where there shall be none."""
    if job.timing_cache is None:
        return None
    path = Path(job.timing_cache)
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
    cache = config.create_timing_cache(known)
    refused = any("timing cache" in line.lower() for line in logger.warnings + logger.errors)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False) or (known and refused):
        report(note=f"{path} cannot be used and is made anew")
    return path


def _save_timing_cache(path: Path, config: trt.IBuilderConfig, report: Report) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_atomic(path, bytes(cache.serialize()))
    except OSError as error:  # the engine is what counts
        report(note=f"{path} cannot be written ({error.strerror}); the next build takes as long")


def _plan(engine: bytes, profiles: dict[str, list[list[int]]], logger: Logger, report: Report) -> str | None:
    """What the engine inspector says of the kernels; only a machine that can run the engine can ask it."""
    try:
        loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
    except TypeError:  # its constructor returned nothing
        loaded = None
    told = "" if loaded is None else _inspected(loaded, profiles, logger, report)
    try:
        json.loads(told, strict=False)  # it has raw control characters
    except ValueError:
        report(note=f"TensorRT tells nothing of the kernels it chose: {plain(logger.errors)}")
        return None
    return told


def _inspected(engine: trt.ICudaEngine, profiles: dict[str, list[list[int]]], logger: Logger, report: Report) -> str:
    """The inspector's words, with the sizes at batch 1 where the batch is free."""
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return ""
    context = _at_batch_1(engine, profiles) if profiles else None
    if context is not None:
        inspector.execution_context = context
    elif profiles:
        report(note=f"TensorRT tells no sizes of what its kernels read and write: {plain(logger.errors)}")
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _at_batch_1(engine: trt.ICudaEngine, profiles: dict[str, list[list[int]]]) -> trt.IExecutionContext | None:
    """A context by which the inspector knows the sizes that the batch leaves open; None where TensorRT refuses."""
    context = engine.create_execution_context()
    if context is None:
        return None
    try:
        is_set = all(context.set_input_shape(name, tuple(smallest)) for name, (smallest, *_) in profiles.items())
        return context if is_set and not context.infer_shapes() else None
    except RuntimeError:  # of infer_shapes
        return None


def _write(path: str, engine: bytes) -> None:
    try:
        write_atomic(path, engine)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be written ({error.strerror}); free some space; the engine that was there is untouched"
        ) from None
