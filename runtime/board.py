"""What a running loop shows: the newest of everything, left here as references and made into JSON and JPEG on request.

The loop and the sensors only store; nothing is encoded, and no array is made, while nobody looks.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.alarms import AlarmEvent
from edgefuse.runtime.bundle import BundleInfo
from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.metrics import Metrics

LEAST_S = 0.1  # between two JPEGs
WIDEST = 640  # pixels of the picture that is shown
JPEG_QUALITY = 90
BEST = 5  # labels shown
MOST_EVENTS = 30  # notices and alarms remembered
QUIET_MS = 1000.0  # after which the level of a microphone that says nothing is not shown


class Picture(NamedTuple):
    """A frame of the camera, in one piece, so that a reader never mixes two."""

    number: int
    at_ns: int  # time.monotonic_ns
    bgr: NDArray[np.uint8]  # [H, W, 3]; the camera may be filling it again


class Board:
    """Takes what the loop says, from any thread, and tells it to who looks.

    Args:
        info: the contract of the bundle.
        mailbox: the loop's, for counts.
        ask: takes a question, "" to withdraw it; None where the model reads no text.
        question: the one that the run begins with.
        backend: what the parts run on, as it is shown.
        gap_s: time that the loop lets pass between two decisions, if any.
    """

    def __init__(
        self,
        info: BundleInfo,
        mailbox: Mailbox,
        *,
        ask: Callable[[str], None] | None = None,
        question: str = "",
        backend: str = "",
        gap_s: float = 0.0,
    ) -> None:
        self.metrics = Metrics(info, mailbox, gap_s)
        self._ask, self._question = ask, question
        self._backend = backend
        self._picture: Picture | None = None
        self._jpeg = (0, b"")  # the number of its picture
        self._next_jpeg_s = -math.inf
        self._level = (0.0, 0)  # and when it was
        self._alarms: dict[str, float] = {}  # those that are on, and since when
        self._events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._lock = threading.Lock()  # notices and alarms are few and come from any thread

    def decision(self, decision: Decision) -> None:
        """The loop decided."""
        self.metrics.decision(decision)

    def frame(self, bgr: NDArray[np.uint8]) -> None:
        """The camera gave a picture."""
        number = 0 if self._picture is None else self._picture.number
        self._picture = Picture(number + 1, time.monotonic_ns(), bgr)

    def level(self, level: float) -> None:
        """How loud it is, 0..1 of full scale."""
        self._level = (level, time.monotonic_ns())

    def notice(self, notice: Notice) -> None:
        """Something failed or works again."""
        self.metrics.notice(notice)
        self._remember(notice.about, notice.is_well, notice.message)

    def alarm(self, event: AlarmEvent) -> None:
        """An alarm begins or ends."""
        begins = event.event == "start"
        if begins:
            self.metrics.alarm(event.alarm)
        with self._lock:
            others = {alarm: since_s for alarm, since_s in self._alarms.items() if alarm != event.alarm}
            self._alarms = {**others, event.alarm: time.time()} if begins else others
        self._remember("alarm", not begins, f"alarm {event.alarm} {'begins' if begins else 'is over'}")

    def ask(self, question: str) -> bool:
        """Hand a question to the loop; False where the model reads no text."""
        if self._ask is None:
            return False
        self._question = question
        self._ask(question)
        return True

    def state(self) -> dict[str, Any]:
        """All that the page shows, as JSON can say it."""
        metrics, newest, now_ns = self.metrics, self.metrics.newest, time.monotonic_ns()
        level, level_ns = self._level
        document = {
            "bundle": metrics.info.name,
            "backend": self._backend,
            "now_ms": now_ns / 1e6,
            "health": metrics.health()[1],
            "presence": metrics.presence,
            "decision": None if newest is None else newest.decision.document(),
            "best": [] if newest is None else self._best(newest.decision.probabilities),
            "decisions": metrics.decisions,
            "readings": metrics.mailbox.received,
            "dropped": metrics.mailbox.dropped,
            "level": level if now_ns - level_ns < QUIET_MS * 1e6 else None,
            "picture": self._shown(),
            "picture_age_ms": None if self._picture is None else (now_ns - self._picture.at_ns) / 1e6,
            "question": None if self._ask is None else self._question,
            "alarms": self._alarms,
            "events": list(self._events),
        }
        return {key: _finite(value) for key, value in document.items()}

    def jpeg(self) -> bytes:
        """The newest picture, or the last one that was made, where that is a moment ago; empty where there is none."""
        picture = self._picture
        if picture is not None and picture.number != self._jpeg[0] and self._may_encode():
            self._next_jpeg_s = time.monotonic() + LEAST_S
            self._jpeg = (picture.number, _encoded(picture.bgr))
        return self._jpeg[1]

    def _shown(self) -> int | None:
        """The number of the picture that `jpeg` gives, or of an older one: who fetches it by that misses nothing."""
        if self._picture is None:
            return None
        return self._picture.number if self._may_encode() else self._jpeg[0]

    def _may_encode(self) -> bool:
        return time.monotonic() >= self._next_jpeg_s

    def _best(self, probabilities: tuple[float, ...]) -> list[tuple[str, float]]:
        labels = self.metrics.info.labels
        return heapq.nlargest(BEST, zip(labels, probabilities, strict=True), key=itemgetter(1))

    def _remember(self, about: str, is_well: bool, message: str) -> None:
        self._events.append({"at_s": time.time(), "about": about, "is_well": is_well, "message": message})


def _encoded(bgr: NDArray[np.uint8]) -> bytes:
    """A JPEG at most WIDEST wide or high; empty where the picture is none."""
    try:
        scale = WIDEST / max(bgr.shape[:2])
        small = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else bgr
        is_done, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    except (cv2.error, ValueError, ZeroDivisionError):
        return b""
    return jpeg.tobytes() if is_done else b""


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for, as from a model that overflows."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
