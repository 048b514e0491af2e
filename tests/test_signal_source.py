"""Signals for the loop: every row is a reading of the last rows, at the model's rate or as lines come on stdin."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgefuse.runtime.bundle import SignalSpec
from edgefuse.runtime.errors import MediaError, SensorError
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.signal_source import SignalFile, SignalLines, open_signal
from edgefuse.runtime.signals import Signals
from edgefuse.runtime.source import SpoiledError

SPEC = SignalSpec(steps=3, features=("speed", "yaw"), rate_hz=100.0)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox(lambda modality: Signals(SPEC).empty(), ("signal",))


class Pipe:
    """Lines of a pipe, and the end that feeds it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.lines = SignalLines(SPEC, self._read)

    def write(self, text: str) -> None:
        os.write(self._write, text.encode())

    def end(self) -> None:
        os.close(self._write)
        self._write = -1

    def close(self) -> None:
        for descriptor in (self._read, self._write):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def taken(mailbox: Mailbox) -> list[list[float]] | None:
    reading = mailbox.take("signal")
    return None if reading is None else reading.tensors["signal"][0].tolist()


def test_each_line_is_a_reading_of_the_last_rows(pipe: Pipe, mailbox: Mailbox) -> None:
    writer = mailbox.writer("signal")
    pipe.write("yaw,time,speed\n1,0,10\n2,0,20\n\n3,0,30\n4,0,40\n")
    assert not pipe.lines.read(writer)  # the names
    found = []
    while len(found) < 4:
        if pipe.lines.read(writer):
            found.append(taken(mailbox))
    rows = [[10.0, 1.0], [20.0, 2.0], [30.0, 3.0], [40.0, 4.0]]
    assert found == [[rows[0]] * 3, [rows[0], rows[0], rows[1]], rows[:3], rows[1:]]
    pipe.end()
    assert not pipe.lines.read(writer)
    with pytest.raises(EOFError, match="signal from stdin has ended"):
        pipe.lines.read(writer)


def test_a_line_that_is_no_row_is_passed_over_and_the_next_one_counts(pipe: Pipe, mailbox: Mailbox) -> None:
    writer = mailbox.writer("signal")
    pipe.write("speed,yaw\n1,2\n1,fast\n3,4\n")
    assert not pipe.lines.read(writer)
    assert pipe.lines.read(writer)
    with pytest.raises(SpoiledError, match="signal from stdin:3: yaw is 'fast', it must be a finite number"):
        pipe.lines.read(writer)
    assert pipe.lines.read(writer)
    assert taken(mailbox) == [[1, 2], [1, 2], [3, 4]]
    assert mailbox.received["signal"] == 2


def test_lines_without_the_models_names_are_refused_until_they_come(pipe: Pipe, mailbox: Mailbox) -> None:
    writer = mailbox.writer("signal")
    pipe.write("1,2\nspeed,yaw\n1,2\n")
    with pytest.raises(SensorError, match="found no columns 'speed' in '1,2'"):
        pipe.lines.read(writer)
    assert not pipe.lines.read(writer)
    assert pipe.lines.read(writer)
    assert taken(mailbox) == [[1, 2]] * 3


def test_a_reading_is_stamped_with_the_moment_its_line_came(pipe: Pipe, mailbox: Mailbox) -> None:
    writer = mailbox.writer("signal")
    pipe.write("speed,yaw\n1,2\n")
    before_ns = time.monotonic_ns()
    pipe.lines.read(writer)
    after_ns = time.monotonic_ns()
    time.sleep(0.02)
    pipe.lines.read(writer)
    reading = mailbox.take("signal")
    assert reading is not None
    assert before_ns <= reading.t_ns <= after_ns


def test_a_file_is_played_at_the_models_rate_and_ends(tmp_path: Path, mailbox: Mailbox) -> None:
    (tmp_path / "a.csv").write_text("speed,yaw\n" + "".join(f"{n},0\n" for n in range(30)))
    source, writer = open_signal(str(tmp_path / "a.csv"), SPEC), mailbox.writer("signal")
    assert isinstance(source, SignalFile)
    source.open()
    started, newest = time.monotonic(), []
    while not newest or newest[-1] < 29:
        if source.read(writer):
            window = taken(mailbox)
            assert window is not None
            newest.append(window[-1][0])
    assert newest == sorted(newest)
    with pytest.raises(EOFError, match=r"a\.csv has ended"):
        source.read(writer)
    assert 0.25 < time.monotonic() - started < 5  # 30 rows at 100 Hz
    source.close()


def test_one_row_stays_in_silence(tmp_path: Path, mailbox: Mailbox) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, 2.0]]))
    source, writer = open_signal(str(tmp_path / "a.npy"), SPEC), mailbox.writer("signal")
    assert source.read(writer)
    assert taken(mailbox) == [[1, 2]] * 3
    with pytest.raises(EOFError, match=r"^$"):
        source.read(writer)


def test_a_file_that_is_no_signal_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"gone\.csv: No such file"):
        open_signal(str(tmp_path / "gone.csv"), SPEC)
