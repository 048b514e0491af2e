"""Keeps the sources giving: a thread each, which opens its source again after a failure and is replaced when stuck."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from edgefuse.runtime.decision import Notice
from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.mailbox import Mailbox, Writer
from edgefuse.runtime.source import Source, SpoiledError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 0.5  # before a source that failed is opened again
LOOK_S = 0.25  # how often the watchdog looks
CALM_S = 1.0  # without rubbish, before a source that gave some is said to be well
MOST_SPOILED = 30  # readings in a row that are rubbish, before the source is opened again
MOST_STUCK = 3  # stuck threads of one source, before its next one waits for them

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """How one source is."""

    name: str
    status: Literal["starts", "gives", "fails", "ended"] = "starts"
    opened: int = 0  # times
    failures: int = 0  # times that it could not be opened, or stopped
    spoiled: int = 0  # readings that were rubbish
    stuck: int = 0  # times that its thread was replaced
    error: str = ""  # the last one


class Sensors:
    """Sources that fill a mailbox, each in its own thread, from `start` to `close`.

    Args:
        sources: modality -> what gives it.
        mailbox: where the readings go.
        on_notice: told once when a source stops to give, and once when it gives again; by any of the threads.
        stuck_s: time without an answer after which the thread of a source is replaced.
        opening_s: the same while it is being opened.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        mailbox: Mailbox,
        on_notice: Callable[[Notice], None] = lambda notice: None,
        stuck_s: float = 3.0,
        opening_s: float = 10.0,
    ) -> None:
        self._stop = threading.Event()
        self._mailbox = mailbox
        self._posts = {
            modality: _Post(modality, source, mailbox, on_notice, self._stop, (stuck_s, opening_s))
            for modality, source in sources.items()
        }
        self._watchdog = threading.Thread(target=self._watch, name="sensors", daemon=True)

    @property
    def states(self) -> dict[str, State]:
        """Modality -> how its source is."""
        return {modality: post.state for modality, post in self._posts.items()}

    @property
    def done(self) -> bool:
        """Whether every source has ended for good; the mailbox is poked when one does."""
        return all(post.state.status == "ended" for post in self._posts.values())

    def start(self) -> None:
        """Start the threads; once."""
        for post in self._posts.values():
            post.employ()
        self._watchdog.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop every thread and close its source; a thread that is stuck is left behind."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in (self._watchdog, *(post.worker for post in self._posts.values())):
            if thread is not None and thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Sensors:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            for post in self._posts.values():
                post.replace_stuck()


class _Post:
    """A source, the thread that uses it now, and what was said of it."""

    def __init__(
        self,
        modality: str,
        source: Source,
        mailbox: Mailbox,
        on_notice: Callable[[Notice], None],
        stop: threading.Event,
        limits_s: tuple[float, float],  # reading, opening
    ) -> None:
        self.source, self.stop = source, stop
        self.stuck_s, self.opening_s = limits_s
        self.state = State(source.name)
        self.worker: _Worker | None = None
        self._modality, self._mailbox, self._on_notice = modality, mailbox, on_notice
        self._lost: list[_Worker] = []  # stuck threads
        self._lock = threading.Lock()
        self._calm_at = 0.0  # from when on a reading means that all is well

    def employ(self) -> None:
        """A new thread, which alone may write from now on."""
        self.worker = _Worker(self, self._mailbox.writer(self._modality))
        self.worker.start()

    def replace_stuck(self) -> None:
        """Cut the thread off if its time is over; the next one begins as soon as not too many are stuck."""
        if self.worker is not None and time.monotonic() > self.worker.deadline and self.state.status != "ended":
            with self._lock:
                stuck, self.worker = self.worker, None
            self._lost.append(stuck)
            self.state.stuck += 1
            self.failed(None, "it does not answer")
        self._lost = [worker for worker in self._lost if worker.is_alive()]
        if self.worker is None and len(self._lost) < MOST_STUCK:
            self.employ()

    def gave(self, worker: _Worker) -> None:
        with self._lock:
            if self.worker is not worker or self.state.status == "gives" or time.monotonic() < self._calm_at:
                return
            was, self.state.status = self.state.status, "gives"
        if was == "fails":
            self._say(True, f"{self.source.name} gives again")

    def failed(self, worker: _Worker | None, error: str, calm_s: float = 0.0) -> bool:
        """Count a failure, and say it if the source was not failing already; whether it was said."""
        with self._lock:
            if self.worker is not worker:
                return False
            was, self.state.status = self.state.status, "fails"
            self.state.error = error
            self._calm_at = time.monotonic() + calm_s
            self.state.failures += calm_s == 0
            self.state.spoiled += calm_s > 0
        if was == "fails":
            return False
        what = f"gives rubbish ({error}); it is skipped" if calm_s else f"gives nothing ({error}); it is tried again"
        self._say(False, f"{self.source.name} {what}")
        return True

    def ended(self, worker: _Worker, message: str) -> None:
        with self._lock:
            if self.worker is not worker:
                return
            self.state.status = "ended"
        if message:
            self._say(False, message)
        self._mailbox.poke()

    def _say(self, is_well: bool, message: str) -> None:
        self._on_notice(Notice(time.monotonic_ns() / 1e6, self._modality, is_well, message))


class _Worker(threading.Thread):
    """Opens a source and reads it, again and again."""

    def __init__(self, post: _Post, writer: Writer) -> None:
        super().__init__(name=post.source.name, daemon=True)
        self._post = post
        self._writer = writer
        self._wait_s = FIRST_WAIT_S
        self._spoiled = 0  # in a row
        self.deadline = float("inf")  # monotonic seconds; past it, this thread is stuck

    @property
    def _goes_on(self) -> bool:
        return self._post.worker is self and not self._post.stop.is_set()

    def run(self) -> None:
        while self._goes_on:
            try:
                self._use()
            except EOFError as end:
                self._post.ended(self, str(end))
                return
            except SensorError as error:
                self._post.failed(self, str(error))
            except Exception as error:  # a bug in one sensor must not end the others
                if self._post.failed(self, f"{type(error).__name__}: {error}"):
                    _log.exception("%s", self.name)
            self.deadline = float("inf")
            self._post.stop.wait(self._wait_s)
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def _use(self) -> None:
        source = self._post.source
        try:
            self.deadline = time.monotonic() + self._post.opening_s
            source.open()
            self._post.state.opened += self._goes_on
            while self._goes_on:
                self.deadline = time.monotonic() + self._post.stuck_s
                self._read(source)
        finally:
            if self._post.worker is self:  # else it is another thread's by now
                with contextlib.suppress(Exception):
                    source.close()

    def _read(self, source: Source) -> None:
        try:
            has_read = source.read(self._writer)
        except SpoiledError as error:
            self._spoiled += 1
            if self._spoiled >= MOST_SPOILED:
                self._spoiled = 0
                raise
            self._post.failed(self, str(error), CALM_S)
            return
        if has_read:
            self._spoiled, self._wait_s = 0, FIRST_WAIT_S
            self._post.gave(self)
