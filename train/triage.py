"""Triage, generated: a drawn patch of skin and a short note; a toy without any medical meaning or use.

Pictures are drawn shapes, notes are filled-in templates, and the urgency follows from RULES, which were made up so that
neither is enough: the picture alone tells at best 50.0 % of the answers, the note alone 50.0 %, both together all. No
picture and no note is in two splits: the phrases of a test note were all read in training, in other pairs. Everything
follows from the seeds.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from edgefuse.runtime.files import write_atomic
from edgefuse.train.pictures import Pixels, as_camera, save_once

MANIFEST = "manifest.jsonl"
LINES = {"train": 3_600, "val": 480, "test": 1_200}

RULES = {  # picture: urgency where it neither grew nor there is a fever, where it grew, where there is a fever, both
    "even": ("routine", "soon", "routine", "soon"),
    "ragged": ("soon", "urgent", "soon", "urgent"),
    "ringed": ("routine", "routine", "urgent", "urgent"),
}
GREW = (  # no, yes: five ways to say it
    ("it has not grown", "same size as last year", "no growth seen", "it never changed", "its size is stable"),
    ("it has grown", "larger than last year", "growth seen", "it changed a lot", "its size has doubled"),
)
FEVER = (
    ("no fever", "temperature is normal", "does not feel hot", "never had a fever", "without a temperature"),
    ("has a fever", "temperature is high", "feels hot", "had a fever last night", "runs a temperature"),
)
PLACES = ("arm", "back", "leg", "neck", "shoulder", "hand", "belly")
WAYS = 5  # of GREW and FEVER

SIDE = 96  # pixels of a picture
SKIN = ((250, 214, 186), (90, 56, 40))  # RGB, the lightest and the darkest


def triage(out: Path) -> dict[str, Any]:
    """Write the corpus to `out`: images/ and manifest.jsonl; pictures that are there are kept.

    Returns:
        The manifest's path and the number of lines.
    """
    lines: list[str] = []
    for split, count in LINES.items():
        for number in track(range(count), f"{split} patches", console=Console(stderr=True)):
            draw = random.Random(f"{split} {number}")
            seen = list(RULES)[number % len(RULES)]
            told = number // len(RULES) % 4  # 0 nothing, 1 grew, 2 fever, 3 both
            image = f"images/{split}/{number:05d}.png"
            save_once(out / image, paint(seen, np.random.default_rng(draw.getrandbits(64))))
            row = {"image": image, "text": note(told, split, draw), "label": RULES[seen][told], "split": split}
            lines.append(json.dumps(row))
    write_atomic(out / MANIFEST, ("\n".join(lines) + "\n").encode())
    return {"manifests": [str(out / MANIFEST)], "lines": len(lines)}


def note(told: int, split: str, draw: random.Random) -> str:
    """A note that tells whether it grew (1) and whether there is a fever (2), in a pair of phrases of `split`."""
    pairs = [(i, j) for i in range(WAYS) for j in range(WAYS) if split_of(i, j) == split]
    grew, fever = draw.choice(pairs)
    phrases = [GREW[told % 2][grew], FEVER[told // 2][fever]]
    draw.shuffle(phrases)
    return f"{draw.randint(4, 90)} years old, spot on the {draw.choice(PLACES)}, {phrases[0]}, {phrases[1]}"


def split_of(grew: int, fever: int) -> str:
    """The split of a pair of ways to say it: three fifths train, one each val and test."""
    return {0: "test", 1: "val"}.get((grew + fever) % WAYS, "train")


def paint(seen: str, random: np.random.Generator) -> Pixels:
    """A patch of skin with a spot that is even, ragged and of two colours, or ringed by red: [SIDE, SIDE, 3]."""
    light, dark = np.array(SKIN, float)
    skin = dark + (light - dark) * random.random()  # [3]
    texture = cv2.GaussianBlur(random.normal(0, 25, (SIDE, SIDE)), (0, 0), 3)[:, :, None]  # [H, W, 1]
    picture = (skin + texture).clip(0, 255).astype(np.uint8)
    center = random.integers(34, SIDE - 34, 2)  # [2]
    radius = random.uniform(9, 15)
    brown = skin * random.uniform(0.35, 0.6)  # [3]
    if seen == "ringed":
        halo = skin * (1.1, 0.62, 0.62)
        _fill(picture, _outline(center, radius * random.uniform(1.6, 2.0), 0.04, random), halo)
    _fill(picture, _outline(center, radius, 0.45 if seen == "ragged" else 0.04, random), brown)
    if seen == "ragged":
        aside = center + random.uniform(-0.4, 0.4, 2) * radius
        _fill(picture, _outline(aside, radius * 0.5, 0.45, random), brown * 0.4)
    for _ in range(random.integers(0, 5)):  # hairs
        ends = random.integers(0, SIDE, (2, 2))
        cv2.line(picture, ends[0].tolist(), ends[1].tolist(), (skin * 0.4).tolist(), 1)
    return as_camera(picture, random)


def _outline(center: NDArray[Any], radius: float, raggedness: float, random: np.random.Generator) -> NDArray[np.int32]:
    """A closed line round `center` whose radius varies by a share of `raggedness`: [24, 2]."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    reach = radius * (1 + raggedness * random.uniform(-1, 1, 24))
    points = center + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.rint(points).astype(np.int32)


def _fill(picture: Pixels, outline: NDArray[np.int32], color: NDArray[Any]) -> None:
    cv2.fillPoly(picture, [outline], color.clip(0, 255).tolist(), cv2.LINE_AA)
