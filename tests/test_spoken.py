"""Sentences in the voices of pools: each sound is made once, and a drawn one is there."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgefuse.train import spoken
from edgefuse.train.speech import SAMPLE_RATE, PicoVoice
from edgefuse.train.spoken import PICO, Spoken, speak_all

SENTENCES = ("is it red", "what is it")


class FakePico:
    """Speaks as the real one, which may not be installed: int16 and its rate."""

    def __init__(self) -> None:
        self.said: list[tuple[str, PicoVoice]] = []

    def speak(self, text: str, voice: PicoVoice) -> tuple[np.ndarray, int]:
        self.said.append((text, voice))
        return np.full(SAMPLE_RATE, len(text) * 100, np.int16), SAMPLE_RATE


@pytest.fixture
def pico(monkeypatch: pytest.MonkeyPatch) -> FakePico:
    """Stands for Pico, with few voices of the others."""
    fake = FakePico()
    monkeypatch.setattr(spoken, "Pico", lambda: fake)
    monkeypatch.setattr(spoken, "VAL_VARIANTS", spoken.VAL_VARIANTS[:1])
    monkeypatch.setattr(spoken, "TEST_VARIANTS", spoken.TEST_VARIANTS[:1])
    monkeypatch.setattr(spoken, "flite_voices", lambda: ("slt",) if shutil.which("flite") else ())
    return fake


def test_every_voice_speaks_every_sentence_once(tmp_path: Path, pico: FakePico) -> None:
    first = speak_all(tmp_path, SENTENCES, 2, pico_voices=3)
    assert len(pico.said) == len(set(pico.said)) == 6
    assert first.count == len(list((tmp_path / "sounds").rglob("*.wav")))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    assert speak_all(tmp_path, SENTENCES, 2, pico_voices=3) == first
    assert len(pico.said) == 6
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")} == written


def test_pico_is_not_asked_where_it_has_no_voices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pico: FakePico
) -> None:
    monkeypatch.setattr(spoken, "Pico", None)
    assert PICO not in speak_all(tmp_path, SENTENCES, 1).voices
    assert not pico.said


def test_training_hears_every_voice_of_both_synthesizers_alike_and_the_other_splits_hear_their_own() -> None:
    voices = Spoken(SENTENCES, {"train": 3, PICO: 2, "val": 2, "test": 1})
    draw = random.Random(0)
    drawn = {
        pool: Counter(Path(voices.sound(draw, pool, SENTENCES[1])).parts for _ in range(1000))
        for pool in ("train", "val")
    }
    assert set(drawn["val"]) == {("sounds", f"val{n:03d}", "001.wav") for n in range(2)}
    folders = ["train000", "train001", "train002", "pico000", "pico001"]
    assert set(drawn["train"]) == {("sounds", folder, "001.wav") for folder in folders}
    assert min(drawn["train"].values()) > 150
