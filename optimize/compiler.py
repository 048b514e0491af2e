"""Compiles one part in a process of its own: a compiler that crashes or eats the memory takes nothing else with it.

Started by compile_process.py as `python -m edgefuse.optimize.compiler`. The first line of stdin is the job as JSON, the
ONNX bytes follow. Each line of stdout is one JSON object: {"phase": name, "done": 0 to 1}, {"note": "..."}, and at the
end {"built": {...}} or {"error": "..."}. Everything TensorRT says goes to stderr, which is the part's log.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgefuse.runtime.errors import EngineError
from edgefuse.runtime.machine import free_memory_bytes
from edgefuse.runtime.trt_errors import OUT_OF_MEMORY, one_line
from edgefuse.runtime.trt_package import use_package

MAX_WORKSPACE_BYTES = 2 << 30
Report = Callable[..., None]  # called with the keys of one line of stdout


@dataclass(frozen=True, slots=True)
class Job:
    """What to compile, and where to put it."""

    target: str  # tensorrt-rtx or tensorrt
    sm: tuple[int, ...]  # compute capabilities, for tensorrt-rtx only
    max_batch: int  # the profile is batch 1 to max_batch, best at 1
    engine: str  # path to write
    timing_cache: str | None = None  # path to read and write, for tensorrt only
    optimization_level: int | None = None  # 0 to 5, TensorRT's default where None, for tensorrt only


def main() -> None:
    """Read a job from stdin, compile it, say on stdout how it went."""
    # Libraries that print must not get between the JSON lines.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(**event: Any) -> None:
        print(json.dumps(event), file=out)

    document = json.loads(sys.stdin.buffer.readline())
    job = Job(**{**document, "sm": tuple(document["sm"])})
    try:
        use_package(job.target)
        from edgefuse.optimize import trt_build  # its `import tensorrt` finds what use_package chose

        report(built=trt_build.build(job, sys.stdin.buffer.read(), report))
    except EngineError as error:
        report(error=str(error))
    except MemoryError:  # also what std::bad_alloc becomes on its way through the binding
        report(error=f"{job.target}: {OUT_OF_MEMORY}")


def workspace_bytes() -> int:
    """Half of the free memory and at most 2 GiB: on a Jetson, GPU and CPU share it, and more fails in the middle."""
    free = free_memory_bytes()
    return MAX_WORKSPACE_BYTES if free is None else min(MAX_WORKSPACE_BYTES, free // 2)


def parser_errors(errors: list[Any]) -> str:
    """All of a parser's errors in one line, each with its node."""
    told = []
    for error in errors:
        where = f"{error.node_operator()} {error.node_name()!r}: " if error.node_name() else ""
        told.append(where + one_line(error.desc()))
    return "; ".join(told) or "it does not say why; see the log"


if __name__ == "__main__":
    main()
