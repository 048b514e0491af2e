"""An explanation as one HTML page that needs nothing else: bars, a heated picture, a sound, and words."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

import cv2
import numpy as np

from edgefuse.runtime.bundle import MODALITY_TABLE, AudioSpec, BundleInfo, ImageSpec
from edgefuse.runtime.explanation import (
    METHOD,
    Explanation,
    Map,
    Word,
    about_label,
    about_picture,
    about_sensors,
    about_sound,
    about_words,
    costs,
    signed,
    strength,
)
from edgefuse.runtime.heat import envelope, heat_over, shown
from edgefuse.runtime.media import Pcm, Pixels
from edgefuse.runtime.preprocess import fit_audio, to_rate

TEMPLATE = "explain.html"
MOST = 0.4  # opacity of full colour: letters on it keep a contrast of 4.5
COLUMNS, HEIGHT = 400, 100  # of the drawn sound
UNREAD = 12  # words behind the end of what is read that are still shown


def page(told: Explanation, decoded: Mapping[str, Any], info: BundleInfo) -> bytes:
    """The page; every value of the bundle or the user is escaped.

    Args:
        told: what was measured.
        decoded: modality -> what it was measured on, as `Preprocessor.decode` returned it.
        info: the bundle's contract.
    """
    sections = [_sensors(told)]
    if told.image_map is not None and info.image:
        sections.append(_picture(decoded["image"], told.image_map, info.image))
    if told.audio_map is not None and info.audio:
        sections.append(_sound(decoded["audio"], told.audio_map, info.audio))
    if told.words is not None:
        sections.append(_words(told.words, told.stand_in))
    template = resources.files("edgefuse.runtime").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return (
        Template(template)
        .substitute(
            title=escape(f"{told.label}: why {info.name} answers so"),
            name=escape(f"{info.name}: what speaks for and against"),
            label=escape(told.label),
            about=escape(about_label(told)),
            sections="\n".join(sections),
            method=escape(METHOD),
            cost=escape(costs(told)),
        )
        .encode()
    )


def _sensors(told: Explanation) -> str:
    """A bar per sensor that begins where the one before it ended, from the baseline to the total."""
    steps = np.cumsum([told.baseline_logit, *told.shapley.values()])  # [M + 1]
    low, high = min(steps.min(), 0.0), max(steps.max(), 0.0)
    margin = 0.03 * (high - low) or 1.0
    low, span = low - margin, high - low + 2 * margin

    def place(value: float) -> str:
        return f"left:{100 * (value - low) / span:.2f}%"

    even = f'<i class="even" style="{place(0.0)}"></i>'

    def row(name: str, drawn: str, value: float, kind: str = "") -> str:
        return f'<li{kind}><span>{name}</span><div class="track">{even}{drawn}</div><b>{signed(value)}</b></li>'

    def end(name: str, value: float) -> str:
        return row(name, f'<i class="mark" style="{place(value)}"></i>', value, ' class="end"')

    rows = [end("No sensor", told.baseline_logit)]
    for (modality, value), start, stop in zip(told.shapley.items(), steps[:-1], steps[1:], strict=True):
        bar = f'<i class="{_side(value)}" style="{place(min(start, stop))};width:{100 * abs(value) / span:.2f}%"></i>'
        rows.append(row(MODALITY_TABLE[modality].title, bar, value))
    rows.append(end("All", told.logit))
    note = f"{about_sensors(told)} The dashed line is even odds."
    return _section("Sensors", f'<ul class="bars">{"".join(rows)}</ul>', note, wide=True)


def _picture(pixels: Pixels, falls: Map, spec: ImageSpec) -> str:
    note = about_picture(falls)
    given = shown(pixels)
    heated = heat_over(given, falls, spec.height, spec.width)
    images = _image(given, "The picture as given.") + _image(heated, f"The same in grey with a heat map. {note}")
    return _section("Picture", f'<div class="pair">{images}</div>', note)


def _sound(sound: tuple[Pcm, int], falls: Map, spec: AudioSpec) -> str:
    pcm, rate = sound
    heard = fit_audio(to_rate(pcm, rate, spec.sample_rate), spec.samples)
    note = about_sound(falls, len(pcm) / rate, spec.samples / spec.sample_rate)
    wide = COLUMNS / len(falls)
    bands = "".join(
        f'<rect class="{_side(value)}" x="{cell * wide:.2f}" width="{wide:.2f}" height="{HEIGHT}" '
        f'opacity="{MOST * abs(value):.3f}"/>'
        for cell, value in enumerate(strength(falls))
        if value
    )
    middle = HEIGHT / 2
    loudest = max(float(np.abs(heard).max()), 1e-6) / 0.95
    y = middle * (1 - envelope(heard, COLUMNS) / loudest)  # [columns, 2]
    lines = "".join(f"M{x + 0.5} {bottom:.1f}V{top - 0.5:.1f}" for x, (bottom, top) in enumerate(y))
    drawing = (
        f'<svg class="sound" role="img" viewBox="0 0 {COLUMNS} {HEIGHT}" preserveAspectRatio="none" '
        f'aria-label="{escape(f"The waveform of the sound with what each moment matters. {note}")}">'
        f'{bands}<path d="{lines}"/></svg>'
    )
    seconds = spec.samples / spec.sample_rate
    times = "".join(f"<span>{second:.3g} s</span>" for second in (0, seconds / 2, seconds))
    return _section("Sound", f'{drawing}<div class="time">{times}</div>', note)


def _words(words: list[Word], stand_in: str | None) -> str:
    names = [word.word for word in words if word.importance is not None]
    read = [word.importance for word in words if word.importance is not None]
    items = [_word(*each) for each in zip(names, read, strength(read), strict=True)]
    unread = [word.word for word in words if word.importance is None]
    items += [f'<li class="unread">{escape(word)}<small>not read</small></li>' for word in unread[:UNREAD]]
    return _section("Words", f'<ul class="words">{"".join(items)}</ul>', about_words(words, stand_in), wide=True)


def _word(word: str, importance: float, share: float) -> str:
    tone = f"rgb(var(--{_side(importance)}) / {MOST * abs(share):.3f})"
    return f'<li style="background:{tone}">{escape(word)}<small>{signed(importance)}</small></li>'


def _section(title: str, inside: str, note: str, *, wide: bool = False) -> str:
    attribute = ' class="wide"' if wide else ""
    return f'<section{attribute}><h2>{title}</h2>{inside}<p class="note">{escape(note)}</p></section>'


def _image(pixels: Pixels, says: str) -> str:
    png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    height, width = pixels.shape[:2]
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img width="{width}" height="{height}" alt="{escape(says)}" src="{source}">'


def _side(value: float) -> str:
    return "for" if value >= 0 else "against"
