"""Sound from files at their own speed, and raw PCM from stdin."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile

from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.media import Pcm
from edgefuse.runtime.source import LONGEST_WAIT_S, Pace

BLOCKS_PER_S = 20
STDIN = 0  # file descriptor
PIPE_RATE = 16_000  # Hz
PIPE_BYTES = 65_536  # read at once; Linux keeps no more in a pipe
SOUND_SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav")


class Heard(NamedTuple):
    """Some sound."""

    pcm: Pcm  # [n] mono
    t_ns: int  # when its last sample was captured


class Input(Protocol):
    """Where sound comes from; used by one thread at a time."""

    name: str

    def open(self) -> int:
        """Begin, anew after `close`; the sample rate in Hz.

        Raises:
            SensorError: it is not there, or cannot be used now.
        """
        ...

    def read(self) -> Heard | None:
        """What came since the last call, waited for for at most 0.5 s.

        Raises:
            SensorError: it is gone.
            EOFError: there will be no more.
        """
        ...

    def close(self) -> None:
        """End what `open` began; also where it failed, and twice."""
        ...


class Tape:
    """A sound file, once, at its own speed.

    Args:
        path: of the file.

    Raises:
        SensorError: no such file, or not a sound.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._sound: soundfile.SoundFile | None = None
        self.open()

    def open(self) -> int:
        """Begin where it is not open yet.

        Raises:
            SensorError: no such file, or not a sound.
        """
        if self._sound is None:
            if not Path(self.name).is_file():
                raise SensorError(f"{self.name}: no such file; give a sound file, a microphone or - for stdin")
            try:
                self._sound = soundfile.SoundFile(self.name)
            except soundfile.LibsndfileError as error:
                raise SensorError(
                    f"{self.name}: not a sound that can be decoded ({error.error_string}); use WAV, FLAC, OGG or MP3"
                ) from None
            self._pace = Pace(BLOCKS_PER_S)
        return int(self._sound.samplerate)

    def read(self) -> Heard | None:
        """The sound of the time that passed.

        Raises:
            SensorError: the file is damaged.
            EOFError: that was all.
        """
        assert self._sound is not None
        due = self._pace.wait()
        if not due:
            return None
        t_ns = time.monotonic_ns()
        try:
            pcm = self._sound.read(due * self._sound.samplerate // BLOCKS_PER_S, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise SensorError(f"the file is damaged: {error.error_string}") from None
        if not len(pcm):
            raise EOFError(f"{self.name} has ended")
        return Heard(pcm.mean(axis=1), t_ns)

    def close(self) -> None:
        """End; twice is fine."""
        sound, self._sound = self._sound, None
        if sound is not None:
            sound.close()


class Pipe:
    """Raw PCM, 16 bits little-endian, 16 kHz, mono, as `arecord -t raw -f S16_LE -r 16000` writes it."""

    name = "sound from stdin"

    def __init__(self, descriptor: int = STDIN) -> None:
        self._descriptor = descriptor
        self._half = b""  # of a sample whose other byte has not come yet

    def open(self) -> int:
        """It is open."""
        return PIPE_RATE

    def read(self) -> Heard | None:
        """What is in the pipe.

        Raises:
            EOFError: it was closed at the other end.
        """
        if not select.select([self._descriptor], [], [], LONGEST_WAIT_S)[0]:
            return None
        t_ns = time.monotonic_ns()
        data = os.read(self._descriptor, PIPE_BYTES)
        if not data:
            raise EOFError(f"{self.name} has ended")
        data = self._half + data
        whole = len(data) // 2 * 2
        self._half = data[whole:]
        return Heard(np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(32768), t_ns)

    def close(self) -> None:
        """Stdin is not ours to close."""
