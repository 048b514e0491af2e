"""Triage, a toy: the urgency can be read back from note and picture together, and from neither alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train import triage as module
from edgefuse.train.triage import FEVER, GREW, LINES, MANIFEST, RULES, SIDE, WAYS, note, paint, split_of, triage

FEW = {"train": 48, "val": 12, "test": 24}
FACTS = range(4)  # nothing, grew, fever, both


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LINES", FEW)
        assert triage(out) == {"manifests": [str(out / MANIFEST)], "lines": sum(FEW.values())}
    return out


@pytest.fixture(scope="module")
def lines(corpus: Path) -> list[Example]:
    return read_manifest(corpus / MANIFEST)


def read(text: str) -> tuple[int, int, int]:
    """What a note tells, and its phrases: (facts, way to say that it grew, way to say that there is a fever)."""
    [(grew, first)] = [(yes, n) for yes in (0, 1) for n, way in enumerate(GREW[yes]) if f", {way}" in text]
    [(fever, second)] = [(yes, n) for yes in (0, 1) for n, way in enumerate(FEVER[yes]) if f", {way}" in text]
    return grew + 2 * fever, first, second


def test_each_sensor_alone_is_right_as_often_as_the_docstring_says() -> None:
    """All pictures and all facts are equally likely."""
    sees = sum(Counter(row).most_common(1)[0][1] for row in RULES.values())
    reads = sum(Counter(row[facts] for row in RULES.values()).most_common(1)[0][1] for facts in FACTS)
    cases = len(RULES) * len(FACTS)
    stated = re.search(
        r"at best (\d+\.\d) % of the answers, the note alone (\d+\.\d) %", " ".join(module.__doc__.split())
    )
    assert stated is not None
    assert [f"{100 * best / cases:.1f}" for best in (sees, reads)] == list(stated.groups())
    assert Counter(label for row in RULES.values() for label in row) == {"routine": 4, "soon": 4, "urgent": 4}


def test_lines_are_as_balanced_as_the_rules(lines: list[Example]) -> None:
    for split, count in FEW.items():
        labels = Counter(line.label for line in lines if line.split == split)
        assert labels == dict.fromkeys(("routine", "soon", "urgent"), count // 3)
    assert all(count % 12 == 0 for count in LINES.values())


def test_the_urgency_follows_from_what_the_note_says_and_the_picture_shows(lines: list[Example]) -> None:
    for line in lines:
        seen = list(RULES)[int(Path(str(line.image)).stem) % len(RULES)]
        facts, grew, fever = read(str(line.text))
        assert line.label == RULES[seen][facts]
        assert split_of(grew, fever) == line.split


def test_no_pair_of_phrases_is_in_two_splits_and_every_phrase_is_in_training() -> None:
    pairs = {split: [(i, j) for i in range(WAYS) for j in range(WAYS) if split_of(i, j) == split] for split in LINES}
    assert [len(pairs[split]) for split in ("train", "val", "test")] == [15, 5, 5]
    for side in (0, 1):
        assert {pair[side] for pair in pairs["train"]} == set(range(WAYS))


def test_notes_and_pictures_follow_from_the_seed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINES", FEW)
    triage(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == (corpus / MANIFEST).read_bytes()
    pictures = [path.relative_to(corpus) for path in corpus.rglob("*.png")]
    assert len({(corpus / path).read_bytes() for path in pictures}) == sum(FEW.values())
    assert all((tmp_path / path).read_bytes() == (corpus / path).read_bytes() for path in pictures)


def test_a_note_is_plain_words_that_fit_the_recipe() -> None:
    import random

    for number in range(200):
        text = note(number % 4, "train", random.Random(number))
        assert re.fullmatch(r"\d+ years old, spot on the \w+(, [a-z ]+){2}", text)
        assert len(text.replace(",", " ,").split()) + 2 <= 32


def spot(picture: np.ndarray) -> tuple[float, float]:
    """How convex the dark spot is, and how red the skin round it, by OpenCV's contours."""
    grey = cv2.medianBlur(picture.mean(axis=2).astype(np.uint8), 5)
    dark = (grey < 0.72 * np.median(grey)).astype(np.uint8)
    outlines, _ = cv2.findContours(dark, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(outlines, key=cv2.contourArea)
    redness = (picture[:, :, 0] / picture[:, :, 1].clip(1)) / np.median(picture[:, :, 0] / picture[:, :, 1].clip(1))
    return cv2.contourArea(largest) / cv2.contourArea(cv2.convexHull(largest)), float((redness > 1.3).mean())


def test_spots_are_even_ragged_or_ringed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "as_camera", lambda picture, _: picture)
    measured = {seen: [spot(paint(seen, np.random.default_rng(seed))) for seed in range(40)] for seen in RULES}
    convex = {seen: np.median([each[0] for each in values]) for seen, values in measured.items()}
    red = {seen: np.median([each[1] for each in values]) for seen, values in measured.items()}
    assert convex["ragged"] < 0.9 < 0.95 < convex["even"]
    assert red["ringed"] > 0.05 > 0.01 > max(red["even"], red["ragged"])
    assert paint("even", np.random.default_rng(0)).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("where", ["train/triage.py", "train/recipes/triage.yaml", "docs/recipes/triage.md"])
def test_it_is_said_everywhere_that_it_is_generated_and_of_no_medical_use(where: str) -> None:
    text = (Path(__file__).parent.parent / where).read_text(encoding="utf-8")
    beginning = " ".join(text.replace("#", " ").split())[:400]
    assert "generated" in beginning
    assert "without any medical meaning or use" in beginning


def test_a_manifest_line_is_plain_json_with_relative_paths(corpus: Path) -> None:
    row = json.loads((corpus / MANIFEST).read_text().splitlines()[0])
    assert set(row) == {"image", "text", "label", "split"}
    assert row["image"] == "images/train/00000.png"


def test_the_page_shows_the_rules() -> None:
    page = (Path(__file__).parent.parent / "docs" / "recipes" / "triage.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert {row[0]: tuple(row[1:]) for row in rows if row[0] in RULES} == RULES
