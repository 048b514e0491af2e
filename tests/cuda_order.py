"""Which work on the double's streams happens before which, and whether two of them touch the same memory at once.

Vector clocks: every stream counts its operations; what it waits for by an event, it knows to be done (Lamport 1978,
Mattern 1989). Two accesses to the same bytes, one of them a write, must be in an order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Misuse(AssertionError):  # noqa: N818 - it is a test that fails
    """What the real thing lets pass, to crash or to compute rubbish."""


@dataclass(frozen=True)
class Span:
    """Bytes of one allocation."""

    block: Any  # with .data, its bytes
    start: int
    stop: int

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes themselves."""
        content: NDArray[np.uint8] = self.block.data[self.start : self.stop]
        return content

    def overlaps(self, other: Span) -> bool:
        return self.block is other.block and self.start < other.stop and other.start < self.stop

    def holds(self, other: Span) -> bool:
        return self.block is other.block and self.start <= other.start and other.stop <= self.stop


@dataclass(frozen=True)
class Access:
    """That an operation of a stream touched bytes."""

    span: Span
    is_write: bool
    stream: int
    tick: int


@dataclass
class Order:
    """What every stream, and the host, knows to be done."""

    clocks: dict[int, dict[int, int]] = field(default_factory=dict)  # stream -> stream -> operations known to be done
    host: dict[int, int] = field(default_factory=dict)
    accesses: list[Access] = field(default_factory=list)  # of what the host has not seen done

    def enter(self, stream: int, reads: Iterable[Span], writes: Iterable[Span], known: dict[int, int]) -> None:
        """An operation is enqueued that waits for `known`.

        Raises:
            Misuse: another stream touches the same bytes, and nothing says which of the two comes first.
        """
        clock = self.clocks.setdefault(stream, {})
        for source in (self.host, known):
            _merge(clock, source)
        clock[stream] = clock.get(stream, 0) + 1
        mine = [Access(span, False, stream, clock[stream]) for span in reads]
        mine += [Access(span, True, stream, clock[stream]) for span in writes]
        for access in mine:
            for other in self.accesses:
                is_ordered = clock.get(other.stream, 0) >= other.tick
                if not is_ordered and (access.is_write or other.is_write) and access.span.overlaps(other.span):
                    raise Misuse(f"streams {stream:#x} and {other.stream:#x} use the same memory in no order")
        self.accesses += mine

    def clock(self, stream: int) -> dict[int, int]:
        """What `stream` knows to be done now, itself included."""
        return dict(self.clocks.get(stream, {}))

    def synchronize(self, stream: int) -> None:
        """The host waited for `stream`."""
        _merge(self.host, self.clocks.get(stream, {}))
        self.accesses = [access for access in self.accesses if self.host.get(access.stream, 0) < access.tick]

    def is_before(self, stream: int, other: int) -> bool:
        """Whether all of `stream` is done before what `other` does next."""
        return self.clocks.get(other, {}).get(stream, 0) >= self.clocks.get(stream, {}).get(stream, 0)


def _merge(clock: dict[int, int], other: dict[int, int]) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)
