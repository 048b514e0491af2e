"""Runs the compiler's process (compiler.py), shows how far it is, and says in one line how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from edgefuse.optimize.compiler import Job
from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.machine import free_memory_bytes
from edgefuse.runtime.trt_errors import OUT_OF_MEMORY, tells_of_memory

_TAIL_BYTES = 4096  # of the log, where a dying process says why


@dataclass(slots=True)
class _Heard:
    """What the process said so far."""

    phase: str = "starting"
    built: dict[str, Any] | None = None
    error: str | None = None


def run_compiler(
    job: Job, model: bytes, log: Path, show: Callable[[str, float], None], warn: Callable[[str], None]
) -> dict[str, Any]:
    """Compile one part in a process of its own.

    Args:
        job: what to compile.
        model: the ONNX part.
        log: file that gets everything the compiler says.
        show: is called with the builder's phase and the share that is done, 0 to 1.
        warn: is called with what went wrong and does not matter for the engine.

    Returns:
        What `trt_build.build` returns.

    Raises:
        EngineError: the compiler refuses the part, or died.
    """
    kills, free = _memory_kills(), free_memory_bytes()
    heard = _Heard()
    try:
        code = _run(job, model, log, heard, show, warn)
    finally:
        if heard.built is None:
            Path(job.engine).unlink(missing_ok=True)  # it may have ended behind the writing of it
    if heard.built is not None:
        return heard.built
    raise EngineError(heard.error or _death(job.target, code, heard.phase, log, _memory_kills() > kills, free))


def _run(
    job: Job,
    model: bytes,
    log: Path,
    heard: _Heard,
    show: Callable[[str, float], None],
    warn: Callable[[str], None],
) -> int:
    """Run the process to its end; returns its exit code."""
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
            with contextlib.suppress(BrokenPipeError):  # it died before it read the part
                child.stdin.write(json.dumps(asdict(job)).encode() + b"\n" + model)
                child.stdin.close()
            _follow(child.stdout, heard, show, warn)
            return child.wait()
        finally:
            child.kill()  # ctrl-C reaches only this process, since the child has its own session


def _follow(lines: IO[bytes], heard: _Heard, show: Callable[[str, float], None], warn: Callable[[str], None]) -> None:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the process died in the middle of the line
            continue
        if "note" in event:
            warn(event["note"])
        elif "built" in event or "error" in event:
            heard.built, heard.error = event.get("built"), event.get("error")
        else:
            heard.phase = event.get("phase", heard.phase)
            show(heard.phase, event["done"])


def _death(target: str, code: int, phase: str, log: Path, memory_kill: bool, free_before: int | None) -> str:
    """How a process ended that said nothing itself."""
    had = "" if free_before is None else f"; {free_before / 2**20:.0f} MiB were free when it began"
    tail = _tail(log)
    if memory_kill and code == -signal.SIGKILL:
        return f"the system killed the {target} compiler (SIGKILL) because {OUT_OF_MEMORY}{had}"
    if tells_of_memory(tail):
        return f"the {target} compiler ended ({_cause(code)}) because {OUT_OF_MEMORY}{had}"
    if code == -signal.SIGKILL:
        return (
            f"the {target} compiler was killed (SIGKILL) at {phase!r}, by a person or since memory ran out{had}: close "
            "other programs, or build with a smaller --max-batch"
        )
    return (
        f"the {target} compiler crashed ({_cause(code)}) at {phase!r}{had}; another version of TensorRT may do better, "
        "and `edgefuse check` tells of known traps"
    )


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _memory_kills() -> int:
    """How many processes this system has killed because memory ran out, since it was started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
