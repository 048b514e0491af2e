"""The last seconds of an endless sound, in memory that is made once."""

from __future__ import annotations

import numpy as np

from edgefuse.runtime.media import Pcm


class Ring:
    """The last `capacity` samples; positions count from the beginning of the sound, before it there was silence."""

    def __init__(self, capacity: int) -> None:
        self._samples = np.zeros(capacity, np.float32)  # position p is kept at p % capacity
        self.written = 0  # samples so far

    def write(self, pcm: Pcm) -> None:
        """Append PCM [n]; the oldest samples are forgotten."""
        capacity = len(self._samples)
        self.written += len(pcm)
        kept = pcm[-capacity:]
        at = (self.written - len(kept)) % capacity
        first = min(len(kept), capacity - at)
        self._samples[at : at + first] = kept[:first]
        self._samples[: len(kept) - first] = kept[first:]

    def read(self, start: int, into: Pcm) -> None:
        """Copy the samples from position `start` on into all of `into` [n].

        Raises:
            ValueError: some are forgotten, or not there yet.
        """
        capacity = len(self._samples)
        if not self.written - capacity <= start <= self.written - len(into):
            raise ValueError(f"samples {start} to {start + len(into)} of {self.written}, of which {capacity} are kept")
        at = start % capacity
        first = min(len(into), capacity - at)
        into[:first] = self._samples[at : at + first]
        into[first:] = self._samples[: len(into) - first]
