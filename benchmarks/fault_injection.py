"""Faults on purpose, by a script: sources that are unplugged, give rubbish or hang, a backend that fails or gets slow.

The readings are recorded ones, given again and again at the rate of a sensor; the mailbox keeps a log of what it was
given, so that `fault_check.py` can tell afterwards what each decision should have said.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Backend, Outcome, Pipeline, Tensors
from edgefuse.runtime.errors import BackendError, SensorError
from edgefuse.runtime.lanes import Lanes
from edgefuse.runtime.mailbox import Mailbox, Writer
from edgefuse.runtime.source import SpoiledError

UNPLUGGED, GONE, CORRUPT, STALL = "camera unplugged", "microphone gone", "corrupt frame", "RTSP stall"
ERROR, REOPEN, SLOW = "backend error", "backend error, also at reopen", "thermal slow-down"
TIMES_SLOWER = 4.0
LATE_S = 2.0  # how long after its fault a thread that hangs comes back, too late


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong for a while."""

    kind: str  # one of the above
    about: str  # what notices call it: a modality, "backend" or "pace"
    begin_ns: int  # on the clock of time.monotonic_ns
    end_ns: int  # from here on it would work again


class Script:
    """Which fault is on at the moment."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = sorted(faults, key=lambda fault: fault.begin_ns)

    def now(self, *kinds: str, about: str | None = None) -> Fault | None:
        """The fault of these kinds that is on."""
        now_ns = time.monotonic_ns()
        for fault in self.faults:
            if fault.begin_ns <= now_ns < fault.end_ns and fault.kind in kinds and about in (None, fault.about):
                return fault
        return None


class Replayed:
    """Recorded readings of one modality, given one after the other at an even rate, with faults."""

    def __init__(self, modality: str, readings: Sequence[Tensors], rate_hz: float, script: Script) -> None:
        self.name = f"replayed {modality}"
        self.given: dict[int, int] = {}  # t_ns -> number of the reading
        self._modality, self._readings, self._script = modality, readings, script
        self._period_ns = int(1e9 / rate_hz)
        self._released = threading.Event()  # at the end, so that no thread outlives the run

    def open(self) -> None:
        """Works unless it is unplugged."""
        if fault := self._script.now(UNPLUGGED, GONE, STALL, about=self._modality):
            raise SensorError(f"injected: {fault.kind}")

    def read(self, writer: Writer) -> bool:
        """The next reading when it is due."""
        now_ns = time.monotonic_ns()
        time.sleep((self._period_ns - now_ns % self._period_ns) / 1e9)
        fault = self._script.now(UNPLUGGED, GONE, CORRUPT, STALL, about=self._modality)
        if fault is not None and fault.kind in (UNPLUGGED, GONE):
            raise SensorError(f"injected: {fault.kind}")
        if fault is not None and fault.kind == CORRUPT:
            spoil(writer.tensors)
            raise SpoiledError(f"injected: {fault.kind}")
        if fault is not None:
            self._released.wait((fault.end_ns - time.monotonic_ns()) / 1e9 + LATE_S)
            spoil(writer.tensors)
            return writer.put(time.monotonic_ns())  # must be ignored: another thread has its place
        number = len(self.given) % len(self._readings)
        for name, tensor in self._readings[number].items():
            np.copyto(writer.tensors[name], tensor)
        t_ns = time.monotonic_ns()
        self.given[t_ns] = number
        return writer.put(t_ns)

    def close(self) -> None:
        """Nothing to free."""

    def release(self) -> None:
        """Let the threads that hang come back."""
        self._released.set()


def spoil(tensors: Tensors) -> None:
    """Write what no reading has, so that an answer that stands on it is another one."""
    for tensor in tensors.values():
        tensor[...] = 0 if tensor.dtype == np.int32 else 1
        tensor.reshape(-1)[::2] = 0


class LoggedMailbox(Mailbox):
    """A mailbox that keeps the times of every reading it accepted."""

    def __init__(self, allocate: Callable[[str], Tensors], modalities: tuple[str, ...]) -> None:
        super().__init__(allocate, modalities)
        self.log: dict[str, list[tuple[int, int, int]]] = {m: [] for m in modalities}  # captured, before, after [ns]

    def _put(self, writer: Writer, t_ns: int) -> bool:
        before_ns = time.monotonic_ns()
        is_accepted = super()._put(writer, t_ns)
        if is_accepted:
            self.log[writer.modality].append((t_ns, before_ns, time.monotonic_ns()))
        return is_accepted


class FaultyBackend:
    """A backend whose pipeline fails or gets slow by the script; refuses what the contract of a pipeline forbids.

    Args:
        inner: the real one.
        script: when what goes wrong.
        stage_ms: what every part is said to take where nothing is slow; None tells what it took.
    """

    def __init__(self, inner: Backend, script: Script, stage_ms: float | None = None) -> None:
        self.name = inner.name
        self._inner, self._script, self._stage_ms = inner, script, stage_ms
        self.is_broken = False

    @property
    def lanes(self) -> Lanes:
        """Those of the real one."""
        return self._inner.lanes

    def load(self, part: str) -> None:
        """As the real one."""
        self._inner.load(part)

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """As the real one."""
        return self._inner.run(part, inputs)

    def pipeline(self) -> Pipeline:
        """A pipeline with faults."""
        return _FaultyPipeline(self, self._inner.pipeline(), self._script, self._stage_ms)

    def close(self) -> None:
        """No pipeline of it may run any more."""
        self.is_broken = True
        self._inner.close()

    def __enter__(self) -> FaultyBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _FaultyPipeline:
    def __init__(self, owner: FaultyBackend, inner: Pipeline, script: Script, stage_ms: float | None) -> None:
        self._owner, self._inner, self._script, self._stage_ms = owner, inner, script, stage_ms

    def run(self, fresh: Mapping[str, Tensors], presence: NDArray[np.float32]) -> Outcome:
        if self._owner.is_broken:
            raise AssertionError("a pipeline ran after it had failed or its backend was closed")
        if fault := self._script.now(ERROR, REOPEN):
            self._owner.is_broken = True
            raise BackendError(f"injected: {fault.kind}")
        begin = time.perf_counter()
        outcome = self._inner.run(fresh, presence)
        stages_ms = outcome.stages_ms
        if self._stage_ms is not None:
            stages_ms = dict.fromkeys(stages_ms, self._stage_ms)
        if self._script.now(SLOW):
            time.sleep((time.perf_counter() - begin) * (TIMES_SLOWER - 1))
            stages_ms = {stage: time_ms * TIMES_SLOWER for stage, time_ms in stages_ms.items()}
        return Outcome(outcome.logits, outcome.weights, stages_ms)


def faulty(
    open_backend: Callable[[], Backend], script: Script, stage_ms: float | None = None
) -> Callable[[], FaultyBackend]:
    """What opens a backend with the faults of the script, and fails to where the script says so."""

    def open_() -> FaultyBackend:
        if fault := script.now(REOPEN):
            raise BackendError(f"injected: {fault.kind}")
        return FaultyBackend(open_backend(), script, stage_ms)

    return open_
