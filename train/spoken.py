"""Sentences spoken by many voices, as WAV files that the lines of a corpus share, and the manifests over them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from edgefuse.runtime.files import write_atomic
from edgefuse.train.speech import Espeak, Pico, PicoVoice, Voice, flite, flite_voices, save_speech
from edgefuse.train.voices import TEST_VARIANTS, TRAIN_VARIANTS, VAL_VARIANTS, draw_pico_voices, draw_voices

MANIFEST, FLITE_MANIFEST = "manifest.jsonl", "test_flite.jsonl"
FLITE = "flite"  # the pool of another synthesizer, where it is installed
PICO = "pico"  # of a second one that trains

Voiced = TypeVar("Voiced", Voice, PicoVoice, str)  # a voice of eSpeak NG or Pico, or the name of one of flite's


@dataclass(frozen=True)
class Spoken:
    """Every sentence in every voice of every pool."""

    sentences: tuple[str, ...]
    voices: dict[str, int]  # pool ("train", PICO, "val", "test", FLITE) -> voices in it

    @property
    def count(self) -> int:
        """How many sounds there are."""
        return len(self.sentences) * sum(self.voices.values())

    def sound(self, draw: random.Random, pool: str, sentence: str) -> str:
        """Where `sentence` lies in a corpus, in a voice of `pool` that is drawn; training's has those of PICO too."""
        voice, own = draw.randrange(self._count(pool)), self.voices[pool]
        where = (pool, voice) if voice < own else (PICO, voice - own)
        return sound_name(*where, self.sentences.index(sentence))

    def _count(self, pool: str) -> int:
        return self.voices[pool] + (self.voices.get(PICO, 0) if pool == "train" else 0)


def speak_all(out: Path, sentences: Sequence[str], training_voices: int, pico_voices: int = 0) -> Spoken:
    """Write sounds/<pool><voice>/<sentence>.wav below `out`; what is there is kept.

    The pools "train", "val" and "test" hold eSpeak NG voices of disjoint variants, PICO `pico_voices` of SVOX Pico for
    training, and FLITE those of flite where it is installed.

    Raises:
        MissingExtraError: espeakng-loader is not installed, or Pico is to speak and ttspico is not.
    """
    pools = {
        "train": draw_voices(TRAIN_VARIANTS, training_voices, seed=1),
        "val": draw_voices(VAL_VARIANTS, len(VAL_VARIANTS), seed=2),
        "test": draw_voices(TEST_VARIANTS, len(TEST_VARIANTS), seed=3),
    }
    espeak = Espeak()
    jobs = [job for pool, voices in pools.items() for job in _missing(out, pool, voices, sentences)]
    _speak("eSpeak NG", espeak.speak, jobs)
    counts = {pool: len(voices) for pool, voices in pools.items()}
    if pico_voices:
        drawn = draw_pico_voices(pico_voices, seed=4)
        _speak("Pico", Pico().speak, _missing(out, PICO, drawn, sentences))
        counts[PICO] = pico_voices
    if others := flite_voices():
        _speak("flite", flite, _missing(out, FLITE, others, sentences))
        counts[FLITE] = len(others)
    return Spoken(tuple(sentences), counts)


def write_manifests(out: Path, rows: Sequence[dict[str, str]], spoken: Spoken) -> list[str]:
    """Write the manifest of `rows`, and with flite one of the test rows in flite's voices; returns their paths."""
    manifests = {MANIFEST: list(rows)}
    if FLITE in spoken.voices:
        draw = random.Random(0)
        test = [row for row in rows if row["split"] == "test"]
        manifests[FLITE_MANIFEST] = [{**row, "audio": spoken.sound(draw, FLITE, row["text"])} for row in test]
    for name, lines in manifests.items():
        write_atomic(out / name, "".join(json.dumps(row) + "\n" for row in lines).encode())
    return [str(out / name) for name in manifests]


def sound_name(pool: str, voice: int, sentence: int) -> str:
    """Where a sentence, by its number, lies in a corpus."""
    return f"sounds/{pool}{voice:03d}/{sentence:03d}.wav"


def _missing(
    out: Path, pool: str, voices: Sequence[Voiced], sentences: Sequence[str]
) -> list[tuple[Path, str, Voiced]]:
    """What is still to be spoken: where to, what and by whom."""
    jobs = [
        (out / sound_name(pool, number, index), sentence, voice)
        for number, voice in enumerate(voices)
        for index, sentence in enumerate(sentences)
    ]
    return [job for job in jobs if not job[0].exists()]


def _speak(
    synthesizer: str,
    speak: Callable[[str, Voiced], tuple[NDArray[np.int16], int]],
    jobs: Sequence[tuple[Path, str, Voiced]],
) -> None:
    """Write what is still to be spoken."""
    for path, sentence, voice in track(jobs, f"{synthesizer} speaks", console=Console(stderr=True)):
        save_speech(path, *speak(sentence, voice))
