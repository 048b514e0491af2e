"""The voices of the corpora: real ones, and no variant of one split in another."""

from __future__ import annotations

import re
from pathlib import Path

import espeakng_loader

from edgefuse.train.voices import (
    ACCENTS,
    PICO_ACCENTS,
    TEST_VARIANTS,
    TRAIN_VARIANTS,
    VAL_VARIANTS,
    draw_pico_voices,
    draw_voices,
)


def test_no_voice_variant_is_in_two_splits() -> None:
    splits = (TRAIN_VARIANTS, VAL_VARIANTS, TEST_VARIANTS)
    assert len({name.lower() for split in splits for name in split}) == sum(map(len, splits))
    heard = [{voice.name.split("+")[1] for voice in draw_voices(split, 120, seed=0)} for split in splits]
    assert [len(names) for names in heard] == [len(split) for split in splits]


def test_every_variant_and_accent_is_one_of_espeaks() -> None:
    """An unknown variant would silently be the plain voice, the same in training and test."""
    data = Path(espeakng_loader.get_data_path())
    variants = {path.name for path in (data / "voices" / "!v").iterdir()}
    assert {*TRAIN_VARIANTS, *VAL_VARIANTS, *TEST_VARIANTS} <= variants
    languages = " ".join(path.read_text() for path in (data / "lang" / "gmw").iterdir())
    assert set(ACCENTS) <= set(re.findall(r"^language\s+(\S+)", languages, re.MULTILINE))


def test_voices_are_drawn_alike_every_time_and_more_keep_the_first() -> None:
    few, many = draw_voices(TRAIN_VARIANTS, 10, seed=1), draw_voices(TRAIN_VARIANTS, 120, seed=1)
    assert many[:10] == few
    assert len(set(many)) == 120
    assert draw_voices(TRAIN_VARIANTS, 10, seed=2) != few


def test_pico_voices_differ_in_accent_rate_and_pitch_and_more_keep_the_first() -> None:
    few, many = draw_pico_voices(10, seed=4), draw_pico_voices(80, seed=4)
    assert many[:10] == few
    assert len(set(many)) > 75
    assert {voice.accent for voice in few} == set(PICO_ACCENTS)
    for values in ([voice.rate for voice in many], [voice.pitch for voice in many]):
        assert max(values) > 1.5 * min(values)
