"""Speech for any sentence: eSpeak NG (from espeakng-loader), SVOX Pico (from ttspico), flite (a system's package)."""

from __future__ import annotations

import ctypes
import io
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from edgefuse.runtime.errors import EdgefuseError, MissingExtraError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.preprocess import to_rate

SAMPLE_RATE = 16_000  # Hz, what every rendered file has

# espeak-ng/speak_lib.h
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples arrive in the callback before espeak_Synth returns
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_UTF8 = 1  # espeakCHARS_UTF8

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """How eSpeak NG speaks."""

    name: str  # accent and variant, such as "en-us+f3"
    rate: int = 175  # words per minute
    pitch: int = 50  # 0..99
    range: int = 50  # 0 is monotone, 99 sings


class Espeak:
    """The eSpeak NG library; one per process, since the library keeps its state in globals.

    Raises:
        MissingExtraError: espeakng-loader is not installed.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise MissingExtraError("speech needs eSpeak NG: pip install 'edgefuse[demo]'") from None
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)  # Hz
        if self._rate <= 0:
            raise EdgefuseError(f"eSpeak NG does not start with its data in {data.decode()}; reinstall espeakng-loader")
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = _Callback(self._collect)  # kept: the library holds only the pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer, count: int, _events: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[NDArray[np.int16], int]:
        """`text` spoken by `voice`: int16 [T] and the sample rate in Hz.

        Raises:
            EdgefuseError: eSpeak NG does not know the voice, or made no sound.
        """
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise EdgefuseError(f"eSpeak NG has no voice {voice.name!r}; `espeak-ng --voices=en` lists the accents")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        encoded = text.encode()
        status = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        if status != 0 or not self._chunks:
            raise EdgefuseError(f"eSpeak NG made no sound of {text!r} (status {status}); use words it can speak")
        return np.concatenate(self._chunks), self._rate


@dataclass(frozen=True)
class PicoVoice:
    """How SVOX Pico speaks."""

    accent: str  # "en-US" or "en-GB"
    rate: int = 100  # per cent of its own
    pitch: int = 100  # per cent of its own


class Pico:
    """SVOX Pico (Apache-2.0), an engine for each accent.

    Raises:
        MissingExtraError: ttspico is not installed. It is no extra, since it asks for PyAudio only to play sounds.
    """

    def __init__(self) -> None:
        try:
            import ttspico
        except ImportError:
            raise MissingExtraError(
                "these voices need SVOX Pico, built by a C compiler: pip install --no-deps ttspico==0.3.2"
            ) from None
        self._open = ttspico.TtsEngine
        self._engines: dict[str, Any] = {}

    def speak(self, text: str, voice: PicoVoice) -> tuple[NDArray[np.int16], int]:
        """`text` spoken by `voice`: int16 [T] and the sample rate in Hz.

        Raises:
            EdgefuseError: Pico made no sound.
        """
        if voice.accent not in self._engines:
            self._engines[voice.accent] = self._open(voice.accent)
        engine = self._engines[voice.accent]
        engine.rate, engine.pitch = voice.rate, voice.pitch
        pcm = np.frombuffer(engine.speak(text) or b"", np.int16)
        if not pcm.any():
            raise EdgefuseError(f"SVOX Pico made no sound of {text!r}; use words it can speak")
        return pcm, SAMPLE_RATE


def flite_voices() -> tuple[str, ...]:
    """The flite program's voices that speak any text; empty where it is not installed (`apt-get install flite`)."""
    if shutil.which("flite") is None:
        return ()
    listing = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=True).stdout
    names = listing.partition(":")[2].split()
    return tuple(sorted(name for name in names if name != "awb_time"))  # awb_time only tells the time


def flite(text: str, voice: str) -> tuple[NDArray[np.int16], int]:
    """`text` spoken by flite: int16 [T] and the sample rate in Hz."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", file.name], check=True)
        pcm, rate = soundfile.read(file.name, dtype="int16")
    return pcm, rate


def as_pcm(speech: NDArray[np.int16], rate: int) -> NDArray[np.float32]:
    """Speech [T] of any rate in Hz as float32 in [-1, 1] at SAMPLE_RATE."""
    return to_rate(speech.astype(np.float32) / np.float32(32768), rate, SAMPLE_RATE)


def save_speech(path: Path, pcm: NDArray[np.int16], rate: int) -> None:
    """Write int16 PCM [T] as a WAV file at SAMPLE_RATE, whole or not at all."""
    buffer = io.BytesIO()
    soundfile.write(buffer, as_pcm(pcm, rate), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
