"""Event sounds: each can be told from the others, and stands over the rain as far as was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import spectrogram
from sklearn.ensemble import RandomForestClassifier

from edgefuse.train.event_sounds import EVENTS, LENGTH, PEAK, SNR_DB, in_the_rain


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", EVENTS)
def test_a_sound_follows_from_the_seed_and_has_the_stated_length_and_peak(name: str) -> None:
    first, again, other = (in_the_rain(EVENTS[name](random(seed)), random(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.shape, first.dtype) == ((LENGTH,), np.float32)
    assert PEAK[0] <= np.abs(first).max() <= PEAK[1]


def test_sounds_can_be_told_apart_by_their_spectrum() -> None:
    features, names = [], []
    for name, make in EVENTS.items():
        for seed in range(80):
            power = spectrogram(in_the_rain(make(random(seed)), random(seed + 1_000)), 16_000, nperseg=512)[2]
            level = np.log(power[:256].reshape(32, 8, -1).mean(axis=1) + 1e-9)  # [bands, frames]
            features.append([*level.mean(axis=1), *level.std(axis=1), *level.max(axis=1)])
            names.append(name)
    even = np.arange(len(names)) % 2 == 0
    x, y = np.array(features), np.array(names)
    assert RandomForestClassifier(100, random_state=0).fit(x[even], y[even]).score(x[~even], y[~even]) > 0.9


def test_an_event_stands_over_the_rain_as_far_as_was_drawn() -> None:
    """A tone, so that a projection on its frequency tells it from the rain."""
    turn = 2 * np.pi * 3_000 / 16_000 * np.arange(LENGTH)
    waves = np.stack([np.sin(turn), np.cos(turn)], axis=1)  # [T, 2], for any phase
    measured = []
    for seed in range(200):
        mixed = in_the_rain(waves[:, 0].astype(np.float32), random(seed)).astype(np.float64)
        part = waves @ np.linalg.lstsq(waves, mixed, rcond=None)[0]
        measured.append(10 * np.log10(np.mean(part**2) / np.mean((mixed - part) ** 2)))
    assert min(measured) == pytest.approx(SNR_DB[0], abs=1)
    assert max(measured) == pytest.approx(SNR_DB[1], abs=1)


def test_a_longer_event_is_cut_and_silence_is_rain_alone() -> None:
    assert in_the_rain(np.ones(3 * LENGTH, np.float32), random(0)).shape == (LENGTH,)
    assert in_the_rain(np.zeros(10, np.float32), random(0)).std() > 0
