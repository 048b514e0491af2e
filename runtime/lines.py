"""The lines of a pipe as they come, in memory that stays bounded."""

from __future__ import annotations

import os
import select

from edgefuse.runtime.source import LONGEST_WAIT_S

STDIN = 0  # file descriptor
LONGEST_LINE = 65_536  # bytes; of a longer line the end is taken


class LineReader:
    """Cuts what a descriptor gives into lines.

    Args:
        descriptor: of the file to read.
    """

    def __init__(self, descriptor: int = STDIN) -> None:
        self._descriptor = descriptor
        self._begun = b""  # a line without its end
        self._has_ended = False

    def read(self) -> list[bytes]:
        """The lines that ended since the last call, waited for for at most 0.5 s; at the end, what has no line break.

        Raises:
            EOFError: no more come.
        """
        if self._has_ended:
            raise EOFError
        if not select.select([self._descriptor], [], [], LONGEST_WAIT_S)[0]:
            return []
        data = os.read(self._descriptor, LONGEST_LINE)
        self._has_ended = not data
        *lines, self._begun = (self._begun + data).split(b"\n")
        self._begun = self._begun[-LONGEST_LINE:]
        if self._has_ended and self._begun:
            lines.append(self._begun)
        return lines
