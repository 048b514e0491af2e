"""The PNG of an explanation: decodes, has the heat, the bars and the words, and takes whatever it is given."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from edgefuse.runtime import explain_picture
from edgefuse.runtime.explain_picture import MARGIN, WIDTH, picture
from edgefuse.runtime.explanation import Word
from edgefuse.runtime.heat import AGAINST, FOR
from tests.test_explain_page import INFO, decoded, told


def drawn(**changes: Any) -> np.ndarray:
    """The picture as RGB."""
    png = picture(told(**changes), decoded(), INFO)
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return pixels[:, :, ::-1].astype(int)


def amount(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - colour).max(axis=2) == 0).sum())


def test_the_png_decodes_and_has_bars_of_both_sides():
    pixels = drawn(image_map=None, audio_map=None, words=None)

    assert pixels.shape[1] == WIDTH
    key = 17 * 17  # the square in the legend
    longer = amount(pixels, FOR) - key
    assert longer / (amount(pixels, AGAINST) - key) == pytest.approx(3.0 / 2.0, rel=0.05)  # 2.5 + 0.5 against 2.0


def test_the_heat_lies_on_the_right_of_the_picture_as_given():
    pixels = drawn(audio_map=None, words=None, shapley={"image": 0.0})
    flat = drawn(audio_map=None, words=None, shapley={"image": 0.0}, image_map=np.zeros((16, 16)))

    changed = np.abs(pixels[: len(flat)] - flat[: len(pixels)]).max(axis=2)
    rows, columns = np.nonzero(changed[:760] > 60)
    assert len(rows) > 200
    assert columns.min() > WIDTH // 2


def test_each_part_takes_its_place_and_a_part_that_was_not_measured_takes_none():
    whole = len(drawn())

    for missing in ("image_map", "audio_map", "words"):
        assert len(drawn(**{missing: None})) < whole - 60


def test_many_and_long_words_are_wrapped_and_nothing_reaches_over_the_edge():
    words = [Word(f"word{number}", 0.1 * number) for number in range(40)] + [Word("x" * 500, -1.0)]

    pixels = drawn(words=words, label="a label " * 60)

    assert (pixels[:, WIDTH - MARGIN + 2 :] == 255).all()
    assert (pixels[:, : MARGIN - 2] == 255).all()
    assert len(pixels) > len(drawn()) + 3 * explain_picture.WORD_PX


def test_a_minus_is_drawn_as_one_by_every_opencv(monkeypatch):
    written = []
    monkeypatch.setattr(explain_picture.cv2, "putText", lambda canvas, says, *_: written.append(says))

    picture(told(), decoded(), INFO)

    assert "-2.00" in written
    assert all("\u2212" not in says for says in written)
