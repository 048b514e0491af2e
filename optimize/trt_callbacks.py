"""What TensorRT calls back while it works: its log and its progress.

Imported where the module `tensorrt` may be TensorRT-RTX (see runtime/trt_package.py). Nothing here may raise:
it is called from C++, where a Python exception ends the process.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

import tensorrt as trt  # type: ignore[import-not-found,import-untyped,unused-ignore]

from edgefuse.optimize.compiler import Report

_PROGRESS_STEP = 1 / 200  # of the whole; smaller steps are not reported


class Logger(trt.ILogger):  # type: ignore[misc]  # its base is known when it runs
    """Writes everything to stderr and remembers errors and warnings; one per process, TensorRT keeps the first."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        level = int(severity)  # 0 internal error, 1 error, 2 warning, 3 information, 4 verbose
        if level <= 1:
            self.errors.append(message)
        elif level == 2:
            self.warnings.append(message)
        with contextlib.suppress(OSError):  # the disk is full; what matters is remembered
            print(f"[{level}] {message}", file=sys.stderr)


@dataclass(slots=True)
class _Phase:
    """A phase that has begun and not ended."""

    parent: str | None  # None for the outermost
    steps: int
    completed: int = 0  # steps


class Progress(trt.IProgressMonitor):  # type: ignore[misc]  # its base is known when it runs
    """Turns the builder's nested phases into one growing share of the whole.

    Args:
        report: is told {phase, done}.
        plans: how often the builder will run.
    """

    def __init__(self, report: Report, plans: int) -> None:
        super().__init__()
        self._report = report
        self._plans = plans
        self._finished = 0  # plans
        self._phases: dict[str, _Phase] = {}
        self._told = 0.0
        self._is_heard = True  # until the process that started this one is gone

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = _Phase(parent, max(steps, 1))
        self._say(phase=name, done=round(self._told, 4))

    def step_complete(self, name: str, step: int) -> bool:
        if name in self._phases:
            self._phases[name].completed = step + 1
        self._tell()
        return self._is_heard  # False ends the build

    def phase_finish(self, name: str) -> None:
        phase = self._phases.pop(name, None)
        if phase is not None and phase.parent is None:
            self._finished += 1
            self._phases.clear()
        self._tell()

    def _tell(self) -> None:
        outermost = next((name for name, phase in self._phases.items() if phase.parent is None), None)
        done = (self._finished + (self._share(outermost) if outermost else 0.0)) / self._plans
        if done >= self._told + _PROGRESS_STEP:
            self._told = min(done, 1.0)
            self._say(done=round(self._told, 4))

    def _say(self, **event: Any) -> None:
        try:
            self._report(**event)
        except OSError:
            self._is_heard = False

    def _share(self, name: str) -> float:
        """How much of a phase is done: its completed steps, and what is done of the one that is running."""
        phase = self._phases[name]
        inner = [self._share(child) for child, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.completed + max(inner, default=0.0)) / phase.steps)
