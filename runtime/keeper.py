"""Keeps a backend: one that failed is closed, and opened again with growing waits, which is said once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Backend, Outcome, Pipeline, Tensors
from edgefuse.runtime.errors import BackendError, EdgefuseError

RETRY_MS = (100.0, 1000.0)  # first and longest wait before a backend that failed is opened again
GIVE_UP_S = 60.0  # of a backend that does not come back: after some faults of a GPU only a new process can use it


class Keeper:
    """A pipeline that comes back.

    Args:
        open_backend: opens a backend; called in the thread that runs it, again after a failure.
        clock: nanoseconds.
        say: is told whether it works again, and what happened.
    """

    def __init__(
        self, open_backend: Callable[[], Backend], clock: Callable[[], int], say: Callable[[bool, str], None]
    ) -> None:
        self._open_backend = open_backend
        self._clock = clock
        self._say = say
        self._backend: Backend | None = None
        self._pipeline: Pipeline | None = None
        self._failures = 0  # in a row
        self._failed_ns = 0  # when the first of them was
        self._retry_ns = 0

    @property
    def retry_ns(self) -> int | None:
        """When a backend that is down is opened again; None where it is not down."""
        return self._retry_ns if self._failures else None

    def open(self) -> None:
        """Open the backend; `run` does it where this was not called.

        Raises:
            EdgefuseError: it cannot be opened at all; later failures are said.
        """
        backend = self._open_backend()
        try:
            self._pipeline = backend.pipeline()
        except BaseException:
            backend.close()
            raise
        self._backend = backend

    def run(self, fresh: Mapping[str, Tensors], presence: NDArray[np.float32]) -> Outcome | None:
        """As a pipeline; None where the backend is down, and the next one must encode everything anew.

        Raises:
            EdgefuseError: it cannot be opened at all.
            BackendError: it did not come back for GIVE_UP_S.
        """
        if self._pipeline is None and (self._clock() < self._retry_ns or not self._open_again()):
            return None
        assert self._pipeline is not None
        try:
            outcome = self._pipeline.run(fresh, presence)
            if not isfinite(sum(outcome.logits.tolist())):
                raise BackendError("its answer is not a number")
        except BackendError as error:
            self._fail(error)
            return None
        if self._failures:
            self._failures = 0
            self._say(True, "the backend works again")
        return outcome

    def close(self) -> None:
        """Free the backend; calling it twice is fine."""
        self._pipeline = None
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def _open_again(self) -> bool:
        try:
            self.open()
        except EdgefuseError as error:  # a driver that is gone is an EngineError, a disk that is gone a BundleError
            if not self._failures:
                raise
            self._fail(error)
            return False
        return True

    def _fail(self, error: Exception) -> None:
        with contextlib.suppress(BackendError):
            self.close()
        now_ns = self._clock()
        if not self._failures:
            self._failed_ns = now_ns
            self._say(False, f"the backend failed ({error}); it is opened again")
        if now_ns - self._failed_ns > GIVE_UP_S * 1e9:
            raise BackendError(
                f"the backend has failed for {GIVE_UP_S:.0f} s ({error}); start this program again, as systemd does "
                "with Restart=on-failure"
            )
        first, longest = RETRY_MS
        self._retry_ns = now_ns + int(min(first * 2 ** min(self._failures, 10), longest) * 1e6)
        self._failures += 1
