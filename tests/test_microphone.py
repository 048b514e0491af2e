"""Sound for the model: windows and utterances hold the right samples, at the right rate, with the right stamps."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from edgefuse.runtime.bundle import AudioSpec, Bundle
from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.gate import open_gate
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.media import Pcm
from edgefuse.runtime.microphone import Microphone, loudness, open_microphone
from edgefuse.runtime.portaudio import Device
from edgefuse.runtime.preprocess import Preprocessor, to_rate
from edgefuse.runtime.sensors import Sensors
from edgefuse.runtime.source import SpoiledError
from edgefuse.runtime.tape import Heard, Pipe, Tape
from edgefuse.train.speech import Espeak, Voice

RATE = 16_000
AUDIO = AudioSpec(sample_rate=RATE, samples=RATE)
PATIENCE_S = 10.0


class Played:
    """An input that gives `pcm` in pieces, as if each had just been captured, from the moment 0 on; then it ends."""

    name = "played"

    def __init__(self, pcm: Pcm, rate: int = RATE, piece: int = 800) -> None:
        self._pieces = deque(np.split(pcm, range(piece, len(pcm), piece)))
        self._rate, self._samples = rate, 0

    def open(self) -> int:
        return self._rate

    def read(self) -> Heard | None:
        if not self._pieces:
            raise EOFError("played has ended")
        pcm = self._pieces.popleft()
        self._samples += len(pcm)
        return Heard(pcm.copy(), round(self._samples / self._rate * 1e9))

    def close(self) -> None:
        pass


def readings(microphone: Microphone, samples: int = AUDIO.samples) -> list[tuple[Pcm, float]]:
    """All that a microphone puts until it ends, with the seconds it is stamped."""
    mailbox = Mailbox(lambda modality: {"audio": np.full((1, samples), np.nan, np.float32)}, ("audio",))
    writer, found = mailbox.writer("audio"), []

    def step() -> bool:
        if microphone.read(writer):
            reading = mailbox.take("audio")
            found.append((reading.tensors["audio"][0].copy(), reading.t_ns / 1e9))
        return True

    microphone.open()
    with pytest.raises(EOFError, match="has ended"):
        deque(iter(step, False), maxlen=0)
    microphone.close()
    return found


def chirp(seconds: float, rate: int = RATE) -> Pcm:
    """A tone that rises from 200 Hz to 3 kHz, so that no two moments are alike."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 1400 * t / seconds) * t)).astype(np.float32)


@pytest.fixture(scope="module")
def sentence() -> Pcm:
    pcm, rate = Espeak().speak("what colour is it", Voice("en-us+f3"))
    return to_rate(pcm.astype(np.float32) / 32768, rate, RATE)


def test_without_a_gate_there_is_a_window_of_the_last_samples_every_tenth_of_a_second():
    sound = chirp(1.75)

    found = readings(Microphone(Played(sound), AUDIO))

    before = np.concatenate([np.zeros(RATE, np.float32), sound])
    np.testing.assert_allclose([t for _, t in found], [*np.arange(1, 18) / 10, 1.75])
    for window, t in found:
        end = RATE + round(t * RATE)
        np.testing.assert_array_equal(window, before[end - RATE : end])


def test_of_sound_that_comes_all_at_once_only_the_newest_window_is_put():
    found = readings(Microphone(Played(chirp(3.0), piece=2 * RATE), AUDIO))

    assert [t for _, t in found] == [2.0, 3.0]


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_another_rate_is_resampled_as_a_whole_and_stamped_without_the_delay_of_the_filter(rate):
    sound = chirp(2.0, rate)

    found = readings(Microphone(Played(sound, rate, piece=rate // 20), AUDIO))

    whole = np.concatenate([np.zeros(RATE, np.float32), soxr.resample(sound, rate, RATE)])
    for window, t in found:
        end = RATE + round(t * RATE)
        np.testing.assert_allclose(window, whole[end - RATE : end], atol=2e-4)
    assert found[-1][1] == pytest.approx(2.0, abs=1e-4)
    assert len(found) == pytest.approx(20, abs=1)


def test_samples_beyond_full_scale_are_clipped_and_what_is_no_number_is_refused():
    loud = np.full(1600, 1.5, np.float32)
    assert readings(Microphone(Played(loud), AUDIO))[-1][0].max() == 1

    microphone = Microphone(Played(np.full(800, np.nan, np.float32)), AUDIO)
    microphone.open()
    with pytest.raises(SpoiledError, match="no numbers"):
        microphone.read(None)  # type: ignore[arg-type]


def test_what_was_heard_before_a_microphone_was_gone_is_forgotten():
    source = Played(np.ones(1600, np.float32))
    microphone = Microphone(source, AUDIO)
    readings(microphone)
    source._pieces.append(np.full(1600, 0.5, np.float32))

    [(window, _)] = readings(microphone)

    assert set(window.tolist()) == {0.0, 0.5}


def test_the_gate_hears_a_microphone_that_is_back_as_a_new_one(sentence):
    source = Played(sentence[:8000])
    microphone = Microphone(source, AUDIO, open_gate("energy", AUDIO))
    [(first, _)] = readings(microphone)
    source._pieces.append(sentence[:8000])

    [(second, _)] = readings(microphone)

    np.testing.assert_array_equal(second, first)


@pytest.mark.parametrize("kind", ["energy", "silero"])
def test_with_a_gate_there_is_one_reading_for_each_sentence_padded_and_stamped_with_its_end(sentence, kind):
    audio = AudioSpec(sample_rate=RATE, samples=3 * RATE)
    quiet = np.random.default_rng(0).normal(0, 0.001, 2 * RATE).astype(np.float32)
    sound = np.concatenate([quiet, sentence, quiet, sentence, quiet])
    microphone = Microphone(Played(sound), audio, open_gate(kind, audio))

    found = readings(microphone, audio.samples)

    assert len(found) == 2
    for (window, t), begin in zip(found, (2.0, 4.0 + len(sentence) / RATE), strict=True):
        length = np.flatnonzero(window)[-1] + 1
        end = round(t * RATE)
        np.testing.assert_array_equal(window[:length], sound[end - length : end])
        assert begin - 0.4 < t - length / RATE < begin
        assert t == pytest.approx(begin + len(sentence) / RATE + 0.5, abs=0.25)


def test_a_recorded_question_is_heard_by_the_gate_as_predict_reads_it(tmp_path, sentence):
    soundfile.write(tmp_path / "question.wav", sentence[: RATE // 2], RATE)
    microphone = open_microphone(str(tmp_path / "question.wav"), AUDIO, open_gate("energy", AUDIO))

    [(window, _)] = readings(microphone)

    expected = np.zeros(RATE, np.float32)
    expected[: RATE // 2] = soundfile.read(tmp_path / "question.wav", dtype="float32")[0]
    np.testing.assert_array_equal(window, expected)


def test_many_sentences_at_once_are_cut_out_before_they_are_overwritten(sentence):
    """As when a recording is piped in: the ring is shorter than what comes in one piece."""
    quiet = np.zeros(RATE, np.float32)
    sound = np.concatenate([quiet, sentence] * 8 + [quiet])
    microphone = Microphone(Played(sound, piece=len(sound)), AUDIO, open_gate("energy", AUDIO))
    mailbox = Mailbox(lambda modality: {"audio": np.zeros((1, AUDIO.samples), np.float32)}, ("audio",))
    microphone.open()

    assert microphone.read(mailbox.writer("audio"))

    assert (mailbox.received["audio"], mailbox.dropped["audio"]) == (8, 7)
    last = len(sound) / RATE - 1 - len(sentence) / RATE  # begins
    assert mailbox.take("audio").t_ns / 1e9 == pytest.approx(last + 0.75, abs=0.1)  # cut after one second


def test_who_wants_to_see_the_level_gets_it():
    levels: list[float] = []
    readings(Microphone(Played(np.full(1600, 0.1, np.float32)), AUDIO, on_level=levels.append))

    assert levels == [pytest.approx(1 - 20 / 60)] * 2


@pytest.mark.parametrize(("amplitude", "level"), [(0.0, 0), (0.0001, 0), (0.001, 0), (0.0316228, 0.5), (1, 1), (2, 1)])
def test_loudness_goes_in_decibels(amplitude, level):
    assert loudness(np.full(100, amplitude, np.float32)) == pytest.approx(level, abs=1e-4)


def test_what_gives_the_sound_is_known_by_its_looks(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), RATE)
    made: list[str] = []
    monkeypatch.setattr(Device, "__init__", lambda self, where: made.append(where) or setattr(self, "name", where))

    inputs = [
        open_microphone(where, AUDIO, None)._input for where in ("-", str(tmp_path / "a.wav"), "default", "USB 2")
    ]

    assert [type(source) for source in inputs] == [Pipe, Tape, Device, Device]
    assert made == ["default", "USB 2"]
    with pytest.raises(SensorError, match=r"^question.WAV: no such file"):
        open_microphone("question.WAV", AUDIO, None)


def test_a_file_fills_the_mailbox_of_a_bundle_and_then_all_is_done(tiny):
    bundle = Bundle.open(tiny.bundle)
    preprocessor = Preprocessor(bundle)
    mailbox = Mailbox(preprocessor.empty, ("audio",))
    notices: list[Any] = []
    microphone = open_microphone(str(tiny.media / "red.wav"), bundle.info.audio, None)

    with Sensors({"audio": microphone}, mailbox, notices.append) as sensors:
        deadline = time.monotonic() + PATIENCE_S
        while not sensors.done and time.monotonic() < deadline:
            mailbox.wait(0.1)

    expected = preprocessor.prepare("audio", preprocessor.decode("audio", str(tiny.media / "red.wav")))["audio"]
    np.testing.assert_array_equal(mailbox.take("audio").tensors["audio"], expected)
    assert sensors.done
    assert [notice.message for notice in notices] == [f"{tiny.media / 'red.wav'} has ended"]
