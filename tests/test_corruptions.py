"""Corruptions: type, shape and range stay, harder is worse, the generator's state repeats them; against scipy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgefuse.runtime.bundle import MODALITIES
from edgefuse.runtime.corruptions import CORRUPTIONS, EDGE_HZ, RATE_HZ, SEVERITIES

PICTURES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))
SOUNDS = arrays.arrays(np.float32, st.integers(1, 500), elements=st.floats(-1, 1, width=32))
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(str.strip)
VALUES = {"image": PICTURES, "audio": SOUNDS, "text": TEXTS}
SEVERITY = st.sampled_from(SEVERITIES) | st.floats(1, 5)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture() -> Any:
    """Blocks of colour, [64, 48, 3]."""
    return np.kron(draws(1).integers(0, 256, (8, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def sound(seconds: float = 1.0) -> Any:
    """Syllables of a voice and a hiss of its own, then a pause of half its length, as PCM [T]."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 30))
    said = 0.2 * (voice + 0.3 * draws(2).standard_normal(len(time))) * np.abs(np.sin(2 * np.pi * 2 * time))
    said[len(time) // 2 :] = 0
    return said.astype(np.float32)


TEXT = "how many of the small objects are to the left of the green circle"


def error(name: str, severity: float) -> float:
    """How far off the corrupted value is, on average over draws."""
    corruption = CORRUPTIONS[name]
    errors = []
    for seed in range(8):
        if corruption.sensor == "text":
            changed = corruption(TEXT, severity, draws(seed))
            pairs = set(pairwise(TEXT))
            kept = set(pairwise(changed))
            errors.append(len(pairs - kept) / len(pairs))
        elif corruption.sensor == "image":
            errors.append(np.abs(corruption(picture(), severity, draws(seed)).astype(float) - picture()).mean())
        elif name == "cut":  # how much of it is gone
            swell = sound() * np.hanning(RATE_HZ).astype(np.float32)
            lost = [np.count_nonzero(x) for x in (swell, corruption(swell, severity, draws(seed)))]
            errors.append(1 - lost[1] / lost[0])
        elif name == "slow":  # how much later it all is said
            moments = [
                np.average(np.arange(RATE_HZ), weights=np.square(x))
                for x in (sound(), corruption(sound(), severity, draws(seed)))
            ]
            errors.append(moments[1] / moments[0] - 1)
        else:  # what no change of loudness explains
            one, other = sound().astype(float), corruption(sound(), severity, draws(seed)).astype(float)
            errors.append(1 - (one @ other) ** 2 / (one @ one) / (other @ other))
    return float(np.mean(errors))


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(max_examples=25)
@given(data=st.data(), severity=SEVERITY)
def test_type_shape_and_range_are_kept_and_the_value_itself_is_not_touched(
    name: str, data: st.DataObject, severity: float
) -> None:
    corruption = CORRUPTIONS[name]
    value = data.draw(VALUES[corruption.sensor])
    before = value if isinstance(value, str) else value.copy()
    changed = corruption(value, severity, draws())
    if isinstance(value, str):
        assert isinstance(changed, str)
        assert changed.strip()
        return
    assert (changed.dtype, changed.shape) == (value.dtype, value.shape)
    assert np.array_equal(value, before)
    assert value.dtype == np.uint8 or (np.isfinite(changed).all() and np.abs(changed).max() <= 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(max_examples=25)
@given(data=st.data(), severity=SEVERITY, seed=st.integers(0, 9))
def test_the_same_generator_state_spoils_alike_and_severity_0_not_at_all(
    name: str, data: st.DataObject, severity: float, seed: int
) -> None:
    corruption = CORRUPTIONS[name]
    value = data.draw(VALUES[corruption.sensor])
    first, second = (corruption(value, severity, draws(seed)) for _ in range(2))
    assert np.array_equal(first, second)
    assert corruption(value, 0, draws(seed)) is value


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_harder_is_worse(name: str) -> None:
    errors = [error(name, severity) for severity in SEVERITIES]
    assert errors[0] > 0
    assert all(low < high for low, high in pairwise(errors)), errors
    assert errors[1] <= error(name, 2.5) <= errors[2]


def test_every_sensor_has_corruptions_and_every_corruption_five_levels() -> None:
    assert {corruption.sensor for corruption in CORRUPTIONS.values()} == {"image", "audio", "text"} <= set(MODALITIES)
    for corruption in CORRUPTIONS.values():
        steps = np.diff(corruption.levels)
        assert len(steps) == 4
        assert (steps > 0).all() or (steps < 0).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixel_noise_has_the_stated_deviation(severity: int) -> None:
    grey = np.full((100, 100, 3), 128, np.uint8)
    level = CORRUPTIONS["noise"].levels[severity - 1] * 255
    noise = CORRUPTIONS["noise"](grey, severity, draws()).astype(float) - 128
    expected = draws(5).normal(0, level, 200_000).clip(-128, 127).std()  # what the range leaves of it
    assert noise.std() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_blur_is_scipys_gaussian(severity: int) -> None:
    sigma = CORRUPTIONS["blur"].levels[severity - 1] * 48
    expected = scipy.ndimage.gaussian_filter(picture().astype(float), (sigma, sigma, 0), mode="mirror", radius=None)
    blurred = CORRUPTIONS["blur"](picture(), severity, draws()).astype(float)
    assert np.abs(blurred - expected).mean() < 1.5  # OpenCV cuts its kernel at 3 sigma


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_dark_picture_keeps_the_stated_light(severity: int) -> None:
    dark = CORRUPTIONS["dark"](picture(), severity, draws())
    np.testing.assert_allclose(dark, picture() * CORRUPTIONS["dark"].levels[severity - 1], atol=0.5001)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_one_rectangle_of_one_colour_covers_the_stated_share(severity: int) -> None:
    share = CORRUPTIONS["occlusion"].levels[severity - 1]
    blank = np.full((200, 160, 3), 7, np.uint8)
    for seed in range(20):
        covered = (CORRUPTIONS["occlusion"](blank, severity, draws(seed)) != 7).any(axis=2)
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert covered.mean() == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("name", ["hiss", "babble"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_lies_the_stated_ratio_under_the_part_that_sounds(name: str, severity: int) -> None:
    clean, wanted_db = sound(2.0).astype(float), CORRUPTIONS[name].levels[severity - 1]
    found = CORRUPTIONS[name](sound(2.0), severity, draws()).astype(float)
    pause = slice(len(clean) // 2, None)  # where nothing was said there is noise alone
    scale = (
        np.linalg.lstsq(np.stack([clean]).T, found, rcond=None)[0][0]
        if name == "hiss"
        else 1 / max(1.0, np.abs(found).max())
    )
    noise = found[pause] / scale
    frames = (clean[: len(clean) // 2].reshape(-1, 320) ** 2).mean(axis=1)
    loud = frames[frames > frames.max() / 1000].mean()
    tolerance_db = 1.0 if name == "hiss" else 4.0  # a crowd of one sentence is not equally loud all the time
    assert 10 * np.log10(loud / np.square(noise).mean()) == pytest.approx(wanted_db, abs=tolerance_db)


def test_hiss_is_between_white_and_pink() -> None:
    slopes_db = []
    loud = np.full(RATE_HZ * 4, 0.05, np.float32)
    for seed in range(30):
        noise = CORRUPTIONS["hiss"](loud, 3, draws(seed)).astype(float) - 0.05
        frequency_hz, power = scipy.signal.welch(noise, RATE_HZ, nperseg=2048)
        kept = (frequency_hz > 50) & (frequency_hz < 7900)
        slopes_db.append(np.polyfit(np.log10(frequency_hz[kept]), 10 * np.log10(power[kept]), 1)[0])
    assert -11 < min(slopes_db) < -7  # dB per decade; pink is -10
    assert -3 < max(slopes_db) < 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_limited_band_keeps_what_is_below_its_edge_and_nothing_above(severity: int) -> None:
    cut_hz = CORRUPTIONS["band_limit"].levels[severity - 1]
    noise = (0.1 * draws(3).standard_normal(RATE_HZ)).astype(np.float32)
    frequency_hz, before = scipy.signal.welch(noise, RATE_HZ, nperseg=1024)
    _, after = scipy.signal.welch(CORRUPTIONS["band_limit"](noise, severity, draws()), RATE_HZ, nperseg=1024)
    kept = (frequency_hz > 0) & (frequency_hz < cut_hz - EDGE_HZ)
    np.testing.assert_allclose(after[kept], before[kept], rtol=0.02)
    assert after[frequency_hz > cut_hz + EDGE_HZ].max() < 1e-4 * before.mean()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_slow_speech_takes_the_stated_time_at_the_same_pitch_and_loudness(severity: int) -> None:
    times = CORRUPTIONS["slow"].levels[severity - 1]
    said = np.zeros(RATE_HZ * 2, np.float32)
    said[:RATE_HZ] = 0.5 * scipy.signal.sawtooth(2 * np.pi * 137 * np.arange(RATE_HZ) / RATE_HZ)
    slow = CORRUPTIONS["slow"](said, severity, draws())
    ends = np.flatnonzero(np.abs(slow) > 0.01)[-1] / RATE_HZ
    assert ends == pytest.approx(times, abs=0.03)  # a grain
    frequency_hz, power = scipy.signal.periodogram(slow[: round(0.95 * times * RATE_HZ)], RATE_HZ)
    assert frequency_hz[power.argmax()] == pytest.approx(137, abs=1)
    assert slow[:RATE_HZ].std() == pytest.approx(said[:RATE_HZ].std(), rel=0.02)
    assert (
        power[np.abs(frequency_hz / 137 - np.rint(frequency_hz / 137)) < 0.02].sum() > 0.9 * power.sum()
    )  # a period is no whole number of samples


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_cut_takes_what_is_below_the_stated_loudness_off_both_ends_and_leaves_pauses(severity: int) -> None:
    below_db = CORRUPTIONS["cut"].levels[severity - 1]
    frames_db = np.array([-below_db - 1, -below_db - 3, -below_db + 1, -90, 0, -90, -below_db - 1])
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ // 50) / RATE_HZ)
    said = (0.5 * np.outer(10 ** (frames_db / 20), tone)).ravel().astype(np.float32)
    frame = len(tone)
    cut = CORRUPTIONS["cut"](said, severity, draws())
    assert np.array_equal(cut[: 3 * frame], said[2 * frame : 5 * frame])
    assert not cut[3 * frame :].any()


def test_slow_speech_never_outgrows_its_sound() -> None:
    voice = sound(1.0)[: RATE_HZ // 2]
    said = np.concatenate([voice, np.zeros(RATE_HZ // 10, np.float32)])  # room for 1.2 times
    slow = CORRUPTIONS["slow"](said, 5, draws())
    assert CORRUPTIONS["slow"](voice, 5, draws()) == pytest.approx(voice, abs=0.02)
    loud = [np.average(np.arange(len(x)), weights=np.square(x)) for x in (said, slow)]
    assert loud[1] / loud[0] == pytest.approx(1.2, rel=0.03)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_an_impulse_answers_with_a_tail_that_decays_in_the_stated_time(severity: int) -> None:
    impulse = np.zeros(RATE_HZ * 3, np.float32)
    impulse[0] = 0.1
    response = CORRUPTIONS["reverberation"](impulse, severity, draws()).astype(float)
    energy = np.cumsum(np.square(response[1:])[::-1])[::-1]  # Schroeder 1965: backward integration
    decay_db = 10 * np.log10(energy / energy[0])
    first, last = np.argmax(decay_db < -5), np.argmax(decay_db < -35)
    found_s = (last - first) / RATE_HZ * 2  # 30 dB, of 60
    assert found_s == pytest.approx(CORRUPTIONS["reverberation"].levels[severity - 1], rel=0.15)
    assert response[0] == pytest.approx(0.1, rel=1e-4)
    direct_to_tail = 0.01 / np.square(response[1:]).sum()
    assert direct_to_tail == pytest.approx(0.6 / CORRUPTIONS["reverberation"].levels[severity - 1], rel=0.2)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_clipped_sine_is_flat_at_its_old_peak(severity: int) -> None:
    sine = (0.5 * np.sin(2 * np.pi * 100 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
    clipped = CORRUPTIONS["clipping"](sine, severity, draws())
    assert np.abs(clipped).max() == pytest.approx(0.5, abs=1e-4)
    gain = 10 ** (CORRUPTIONS["clipping"].levels[severity - 1] / 20)
    assert (np.abs(clipped) > 0.4999).mean() == pytest.approx(1 - 2 / np.pi * np.arcsin(1 / gain), abs=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_typos_hit_the_stated_share_of_the_letters_only(severity: int) -> None:
    letters, digits = "a" * 40_000, "0123 4567 !?" * 300
    changed = CORRUPTIONS["typos"](letters, severity, draws())
    share = CORRUPTIONS["typos"].levels[severity - 1]
    beside = sum(letter == "s" for letter in changed)  # the only key beside a
    assert beside / 40_000 == pytest.approx(share / 4, rel=0.15)
    assert abs(len(changed) - 40_000) < 40_000 * share * 0.05  # as many left out as doubled
    assert CORRUPTIONS["typos"](digits, severity, draws()) == digits


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_truncated_text_is_its_beginning(severity: int) -> None:
    cut = CORRUPTIONS["truncation"](TEXT, severity, draws())
    assert TEXT.startswith(cut)
    assert len(cut) == round(len(TEXT) * (1 - CORRUPTIONS["truncation"].levels[severity - 1]))
    assert CORRUPTIONS["truncation"]("a", severity, draws()) == "a"


def test_silence_stays_silent() -> None:
    silence = np.zeros(1000, np.float32)
    for corruption in CORRUPTIONS.values():
        if corruption.sensor == "audio":
            assert not corruption(silence, 5, draws()).any()
