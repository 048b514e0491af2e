"""What a monitor asks of a running loop: counts in Prometheus' text format 0.0.4, and whether it is well."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgefuse.runtime.bundle import BundleInfo
from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.sensors import Sensors

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # upper ends
STUCK_MS = 5000.0  # without a look for readings: a loop looks twice a second, also where nothing is new

# Name -> type, label of its samples, help.
GAUGE, COUNTER = "gauge", "counter"
METRICS = {
    "up": (GAUGE, "", "1 where decisions can be made."),
    "decisions_total": (COUNTER, "", "Decisions since the start."),
    "last_decision_age_seconds": (GAUGE, "", "Time since the last decision."),
    "reading_age_seconds": (GAUGE, "modality", "Age of each reading at the last decision."),
    "presence": (GAUGE, "modality", "1 where the modality counts."),
    "readings_total": (COUNTER, "modality", "Readings of each sensor."),
    "dropped_total": (COUNTER, "modality", "Readings that were overwritten unseen."),
    "sensor_failures_total": (COUNTER, "modality", "Times that a sensor began to fail."),
    "sensor_restarts_total": (COUNTER, "modality", "Times that a sensor was opened again."),
    "backend_failures_total": (COUNTER, "", "Times that the backend began to fail."),
    "alarms_total": (COUNTER, "alarm", "Times that each alarm began."),
    "resident_memory_bytes": (GAUGE, "", "Memory that the process holds."),
}


class Said(NamedTuple):
    """The newest decision and when it came, in one piece, so that a reader never mixes two."""

    decision: Decision
    at_ns: int  # time.monotonic_ns


class Metrics:
    """Counts what the loop says.

    `decision` belongs to the loop's thread and takes no lock. Who reads meanwhile may miss half of the newest decision.

    Args:
        info: the contract of the bundle.
        mailbox: counts the readings, and knows when the loop last looked.
        gap_s: time that the loop lets pass between two decisions, if any.
    """

    def __init__(self, info: BundleInfo, mailbox: Mailbox, gap_s: float = 0.0) -> None:
        self._stuck_ms = STUCK_MS + 1e3 * gap_s
        self.info = info
        self.mailbox = mailbox
        self.sensors: Sensors | None = None  # who knows of restarts, once there is one
        self.newest: Said | None = None
        self.troubles: dict[str, str] = {}  # what is wrong now: about -> message
        self._buckets = [0] * (len(BUCKETS_S) + 1)  # decisions by total time, the last for what took longer
        self._stages_ms: dict[str, tuple[int, float]] = {}  # stage -> times it ran, and their sum
        self._failures: Counter[str] = Counter()  # about -> notices of something that failed
        self._alarms: Counter[str] = Counter()  # alarm -> times it began
        self._lock = threading.Lock()  # notices and alarms come from any thread

    @property
    def decisions(self) -> int:
        """How many there were."""
        return sum(self._buckets)

    @property
    def decision_age_ms(self) -> float | None:
        """Time since the newest decision."""
        return None if self.newest is None else (time.monotonic_ns() - self.newest.at_ns) / 1e6

    @property
    def presence(self) -> dict[str, bool]:
        """Modality -> whether it counts now."""
        if self.newest is None or "loop" in self.troubles:  # nothing gives, so nothing is decided that would say so
            return dict.fromkeys(self.info.modalities, False)
        return self.newest.decision.presence

    def decision(self, decision: Decision) -> None:
        """Count a decision."""
        self._buckets[bisect_left(BUCKETS_S, decision.stages_ms["total"] / 1e3)] += 1
        for stage, took_ms in decision.stages_ms.items():
            count, sum_ms = self._stages_ms.get(stage, (0, 0.0))
            self._stages_ms[stage] = count + 1, sum_ms + took_ms
        self.newest = Said(decision, time.monotonic_ns())

    def notice(self, notice: Notice) -> None:
        """Count a failure, and remember it until it is over."""
        with self._lock:
            troubles = {about: message for about, message in self.troubles.items() if about != notice.about}
            if not notice.is_well:
                troubles[notice.about] = notice.message
                self._failures[notice.about] += 1
            self.troubles = troubles  # whole, so that a reader needs no lock

    def alarm(self, name: str) -> None:
        """Count an alarm that begins."""
        with self._lock:
            self._alarms[name] += 1

    def health(self) -> tuple[Literal["ok", "degraded", "down"], dict[str, Any]]:
        """Whether decisions can be made, and what `/health` says; "down" where none can."""
        troubles = dict(self.troubles)
        silent_ms = (time.monotonic_ns() - self.mailbox.looked_ns) / 1e6
        if silent_ms > self._stuck_ms:
            troubles["loop"] = f"the loop has not looked for readings for {silent_ms / 1e3:.0f} s"
        is_down = self.newest is None or "loop" in troubles or "backend" in troubles
        status: Literal["ok", "degraded", "down"] = "down" if is_down else "degraded" if troubles else "ok"
        return status, {
            "status": status,
            "sensors": {modality: self._sensor(modality) for modality in self.info.modalities},
            "backend": "failed" if "backend" in troubles else "ok",
            "last_decision_age_ms": self.decision_age_ms,
            "troubles": troubles,
        }

    def _sensor(self, modality: str) -> str:
        states = {} if self.sensors is None else self.sensors.states
        if modality in self.troubles:
            return "ended" if modality in states and states[modality].status == "ended" else "failed"
        return "ok" if self.presence[modality] else "missing"

    def text(self) -> str:
        """All counts, as Prometheus reads them."""
        lines = [*self._latency(), *self._stages()]
        for name, samples in self._values().items():
            kind, label, text = METRICS[name]
            lines += _head(name, kind, text)
            lines += [_line(name, value, {label: of} if label else {}) for of, value in samples.items()]
        return "".join(f"{line}\n" for line in lines)

    def _values(self) -> dict[str, Mapping[str, float]]:
        """Samples of each of METRICS by the value of its label, "" where it has none."""
        failures = dict(self._failures)
        states = {} if self.sensors is None else self.sensors.states
        values: dict[str, Mapping[str, float]] = {
            "up": {"": self.health()[0] != "down"},
            "decisions_total": {"": self.decisions},
            "presence": self.presence,
            "readings_total": self.mailbox.received,
            "dropped_total": self.mailbox.dropped,
            "sensor_failures_total": {m: failures.get(m, 0) for m in self.info.modalities},
            "sensor_restarts_total": {m: max(0, state.opened - 1) for m, state in states.items()},
            "backend_failures_total": {"": failures.get("backend", 0)},
            "alarms_total": dict(self._alarms),
        }
        rss_bytes = resident_bytes()
        if rss_bytes is not None:
            values["resident_memory_bytes"] = {"": rss_bytes}
        if self.newest is not None:
            decision, at_ns = self.newest
            values["last_decision_age_seconds"] = {"": (time.monotonic_ns() - at_ns) / 1e9}
            values["reading_age_seconds"] = {m: age_ms / 1e3 for m, age_ms in decision.age_ms.items()}
        return values

    def _latency(self) -> Iterator[str]:
        counts = list(accumulate(self._buckets))
        _, sum_ms = self._stages_ms.get("total", (0, 0.0))
        yield from _head("decision_seconds", "histogram", "Time from taking the newest reading to the answer.")
        for end, count in zip((*BUCKETS_S, "+Inf"), counts, strict=True):
            yield _line("decision_seconds_bucket", count, {"le": str(end)})
        yield _line("decision_seconds_sum", sum_ms / 1e3)
        yield _line("decision_seconds_count", counts[-1])

    def _stages(self) -> Iterator[str]:
        yield from _head("stage_seconds", "summary", "Time of each part, where it ran.")
        for stage, (count, sum_ms) in dict(self._stages_ms).items():
            if stage != "total":
                yield _line("stage_seconds_sum", sum_ms / 1e3, {"stage": stage})
                yield _line("stage_seconds_count", count, {"stage": stage})


def resident_bytes() -> int | None:
    """Memory that this process holds, None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP edgefuse_{name} {text}", f"# TYPE edgefuse_{name} {kind}"


def _line(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in (labels or {}).items())
    return f"edgefuse_{name}{{{inside}}} {float(value)!r}" if inside else f"edgefuse_{name} {float(value)!r}"


def _escaped(text: str) -> str:
    """A label's value, as the format wants it."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
