"""Tapes: a sound file is played once at its own speed, a pipe as it comes, both mixed to one channel."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.tape import Heard, Input, Pipe, Tape


def heard_until_end(source: Input) -> list[Heard]:
    """All that a source gives."""
    heard: list[Heard | None] = []
    with pytest.raises(EOFError, match="has ended"):
        deque(iter(lambda: heard.append(source.read()), False), maxlen=0)
    return [piece for piece in heard if piece is not None]


@pytest.fixture
def clock(monkeypatch) -> list[int]:
    """Time that passes only while somebody sleeps."""
    clock = [0]

    def sleep(seconds: float) -> None:
        clock[0] += round(seconds * 1e9)

    monkeypatch.setattr(time, "monotonic_ns", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return clock


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_is_played_whole_at_its_own_speed(tmp_path, clock, suffix):
    path = tmp_path / f"a.{suffix}"
    pcm = (0.5 * np.sin(np.arange(10_500) / 5)).astype(np.float32)
    soundfile.write(path, pcm, 8000)
    tape = Tape(path)

    heard = heard_until_end(tape)
    tape.close()
    tape.close()

    np.testing.assert_allclose(np.concatenate([piece.pcm for piece in heard]), soundfile.read(path)[0], atol=1e-6)
    assert tape.open() == 8000
    seconds_ahead = np.cumsum([len(piece.pcm) for piece in heard]) / 8000 - [piece.t_ns / 1e9 for piece in heard]
    assert (seconds_ahead <= 1 / 20 + 1e-6).all()
    assert clock[0] / 1e9 == pytest.approx(10_500 / 8000, abs=0.1)


def test_channels_are_mixed(tmp_path, clock):
    soundfile.write(tmp_path / "a.wav", np.tile(np.float32([0.5, -0.25]), (800, 1)), 8000, subtype="FLOAT")

    np.testing.assert_array_equal(Tape(tmp_path / "a.wav").read().pcm, np.full(400, 0.125))


def test_a_machine_that_was_late_hears_what_it_missed(tmp_path, clock):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 8000)
    tape = Tape(tmp_path / "a.wav")
    tape.read()
    clock[0] += 500_000_000

    assert len(tape.read().pcm) == 8000 * 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file; give a sound file, a microphone"), (b"no sound", r"not a sound that can be decoded \(")],
)
def test_what_is_no_sound_is_an_error_at_once(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)

    with pytest.raises(SensorError, match=f"a.wav: {message}"):
        Tape(tmp_path / "a.wav")


class Ends:
    """A pipe, and the end that feeds it."""

    def __init__(self) -> None:
        read, self.feed = os.pipe()
        self.pipe = Pipe(read)
        self._open = [read, self.feed]

    def hang_up(self) -> None:
        self._open.remove(self.feed)
        os.close(self.feed)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(samples=st.lists(st.integers(-32768, 32767), max_size=60), cuts=st.lists(st.integers(0, 120), max_size=6))
def test_samples_survive_however_the_bytes_come(samples, cuts, tmp_path):
    ends, data = Ends(), np.array(samples, "<i2").tobytes()
    heard = []
    cuts = sorted({min(cut, len(data)) for cut in (0, *cuts, len(data))})
    for start, end in pairwise(cuts):
        os.write(ends.feed, data[start:end])
        heard.append(ends.pipe.read().pcm)
    ends.hang_up()
    assert heard_until_end(ends.pipe) == []
    ends.close()

    raw = Path(tmp_path / "oracle.raw")
    raw.write_bytes(data)
    expected = soundfile.read(raw, samplerate=16_000, channels=1, format="RAW", subtype="PCM_16", endian="LITTLE")[0]
    np.testing.assert_array_equal(np.concatenate([np.zeros(0), *heard]), expected)


def test_a_silent_pipe_is_waited_for_half_a_second_at_most(ends):
    started = time.monotonic()

    assert ends.pipe.open() == 16_000
    assert ends.pipe.read() is None

    assert 0.4 < time.monotonic() - started < 2


def test_what_came_through_a_pipe_is_stamped_when_it_came(ends):
    before_ns = time.monotonic_ns()
    os.write(ends.feed, bytes(320))

    assert before_ns <= ends.pipe.read().t_ns <= time.monotonic_ns()
