"""Home commands, generated: a drawn picture of a room and a command, typed and spoken; the label is what is to be done.

The room decides: "turn the lamp on" asks for nothing where the lamp is on, "make it twenty degrees" asks for warmer or
cooler by the number that the thermostat shows. So neither sensor is enough: whoever hears the command and cannot see is
right on 50.9 % at best, whoever sees the room and hears nothing on 41.8 %. No wording, voice or picture is in two
splits; the words of a test command were all heard in training, in other sentences. Rooms, commands and voices follow
from the seeds; sounds are eSpeak NG's, and flite's where installed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from edgefuse.train.pictures import Pixels, as_camera, save_once, tone
from edgefuse.train.spoken import Spoken, speak_all, write_manifests

TRAIN_VOICES = 48  # draws of accent, variant, rate and pitch; each speaks every sentence once
ROOMS = {"train": 2_400, "val": 200, "test": 600}
COMMANDS_PER_ROOM = 4

SHOWN = (16, 18, 20, 22, 24)  # degrees that a thermostat may show
TARGETS = {18: "eighteen", 20: "twenty", 22: "twenty two"}  # degrees that may be asked for
ACTIONS = {  # what switches a thing to 0 and to 1
    "lamp": ("lamp_off", "lamp_on"),
    "window": ("close_window", "open_window"),
    "door": ("close_door", "open_door"),
    "tv": ("tv_off", "tv_on"),
}
NOTHING = "nothing"
OPENERS = ("{}", "please {}", "could you {}", "hey house {}")
SAID = {  # (thing, value that is asked for): three ways to say it, each behind every opener
    ("lamp", 1): ("turn the lamp on", "switch on the light", "make it bright in here"),
    ("lamp", 0): ("turn the lamp off", "switch off the light", "make it dark in here"),
    ("window", 1): ("open the window", "let some fresh air in", "push the window open"),
    ("window", 0): ("close the window", "shut the window", "keep the cold air out"),
    ("door", 1): ("open the door", "unlock the door", "let the dog out"),
    ("door", 0): ("close the door", "lock the door", "keep the dog inside"),
    ("tv", 1): ("turn on the television", "start the movie", "show me the news"),
    ("tv", 0): ("turn off the television", "stop the movie", "no more news today"),
} | {
    ("degrees", target): (f"set the heating to {word}", f"make it {word} degrees", f"i would like {word} degrees")
    for target, word in TARGETS.items()
}
SIDE = 128  # pixels of a picture


@dataclass(frozen=True)
class Room:
    """What a picture shows; 1 is on or open."""

    lamp: int
    window: int
    door: int
    tv: int
    degrees: int


@dataclass(frozen=True)
class Command:
    """A sentence and what it asks for."""

    text: str
    thing: str  # a field of Room
    value: int


def home_commands(out: Path, voices: int = TRAIN_VOICES) -> dict[str, Any]:
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
    said = commands()
    spoken = speak_all(out, [command.text for split in said.values() for command in split], voices)
    rows = [row for split, count in ROOMS.items() for row in _write_split(out, split, count, said[split], spoken)]
    return {"manifests": write_manifests(out, rows, spoken), "lines": len(rows), "sounds": spoken.count}


def commands() -> dict[str, list[Command]]:
    """Every command by split: of four openers, a way to say it has two in training, one in val and one in the test."""
    split_of = ("test", "val", "train", "train")
    found: dict[str, list[Command]] = {split: [] for split in ROOMS}
    for (thing, value), ways in SAID.items():
        for number, way in enumerate(ways):
            for place, opener in enumerate(OPENERS):
                split = split_of[(number + place) % len(OPENERS)]
                found[split].append(Command(opener.format(way), thing, value))
    return found


def draw_room(draw: random.Random) -> Room:
    """A room with every state as likely as any other."""
    return Room(**{thing: draw.randrange(2) for thing in ACTIONS}, degrees=draw.choice(SHOWN))


def action(room: Room, command: Command) -> str:
    """What is to be done; nothing where the room is as the command wants it."""
    now = getattr(room, command.thing)
    if now == command.value:
        return NOTHING
    if command.thing == "degrees":
        return "warmer" if now < command.value else "cooler"
    return ACTIONS[command.thing][command.value]


def paint(room: Room, random: np.random.Generator) -> Pixels:
    """The picture [SIDE, SIDE, 3]: each thing near its place, walls and daylight drawn anew."""
    picture = np.full((SIDE, SIDE, 3), tone(random, 150, 215), np.uint8)
    cv2.rectangle(picture, (0, 100), (SIDE, SIDE), tone(random, 70, 140), cv2.FILLED)  # the floor
    for draw_thing, state, left, top in (
        (_paint_window, room.window, 18, 12),
        (_paint_thermostat, room.degrees, 72, 14),
        (_paint_door, room.door, 96, 42),
        (_paint_tv, room.tv, 38, 70),
        (_paint_lamp, room.lamp, 12, 66),
    ):
        x, y = (int(place + shift) for place, shift in zip((left, top), random.integers(-4, 5, 2), strict=True))
        draw_thing(picture, x, y, state, random)
    return as_camera(picture, random)


def _paint_window(picture: Pixels, x: int, y: int, is_open: int, random: np.random.Generator) -> None:
    sky = tone(random, 130, 220) if random.random() < 0.5 else tone(random, 10, 60)  # day or night
    frame = (250, 250, 250)
    cv2.rectangle(picture, (x, y), (x + 34, y + 36), sky, cv2.FILLED)
    cv2.rectangle(picture, (x, y), (x + 34, y + 36), frame, 2)
    if is_open:  # the wings stand out to both sides
        for side, far in ((x, x - 10), (x + 34, x + 44)):
            wing = np.array([(side, y), (far, y + 5), (far, y + 42), (side, y + 36)], np.int32)
            cv2.polylines(picture, [wing], True, frame, 2)
    else:
        cv2.line(picture, (x + 17, y), (x + 17, y + 36), frame, 3)
        cv2.line(picture, (x, y + 18), (x + 34, y + 18), frame, 2)


def _paint_thermostat(picture: Pixels, x: int, y: int, degrees: int, random: np.random.Generator) -> None:
    cv2.rectangle(picture, (x, y), (x + 32, y + 20), tone(random, 225, 255), cv2.FILLED)
    cv2.putText(picture, str(degrees), (x + 3, y + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 2)


def _paint_door(picture: Pixels, x: int, y: int, is_open: int, random: np.random.Generator) -> None:
    wood = tone(random, 60, 150)
    cv2.rectangle(picture, (x, y), (x + 26, y + 64), (15, 15, 20) if is_open else wood, cv2.FILLED)
    if is_open:
        leaf = np.array([(x, y), (x - 12, y + 6), (x - 12, y + 72), (x, y + 64)], np.int32)
        cv2.fillPoly(picture, [leaf], wood)
    else:
        cv2.circle(picture, (x + 5, y + 34), 2, (240, 220, 90), cv2.FILLED)
    cv2.rectangle(picture, (x, y), (x + 26, y + 64), (60, 45, 35), 1)


def _paint_tv(picture: Pixels, x: int, y: int, is_on: int, random: np.random.Generator) -> None:
    cv2.rectangle(picture, (x, y), (x + 42, y + 27), (20, 20, 20), cv2.FILLED)
    if is_on:
        for left in range(x + 3, x + 39, 9):
            cv2.rectangle(picture, (left, y + 3), (left + 8, y + 23), tone(random, 90, 255), cv2.FILLED)


def _paint_lamp(picture: Pixels, x: int, y: int, is_on: int, random: np.random.Generator) -> None:
    cv2.line(picture, (x + 9, y + 12), (x + 9, y + 54), (50, 50, 50), 2)
    if is_on:
        cv2.circle(picture, (x + 9, y + 8), 17, (255, 240, 170), cv2.FILLED)
    shade = np.array([(x + 4, y), (x + 14, y), (x + 19, y + 14), (x - 1, y + 14)], np.int32)
    cv2.fillPoly(picture, [shade], (255, 215, 60) if is_on else tone(random, 70, 110))


def _write_split(out: Path, split: str, count: int, said: list[Command], spoken: Spoken) -> list[dict[str, str]]:
    """The pictures of a split; returns the rows of its manifest."""
    meant = {key: [c for c in said if (c.thing, c.value) == key] for key in SAID}
    rows = []
    for number in track(range(count), f"{split} rooms", console=Console(stderr=True)):
        draw = random.Random(f"{split} {number}")
        room, image = draw_room(draw), f"images/{split}/{number:05d}.png"
        save_once(out / image, paint(room, np.random.default_rng(draw.getrandbits(64))))
        for _ in range(COMMANDS_PER_ROOM):
            command = draw.choice(meant[draw.choice(list(SAID))])
            audio = spoken.sound(draw, split, command.text)
            told = {"image": image, "audio": audio, "text": command.text, "label": action(room, command)}
            rows.append({**told, "split": split, "answer_type": command.thing})
    return rows
