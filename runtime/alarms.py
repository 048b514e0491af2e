"""Alarms: one event when a label's probability stays high, one when it no longer does, and nothing in between.

Probabilities are smoothed by the exponential average for unevenly spaced times, where a decision speaks for the time
since the one before it: s += (1 - exp(-dt / window)) * (p - s) (Eckner 2012, Algorithms for Unevenly Spaced Time
Series, EMA_next). Two thresholds and a least time keep an alarm from flickering.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgefuse.runtime.decision import Decision
from edgefuse.runtime.errors import OptionError

STOP_SHARE = 0.75  # of the start threshold, where no stop threshold is given
WINDOW_MS, HOLD_MS = 500.0, 1000.0
FORM = "LABEL>START[/STOP][@WINDOWms][+HOLDms]"

_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_SPEC = re.compile(rf"(.+)>\s*{_NUMBER}(?:/{_NUMBER})?(?:@{_NUMBER}ms)?(?:\+{_NUMBER}ms)?", re.DOTALL | re.ASCII)


@dataclass(frozen=True, slots=True)
class AlarmSpec:
    """When an alarm is on."""

    label: str
    start: float  # on from the moment that the smoothed probability is above this
    stop: float  # off when it is below this again
    window_ms: float = WINDOW_MS  # time constant of the smoothing; 0 for none
    hold_ms: float = HOLD_MS  # shortest time that it stays on


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """An alarm began or ended."""

    event: Literal["start", "stop"]
    alarm: str  # the label
    t_ms: float  # of the decision that it comes from
    confidence: float  # smoothed probability at that moment
    peak: float  # the highest since the start
    duration_ms: float  # since the start

    def document(self) -> dict[str, Any]:
        """What a JSON line says; `event` is the key that no decision has."""
        return {
            "event": self.event,
            "alarm": self.alarm,
            "t_ms": round(self.t_ms, 3),
            "confidence": round(self.confidence, 4),
            "peak": round(self.peak, 4),
            "duration_ms": round(self.duration_ms, 3),
        }


def parse_alarm(spec: str, labels: Sequence[str]) -> AlarmSpec:
    """Read "fire>0.8", or "fire>0.8/0.5@2000ms+5000ms": on above 0.8 in 2 s, for 5 s at least, off below 0.5.

    Raises:
        OptionError: not of this form, a label that the model lacks, or thresholds that cannot be.
    """
    found = _SPEC.fullmatch(spec.strip())
    if found is None:
        raise OptionError(f"alarm {spec!r} cannot be read; write {FORM}, as in {labels[0]}>0.8/0.5@2000ms")
    label = found[1].strip()
    if label not in labels:
        near = difflib.get_close_matches(label, labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(labels)}"
        raise OptionError(f"alarm {spec!r}: the model has no label {label!r}; {hint}")
    start = float(found[2])
    stop = STOP_SHARE * start if found[3] is None else float(found[3])
    if not (0 < start < 1 and stop <= start):
        raise OptionError(
            f"alarm {spec!r} starts above {start:g} and stops below {stop:g}; START must be between 0 and 1, and STOP "
            "no more than START"
        )
    window_ms, hold_ms = (
        default if number is None else float(number) for number, default in ((found[4], WINDOW_MS), (found[5], HOLD_MS))
    )
    return AlarmSpec(label, start, stop, window_ms, hold_ms)


class Alarm:
    """One alarm: smooths, and starts and stops in turn."""

    def __init__(self, spec: AlarmSpec) -> None:
        self._spec = spec
        self._smoothed = 0.0
        self._last_ms: float | None = None  # the decision before
        self._since_ms: float | None = None  # None while it is off
        self._peak = 0.0

    def update(self, t_ms: float, probability: float) -> AlarmEvent | None:
        """Take the next probability of the label; what begins or ends by it."""
        self._smoothed += self._share(t_ms) * (probability - self._smoothed)
        self._last_ms = t_ms
        if self._since_ms is None:
            if self._smoothed <= self._spec.start:
                return None
            self._since_ms, self._peak = t_ms, self._smoothed
            return self._event("start", t_ms)
        self._peak = max(self._peak, self._smoothed)
        if self._smoothed >= self._spec.stop or t_ms - self._since_ms < self._spec.hold_ms:
            return None
        return self.end()

    def end(self) -> AlarmEvent | None:
        """Stop it where it is on, whatever the probability."""
        if self._since_ms is None or self._last_ms is None:
            return None
        event = self._event("stop", self._last_ms)
        self._since_ms = None
        return event

    def _share(self, t_ms: float) -> float:
        """How much a new probability counts; the first one counts wholly."""
        if self._last_ms is None or self._spec.window_ms == 0:
            return 1.0
        return -math.expm1(-(t_ms - self._last_ms) / self._spec.window_ms)

    def _event(self, event: Literal["start", "stop"], t_ms: float) -> AlarmEvent:
        duration_ms = t_ms - (t_ms if self._since_ms is None else self._since_ms)
        return AlarmEvent(event, self._spec.label, t_ms, self._smoothed, self._peak, duration_ms)


class Alarms:
    """The alarms of one run.

    Args:
        specs: as `parse_alarm` reads them, at most one for each label.
        labels: those of the model, in the order of its probabilities.
    """

    def __init__(self, specs: Sequence[str], labels: Sequence[str]) -> None:
        parsed = [parse_alarm(spec, labels) for spec in specs]
        self._alarms = {labels.index(spec.label): Alarm(spec) for spec in parsed}
        if len(self._alarms) < len(parsed):
            raise OptionError(f"two alarms are for the same label: {', '.join(specs)}; give one for each label")

    def decided(self, decision: Decision) -> Iterator[AlarmEvent]:
        """What begins or ends by a decision; take all of it."""
        for index, alarm in self._alarms.items():
            event = alarm.update(decision.t_ms, float(decision.probabilities[index]))
            if event is not None:
                yield event

    def ended(self) -> Iterator[AlarmEvent]:
        """The stops of what is still on; take all of it."""
        for alarm in self._alarms.values():
            event = alarm.end()
            if event is not None:
                yield event
