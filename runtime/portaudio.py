"""A microphone, by sounddevice, which is Python's hand on PortAudio."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.errors import MissingExtraError, SensorError
from edgefuse.runtime.source import LONGEST_WAIT_S
from edgefuse.runtime.tape import Heard

BLOCKS_PER_S = 20  # callbacks; each takes the interpreter lock
MOST_CHANNELS = 2  # that are mixed; ALSA's default device claims to have dozens
MOST_BLOCKS = 100  # that wait to be read; the oldest are dropped
MOST_EMPTY = 3  # waits for nothing, after which the microphone is gone
DEFAULT = "default"


@dataclass
class _Session:
    """What belongs to one opening."""

    stream: Any = None  # sounddevice.InputStream
    blocks: deque[Heard] = field(default_factory=lambda: deque(maxlen=MOST_BLOCKS))
    arrived: threading.Condition = field(default_factory=threading.Condition)
    empty: int = 0  # waits in a row


class Device:
    """A microphone at its own sample rate, its channels mixed.

    Args:
        where: "default", its number, or words of its name, as in `python -m sounddevice`.

    Raises:
        MissingExtraError: sounddevice is not installed.
        SensorError: PortAudio is not installed.
    """

    def __init__(self, where: str) -> None:
        self.name = f"microphone {where}"
        self._device = None if where == DEFAULT else int(where) if where.isdecimal() else where
        self._library = _sounddevice()
        self._session: _Session | None = None
        self._is_known = True  # the list of devices is that of now

    def open(self) -> int:
        """Begin; the sample rate in Hz.

        Raises:
            SensorError: it is not there, or in use.
        """
        library = self._library
        session = _Session()
        try:
            if not self._is_known:  # PortAudio looks for devices when it starts, and never again
                library._terminate()
                library._initialize()
            self._is_known = False
            info = library.query_devices(self._device, "input")
            rate = int(info["default_samplerate"])
            session.stream = library.InputStream(
                samplerate=rate,
                blocksize=rate // BLOCKS_PER_S,
                device=self._device,
                channels=min(MOST_CHANNELS, info["max_input_channels"]),
                dtype="float32",
                callback=_collector(session, rate),
            )
            session.stream.start()
        except (library.PortAudioError, ValueError) as error:
            _close(session)
            raise SensorError(f"{_one_line(error)}; `python -m sounddevice` lists what there is") from None
        self._session = session
        return rate

    def read(self) -> Heard | None:
        """The next block.

        Raises:
            SensorError: none came for too long.
        """
        session = self._session
        assert session is not None
        with session.arrived:
            if session.arrived.wait_for(lambda: session.blocks, LONGEST_WAIT_S):
                session.empty = 0
                return session.blocks.popleft()
        session.empty += 1
        if session.empty >= MOST_EMPTY or not session.stream.active:
            raise SensorError("it gives no sound")
        return None

    def close(self) -> None:
        """End; twice is fine."""
        session, self._session = self._session, None
        if session is not None:
            _close(session)


def _collector(session: _Session, rate: int) -> Callable[..., None]:
    """The callback of a stream, which PortAudio calls in a thread of its own."""

    def collect(samples: NDArray[np.float32], frames: int, times: Any, status: Any) -> None:
        late_s = times.currentTime - times.inputBufferAdcTime - frames / rate
        t_ns = time.monotonic_ns() - (round(late_s * 1e9) if 0 <= late_s < 1 else 0)  # some systems tell nonsense
        with session.arrived:
            session.blocks.append(Heard(samples.mean(axis=1), t_ns))
            session.arrived.notify()

    return collect


def _close(session: _Session) -> None:
    if session.stream is not None:
        with contextlib.suppress(Exception):  # a device that was pulled out cannot be closed properly
            session.stream.abort()
            session.stream.close()


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise MissingExtraError("a microphone needs sounddevice: pip install 'edgefuse[mic]'") from None
    except OSError as error:
        raise SensorError(f"a microphone needs PortAudio ({error}): apt-get install libportaudio2") from None
    return sounddevice


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
