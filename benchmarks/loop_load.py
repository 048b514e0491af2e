"""How old readings are when they are decided on, while a sensor gives them at a share of what the loop can take.

A real loop with a real sensor thread, which sleeps until each reading is due; one sensor gives, the others are held.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgefuse.benchmarks.latency import summarise
from edgefuse.benchmarks.loop_readings import Readings, fill, mailbox_for
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.decision import Decision
from edgefuse.runtime.loop import Loop
from edgefuse.runtime.mailbox import Mailbox

LOADS_PERCENT = (80, 200)  # of what the loop takes
NEVER: dict[str, float | None] = {"image": None, "audio": None, "text": None}  # no reading is too old


@dataclass(frozen=True, slots=True)
class Load:
    """What a run at one load gave."""

    ages_ms: list[float]  # of the reading that each decision was made for
    totals_ms: list[float]  # of each decision
    given: int  # readings
    dropped: int  # of them, those overwritten unseen


def decision_ms(bundle: Bundle, readings: Readings, modality: str, seconds: float) -> float:
    """Median time from a reading of `modality`, with the others held, to its decision, at about half load.

    Decisions one right after the other find everything in the caches and are quicker than any that a sensor waits for.
    """
    with _Rig(bundle, readings) as rig:
        totals_ms = [rig.decide(modality, number).stages_ms["total"] for number in range(100)]
    return float(np.median(run_load(bundle, readings, modality, 500 / float(np.median(totals_ms)), seconds).totals_ms))


def run_load(bundle: Bundle, readings: Readings, modality: str, rate_hz: float, seconds: float) -> Load:
    """The loop beside a thread that gives `rate_hz` readings of `modality`; the others are held."""
    ages_ms: list[float] = []
    totals_ms: list[float] = []
    with _Rig(bundle, readings) as rig:
        for number in range(20):
            rig.decide(modality, number)
        stop = threading.Event()
        before = rig.mailbox.received[modality], rig.mailbox.dropped[modality]
        sensor = threading.Thread(target=rig.give, args=(modality, 1 / rate_hz, seconds, stop), daemon=True)
        sensor.start()
        for decision in rig.loop.decisions(stop):
            if modality in decision.stages_ms:
                ages_ms.append(decision.age_ms[modality])
                totals_ms.append(decision.stages_ms["total"])
        sensor.join()
        given, dropped = rig.mailbox.received[modality] - before[0], rig.mailbox.dropped[modality] - before[1]
        return Load(ages_ms, totals_ms, given, dropped)


class _Rig:
    """A loop, its mailbox, and a reading of every sensor in it."""

    def __init__(self, bundle: Bundle, readings: Readings) -> None:
        self._readings = readings
        self.mailbox: Mailbox = mailbox_for(readings)
        self._writers = {m: self.mailbox.writer(m) for m in readings}
        self.loop = Loop(bundle.info, lambda: OnnxBackend(bundle, threads=1), self.mailbox, limits_ms=NEVER)
        self.loop.open()
        for modality in readings:
            self._put(modality, 0)

    def _put(self, modality: str, number: int) -> None:
        t_ns = time.monotonic_ns()
        writer = self._writers[modality]
        fill(writer.tensors, self._readings[modality][number % len(self._readings[modality])])
        writer.put(t_ns)

    def decide(self, modality: str, number: int) -> Decision:
        """Give a reading and decide at once."""
        self._put(modality, number)
        decision = self.loop.step()
        assert decision is not None
        return decision

    def give(self, modality: str, period_s: float, seconds: float, stop: threading.Event) -> None:
        """Give readings at an even rate for a while, then stop the loop; what is late is not made up for."""
        begin = time.perf_counter()
        due = begin
        number = 0
        while due < begin + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            self._put(modality, number)
            number += 1
            due = max(due + period_s, time.perf_counter() - period_s)
        stop.set()
        self.mailbox.poke()

    def __enter__(self) -> _Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()


def measure_load(bundle: Bundle, readings: Readings, seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
    """A camera and a microphone, each by itself, at 80 % and at 200 % of what the loop takes; medians of the rounds.

    Returns:
        modality -> {decision_ms, and for each load age_p95_ms, ratio (that / decision_ms), growth (of the second half
        of the run / of the first), dropped (share of the readings), and age: `summarise` of all ages of all rounds}.
    """
    found: dict[str, dict[str, Any]] = {}
    for modality in (m for m in readings if m != "text"):
        rows, loads = zip(*(_round(bundle, readings, modality, seconds) for _ in range(rounds)), strict=True)
        found[modality] = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
        for percent in LOADS_PERCENT:
            ages_ms = [age for load in loads for age in load[percent].ages_ms]
            found[modality][f"age_at_{percent}"] = summarise(ages_ms)
    return found


def _round(
    bundle: Bundle, readings: Readings, modality: str, seconds: float
) -> tuple[dict[str, float], dict[int, Load]]:
    took_ms = decision_ms(bundle, readings, modality, seconds / 2)
    row, loads = {"decision_ms": took_ms}, {}
    for percent in LOADS_PERCENT:
        load = loads[percent] = run_load(bundle, readings, modality, percent / 100 / (took_ms / 1e3), seconds)
        half = len(load.ages_ms) // 2
        all_ms, first_ms, second_ms = (
            float(np.percentile(ages_ms, 95)) for ages_ms in (load.ages_ms, load.ages_ms[:half], load.ages_ms[half:])
        )
        row |= {
            f"age_p95_ms_at_{percent}": all_ms,
            f"ratio_at_{percent}": all_ms / took_ms,
            f"growth_at_{percent}": second_ms / first_ms,
            f"dropped_at_{percent}": load.dropped / load.given,
        }
    return row, loads
