"""Speech from the real synthesizers: it obeys its voice, and lands on disk at 16 kHz."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from edgefuse.runtime.errors import EdgefuseError, MissingExtraError
from edgefuse.train import speech, voices
from edgefuse.train.speech import SAMPLE_RATE, Espeak, Pico, PicoVoice, Voice, flite, flite_voices, save_speech

SENTENCE = "what shape is in the image"
needs_pico = pytest.mark.skipif(
    find_spec("ttspico") is None, reason="SVOX Pico is not installed (pip install --no-deps ttspico==0.3.2)"
)
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed (apt-get install flite)")


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


def loudness(pcm: NDArray[np.int16]) -> float:
    """Root mean square, 0..32767."""
    return float(np.sqrt(np.mean(pcm.astype(np.float64) ** 2)))


def pitch_hz(pcm: NDArray[np.int16], rate: int) -> float:
    """The strongest period between 60 and 400 Hz in the autocorrelation (Rabiner 1977) of the whole sound."""
    spectrum = np.fft.rfft(pcm.astype(np.float64), 2 * len(pcm))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)
    shortest, longest = rate // 400, rate // 60
    return rate / (shortest + int(np.argmax(correlation[shortest:longest])))


def test_a_sentence_is_spoken(espeak: Espeak) -> None:
    pcm, rate = espeak.speak(SENTENCE, Voice("en-us+f3"))
    assert pcm.dtype == np.int16
    assert 0.7 < len(pcm) / rate < 2.5
    assert loudness(pcm) > 500


def test_the_voice_decides_how_fast_and_how_high(espeak: Espeak) -> None:
    slow, rate = espeak.speak(SENTENCE, Voice("en-us+m3", rate=120))
    fast, _ = espeak.speak(SENTENCE, Voice("en-us+m3", rate=240))
    assert 1.5 < len(slow) / len(fast) < 2.5
    low, _ = espeak.speak("aaaaaah", Voice("en-us+m3", pitch=10, range=0))
    high, _ = espeak.speak("aaaaaah", Voice("en-us+m3", pitch=90, range=0))
    assert pitch_hz(high, rate) > 1.5 * pitch_hz(low, rate)


def test_a_sentence_holds_nothing_of_the_one_before(espeak: Espeak) -> None:
    espeak.speak(" ".join([SENTENCE] * 5), Voice("en-us"))
    short, rate = espeak.speak("no", Voice("en-us"))
    assert len(short) / rate < 1


def test_an_unknown_voice_is_refused(espeak: Espeak) -> None:
    with pytest.raises(EdgefuseError, match="eSpeak NG has no voice 'en-nowhere'; "):
        espeak.speak(SENTENCE, Voice("en-nowhere"))
    assert len(espeak.speak(SENTENCE, Voice("en-us"))[0])


def test_without_espeak_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgefuse\[demo\]'"):
        Espeak()


@needs_pico
@pytest.mark.parametrize("accent", voices.PICO_ACCENTS)
def test_pico_speaks_as_fast_and_as_high_as_it_is_told(accent: str) -> None:
    pico = Pico()
    slow, rate = pico.speak(SENTENCE, PicoVoice(accent, rate=80))
    fast, _ = pico.speak(SENTENCE, PicoVoice(accent, rate=160))
    assert slow.dtype == np.int16
    assert 1 < len(slow) / rate < 4
    assert loudness(slow) > 500
    assert len(slow) > 1.3 * len(fast)
    low, _ = pico.speak("aaaah", PicoVoice(accent, pitch=55))
    high, _ = pico.speak("aaaah", PicoVoice(accent, pitch=160))
    assert pitch_hz(high, rate) > 1.5 * pitch_hz(low, rate)


@needs_pico
def test_pico_takes_nothing_over_from_the_voice_before() -> None:
    pico = Pico()
    first, _ = pico.speak(SENTENCE, PicoVoice("en-GB"))
    pico.speak("no", PicoVoice("en-US", rate=160, pitch=60))
    pico.speak("no", PicoVoice("en-GB", rate=160, pitch=60))
    again, _ = pico.speak(SENTENCE, PicoVoice("en-GB"))
    assert abs(len(again) - len(first)) < 0.02 * len(first)


def test_silence_of_pico_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(speak=lambda text: None)
    monkeypatch.setitem(sys.modules, "ttspico", SimpleNamespace(TtsEngine=lambda accent: engine))
    with pytest.raises(EdgefuseError, match=r"SVOX Pico made no sound of '\?'; "):
        Pico().speak("?", PicoVoice("en-US"))


def test_without_pico_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ttspico", None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps ttspico=="):
        Pico()


@needs_flite
def test_flite_speaks_in_each_of_its_voices() -> None:
    names = flite_voices()
    assert "slt" in names
    assert "awb_time" not in names  # only tells the time
    for voice in names:
        pcm, rate = flite("is it red", voice)
        assert pcm.dtype == np.int16
        assert 0.4 < len(pcm) / rate < 3
        assert loudness(pcm) > 500


def test_without_flite_there_are_no_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert flite_voices() == ()


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050])
def test_speech_is_saved_as_16_khz_pcm_with_its_pitch_and_level(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate  # one second
    pcm = (16_000 * np.sin(2 * np.pi * 1000 * time)).astype(np.int16)
    path = tmp_path / "voice" / "000.wav"
    save_speech(path, pcm, rate)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
    saved, _ = soundfile.read(path)
    assert abs(len(saved) - SAMPLE_RATE) <= 1
    middle = saved[4000:12000]  # 1000 whole periods of 8 samples
    spectrum = 2 * np.abs(np.fft.rfft(middle)) / len(middle)
    assert np.argmax(spectrum) == 1000 * len(middle) // SAMPLE_RATE
    assert spectrum.max() == pytest.approx(16_000 / 32768, rel=0.005)
    assert [file.name for file in path.parent.iterdir()] == ["000.wav"]


def test_a_full_scale_sound_does_not_wrap_round(tmp_path: Path) -> None:
    square = np.where(np.arange(22_050) // 100 % 2, 32767, -32768).astype(np.int16)
    save_speech(tmp_path / "loud.wav", square, 22_050)
    saved, _ = soundfile.read(tmp_path / "loud.wav")
    sides = saved.reshape(-1, 4).mean(axis=1)[2:-2]
    assert (np.abs(sides) > 0.6).mean() > 0.9
    assert (np.diff(np.sign(saved)) != 0).sum() < 250  # 220 edges; a wrapped sample would add two each


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(speech, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        save_speech(tmp_path / "a.wav", np.zeros(100, np.int16), 16_000)
    assert not list(tmp_path.iterdir())
