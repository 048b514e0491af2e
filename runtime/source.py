"""What a source of readings is: a camera, a microphone, a file, typed text; and the pace of a file."""

from __future__ import annotations

import time
from typing import Protocol

from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.mailbox import Writer

LONGEST_WAIT_S = 0.5


class SpoiledError(SensorError):
    """One reading was rubbish; the source goes on."""


class Source(Protocol):
    """One sensor, file or stream; used by one thread at a time.

    A thread that is stuck in `read` may come back after another has opened the source anew: what belongs to one opening
    must not be shared with the next.
    """

    name: str  # for messages: "camera 0", "microphone default", "text"

    def open(self) -> None:
        """Begin, anew after `close`.

        Raises:
            SensorError: it is not there, or cannot be used now.
        """
        ...

    def read(self, writer: Writer) -> bool:
        """Wait at most 0.5 s for a reading, fill `writer.tensors` and `put` it with the moment of its capture.

        Returns:
            True if it put or withdrew one, False if there was nothing yet.

        Raises:
            SpoiledError: this reading was rubbish, the next one may be good.
            SensorError: the source is gone.
            EOFError: a file or a pipe has ended for good; its text, if any, is said.
        """
        ...

    def close(self) -> None:
        """End what `open` began; also where it failed, and twice."""
        ...


class Pace:
    """The moments at which the readings of a file are due.

    Args:
        rate_hz: readings per second.
    """

    def __init__(self, rate_hz: float) -> None:
        self._interval_ns = round(1e9 / rate_hz)
        self._due_ns: int | None = None

    def wait(self) -> int:
        """Wait for the next moment, but not for long; how many are due, which is more than one where time was lost."""
        now_ns = time.monotonic_ns()
        if self._due_ns is None:
            self._due_ns = now_ns
        time.sleep(min(max(0, self._due_ns - now_ns) / 1e9, LONGEST_WAIT_S))
        due = (time.monotonic_ns() - self._due_ns) // self._interval_ns + 1
        due = max(0, due)
        self._due_ns += due * self._interval_ns
        return due
