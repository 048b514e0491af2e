"""Signals for the loop: a table played at the model's rate, or CSV lines from stdin; each row gives the last S rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from edgefuse.runtime.bundle import SignalSpec
from edgefuse.runtime.errors import MediaError, SensorError
from edgefuse.runtime.lines import STDIN, LineReader
from edgefuse.runtime.mailbox import Writer
from edgefuse.runtime.signals import Columns, Rows, Signals, fill_signal
from edgefuse.runtime.source import Pace, Source, SpoiledError


def open_signal(where: str, spec: SignalSpec) -> Source:
    """What gives the signal: a .csv or .npy file, or for "-" the lines of stdin.

    Raises:
        MediaError: the file cannot be used.
    """
    return SignalLines(spec) if where == "-" else SignalFile(where, spec)


class SignalFile:
    """A table, once, at the model's rate.

    Args:
        path: of the file.
        spec: what the model takes.

    Raises:
        MediaError: it cannot be used.
    """

    def __init__(self, path: str, spec: SignalSpec) -> None:
        self.name = path
        self._rows = Signals(spec).decode(path)  # [n, F]
        self._seen = 0  # rows
        self._pace = Pace(spec.rate_hz)

    def open(self) -> None:
        """It goes on where it was."""

    def read(self, writer: Writer) -> bool:
        """Put the rows up to the one that is due.

        Raises:
            EOFError: that was the last one.
        """
        if self._seen >= len(self._rows):
            raise EOFError(f"{self.name} has ended" if self._seen > 1 else "")
        due = self._pace.wait()
        if not due:
            return False
        self._seen += due
        _put(self._rows[: self._seen], writer, time.monotonic_ns())
        return True

    def close(self) -> None:
        """Nothing is open."""


class SignalLines:
    """The lines of stdin as they come: names of columns first, then a row of numbers each.

    Args:
        spec: what the model takes.
        descriptor: of the file to read.
    """

    name = "signal from stdin"

    def __init__(self, spec: SignalSpec, descriptor: int = STDIN) -> None:
        self._features = spec.features
        self._lines = LineReader(descriptor)
        self._waiting: deque[tuple[bytes, int]] = deque()  # lines that are not read yet, and when they came
        self._rows: deque[Sequence[float]] = deque(maxlen=spec.steps)
        self._columns: Columns | None = None
        self._number = 0  # of the line

    def open(self) -> None:
        """It is open."""

    def read(self, writer: Writer) -> bool:
        """Put the rows up to the next line.

        Raises:
            SpoiledError: the line is not a row of numbers; it is passed over.
            SensorError: the first line does not name what the model takes.
            EOFError: no more lines come.
        """
        if not self._waiting:
            try:
                lines = self._lines.read()
            except EOFError:
                raise EOFError(f"{self.name} has ended") from None
            now_ns = time.monotonic_ns()
            self._waiting.extend((line, now_ns) for line in lines)
        if not self._waiting:
            return False
        line, t_ns = self._waiting.popleft()
        self._number += 1
        return self._take(line, t_ns, writer)

    def close(self) -> None:
        """Stdin is not ours to close."""

    def _take(self, line: bytes, t_ns: int, writer: Writer) -> bool:
        text = line.decode("utf-8-sig", "replace")
        if not text.strip():
            return False
        if self._columns is None:
            try:
                self._columns = Columns(text, self._features, self.name)
            except MediaError as error:
                raise SensorError(str(error)) from None
            return False
        try:
            self._rows.append(self._columns.row(text, self._number))
        except MediaError as error:
            raise SpoiledError(str(error)) from None
        _put(np.array(self._rows, np.float32), writer, t_ns)
        return True


def _put(rows: Rows, writer: Writer, t_ns: int) -> None:
    fill_signal(rows, writer.tensors["signal"][0])
    writer.put(t_ns)
