"""Security events, generated: a picture of a drawn house by day or night and a synthesized sound; what happens there.

RULES says which event a picture and a sound make together. Lines are drawn so that the five events are equally
frequent; then the picture alone tells at best 58.0 % of them, the sound alone 61.3 %, and both together all. The rules
are made up for this corpus and protect no house. No picture, sound or voice is in two splits. All but eSpeak NG's
speech follows from the seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from edgefuse.runtime.files import write_atomic
from edgefuse.train.event_sounds import EVENTS, Pcm, in_the_rain
from edgefuse.train.pictures import Color, Pixels, as_camera, save_once, tone
from edgefuse.train.speech import SAMPLE_RATE, Espeak, as_pcm, save_speech
from edgefuse.train.voices import TEST_VARIANTS, TRAIN_VARIANTS, VAL_VARIANTS, draw_voices

MANIFEST = "manifest.jsonl"
TRAIN_VOICES = 24  # draws of accent, variant, rate and pitch
LINES = {"train": 3_600, "val": 400, "test": 1_200}

SOUNDS = ("quiet", "footsteps", "speech", "bark", "glass", "alarm")
RULES = {  # what is seen: the event for each of SOUNDS
    "empty yard": ("none", "none", "none", "animal", "alarm", "alarm"),
    "person": ("none", "intrusion", "none", "intrusion", "intrusion", "intrusion"),
    "courier": ("none", "delivery", "delivery", "delivery", "alarm", "alarm"),
    "broken window": ("alarm", "intrusion", "intrusion", "intrusion", "intrusion", "intrusion"),
    "open door": ("none", "intrusion", "none", "animal", "alarm", "alarm"),
}
CELLS = {  # event: what is seen and heard when it happens
    event: [(seen, SOUNDS[n]) for seen, row in RULES.items() for n, made in enumerate(row) if made == event]
    for event in ("none", "animal", "alarm", "delivery", "intrusion")
}
SENTENCES = ("is anybody at home", "i have got something for you", "over here", "it is getting late", "good evening")

SIDE = 96  # pixels of a picture
NIGHT = (0.4, 0.6)  # factor on brightness


def security_events(out: Path, voices: int = TRAIN_VOICES) -> dict[str, Any]:
    """Write the corpus to `out`: images/, sounds/ and manifest.jsonl.

    Pictures and sounds that are already there are kept, so a second call is quick; other voices go to other folders.

    Args:
        out: the folder of the corpus.
        voices: how many training voices are drawn.

    Returns:
        The manifests' paths and the number of lines and sounds.

    Raises:
        MissingExtraError: espeakng-loader is not installed.
    """
    espeak = Espeak()
    pools = {
        "train": draw_voices(TRAIN_VARIANTS, voices, seed=7),
        "val": draw_voices(VAL_VARIANTS, len(VAL_VARIANTS), seed=8),
        "test": draw_voices(TEST_VARIANTS, len(TEST_VARIANTS), seed=9),
    }
    lines: list[str] = []
    for split, count in LINES.items():
        lines += _write_split(out, split, count, [as_pcm(*espeak.speak(s, v)) for v in pools[split] for s in SENTENCES])
    write_atomic(out / MANIFEST, ("\n".join(lines) + "\n").encode())
    return {"manifests": [str(out / MANIFEST)], "lines": len(lines), "sounds": len(lines)}


def paint(seen: str, random: np.random.Generator) -> Pixels:
    """A house, its yard and what is `seen` there, by day in colour or by night in grey: [SIDE, SIDE, 3]."""
    picture = np.full((SIDE, SIDE, 3), tone(random, 120, 210), np.uint8)  # the sky
    cv2.rectangle(picture, (0, 62), (SIDE, SIDE), tone(random, 60, 130), cv2.FILLED)  # the yard
    left = int(random.integers(2, 14))
    cv2.rectangle(picture, (left, 14), (left + 64, 66), tone(random, 130, 220), cv2.FILLED)  # the house
    _paint_window(picture, left + 8, 24, seen == "broken window", random)
    _paint_door(picture, left + 42, 34, seen == "open door", random)
    bush = (int(random.integers(70, SIDE)), 64)
    cv2.ellipse(picture, bush, (int(random.integers(5, 12)), 8), 0, 0, 360, tone(random, 30, 90), cv2.FILLED)
    if seen in ("person", "courier"):
        _paint_person(picture, int(random.integers(12, SIDE - 18)), seen == "courier", random)
    if random.random() < 0.5:
        grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
        picture = np.rint(grey * random.uniform(*NIGHT)).astype(np.uint8)
    return as_camera(picture, random)


def _paint_window(picture: Pixels, x: int, y: int, is_broken: bool, random: np.random.Generator) -> None:
    cv2.rectangle(picture, (x, y), (x + 24, y + 24), tone(random, 140, 200), cv2.FILLED)
    if is_broken:  # a star-shaped hole
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        reach = np.where(np.arange(12) % 2, 3, random.uniform(8, 12, 12))  # [12] pixels
        star = np.stack([x + 12 + reach * np.cos(angles), y + 12 + reach * np.sin(angles)], axis=1)
        cv2.fillPoly(picture, [np.rint(star).astype(np.int32)], (10, 10, 10))
    else:
        cv2.line(picture, (x + 12, y), (x + 12, y + 24), (245, 245, 245), 2)
    cv2.rectangle(picture, (x, y), (x + 24, y + 24), (245, 245, 245), 2)


def _paint_door(picture: Pixels, x: int, y: int, is_open: bool, random: np.random.Generator) -> None:
    wood: Color = tone(random, 60, 120)
    cv2.rectangle(picture, (x, y), (x + 16, y + 32), (8, 8, 8) if is_open else wood, cv2.FILLED)
    if is_open:
        leaf = np.array([(x, y), (x - 9, y + 4), (x - 9, y + 37), (x, y + 32)], np.int32)
        cv2.fillPoly(picture, [leaf], wood)


def _paint_person(picture: Pixels, x: int, has_parcel: bool, random: np.random.Generator) -> None:
    y, coat = int(random.integers(44, 54)), tone(random, 10, 250)
    cv2.circle(picture, (x, y), 4, tone(random, 120, 220), cv2.FILLED)
    cv2.rectangle(picture, (x - 5, y + 5), (x + 5, y + 21), coat, cv2.FILLED)
    for side in (-3, 3):
        cv2.line(picture, (x + side, y + 21), (x + side, y + 34), (20, 20, 20), 3)
    if has_parcel:
        cv2.rectangle(picture, (x - 1, y + 8), (x + 13, y + 20), (200, 150, 90), cv2.FILLED)
        cv2.line(picture, (x + 6, y + 8), (x + 6, y + 20), (250, 250, 230), 2)


def _write_split(out: Path, split: str, count: int, speech: list[Pcm]) -> list[str]:
    """The pictures and sounds of a split; returns its manifest lines."""
    lines = []
    for number in track(range(count), f"{split} events", console=Console(stderr=True)):
        image, sound = f"images/{split}/{number:05d}.png", f"sounds/{split}{len(speech):03d}/{number:05d}.wav"
        seeds = np.random.SeedSequence((list(LINES).index(split), number)).spawn(3)
        chance, see, hear = map(np.random.default_rng, seeds)
        event = list(CELLS)[number % len(CELLS)]
        seen, heard = CELLS[event][int(chance.integers(len(CELLS[event])))]
        save_once(out / image, paint(seen, see))
        if not (out / sound).exists():
            made = speech[int(hear.integers(len(speech)))] if heard == "speech" else EVENTS[heard](hear)
            save_speech(out / sound, np.rint(32767 * in_the_rain(made, hear)).astype(np.int16), SAMPLE_RATE)
        lines.append(json.dumps({"image": image, "audio": sound, "label": event, "split": split}))
    return lines
