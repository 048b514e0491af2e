"""Where sensors leave their newest reading: a later one overwrites it, and what was never seen is counted.

Three sets of tensors per modality: the sensor fills one, the newest whole reading is in another, the loop reads the
third. They change places and are never copied, so neither side waits for the other and nothing is allocated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgefuse.runtime.backend import Tensors


@dataclass(slots=True)
class Reading:
    """What a sensor gave at one moment; its tensors are the reader's until it takes the next one."""

    tensors: Tensors  # as the part takes them, batch of one
    t_ns: int = 0  # when it was captured, on the loop's clock


class Mailbox:
    """The newest reading of each modality.

    Args:
        allocate: modality -> a new set of its tensors.
        modalities: those that the model has.
    """

    def __init__(self, allocate: Callable[[str], Tensors], modalities: tuple[str, ...]) -> None:
        self._allocate = allocate
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._newest = {modality: Reading(allocate(modality)) for modality in modalities}
        self._front = {modality: Reading(allocate(modality)) for modality in modalities}
        self._unseen = dict.fromkeys(modalities, False)
        self._cleared = dict.fromkeys(modalities, False)
        self._writers: dict[str, Writer] = {}
        self._poked = False
        self.received = dict.fromkeys(modalities, 0)  # readings since the start
        self.dropped = dict.fromkeys(modalities, 0)  # of them, those overwritten unseen
        self.looked_ns = time.monotonic_ns()  # when the reader last looked for something, so that a stuck one shows

    def writer(self, modality: str) -> Writer:
        """The only one who may write `modality` from now on; an earlier writer is cut off and its readings ignored."""
        writer = Writer(self, modality, Reading(self._allocate(modality)))
        with self._changed:
            self._writers[modality] = writer
        return writer

    def take(self, modality: str) -> Reading | None:
        """The newest reading if it was not taken yet; its tensors are valid until the next one is taken."""
        self.looked_ns = time.monotonic_ns()
        if not self._unseen[modality]:  # mostly so; no lock needed to know it
            return None
        with self._lock:
            if not self._unseen[modality]:
                return None
            self._unseen[modality] = False
            front, self._front[modality] = self._front[modality], self._newest[modality]
            self._newest[modality] = front
            return self._front[modality]

    def take_clear(self, modality: str) -> bool:
        """Whether the modality was withdrawn since the last call."""
        if not self._cleared[modality]:
            return False
        with self._lock:
            cleared, self._cleared[modality] = self._cleared[modality], False
            return cleared

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until something is new, someone calls `poke`, or the time is over; whether there is something."""
        with self._changed:
            found = self._changed.wait_for(self._has_news, timeout_s)
            self._poked = False
            return found

    def poke(self) -> None:
        """Wake who waits, so that it looks around."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def _has_news(self) -> bool:
        return self._poked or any(self._unseen.values()) or any(self._cleared.values())

    def _put(self, writer: Writer, t_ns: int) -> bool:
        modality = writer.modality
        with self._changed:
            if self._writers.get(modality) is not writer:
                return False
            back, self._newest[modality] = self._newest[modality], writer._back
            writer._back = back
            self._newest[modality].t_ns = t_ns
            self.received[modality] += 1
            self.dropped[modality] += self._unseen[modality]
            self._unseen[modality] = True
            self._cleared[modality] = False
            self._changed.notify_all()
            return True

    def _clear(self, writer: Writer) -> None:
        with self._changed:
            if self._writers.get(writer.modality) is writer:
                self._unseen[writer.modality] = False
                self._cleared[writer.modality] = True
                self._changed.notify_all()


class Writer:
    """One sensor's end of the mailbox; used by one thread."""

    def __init__(self, mailbox: Mailbox, modality: str, back: Reading) -> None:
        self.modality = modality
        self._mailbox = mailbox
        self._back = back

    @property
    def tensors(self) -> Tensors:
        """What to fill before `put`; other arrays after each `put`."""
        return self._back.tensors

    def put(self, t_ns: int) -> bool:
        """Hand over what is in `tensors`, captured at `t_ns`; False where another writer has taken the place."""
        return self._mailbox._put(self, t_ns)

    def clear(self) -> None:
        """Withdraw the modality: from now on it is missing, until the next `put`."""
        self._mailbox._clear(self)
