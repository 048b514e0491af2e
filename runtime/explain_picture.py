"""An explanation as one PNG picture, drawn by OpenCV: what the page shows, for a report or a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.bundle import MODALITY_TABLE, AudioSpec, BundleInfo, ImageSpec
from edgefuse.runtime.explanation import (
    METHOD,
    Explanation,
    Map,
    about_label,
    about_picture,
    about_sensors,
    about_sound,
    about_words,
    costs,
    signed,
    strength,
)
from edgefuse.runtime.heat import AGAINST, FOR, envelope, heat_over, shown
from edgefuse.runtime.media import Pcm, Pixels
from edgefuse.runtime.preprocess import fit_audio, to_rate

WIDTH, MARGIN, GAP = 1040, 40, 16  # px
INK, SOFT, TRACK, SHEET = (26, 31, 39), (82, 92, 105), (236, 239, 243), (255, 255, 255)  # RGB
FONT = cv2.FONT_HERSHEY_SIMPLEX
SOUND_PX, BAR_PX, WORD_PX = 140, 34, 62  # heights
MOST = 0.6  # opacity of full colour

Colour = tuple[int, int, int]
Canvas = NDArray[np.uint8]  # [H, WIDTH, 3] RGB


def picture(told: Explanation, decoded: Mapping[str, Any], info: BundleInfo) -> bytes:
    """The PNG.

    Args:
        told: what was measured.
        decoded: modality -> what it was measured on, as `Preprocessor.decode` returned it.
        info: the bundle's contract.
    """
    strips = [_blank(MARGIN), _line(told.label, 1.5, INK, 2), _text(about_label(told)), _key(), _sensors(told)]
    if told.image_map is not None and info.image:
        strips += [_title("Picture"), _pictures(decoded["image"], told.image_map, info.image)]
        strips.append(_text(about_picture(told.image_map)))
    if told.audio_map is not None and info.audio:
        strips += [_title("Sound"), *_sound(decoded["audio"], told.audio_map, info.audio)]
    if told.words is not None:
        read = [(word.word, word.importance) for word in told.words if word.importance is not None]
        strips += [_title("Words"), *_words(read), _text(about_words(told.words, told.stand_in))]
    strips += [_blank(GAP), _text(METHOD), _text(costs(told)), _blank(MARGIN - GAP)]
    png = cv2.imencode(".png", cv2.cvtColor(np.vstack(strips), cv2.COLOR_RGB2BGR))[1]
    return bytes(png.tobytes())


def _sensors(told: Explanation) -> Canvas:
    """A bar per sensor that begins where the one before it ended, and a line at even odds."""
    steps = np.cumsum([told.baseline_logit, *told.shapley.values()])  # [M + 1]
    left, right = MARGIN + 130, WIDTH - MARGIN - 100
    low, high = min(steps.min(), 0.0), max(steps.max(), 0.0)

    def x(value: float) -> int:
        return int(left + 8 + (right - left - 16) * (value - low) / max(high - low, 1e-9))

    rows = [("No sensor", told.baseline_logit, steps[0], steps[0], SOFT)]
    for (modality, value), (start, stop) in zip(told.shapley.items(), pairwise(steps), strict=True):
        rows.append((MODALITY_TABLE[modality].title, value, start, stop, _tone(value)))
    rows.append(("All", told.logit, steps[-1], steps[-1], SOFT))
    canvas = _blank((BAR_PX + 6) * len(rows))
    for number, (name, value, start, stop, tone) in enumerate(rows):
        top = number * (BAR_PX + 6)
        cv2.rectangle(canvas, (left, top), (right, top + BAR_PX), TRACK, -1)
        ends = sorted((x(start), x(stop)))
        cv2.rectangle(canvas, (ends[0] - 1, top + 5), (ends[1] + 1, top + BAR_PX - 5), tone, -1)
        _put(canvas, name, MARGIN, top + 24)
        _put(canvas, signed(value), right + 100 - _width(signed(value)), top + 24)
    for y in range(0, len(canvas) - 6, 10):
        cv2.line(canvas, (x(0.0), y), (x(0.0), y + 4), SOFT, 1)
    return np.vstack([_title("Sensors"), canvas, _text(about_sensors(told) + " The dashed line is even odds.")])


def _pictures(pixels: Pixels, falls: Map, spec: ImageSpec) -> Canvas:
    given = shown(pixels)
    both = (given, heat_over(given, falls, spec.height, spec.width))
    canvas = _blank(given.shape[0])
    for number, drawn in enumerate(both):
        left = MARGIN + number * (WIDTH // 2 - MARGIN + GAP // 2)
        kept = drawn[:, : WIDTH // 2 - MARGIN - GAP // 2]
        canvas[:, left : left + kept.shape[1]] = kept
    return canvas


def _sound(sound: tuple[Pcm, int], falls: Map, spec: AudioSpec) -> list[Canvas]:
    pcm, rate = sound
    heard = fit_audio(to_rate(pcm, rate, spec.sample_rate), spec.samples)
    canvas, width, middle = _blank(SOUND_PX), WIDTH - 2 * MARGIN, SOUND_PX // 2
    edges = MARGIN + np.linspace(0, width, len(falls) + 1).astype(int)
    for share, (start, stop) in zip(strength(falls), pairwise(edges), strict=True):
        canvas[:, start:stop] = _mixed(_tone(share), MOST * abs(share), TRACK)
    loudest = max(float(np.abs(heard).max()), 1e-6)
    for column, (bottom, top) in enumerate(envelope(heard, width) / loudest * 0.9 * middle):
        cv2.line(canvas, (MARGIN + column, round(middle - bottom)), (MARGIN + column, round(middle - top)), INK, 1)
    heard_s = spec.samples / spec.sample_rate
    times = _blank(30)
    for share in (0.0, 0.5, 1.0):
        said = f"{share * heard_s:.3g} s"
        _put(times, said, round(MARGIN + share * (width - _width(said))), 22, SOFT)
    return [canvas, times, _text(about_sound(falls, len(pcm) / rate, heard_s))]


def _words(read: Sequence[tuple[str, float]]) -> list[Canvas]:
    """The words with their numbers, as many in a row as fit."""
    rows, x = [_blank(WORD_PX)], MARGIN
    shares = strength([value for _, value in read])
    for (word, value), share in zip(read, shares, strict=True):
        word = _cut(word, WIDTH - 2 * MARGIN - 24)
        wide = max(_width(word), _width(signed(value), 0.6)) + 24
        if x + wide > WIDTH - MARGIN:
            rows, x = [*rows, _blank(WORD_PX)], MARGIN
        cv2.rectangle(rows[-1], (x, 2), (x + wide, 56), _mixed(_tone(value), MOST * abs(share), TRACK), -1)
        _put(rows[-1], word, x + (wide - _width(word)) // 2, 25)
        _put(rows[-1], signed(value), x + (wide - _width(signed(value), 0.6)) // 2, 48, INK, 0.6)
        x += wide + 8
    return rows


def _key() -> Canvas:
    canvas, x = _blank(40), MARGIN
    for tone, says in ((FOR, "speaks for it"), (AGAINST, "speaks against it")):
        cv2.rectangle(canvas, (x, 12), (x + 16, 28), tone, -1)
        _put(canvas, says, x + 26, 27)
        x += _width(says) + 60
    return canvas


def _title(says: str) -> Canvas:
    return np.vstack([_blank(GAP), _line(says, 0.85, INK, 2)])


def _text(says: str) -> Canvas:
    """A paragraph in as many lines as it needs."""
    lines, room = [""], WIDTH - 2 * MARGIN
    for word in says.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if _width(longer) <= room else [*lines, _cut(word, room)]
    return np.vstack([_line(line, 0.65, SOFT) for line in lines])


def _line(says: str, scale: float, colour: Colour, weight: int = 1) -> Canvas:
    canvas = _blank(round(22 + 22 * scale))
    _put(canvas, _cut(says, WIDTH - 2 * MARGIN, scale, weight), MARGIN, round(8 + 24 * scale), colour, scale, weight)
    return canvas


def _put(canvas: Canvas, says: str, x: int, y: int, colour: Colour = INK, scale: float = 0.65, weight: int = 1) -> None:
    cv2.putText(canvas, _plain(says), (x, y), FONT, scale, colour, weight, cv2.LINE_AA)


def _plain(says: str) -> str:
    """A minus that every OpenCV can draw: before 5.0 what is not ASCII becomes a question mark."""
    return says.replace("\u2212", "-")


def _width(says: str, scale: float = 0.65, weight: int = 1) -> int:
    return int(cv2.getTextSize(_plain(says), FONT, scale, weight)[0][0])


def _cut(says: str, room: int, scale: float = 0.65, weight: int = 1) -> str:
    says = says[:room]  # no letter is narrower than a pixel
    if _width(says, scale, weight) <= room:
        return says
    while says and _width(f"{says}...", scale, weight) > room:
        says = says[:-1]
    return f"{says}..."


def _blank(height: int) -> Canvas:
    return np.full((height, WIDTH, 3), SHEET, np.uint8)


def _tone(value: float) -> Colour:
    return FOR if value >= 0 else AGAINST


def _mixed(colour: Colour, opacity: float, ground: Colour) -> Colour:
    red, green, blue = (round(opacity * c + (1 - opacity) * g) for c, g in zip(colour, ground, strict=True))
    return red, green, blue
