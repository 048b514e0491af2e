"""What it saves to run a part only when its sensor has something new: the loop against every part every time.

One stream of readings, picture 30/s, sound 10/s in between, one text, goes both ways in turns; a decision for each
reading. Counted is the CPU time of one thread, so that neither waiting nor a neighbour counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.benchmarks.loop_readings import Readings, fill, mailbox_for
from edgefuse.runtime.backend import Outcome, Pipeline, Tensors
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.loop import LIMITS_MS, Loop
from edgefuse.runtime.predictor import softmax

PICTURES_HZ, SOUNDS_HZ = 30, 10
Event = tuple[int, str, int]  # t_ns, modality, number of its reading
Logits = list[NDArray[np.float32]]  # [C] for each decision


def stream(seconds: int, begin_s: int = 0) -> Iterator[Event]:
    """The readings of some seconds; sounds come between pictures, the text at the beginning of all."""
    if begin_s == 0:
        yield 0, "text", 0
    moments = [(k / PICTURES_HZ, "image", k) for k in range(begin_s * PICTURES_HZ, (begin_s + seconds) * PICTURES_HZ)]
    half = 0.5 / PICTURES_HZ
    sounds = range(begin_s * SOUNDS_HZ, (begin_s + seconds) * SOUNDS_HZ)
    moments += [(k / SOUNDS_HZ + half, "audio", k) for k in sounds]
    for moment_s, modality, number in sorted(moments):
        yield int(moment_s * 1e9) + 1, modality, number


class ByLoop:
    """The stream through the loop itself, on the clock of the stream."""

    def __init__(self, bundle: Bundle, readings: Readings, taken: Logits | None) -> None:
        self._readings = readings
        mailbox = mailbox_for(readings)
        self._writers = {m: mailbox.writer(m) for m in readings}
        self._now_ns = 0
        self._loop = Loop(
            bundle.info, lambda: _Tapped(bundle, taken), mailbox, limits_ms=LIMITS_MS, clock=lambda: self._now_ns
        )
        self._loop.open()

    def take(self, event: Event) -> None:
        """Give one reading and decide."""
        self._now_ns, modality, number = event
        readings = self._readings[modality]
        fill(self._writers[modality].tensors, readings[number % len(readings)])
        self._writers[modality].put(self._now_ns)
        self._loop.step()


class EveryPart:
    """The stream through the same sessions, with every part that has a reading run every time."""

    def __init__(self, bundle: Bundle, readings: Readings, taken: Logits | None) -> None:
        self._readings, self._modalities = readings, bundle.info.modalities
        self._pipeline = _Tapped(bundle, taken).pipeline()
        self._held: dict[str, Tensors] = {}
        self._presence = np.zeros((1, len(self._modalities)), np.float32)  # [1, M]

    def take(self, event: Event) -> None:
        """Take one reading and decide."""
        _, modality, number = event
        readings = self._readings[modality]
        self._held[modality] = readings[number % len(readings)]
        self._presence[0] = [m in self._held for m in self._modalities]
        softmax(self._pipeline.run(self._held, self._presence).logits)

    def decide_again(self, _: Event) -> None:
        """Decide on what is encoded already."""
        softmax(self._pipeline.run({}, self._presence).logits)


class _Tapped(OnnxBackend):
    """One thread, and every logit is kept where `taken` is given."""

    def __init__(self, bundle: Bundle, taken: Logits | None) -> None:
        super().__init__(bundle, threads=1)
        self._taken = taken

    def pipeline(self) -> Any:
        inner = super().pipeline()
        return inner if self._taken is None else _Tap(inner, self._taken)


class _Tap:
    def __init__(self, inner: Pipeline, taken: Logits) -> None:
        self._inner, self._taken = inner, taken

    def run(self, fresh: Mapping[str, Tensors], presence: NDArray[np.float32]) -> Outcome:
        outcome = self._inner.run(fresh, presence)
        self._taken.append(outcome.logits.copy())
        return outcome


def compare_rates(bundle: Bundle, readings: Readings, seconds: int) -> dict[str, Any]:
    """Both ways over `seconds` of the stream, second by second in turns, after a pass that compares their answers.

    Returns:
        {identical, compared, decisions, loop_per_cpu_s, every_part_per_cpu_s, ratio, free_running_ratio}; the last is
        for a loop that decides as often as one core can while these sensors are encoded at their rates: what they
        leave of the second, spent on the head alone.
    """
    logits: dict[type, Logits] = {ByLoop: [], EveryPart: []}
    for way, taken in logits.items():
        each = way(bundle, readings, taken)
        for event in stream(min(seconds, 10)):
            each.take(event)
    pairs = list(zip(logits[ByLoop], logits[EveryPart], strict=True))
    by_loop, every_part = ByLoop(bundle, readings, None), EveryPart(bundle, readings, None)
    loop_s, every_s, head_s = [], [], []
    for second in range(seconds):
        events = list(stream(1, second))
        loop_s.append(_cpu_s(by_loop.take, events))
        every_s.append(_cpu_s(every_part.take, events))
        head_s.append(_cpu_s(every_part.decide_again, events))
    one_s, other_s, again_s = (float(np.median(times)) for times in (loop_s, every_s, head_s))
    per_second = PICTURES_HZ + SOUNDS_HZ
    free_running_hz = per_second + (1 - per_second * one_s) / again_s
    return {
        "identical": all(np.array_equal(one, other) for one, other in pairs),
        "compared": len(pairs),
        "decisions": per_second * seconds,
        "loop_per_cpu_s": 1 / one_s,
        "every_part_per_cpu_s": 1 / other_s,
        "ratio": other_s / one_s,
        "free_running_ratio": free_running_hz * other_s,
    }


def _cpu_s(decide: Callable[[Event], None], events: list[Event]) -> float:
    """CPU seconds of one decision."""
    begin = time.process_time()
    for event in events:
        decide(event)
    return (time.process_time() - begin) / len(events)
