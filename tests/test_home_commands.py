"""Home commands: what is to be done makes the room as it was asked for, and no sensor alone can know it."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.media import decode_audio, decode_image
from edgefuse.train import home_commands as module
from edgefuse.train import spoken
from edgefuse.train.home_commands import (
    COMMANDS_PER_ROOM,
    NOTHING,
    SAID,
    SHOWN,
    SIDE,
    Command,
    Room,
    action,
    commands,
    draw_room,
    home_commands,
    paint,
)
from edgefuse.train.voices import TEST_VARIANTS, VAL_VARIANTS

POOLS = ("train", "val", "test", "flite")
FEW = {"train": 6, "val": 2, "test": 3}  # rooms
EVERY_ROOM = [Room(*state, degrees=degrees) for state in itertools.product((0, 1), repeat=4) for degrees in SHOWN]
EVERY_WISH = [Command("", thing, value) for thing, value in SAID]
EFFECT = {
    "lamp_on": ("lamp", 1),
    "lamp_off": ("lamp", 0),
    "tv_on": ("tv", 1),
    "tv_off": ("tv", 0),
    "open_window": ("window", 1),
    "close_window": ("window", 0),
    "open_door": ("door", 1),
    "close_door": ("door", 0),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with few rooms and one voice for each split."""
    out = tmp_path_factory.mktemp("home_commands")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        told = home_commands(out, voices=1)
    assert told == {"manifests": [str(out / "manifest.jsonl")], "lines": 4 * 11, "sounds": 3 * len(SAID) * 12}
    return out


@pytest.fixture(scope="module")
def lines(corpus: Path) -> list[Example]:
    return read_manifest(corpus / "manifest.jsonl")


def make_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "ROOMS", FEW)
    patch.setattr(spoken, "VAL_VARIANTS", VAL_VARIANTS[:1])
    patch.setattr(spoken, "TEST_VARIANTS", TEST_VARIANTS[:1])
    patch.setattr(spoken, "flite_voices", tuple)


@pytest.mark.parametrize("room", EVERY_ROOM[::7])
def test_what_is_done_makes_the_room_as_it_was_asked_for(room: Room) -> None:
    for wish in EVERY_WISH:
        done = action(room, wish)
        if done == NOTHING:
            assert getattr(room, wish.thing) == wish.value
        elif wish.thing == "degrees":
            assert {"warmer": room.degrees < wish.value, "cooler": room.degrees > wish.value}[done]
        else:
            thing, value = EFFECT[done]
            after = replace(room, **{thing: value})
            assert after != room
            assert action(after, wish) == NOTHING


def test_each_sensor_alone_is_right_as_often_as_the_docstring_says() -> None:
    """The best guess for each wish over all rooms, and for each room over all wishes, all equally likely."""
    hears = [Counter(action(room, wish) for room in EVERY_ROOM).most_common(1)[0][1] for wish in EVERY_WISH]
    sees = [Counter(action(room, wish) for wish in EVERY_WISH).most_common(1)[0][1] for room in EVERY_ROOM]
    cases = len(EVERY_ROOM) * len(EVERY_WISH)
    stated = re.findall(r"on (\d+\.\d) %", " ".join(str(module.__doc__).split()))
    assert [f"{100 * sum(best) / cases:.1f}" for best in (hears, sees)] == stated


def test_no_wording_is_in_two_splits_and_test_words_are_heard_in_training() -> None:
    said = {split: {command.text for command in each} for split, each in commands().items()}
    assert {split: len(texts) for split, texts in said.items()} == {"train": 66, "val": 33, "test": 33}
    assert len(set().union(*said.values())) == 132
    words = {split: {word for text in texts for word in text.split()} for split, texts in said.items()}
    assert words["test"] | words["val"] <= words["train"]
    for each in commands().values():
        assert {(command.thing, command.value) for command in each} == set(SAID)


def test_pictures_follow_from_the_seed_and_show_what_is_on_and_open() -> None:
    rooms = [draw_room(random.Random(seed)) for seed in range(400)]
    pictures = [paint(room, np.random.default_rng(seed)) for seed, room in enumerate(rooms)]
    assert pictures[0].shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(pictures[3], paint(rooms[3], np.random.default_rng(3)))
    small = np.stack(
        [cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).ravel() / 255 for picture in pictures]
    )
    for thing in ("lamp", "window", "door", "tv"):
        states = [getattr(room, thing) for room in rooms]
        learned = LogisticRegression(C=0.1, max_iter=500).fit(small[:300], states[:300])
        assert learned.score(small[300:], states[300:]) > 0.85, thing


def test_a_line_says_what_is_to_be_done_in_its_room(lines: list[Example]) -> None:
    wish_of = {command.text: command for each in commands().values() for command in each}
    for line in lines:
        number = int(Path(str(line.image)).stem)
        room = draw_room(random.Random(f"{line.split} {number}"))
        assert line.label == action(room, wish_of[str(line.text)])
        assert line.answer_type == wish_of[str(line.text)].thing
    assert Counter(line.image for line in lines) == Counter({str(line.image): COMMANDS_PER_ROOM for line in lines})


def test_no_picture_voice_or_wording_is_in_two_splits(lines: list[Example]) -> None:
    for said in (
        lambda line: Path(str(line.image)).read_bytes(),
        lambda line: Path(str(line.audio)).parent,
        lambda line: line.text,
    ):
        seen = {split: {said(line) for line in lines if line.split == split} for split in FEW}
        assert not seen["train"] & seen["test"]
        assert not seen["train"] & seen["val"]
        assert not seen["val"] & seen["test"]


def test_sounds_speak_the_text_of_their_line_and_fit_the_recipe(lines: list[Example]) -> None:
    spoken_texts: dict[str, set[str | None]] = {}
    for line in lines:
        spoken_texts.setdefault(Path(str(line.audio)).stem, set()).add(line.text)
        pcm, rate = decode_audio(Path(str(line.audio)).read_bytes(), "sound")
        assert (rate, 0.3 < len(pcm) / rate < 3.0) == (16_000, True)
        assert decode_image(Path(str(line.image)).read_bytes(), "picture").shape == (SIDE, SIDE, 3)
    assert all(len(texts) == 1 for texts in spoken_texts.values())


def test_a_second_call_writes_the_same_manifest(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (corpus / "manifest.jsonl").read_bytes()
    make_small(monkeypatch)
    home_commands(corpus, voices=1)
    assert (corpus / "manifest.jsonl").read_bytes() == before


def test_another_synthesizer_asks_the_test_commands(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(module, "speak_all", lambda out, texts, _: spoken.Spoken(tuple(texts), dict.fromkeys(POOLS, 1)))
    told = home_commands(tmp_path, voices=1)
    assert [Path(path).name for path in told["manifests"]] == ["manifest.jsonl", "test_flite.jsonl"]
    rows = (tmp_path / "test_flite.jsonl").read_text().splitlines()
    assert len(rows) == COMMANDS_PER_ROOM * FEW["test"]
    assert all('"sounds/flite000/' in row and '"split": "test"' in row for row in rows)
