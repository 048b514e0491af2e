"""Sound for the model: the last seconds ten times a second, or one utterance at a time where there is a gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from edgefuse.runtime.bundle import AudioSpec
from edgefuse.runtime.gate import Gate
from edgefuse.runtime.mailbox import Writer
from edgefuse.runtime.media import Pcm
from edgefuse.runtime.portaudio import Device
from edgefuse.runtime.ring import Ring
from edgefuse.runtime.source import SpoiledError
from edgefuse.runtime.tape import SOUND_SUFFIXES, Input, Pipe, Tape

HOP_S = 0.1  # between two windows
SPARE_S = 2.0  # that the ring keeps beyond what the model takes: more than the gate is ever behind
QUIETEST_DB = -60.0  # shown as nothing

OnLevel = Callable[[float], None]


def open_microphone(where: str, audio: AudioSpec, gate: Gate | None, on_level: OnLevel | None = None) -> Microphone:
    """What gives sound.

    Args:
        where: "default", the name or number of a microphone, a sound file, or "-" for raw PCM on stdin.
        audio: what the model takes.
        gate: what finds utterances; None for a window every 0.1 s.
        on_level: is given the loudness of each piece of sound, 0..1.

    Raises:
        SensorError: nothing that could ever give sound. A microphone that is not there now may come, and is no error.
        MissingExtraError: sounddevice is not installed.
    """
    path = Path(where)
    source: Input
    if where == "-":
        source = Pipe()
    elif path.is_file() or path.suffix.lower() in SOUND_SUFFIXES:
        source = Tape(path)
    else:
        source = Device(where)
    return Microphone(source, audio, gate, on_level)


@dataclass
class _Session:
    """What belongs to one opening."""

    rate: int  # Hz, of the input
    resampler: Any  # soxr.ResampleStream, None where the rates agree
    ring: Ring  # at the model's rate
    taken: int = 0  # samples of the input
    told: int = 0  # position of the end of the last window
    t_ns: int = 0  # when the newest sample was captured
    has_ended: bool = False


class Microphone:
    """A source of sound for a mailbox.

    Args:
        source: where the sound comes from.
        audio: what the model takes.
        gate: what finds utterances; None for a window every 0.1 s.
        on_level: is given the loudness of each piece of sound, 0..1.
    """

    def __init__(
        self, source: Input, audio: AudioSpec, gate: Gate | None = None, on_level: OnLevel | None = None
    ) -> None:
        self.name = source.name
        self._input = source
        self._rate, self._samples = audio.sample_rate, audio.samples
        self._hop = round(HOP_S * audio.sample_rate)
        self._gate = gate
        self._on_level = on_level
        self._session: _Session | None = None

    def open(self) -> None:
        """Begin; what was heard before is forgotten.

        Raises:
            SensorError: it is not there.
        """
        rate = self._input.open()
        resampler = None if rate == self._rate else soxr.ResampleStream(rate, self._rate, 1, dtype="float32")
        if self._gate is not None:
            self._gate.reset()
        self._session = _Session(rate, resampler, Ring(self._samples + round(SPARE_S * self._rate)))

    def read(self, writer: Writer) -> bool:
        """Put the newest window, or the utterance that ended.

        Raises:
            SpoiledError: samples that are no numbers came.
            SensorError: it is gone.
            EOFError: the file or the pipe has ended, and everything in it was put.
        """
        session = self._session
        assert session is not None
        try:
            heard = None if session.has_ended else self._input.read()
        except EOFError as end:
            session.has_ended = True
            if self._end(session, writer):
                return True
            raise EOFError(*end.args) from None
        if session.has_ended:
            raise EOFError(f"{self.name} has ended")
        if heard is None:
            return False
        if not np.isfinite(heard.pcm).all():
            raise SpoiledError("samples that are no numbers")
        if self._on_level is not None:
            self._on_level(loudness(heard.pcm))
        session.t_ns = heard.t_ns
        session.taken += len(heard.pcm)
        pcm = heard.pcm if session.resampler is None else session.resampler.resample_chunk(heard.pcm)
        return self._hear(session, np.clip(pcm, -1.0, 1.0, out=pcm), writer)

    def close(self) -> None:
        """End; twice is fine."""
        self._session = None
        self._input.close()

    def _hear(self, session: _Session, pcm: Pcm, writer: Writer) -> bool:
        has_put = False
        for at in range(0, len(pcm), self._hop):  # in pieces: what the gate has not heard must not be overwritten
            session.ring.write(pcm[at : at + self._hop])
            while self._gate is not None and (found := self._gate.advance(session.ring)) is not None:
                has_put = self._put(session, writer, *found)
        if self._gate is None and session.ring.written // self._hop > session.told // self._hop:
            has_put = self._put_window(session, writer)
        return has_put

    def _end(self, session: _Session, writer: Writer) -> bool:
        """Put what is left when the sound ends; whether there was something."""
        has_put = False
        if session.resampler is not None:
            has_put = self._hear(session, session.resampler.resample_chunk(np.zeros(0, np.float32), last=True), writer)
        if self._gate is None:
            return (session.ring.written > session.told and self._put_window(session, writer)) or has_put
        found = self._gate.finish(session.ring)
        return has_put if found is None else self._put(session, writer, *found)

    def _put_window(self, session: _Session, writer: Writer) -> bool:
        session.told = session.ring.written
        return self._put(session, writer, session.told - self._samples, session.told)

    def _put(self, session: _Session, writer: Writer, start: int, end: int) -> bool:
        """Put the samples from `start` to `end`, stamped with the moment of the last one; silence behind them."""
        tensor = writer.tensors["audio"][0]  # [T]
        session.ring.read(start, tensor[: end - start])
        tensor[end - start :] = 0
        writer.put(session.t_ns - round((session.taken / session.rate - end / self._rate) * 1e9))
        return True


def loudness(pcm: Pcm) -> float:
    """Of PCM [n]: 0 for -60 dB below full scale and less, 1 for full scale, even steps of decibels between."""
    level_db = 10 * math.log10(float(np.dot(pcm, pcm)) / max(1, len(pcm)) + 1e-12)
    return min(1.0, max(0.0, 1 - level_db / QUIETEST_DB))
