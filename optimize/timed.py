"""Times the forms of a part on the GPU of this machine, as engines of TensorRT in processes of their own.

Each form is timed in turn with the part's first form, a block of runs of the one and a block of the other: a GPU that
grows warm or changes its clock does so for both, and their ratio stays. No GPU has met these lines: they are tested
over doubles of CUDA and of TensorRT that refuse what the real ones refuse.

Started as `python -m edgefuse.optimize.timed ENGINE ENGINE`; stdout is one line of JSON, {"us": [[of each block], [of
each block]]} or {"error": "..."}.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefuse.optimize.capabilities import CUDA_PACKAGES, Facts, targets
from edgefuse.optimize.compile_process import run_compiler
from edgefuse.optimize.compiler import Job
from edgefuse.optimize.probe import GPU, probe
from edgefuse.runtime.backend_trt import any_cuda
from edgefuse.runtime.cuda import Cuda
from edgefuse.runtime.errors import EdgefuseError, EngineError
from edgefuse.runtime.machine import find_gpu
from edgefuse.runtime.trt_errors import one_line
from edgefuse.runtime.trt_package import use_package
from edgefuse.runtime.trt_part import Part

TARGET = "tensorrt"
BLOCKS, RUNS = 40, 10  # of each form, and of a block
WARM_UP_BLOCKS = 5  # before them, until the clock of the GPU has settled
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Device:
    """What forms are timed on."""

    gpu: str  # its name
    sm: int
    version: str  # of TensorRT


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of one form at batch 1, with its copies, and what TensorRT says of its kernels."""

    us: float
    spread_us: float  # between the quartiles of the blocks; a smaller difference means nothing
    plan: str  # "" where TensorRT does not tell


def find_device() -> Device | None:
    """The GPU, None where there is none.

    Raises:
        EngineError: there is one, and something is missing that building or timing needs; says what.
    """
    try:
        gpu = find_gpu()
    except EngineError:
        return None
    facts = _facts()
    row = targets(facts)[TARGET]
    if not (row["build"] and row["run"]):
        raise EngineError(row["why"])
    return Device(gpu.name, gpu.sm, facts.version(TARGET))


@functools.cache
def _facts() -> Facts:
    return Facts(found=probe((GPU, TARGET, "onnx", *CUDA_PACKAGES), {}))


class Timer:
    """Builds and times the forms of one part; the first becomes the one that all are timed in turn with."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._first = b""  # its engine
        self._first_us = 0.0
        self._timing_cache = b""  # of TensorRT: equal kernels are chosen once, and alike in every form

    def time(self, model: bytes) -> Timing:
        """Build the engine of an ONNX `model` and time it.

        Raises:
            EngineError: TensorRT refuses it, or it cannot be timed; says why in one line.
        """
        with tempfile.TemporaryDirectory() as folder:
            form, first, cache = (Path(folder, name) for name in ("form.engine", "first.engine", "timing.cache"))
            if self._timing_cache:
                cache.write_bytes(self._timing_cache)
            job = Job(TARGET, (self.device.sm,), 1, str(form), str(cache))
            built = run_compiler(job, model, Path(folder, "log"), lambda phase, done: None, lambda note: None)
            self._timing_cache = cache.read_bytes() if cache.exists() else b""
            first.write_bytes(self._first or form.read_bytes())  # the first in turn with itself: that is its spread
            first_us, form_us = self._blocks(first, form)
            if not self._first:
                self._first, self._first_us = first.read_bytes(), float(np.median(first_us))
        low, middle, high = np.percentile(form_us / first_us, (25, 50, 75)) * self._first_us
        return Timing(float(middle), float(high - low), built["plan"] or "")

    def _blocks(self, first: Path, form: Path) -> NDArray[np.float64]:
        """What a run took, [2, BLOCKS] in microseconds."""
        command = [sys.executable, "-m", "edgefuse.optimize.timed", str(first), str(form)]
        try:
            child = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise self._error(f"it hangs (more than {TIMEOUT_S:.0f} s)") from None
        try:
            told = json.loads(child.stdout)
        except ValueError:  # it ended in the middle
            cause = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
            last = one_line((child.stderr.decode(errors="replace").strip().splitlines() or [""])[-1])
            raise self._error(f"the process crashed ({cause})" + (f": {last}" if last else "")) from None
        if "error" in told:
            raise self._error(told["error"])
        us = np.array(told["us"], np.float64)
        if not (np.isfinite(us) & (us > 0)).all():
            raise self._error("CUDA's events tell times that cannot be")
        return us

    def _error(self, why: str) -> EngineError:
        return EngineError(
            f"a form cannot be timed on {self.device.gpu}: {why}; --precision int8 and fp16 need no costs"
        )


def main() -> None:
    """Time the two engines of the command line."""
    # Libraries that print must not get between the JSON.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        use_package(TARGET)
        told: dict[str, object] = {"us": measure(any_cuda(), [Path(name) for name in sys.argv[1:]])}
    except EdgefuseError as error:
        told = {"error": str(error)}
    except MemoryError:
        told = {"error": "memory ran out; close other programs"}
    print(json.dumps(told), file=out, flush=True)


def measure(cuda: Cuda, engines: Sequence[Path]) -> list[list[float]]:
    """Microseconds of one run on zeros at batch 1, for each block of each engine; closes `cuda`.

    Raises:
        EngineError, BackendError: an engine cannot be loaded, or the device fails.
    """
    from edgefuse.runtime.trt_engine import Engine, open_runtime

    with contextlib.ExitStack() as opened:
        opened.callback(cuda.close)
        opened.enter_context(cuda.current())
        runtimes = [open_runtime(TARGET)]
        opened.callback(runtimes.clear)  # behind the engines, before the GPU
        parts = []
        for path in engines:
            engine = Engine(runtimes[0], f"the engine {path.stem}", path.read_bytes(), path.with_suffix(".cache"))
            opened.callback(engine.close)
            part = Part(cuda, engine, 1, {})
            opened.callback(part.close)
            part.warm_up()
            part.capture()
            parts.append(part)
        events = (cuda.event(), cuda.event())
        us: list[list[float]] = [[] for _ in parts]
        for block in range(WARM_UP_BLOCKS + BLOCKS):
            turns = list(zip(parts, us, strict=True))
            for part, times in turns[:: -1 if block % 2 else 1]:  # each is as often before the other as behind it
                times.append(_block_us(cuda, part, events))
        return [times[WARM_UP_BLOCKS:] for times in us]


def _block_us(cuda: Cuda, part: Part, events: tuple[int, int]) -> float:
    cuda.record(events[0], part.stream)
    for _ in range(RUNS):
        part.start()
    cuda.record(events[1], part.stream)
    part.finish()
    return cuda.elapsed_ms(*events) * 1000 / RUNS


if __name__ == "__main__":
    main()
