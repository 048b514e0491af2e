"""Relational visual question answering, generated: the Sort-of-CLEVR protocol (Santoro 2017), typed and spoken.

A picture shows six objects, one of each colour, each a circle or a rectangle. Ten plain questions ask about one object
by itself, ten relational ones about how it stands to the others. The questions are whole sentences, 36 in all, so that
they can be spoken. Pictures and questions follow from the seeds; sounds are eSpeak NG's, and flite's where installed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from edgefuse.train.pictures import save_once
from edgefuse.train.spoken import Spoken, speak_all, write_manifests

TRAIN_VOICES = 60  # draws of accent, variant, rate and pitch; each speaks every sentence once

SIDE = 75  # pixels of a picture
RADIUS = 5  # pixels of an object from its centre to its edge
COLORS = {  # RGB
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "orange": (255, 156, 0),
    "gray": (128, 128, 128),
    "yellow": (255, 255, 0),
}
SHAPES = ("circle", "rectangle")
PICTURES = {"train": 9_600, "val": 200, "test": 200}  # the protocol's 9,800 + 200
OF_EACH_KIND = 10  # questions about a picture
PLAIN = (
    "what shape is the {} object",
    "is the {} object on the left",
    "is the {} object at the top",
)
RELATIONAL = (
    "what shape is the object closest to the {} object",
    "what shape is the object furthest from the {} object",
    "how many objects have the shape of the {} object",
)
NUMBERS = ("one", "two", "three", "four", "five", "six")  # how many have a shape, the object itself included


@dataclass(frozen=True)
class Thing:
    """One object of a picture."""

    color: str
    shape: str
    x: int  # pixels from the left to its centre
    y: int  # pixels from the top


def relational_vqa(out: Path, voices: int = TRAIN_VOICES) -> dict[str, Any]:
    """Write the corpus to `out`: images/, sounds/, manifest.jsonl and, with flite, test_flite.jsonl.

    Pictures and sounds that are already there are kept, so a second call is quick.

    Args:
        out: the folder of the corpus.
        voices: how many training voices are drawn.

    Returns:
        The manifests' paths and the number of lines and sounds.

    Raises:
        MissingExtraError: espeakng-loader is not installed.
    """
    sentences = [form.format(color) for form in (*PLAIN, *RELATIONAL) for color in COLORS]
    spoken = speak_all(out, sentences, voices)
    rows = [row for split, count in PICTURES.items() for row in _write_split(out, split, count, spoken)]
    return {"manifests": write_manifests(out, rows, spoken), "lines": len(rows), "sounds": spoken.count}


def draw_scene(draw: random.Random) -> list[Thing]:
    """One object of each colour, no two of them touching."""
    things: list[Thing] = []
    for color in COLORS:
        while True:
            x, y = (draw.randrange(RADIUS, SIDE - RADIUS) for _ in range(2))
            if all((x - other.x) ** 2 + (y - other.y) ** 2 > (3 * RADIUS) ** 2 for other in things):
                break
        things.append(Thing(color, draw.choice(SHAPES), x, y))
    return things


def paint(things: list[Thing]) -> NDArray[np.uint8]:
    """The picture: uint8 RGB [SIDE, SIDE, 3], objects on white."""
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for thing in things:
        color = COLORS[thing.color]
        if thing.shape == "circle":
            cv2.circle(picture, (thing.x, thing.y), RADIUS, color, cv2.FILLED)
        else:
            corners = [(thing.x + sign * RADIUS, thing.y + sign * RADIUS) for sign in (-1, 1)]
            cv2.rectangle(picture, corners[0], corners[1], color, cv2.FILLED)
    return picture


def answer(form: str, color: str, things: list[Thing]) -> str:
    """The answer to one of the forms of PLAIN and RELATIONAL about the object of `color`."""
    asked = next(thing for thing in things if thing.color == color)
    others = [thing for thing in things if thing is not asked]
    if form in PLAIN:
        in_half = asked.x < SIDE / 2 if form == PLAIN[1] else asked.y < SIDE / 2
        return asked.shape if form == PLAIN[0] else "yes" if in_half else "no"
    if form == RELATIONAL[2]:
        return NUMBERS[sum(thing.shape == asked.shape for thing in others)]
    extreme = min if form == RELATIONAL[0] else max
    return extreme(others, key=lambda thing: (thing.x - asked.x) ** 2 + (thing.y - asked.y) ** 2).shape


def _write_split(out: Path, split: str, count: int, spoken: Spoken) -> list[dict[str, str]]:
    """The pictures of a split; returns the rows of its manifest."""
    rows = []
    for number in track(range(count), f"{split} pictures", console=Console(stderr=True)):
        draw = random.Random(f"{split} {number}")
        things = draw_scene(draw)
        image = f"images/{split}/{number:05d}.png"
        save_once(out / image, paint(things))
        for kind, forms in (("plain", PLAIN), ("relational", RELATIONAL)):
            for _ in range(OF_EACH_KIND):
                form, color = draw.choice(forms), draw.choice(list(COLORS))
                text = form.format(color)
                said = {"audio": spoken.sound(draw, split, text), "text": text, "label": answer(form, color, things)}
                rows.append({"image": image, **said, "split": split, "answer_type": kind})
    return rows
