"""The loop: what is new is encoded, what is kept is fused, what is too old does not count; one decision each time.

It knows nothing of cameras and microphones (sensors leave their readings in the mailbox) or of what becomes of a
decision. It owns the backend: only the thread that iterates touches it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from math import exp
from types import TracebackType

import numpy as np

from edgefuse.runtime.backend import Backend, Outcome, Tensors
from edgefuse.runtime.bundle import MODALITY_TABLE, BundleInfo
from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.keeper import Keeper
from edgefuse.runtime.mailbox import Mailbox

LIMITS_MS = {modality: row.limit_ms for modality, row in MODALITY_TABLE.items()}  # None: until it is replaced
LOOK_AROUND_S = 0.5  # longest sleep, so that a stop is noticed


class Loop:
    """Decisions from whatever the mailbox holds.

    Args:
        info: the contract of the bundle.
        open_backend: opens a backend; called in the thread that iterates, again after a failure.
        mailbox: where the sensors leave their readings.
        limits_ms: modality -> the age from which its reading does not count; None for never.
        clock: nanoseconds, as time.monotonic_ns; a replay brings its own.
        on_notice: is told once when something fails and once when it works again.
    """

    def __init__(
        self,
        info: BundleInfo,
        open_backend: Callable[[], Backend],
        mailbox: Mailbox,
        *,
        limits_ms: Mapping[str, float | None] = LIMITS_MS,
        clock: Callable[[], int] = time.monotonic_ns,
        on_notice: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self._info = info
        self._mailbox = mailbox
        self._clock = clock
        self._on_notice = on_notice
        limits = ((m, limits_ms.get(m, LIMITS_MS[m])) for m in info.modalities)
        self._limit_ns = {m: None if limit is None else int(limit * 1e6) for m, limit in limits}
        self._held: dict[str, Tensors] = {}  # the reading that each modality stands on
        self._t_ns: dict[str, int] = {}  # when it was captured
        self._waiting: dict[str, Tensors] = {}  # of these, what the backend has not encoded yet
        self._presence = np.zeros((1, len(info.modalities)), np.float32)  # [1, M]
        self._presence_of: dict[str, bool] = {}  # what it holds
        self._counted: dict[str, bool] = dict.fromkeys(info.modalities, False)  # in the last decision
        self._keeper = Keeper(open_backend, clock, lambda is_well, message: self._say("backend", is_well, message))
        self._stepped_ns = 0  # when the last step began
        self._is_blind = False

    def open(self) -> None:
        """Open the backend; `step` does it where this was not called.

        Raises:
            EdgefuseError: it cannot be opened at all; later failures are notices.
        """
        self._keeper.open()

    def decisions(self, stop: threading.Event, have_ended: Callable[[], bool] = lambda: False) -> Iterator[Decision]:
        """A decision whenever a sensor has something new, or stops to count.

        Args:
            stop: ends the decisions once it is set.
            have_ended: whether no sensor will give anything more; the decisions end once everything was taken.
        """
        while not stop.is_set():
            is_last = have_ended()  # asked before the step, which takes what came before the end
            decision = self.step()
            if decision is not None:
                yield decision
            elif is_last:
                return
            else:
                self._mailbox.wait(self._sleep_s())

    def step(self) -> Decision | None:
        """One decision, or None where nothing changed, no sensor gives anything, or the backend is down.

        Raises:
            BackendError: the backend did not come back for a minute.
        """
        started_ns = self._stepped_ns = self._clock()
        self._take_readings()
        counts = {m: self._counts(m, started_ns) for m in self._info.modalities}
        fresh = {m: tensors for m, tensors in self._waiting.items() if counts[m]}
        if not fresh and counts == self._counted:
            return None
        if not any(counts.values()):
            self._counted = counts
            self._say_blind(True)
            return None
        if counts != self._presence_of:
            self._presence[0], self._presence_of = list(counts.values()), counts
        outcome = self._keeper.run(fresh, self._presence)
        if outcome is None:
            self._waiting = dict(self._held)
            return None
        for modality in fresh:
            del self._waiting[modality]
        self._counted = counts
        self._say_blind(False)
        return self._decision(outcome, counts, started_ns)

    def next_change_ns(self) -> int | None:
        """When the next reading becomes too old or the backend is tried again; None where neither will happen.

        What the last step could have done already is not waited for: it would be a wait of no time, again and again.
        """
        moments = [
            self._t_ns[m] + limit_ns + 1
            for m, limit_ns in self._limit_ns.items()
            if limit_ns is not None and self._counted[m] and m in self._t_ns
        ]
        if self._keeper.retry_ns is not None:
            moments.append(self._keeper.retry_ns)
        return min((moment for moment in moments if moment > self._stepped_ns), default=None)

    def close(self) -> None:
        """Free the backend; calling it twice is fine."""
        self._keeper.close()

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_readings(self) -> None:
        for modality in self._info.modalities:
            if self._mailbox.take_clear(modality):
                self._forget(modality)
            reading = self._mailbox.take(modality)
            if reading is not None:
                self._held[modality] = self._waiting[modality] = reading.tensors
                self._t_ns[modality] = reading.t_ns

    def _forget(self, modality: str) -> None:
        for known in (self._held, self._waiting, self._t_ns):
            known.pop(modality, None)

    def _counts(self, modality: str, now_ns: int) -> bool:
        limit_ns, t_ns = self._limit_ns[modality], self._t_ns.get(modality)
        return t_ns is not None and (limit_ns is None or now_ns - t_ns <= limit_ns)

    def _decision(self, outcome: Outcome, counts: dict[str, bool], started_ns: int) -> Decision:
        probabilities = _softmax(outcome.logits.tolist())
        best = probabilities.index(max(probabilities))
        now_ns = self._clock()
        age_ms = {m: (now_ns - self._t_ns[m]) / 1e6 for m, is_there in counts.items() if is_there}
        return Decision(
            t_ms=now_ns / 1e6,
            label=self._info.labels[best],
            confidence=probabilities[best],
            weights=dict(zip(self._info.modalities, outcome.weights.tolist(), strict=True)),
            presence=counts,
            age_ms=age_ms,
            skew_ms=max(age_ms.values()) - min(age_ms.values()),
            stages_ms={**outcome.stages_ms, "total": (now_ns - started_ns) / 1e6},
            dropped=dict(self._mailbox.dropped),
            probabilities=probabilities,
        )

    def _sleep_s(self) -> float:
        change_ns = self.next_change_ns()
        if change_ns is None:
            return LOOK_AROUND_S
        return min(max(0.0, (change_ns - self._clock()) / 1e9), LOOK_AROUND_S)

    def _say_blind(self, is_blind: bool) -> None:
        if is_blind != self._is_blind:
            self._is_blind = is_blind
            self._say("loop", not is_blind, "no sensor gives anything" if is_blind else "a sensor gives again")

    def _say(self, about: str, is_well: bool, message: str) -> None:
        self._on_notice(Notice(self._clock() / 1e6, about, is_well, message))


def _softmax(logits: list[float]) -> tuple[float, ...]:
    """As softmax of predictor.py, for one row: right after a part, each call of numpy costs more than these labels."""
    top = max(logits)
    shifted = [exp(logit - top) for logit in logits]
    total = sum(shifted)
    return tuple([value / total for value in shifted])
