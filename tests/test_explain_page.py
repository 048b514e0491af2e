"""The page of an explanation: well-formed, escaped, needs nothing from elsewhere, readable, and says what is flat."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from importlib import resources
from typing import Any

import cv2
import numpy as np
import pytest

from edgefuse.runtime.bundle import AudioSpec, BundleInfo, ImageSpec, PartInfo, TextSpec, TokenSpec
from edgefuse.runtime.explain_page import COLUMNS, MOST, TEMPLATE, page
from edgefuse.runtime.explanation import FLAT, METHOD, Explanation, Word, probability, signed, strength
from tests.chromium import CONTRAST, DESK, PHONE, SCHEMES, show
from tests.test_report import HOSTILE, Page

INFO = BundleInfo(
    name=HOSTILE,
    labels=("no", HOSTILE),
    image=ImageSpec(height=32, width=32),
    audio=AudioSpec(sample_rate=1000, samples=1000),
    text=TextSpec(max_tokens=4),
    tokens=dict.fromkeys(("image", "audio", "text"), TokenSpec(count=1, dim=1)),
    parts={"fp32": {"head": PartInfo(file="parts/fp32/head.onnx", precision="fp32")}},
)
MINUS = "\u2212"
HEAT = np.zeros((16, 16))
HEAT[4, 8], HEAT[12, 2] = 3.0, -1.5
MOMENTS = np.zeros(32)
MOMENTS[8] = -0.75


def decoded() -> dict[str, Any]:
    pcm = np.sin(np.arange(2000) / 9).astype(np.float32)
    return {"image": np.full((48, 64, 3), 128, np.uint8), "audio": (pcm, 1000), "text": HOSTILE}


def told(**changes: Any) -> Explanation:
    """An explanation of three sensors, its words hostile."""
    explanation = Explanation(
        label=HOSTILE,
        answer="no",
        logit=-1.0,
        baseline_logit=-2.0,
        shapley={"image": 2.5, "audio": -2.0, "text": 0.5},
        image_map=HEAT,
        audio_map=MOMENTS,
        words=[Word(HOSTILE, 0.4), Word("is", -0.2), Word("late", None)],
        stand_in="[MASK]",
        seconds={"shapley": 0.01, "image_map": 0.5, "audio_map": 0.1, "words": 0.02},
    )
    return replace(explanation, **changes)


def parsed(**changes: Any) -> Page:
    return Page(page(told(**changes), decoded(), INFO).decode())


def attributes(found: Page, tag: str) -> list[dict[str, str]]:
    return [values for name, values in found.elements if name == tag]


def embedded(found: Page) -> list[np.ndarray]:
    """The pictures of the page, BGR."""
    data = [image["src"].removeprefix("data:image/png;base64,") for image in attributes(found, "img")]
    return [cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR) for text in data]


def test_the_page_is_well_formed_and_what_the_user_gave_is_text():
    found = parsed()

    assert not [tag for tag, _ in found.elements if tag == "script"]
    assert not [name for _, values in found.elements for name in values if name.startswith("on")]
    assert len(attributes(found, "img")) == 2
    assert found.text.count(HOSTILE) == 5  # twice in the title; name, label and word


def test_the_page_needs_nothing_from_elsewhere():
    html = page(told(), decoded(), INFO).decode()

    links = [values[name] for _, values in Page(html).elements for name in ("src", "href") if name in values]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.findall(r"url\(|@import|https?:|//\w", html.replace(base64_of(html), ""))


def base64_of(html: str) -> str:
    return max(re.findall(r"base64,([^\"]*)", html), key=len)


def test_every_number_that_was_measured_stands_on_the_page():
    text = parsed().text

    for value in (MINUS + "2.00", "+2.50", "+0.50", MINUS + "1.00", "+0.40", MINUS + "0.20", "26.9 %", "11.9 %"):
        assert value in text, value
    assert "fall by 3.00" in text
    assert "rise by 0.75" in text
    assert METHOD in text
    assert "picture 0.500 s" in text


def test_bars_begin_where_the_one_before_ended():
    bars = [values for values in attributes(parsed(), "i") if values["class"] in ("for", "against")]

    spans = [[float(number) for number in re.findall(r"[\d.]+", bar["style"])] for bar in bars]
    (left, wide), (second, back), (third, last) = spans
    assert [bar["class"] for bar in bars] == ["for", "against", "for"]
    assert wide / back == pytest.approx(2.5 / 2.0, rel=0.01)
    assert second == pytest.approx(left + wide - back, abs=0.05)  # from the end of the first, to the left
    assert third == pytest.approx(second, abs=0.05)
    assert left >= 0
    assert left + wide <= 100
    assert third + last <= 100


def test_the_heat_is_where_the_map_has_it_and_the_colours_tell_the_sides_apart():
    _, heated = embedded(parsed())

    blue, _, red = heated.reshape(-1, 3).astype(int).T
    warm = (red - blue).reshape(heated.shape[:2])
    height, width = warm.shape
    for side, row, column in ((warm, 4.5, 8.5), (-warm, 12.5, 2.5)):
        rows, columns = np.nonzero(side > side.max() / 2)
        assert rows.mean() / height == pytest.approx(row / 16, abs=0.01)
        assert columns.mean() / width == pytest.approx(column / 16, abs=0.01)


def test_a_flat_map_is_said_to_be_flat_and_drawn_without_colour():
    small = FLAT * 0.9
    found = parsed(
        image_map=np.full((16, 16), small), audio_map=np.full(32, -small), words=[Word("is", small), Word("it", 0.0)]
    )

    assert found.text.count("Flat: ") == 3
    assert not attributes(found, "rect")
    _, heated = embedded(found)
    assert np.ptp(heated.astype(int), axis=2).max() == 0
    assert {re.search(r"/ ([\d.]+)\)", item["style"])[1] for item in attributes(found, "li") if "style" in item} == {
        "0.000"
    }


def test_only_what_was_measured_has_a_section():
    found = parsed(image_map=None, audio_map=None, words=None, shapley={"text": 1.0})

    assert len(attributes(found, "section")) == 1
    assert not attributes(found, "img")
    assert not attributes(found, "svg")


def test_pictures_and_the_sound_have_words_for_those_who_do_not_see_them():
    found = parsed()

    assert all(len(image["alt"]) > 15 for image in attributes(found, "img"))
    assert "fall by 3.00" in attributes(found, "img")[1]["alt"]
    (sound,) = attributes(found, "svg")
    assert sound["role"] == "img"
    assert "rise by 0.75" in sound["aria-label"]


def test_the_sound_is_drawn_as_the_model_hears_it_and_the_rest_is_told():
    found = parsed()

    (line,) = attributes(found, "path")
    assert line["d"].count("M") == COLUMNS
    (band,) = attributes(found, "rect")
    assert (band["class"], float(band["x"])) == ("against", COLUMNS * 8 / 32)
    assert "The model hears the first 1 s of 2 s." in found.text


def test_words_that_were_not_read_are_shown_as_such():
    found = parsed()

    assert "The text was cut before the last 1, which the model did not read." in found.text
    assert [item["class"] for item in attributes(found, "li") if item.get("class") == "unread"] == ["unread"]


@pytest.mark.parametrize(
    ("log_odds", "expected"),
    [(0, "50.0 %"), (2, "88.1 %"), (-2, "11.9 %"), (-40, "< 0.1 %"), (900, "> 99.9 %"), (-900, "< 0.1 %")],
)
def test_probabilities_never_claim_to_be_certain(log_odds, expected):
    assert probability(log_odds) == expected


def test_full_colour_is_the_largest_value_but_never_a_small_one():
    assert strength([2.0, -4.0]).tolist() == [0.5, -1.0]
    assert strength([0.1, -0.2]).tolist() == [0.1, -0.2]
    assert strength([0.001, -0.009]).tolist() == [0, 0]


def test_numbers_have_their_sign():
    assert [signed(value) for value in (1.005, -2.5, 0.001, -0.001)] == ["+1.00", MINUS + "2.50", "0.00", "0.00"]


def colours() -> list[dict[str, tuple[float, ...]]]:
    """What each name stands for in light and in dark, RGB 0..255."""
    template = resources.files("edgefuse.runtime").joinpath(TEMPLATE).read_text(encoding="utf-8")
    themes = []
    for block in re.findall(r":root \{([^}]*)\}", template)[:2]:
        pairs = re.findall(r"--(\w+): (#\w{6}|\d+ \d+ \d+);", block)
        themes.append({name: rgb(value) for name, value in pairs})
    return themes


def rgb(value: str) -> tuple[float, ...]:
    if value.startswith("#"):
        return tuple(int(value[at : at + 2], 16) for at in (1, 3, 5))
    return tuple(map(float, value.split()))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 3294.6 if c <= 10.3 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_letters_have_the_contrast_of_wcag_aa_on_all_that_lies_behind_them(theme):
    found = colours()[theme]

    assert contrast(found["ink"], found["sheet"]) >= 4.5
    for ground in ("sheet", "page", "track"):
        assert contrast(found["soft"], found[ground]) >= 4.5
    for side in ("for", "against"):
        behind = tuple(MOST * a + (1 - MOST) * b for a, b in zip(found[side], found["sheet"], strict=True))
        assert contrast(found["ink"], behind) >= 4.5  # the word that matters most
        assert contrast(found[side], found["track"]) >= 3  # bars are graphics


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_in_a_browser_it_fits_can_be_read_and_asks_for_nothing(browser, tmp_path, size, scheme):
    words = [Word(f"{HOSTILE}{number}", 4.0 - number) for number in range(8)] + [Word("w" * 300, None)]
    (tmp_path / "why.html").write_bytes(page(told(words=words), decoded(), INFO))
    show(browser, size, scheme)

    browser.get((tmp_path / "why.html").as_uri())

    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    looked, found = browser.execute_script(CONTRAST)
    assert (looked > 40, found) == (True, [])
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in asked if not name.startswith("data:")] == []
    drawn = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(drawn)
