"""Sounds of a house at night, synthesized: glass, an alarm, a dog, steps, and the rain that lies under all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgefuse.train.speech import SAMPLE_RATE

Pcm = NDArray[np.float32]  # [T] at SAMPLE_RATE

LENGTH = SAMPLE_RATE * 3 // 2  # samples of a sound, 1.5 s
SNR_DB = (3.0, 25.0)  # power of an event, while it sounds, over that of the rain
PEAK = (0.15, 0.8)  # of a written sound: loudness gives no answer away


def glass(random: np.random.Generator) -> Pcm:
    """A pane breaks: a crack of noise, then splinters that ring high."""
    pcm = random.normal(size=LENGTH) * _decay(LENGTH, 0.02)
    for _ in range(random.integers(10, 20)):
        start = int(random.integers(0, LENGTH // 3))
        ring = np.sin(2 * np.pi * random.uniform(2_000, 7_500) * _time(LENGTH - start) + random.uniform(0, 6.28))
        pcm[start:] += random.uniform(0.2, 1.0) * ring * _decay(LENGTH - start, random.uniform(0.01, 0.12))
    return pcm.astype(np.float32)


def alarm(random: np.random.Generator) -> Pcm:
    """Two tones in turn, or one that comes and goes."""
    low = random.uniform(700, 1_400)
    high = low * random.choice([0.0, 1.25, 1.5])
    turn = (_time(LENGTH) / random.uniform(0.12, 0.3)).astype(int) % 2  # [T], 0 or 1
    phase = 2 * np.pi * np.cumsum(np.where(turn, high, low)) / SAMPLE_RATE
    return np.tanh(3 * np.sin(phase) * (np.where(turn, high, low) > 0)).astype(np.float32)


def bark(random: np.random.Generator) -> Pcm:
    """Two or three barks: a harsh voice that falls in pitch."""
    pitch, pcm, start = random.uniform(250, 600), np.zeros(LENGTH), 0
    for _ in range(random.integers(2, 4)):
        size = int(random.uniform(0.1, 0.2) * SAMPLE_RATE)
        phase = 2 * np.pi * np.cumsum(np.linspace(pitch, 0.55 * pitch, size)) / SAMPLE_RATE
        voice = sum(np.sin(n * phase) / n for n in range(1, 8)) + random.normal(0, 0.4, size)
        pcm[start : start + size] += np.hanning(size) * voice
        start += size + int(random.uniform(0.1, 0.25) * SAMPLE_RATE)
    return pcm.astype(np.float32)


def footsteps(random: np.random.Generator) -> Pcm:
    """Three or four dull steps, evenly paced."""
    pace, pcm = random.uniform(0.3, 0.42), np.zeros(LENGTH)
    for number in range(random.integers(3, 5)):
        start = int(number * pace * SAMPLE_RATE)
        size = min(SAMPLE_RATE // 5, LENGTH - start)
        thump = np.sin(2 * np.pi * random.uniform(70, 130) * _time(size)) * _decay(size, 0.05)
        scuff = _smooth(random.normal(size=size), 8) * _decay(size, 0.02)
        pcm[start : start + size] += thump + random.uniform(0.3, 1.0) * scuff
    return pcm.astype(np.float32)


def quiet(random: np.random.Generator) -> Pcm:
    """Nothing but the rain."""
    return np.zeros(LENGTH, np.float32)


EVENTS = {"quiet": quiet, "footsteps": footsteps, "bark": bark, "glass": glass, "alarm": alarm}


def in_the_rain(event: Pcm, random: np.random.Generator) -> Pcm:
    """An event [t], somewhere in LENGTH samples of rain or hiss at a drawn level: [LENGTH]."""
    event = event[:LENGTH]
    heard = np.flatnonzero(np.abs(event) > 0.02 * np.abs(event).max(initial=0.0))
    rain = _smooth(random.normal(size=LENGTH), int(random.integers(1, 12)))
    rain /= np.sqrt(np.mean(rain**2))
    mixed = rain.astype(np.float32)
    if len(heard):
        event = event[heard[0] : heard[-1] + 1]
        start = int(random.integers(0, LENGTH - len(event), endpoint=True))
        loud = np.float32(10 ** (random.uniform(*SNR_DB) / 20)) / np.sqrt(np.mean(event**2))
        mixed[start : start + len(event)] += loud * event
    return (random.uniform(*PEAK) * mixed / np.abs(mixed).max()).astype(np.float32)


def _time(samples: int) -> NDArray[np.float64]:
    return np.arange(samples) / SAMPLE_RATE  # [T], seconds


def _decay(samples: int, seconds: float) -> NDArray[np.float64]:
    return np.exp(-_time(samples) / seconds)


def _smooth(noise: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """A running mean: the wider, the duller."""
    return np.convolve(noise, np.ones(width) / width, mode="same")
