"""Sentences spoken by many voices, as WAV files that the lines of a corpus share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from edgefuse.train.speech import Espeak, Voice, flite, flite_voices, save_speech
from edgefuse.train.voices import TEST_VARIANTS, TRAIN_VARIANTS, VAL_VARIANTS, draw_voices

FLITE = "flite"  # the pool of another synthesizer, where it is installed

_Job = TypeVar("_Job", bound=tuple[Path, str, object])


@dataclass(frozen=True)
class Spoken:
    """Every sentence in every voice of every pool."""

    sentences: tuple[str, ...]
    voices: dict[str, int]  # pool ("train", "val", "test", FLITE) -> voices in it

    @property
    def count(self) -> int:
        """How many sounds there are."""
        return len(self.sentences) * sum(self.voices.values())


def speak_all(out: Path, sentences: Sequence[str], training_voices: int) -> Spoken:
    """Write sounds/<pool><voice>/<sentence>.wav below `out`; what is there is kept.

    The pools "train", "val" and "test" hold eSpeak NG voices of disjoint variants, FLITE those of flite where it is
    installed.

    Raises:
        MissingExtraError: espeakng-loader is not installed.
    """
    pools = {
        "train": draw_voices(TRAIN_VARIANTS, training_voices, seed=1),
        "val": draw_voices(VAL_VARIANTS, len(VAL_VARIANTS), seed=2),
        "test": draw_voices(TEST_VARIANTS, len(TEST_VARIANTS), seed=3),
    }
    _render_espeak(out, pools, sentences)
    counts = {pool: len(voices) for pool, voices in pools.items()}
    if others := flite_voices():
        _render_flite(out, others, sentences)
        counts[FLITE] = len(others)
    return Spoken(tuple(sentences), counts)


def sound_name(pool: str, voice: int, sentence: int) -> str:
    """Where a sentence, by its number, lies in a corpus."""
    return f"sounds/{pool}{voice:03d}/{sentence:03d}.wav"


def _render_espeak(out: Path, pools: dict[str, list[Voice]], sentences: Sequence[str]) -> None:
    jobs = [
        (out / sound_name(pool, number, index), sentence, voice)
        for pool, voices in pools.items()
        for number, voice in enumerate(voices)
        for index, sentence in enumerate(sentences)
    ]
    espeak = Espeak()
    for path, sentence, voice in track(_missing(jobs), "eSpeak NG speaks", console=Console(stderr=True)):
        save_speech(path, *espeak.speak(sentence, voice))


def _render_flite(out: Path, voices: Sequence[str], sentences: Sequence[str]) -> None:
    jobs = [
        (out / sound_name(FLITE, number, index), sentence, voice)
        for number, voice in enumerate(voices)
        for index, sentence in enumerate(sentences)
    ]
    for path, sentence, voice in track(_missing(jobs), "flite speaks", console=Console(stderr=True)):
        save_speech(path, *flite(sentence, voice))


def _missing(jobs: Sequence[_Job]) -> list[_Job]:
    return [job for job in jobs if not job[0].exists()]
