"""Sort-of-CLEVR: every answer holds for the pixels of the picture, and nothing of the test was seen in training."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.media import decode_image
from edgefuse.train import relational, spoken
from edgefuse.train.relational import COLORS, NUMBERS, PLAIN, RELATIONAL, SHAPES, SIDE, answer, draw_scene, paint
from edgefuse.train.voices import TEST_VARIANTS, VAL_VARIANTS

FORMS = (*PLAIN, *RELATIONAL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with few pictures and voices."""
    out = tmp_path_factory.mktemp("relational")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relational, "PICTURES", {"train": 30, "val": 5, "test": 10})
        patch.setattr(spoken, "VAL_VARIANTS", VAL_VARIANTS[:1])
        patch.setattr(spoken, "TEST_VARIANTS", TEST_VARIANTS[:1])
        told = relational.relational_vqa(out, voices=1)
    assert told["lines"] == 20 * 45
    return out


def seen(picture: np.ndarray) -> dict[str, tuple[str, float, float]]:
    """What the pixels show: colour -> shape, x and y; a rectangle fills its bounding box, a circle does not."""
    found = {}
    for color, rgb in COLORS.items():
        rows, columns = np.nonzero((picture == rgb).all(axis=2))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        shape = "rectangle" if len(rows) == box else "circle"
        found[color] = (shape, (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2)
    return found


def answer_by_pixels(form: str, color: str, picture: np.ndarray) -> str:
    things = seen(picture)
    shape, x, y = things.pop(color)
    by_distance = sorted(things.values(), key=lambda thing: np.hypot(thing[1] - x, thing[2] - y))
    return {
        PLAIN[0]: shape,
        PLAIN[1]: "yes" if x < SIDE / 2 else "no",
        PLAIN[2]: "yes" if y < SIDE / 2 else "no",
        RELATIONAL[0]: by_distance[0][0],
        RELATIONAL[1]: by_distance[-1][0],
        RELATIONAL[2]: NUMBERS[sum(thing[0] == shape for thing in things.values())],
    }[form]


@given(st.integers(0, 10**6))
def test_answers_are_what_the_pixels_show(seed: int) -> None:
    things = draw_scene(random.Random(seed))
    picture = paint(things)
    distances = {
        (one.color, other.color): (one.x - other.x) ** 2 + (one.y - other.y) ** 2
        for one in things
        for other in things
        if one is not other
    }
    for color in COLORS:
        near = sorted(distance for (one, _), distance in distances.items() if one == color)
        is_tie = near[0] == near[1] or near[-1] == near[-2]
        for form in FORMS if not is_tie else (*PLAIN, RELATIONAL[2]):
            assert answer(form, color, things) == answer_by_pixels(form, color, picture)


def test_pictures_have_an_object_of_each_colour_and_both_shapes_occur() -> None:
    scenes = [draw_scene(random.Random(seed)) for seed in range(50)]
    assert all([thing.color for thing in scene] == list(COLORS) for scene in scenes)
    assert {thing.shape for scene in scenes for thing in scene} == set(SHAPES)


def test_a_line_is_answered_by_its_own_picture(corpus: Path) -> None:
    lines = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    for line in lines[::17]:
        picture = decode_image((corpus / line["image"]).read_bytes(), line["image"])
        form = next(form for form in FORMS for color in COLORS if form.format(color) == line["text"])
        color = next(color for color in COLORS if form.format(color) == line["text"])
        assert line["label"] == answer_by_pixels(form, color, picture)


def test_every_picture_has_ten_plain_and_ten_relational_questions(corpus: Path) -> None:
    kinds = Counter(
        (example.image, example.answer_type)
        for split in ("train", "val", "test")
        for example in read_manifest(corpus / "manifest.jsonl", split=split)
    )
    assert len(kinds) == 2 * 45
    assert set(kinds.values()) == {10}


def test_no_picture_and_no_voice_is_in_two_splits(corpus: Path) -> None:
    by_split = {split: read_manifest(corpus / "manifest.jsonl", split=split) for split in ("train", "val", "test")}
    pictures = {
        split: {Path(str(example.image)).read_bytes() for example in lines} for split, lines in by_split.items()
    }
    voices = {split: {Path(str(example.audio)).parent for example in lines} for split, lines in by_split.items()}
    for sets in (pictures, voices):
        assert not sets["train"] & sets["test"]
        assert not sets["train"] & sets["val"]


def test_a_second_call_writes_the_same_manifest(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (corpus / "manifest.jsonl").read_bytes()
    monkeypatch.setattr(relational, "PICTURES", {"train": 30, "val": 5, "test": 10})
    monkeypatch.setattr(spoken, "VAL_VARIANTS", VAL_VARIANTS[:1])
    monkeypatch.setattr(spoken, "TEST_VARIANTS", TEST_VARIANTS[:1])
    relational.relational_vqa(corpus, voices=1)
    assert (corpus / "manifest.jsonl").read_bytes() == before


def test_pictures_are_png_of_the_protocol_s_size(corpus: Path) -> None:
    assert cv2.imread(str(corpus / "images/train/00000.png")).shape == (SIDE, SIDE, 3)
