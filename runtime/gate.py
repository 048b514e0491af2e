"""Utterances in an endless sound: where somebody begins to speak and where the sentence ends."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from edgefuse.runtime.bundle import AudioSpec
from edgefuse.runtime.errors import BundleError, SensorError
from edgefuse.runtime.media import Pcm
from edgefuse.runtime.ring import Ring

AHEAD_S = 0.25  # of an utterance before the first frame that is speech: soft consonants are not
HANGOVER_S = 0.5  # of silence that ends an utterance, longer than the gaps between words
ONSET_FRAMES = 3  # of speech in a row begin an utterance: a click is shorter

# The energy detector's, in decibels below full scale
FIRST_FLOOR_DB, LEAST_DB = -45.0, -70.0
ONSET_DB, RELEASE_DB = 10.0, 6.0  # above the noise
RISE_DB_PER_S = 2.0  # of the noise while it is louder than thought: a fan that starts is noise after some seconds
FALL = 0.2  # of the way down to a softer frame, for each

# Silero's VADIterator and its defaults
SILERO_RATE, SILERO_FRAME, SILERO_CONTEXT = 16_000, 512, 64  # Hz, samples, samples
SILERO_ONSET, SILERO_RELEASE = 0.5, 0.35  # probability
SILERO_FILES = ("silero_vad_16k_op15.onnx", "silero_vad.onnx")  # of the package, the smaller first


class Detector(Protocol):
    """Tells speech from other sound, frame by frame."""

    frame: int  # samples

    def hears(self, pcm: Pcm) -> bool:
        """Whether PCM [frame], which follows the one before, is speech."""
        ...

    def reset(self) -> None:
        """Another sound begins."""
        ...


def open_gate(kind: str, audio: AudioSpec) -> Gate | None:
    """The gate that `kind` names: "off" (None), "energy", "silero", or "silero=model.onnx".

    Raises:
        SensorError: there is no such gate, or no Silero model for it.
        MissingExtraError: Silero needs ONNX Runtime.
    """
    name, _, path = kind.partition("=")
    if kind == "off":
        return None
    if kind == "energy":
        return Gate(EnergyDetector(audio.sample_rate), audio)
    if name != "silero":
        raise SensorError(f"gate {kind!r} is unknown; use off, energy, silero or silero=model.onnx")
    if audio.sample_rate != SILERO_RATE:
        raise SensorError(f"Silero hears {SILERO_RATE} Hz and this model {audio.sample_rate} Hz; use the energy gate")
    return Gate(SileroDetector(Path(path) if path else _installed_silero()), audio)


class Gate:
    """Finds utterances in what is written into a ring.

    Args:
        detector: what tells speech.
        audio: what the model takes; an utterance is cut after as many samples.
    """

    def __init__(self, detector: Detector, audio: AudioSpec) -> None:
        self._detector = detector
        self._longest = audio.samples
        self._ahead, self._hangover = (round(audio.sample_rate * s) for s in (AHEAD_S, HANGOVER_S))
        self._frame = np.zeros(detector.frame, np.float32)  # [frame]
        self.reset()

    def reset(self) -> None:
        """Another sound begins, at position 0 of its ring."""
        self._detector.reset()
        self._at = 0  # what was heard
        self._speech_end = 0  # of the last frame that was speech
        self._run = 0  # frames of speech in a row
        self._start: int | None = None  # of the utterance that goes on
        self._is_told = False  # that one, because it is longer than the model takes
        self._free = 0  # from here on, no utterance was found yet

    def advance(self, ring: Ring) -> tuple[int, int] | None:
        """Hear what is new; the first and last position of an utterance that ended, call again until there is none."""
        while self._at + len(self._frame) <= ring.written:
            ring.read(self._at, self._frame)
            self._at += len(self._frame)
            found = self._step(self._detector.hears(self._frame))
            if found is not None:
                return found
        return None

    def finish(self, ring: Ring) -> tuple[int, int] | None:
        """The utterance that goes on while the sound ends."""
        return None if self._start is None or self._is_told else self._tell(ring.written)

    def _step(self, is_speech: bool) -> tuple[int, int] | None:
        self._run = self._run + 1 if is_speech else 0
        if is_speech:
            self._speech_end = self._at
        if self._start is None:
            if self._run >= ONSET_FRAMES:
                onset = self._at - self._run * len(self._frame)
                self._start, self._is_told = max(self._free, onset - self._ahead), False
            return None
        is_over = self._at - self._speech_end >= self._hangover
        told = None
        if not self._is_told and (is_over or self._at - self._start >= self._longest):
            told = self._tell(self._at)
        if is_over:
            self._start, self._free = None, self._at
        return told

    def _tell(self, end: int) -> tuple[int, int]:
        assert self._start is not None
        self._is_told = True
        return self._start, min(end, self._start + self._longest)


class EnergyDetector:
    """Speech is what is clearly louder than the noise, whose level is followed."""

    def __init__(self, sample_rate: int) -> None:
        self.frame = sample_rate // 50  # 20 ms
        self._rise_db = RISE_DB_PER_S / 50
        self.reset()

    def reset(self) -> None:
        """Another sound begins."""
        self._floor_db = FIRST_FLOOR_DB
        self._is_speech = False

    def hears(self, pcm: Pcm) -> bool:
        """Whether PCM [frame] is speech."""
        level_db = 10 * math.log10(float(np.dot(pcm, pcm)) / len(pcm) + 1e-10)
        self._is_speech = level_db > self._floor_db + (RELEASE_DB if self._is_speech else ONSET_DB)
        change_db = min(self._rise_db, FALL * (level_db - self._floor_db))
        self._floor_db = max(LEAST_DB, self._floor_db + change_db)
        return self._is_speech


class SileroDetector:
    """Silero VAD, version 5 or later, run by ONNX Runtime.

    Args:
        path: of its ONNX file.

    Raises:
        SensorError: no such file, or another model.
        MissingExtraError: ONNX Runtime is not installed.
    """

    frame = SILERO_FRAME

    def __init__(self, path: Path) -> None:
        from edgefuse.runtime.backend_onnx import open_session

        try:
            self._session = open_session(path.read_bytes(), threads=1)
        except (OSError, BundleError) as error:
            raise SensorError(f"{path}: no Silero model ({getattr(error, 'strerror', None) or error})") from None
        inputs = {tensor.name for tensor in self._session.get_inputs()}
        if not {"input", "state"} <= inputs <= {"input", "state", "sr"}:
            raise SensorError(f"{path}: takes {', '.join(sorted(inputs))}; use Silero VAD of version 5 or later")
        self._feeds = {
            "input": np.zeros((1, SILERO_CONTEXT + SILERO_FRAME), np.float32),  # [1, context + frame]
            "state": np.zeros((2, 1, 128), np.float32),
        }
        if "sr" in inputs:
            self._feeds["sr"] = np.array(SILERO_RATE, np.int64)
        self._is_speech = False

    def reset(self) -> None:
        """Another sound begins."""
        self._feeds["input"][:] = 0
        self._feeds["state"][:] = 0
        self._is_speech = False

    def hears(self, pcm: Pcm) -> bool:
        """Whether PCM [frame] is speech."""
        self._is_speech = self.probability(pcm) > (SILERO_RELEASE if self._is_speech else SILERO_ONSET)
        return self._is_speech

    def probability(self, pcm: Pcm) -> float:
        """Of PCM [frame], which follows the one before, to be speech."""
        heard = self._feeds["input"]
        heard[:, :SILERO_CONTEXT] = heard[:, -SILERO_CONTEXT:]
        heard[0, SILERO_CONTEXT:] = pcm
        probability, self._feeds["state"] = self._session.run(None, self._feeds)
        return float(probability[0, 0])


def _installed_silero() -> Path:
    """The model of an installed silero-vad, which is not imported: it would bring torch with it."""
    package = find_spec("silero_vad")
    for folder in (package and package.submodule_search_locations) or ():
        for file in SILERO_FILES:
            if (path := Path(folder) / "data" / file).is_file():
                return path
    raise SensorError("no Silero model here: pip install --no-deps silero-vad, or give one with silero=model.onnx")
