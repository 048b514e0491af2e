"""What spoils a picture, a sound or a text, at five severities: for training, and to measure what a bundle survives.

Every corruption takes what a model takes (uint8 RGB [H, W, 3], float32 PCM [T] at 16 kHz, a text), gives the same type
and shape back, and draws from the generator it is handed only, as much at every severity: one generator state and two
severities give the same noise, weaker and stronger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgefuse.runtime.media import Pcm, Pixels

SEVERITIES = (1, 2, 3, 4, 5)
RATE_HZ = 16_000  # of every sound
FRAME = RATE_HZ // 50  # samples of 20 ms, over which loudness is taken
QUIET = 1e-3  # frames that much below the loudest are pauses (-30 dB) and count for no signal-to-noise ratio
TALKERS, SPEEDS = 6, (0.8, 1.25)  # of a crowd
EQUAL_RT60_S = 0.6  # where the reverberation is as strong as the direct sound
GRAIN, REACH = RATE_HZ * 30 // 1000, RATE_HZ * 8 // 1000  # samples of slow speech: two periods of a voice, and one
EDGE_HZ = 200  # width of a filter's slope
KEYBOARD = "qwertyuiop asdfghjkl zxcvbnm"  # who stands beside whom


@dataclass(frozen=True)
class Corruption:
    """A row of the table below."""

    sensor: str  # the modality that it spoils
    unit: str  # of the levels
    levels: tuple[float, float, float, float, float]  # at the severities 1 to 5
    apply: Callable[[Any, float, Generator], Any]  # value, level, generator -> spoiled value

    def __call__(self, value: Any, severity: float, rng: Generator) -> Any:
        """`value` spoiled at a severity from 1 to 5, levels between two of them included; 0 leaves it alone."""
        return self.apply(value, float(np.interp(severity, SEVERITIES, self.levels)), rng) if severity else value


def _noise(pixels: Pixels, deviation: float, rng: Generator) -> Pixels:
    return _to_pixels(pixels + 255 * deviation * rng.standard_normal(pixels.shape, np.float32))


def _blur(pixels: Pixels, share: float, rng: Generator) -> Pixels:
    sigma = share * min(pixels.shape[:2])
    return np.asarray(cv2.GaussianBlur(np.ascontiguousarray(pixels), (0, 0), sigma), np.uint8)


def _dark(pixels: Pixels, light: float, rng: Generator) -> Pixels:
    return _to_pixels(pixels * np.float32(light))  # rounding takes the details that little light leaves


def _occlusion(pixels: Pixels, share: float, rng: Generator) -> Pixels:
    """One rectangle of one colour, at most twice as long as wide."""
    aspect, places, colour = 2 ** rng.uniform(-0.5, 0.5), rng.random(2), rng.integers(0, 256, 3)
    height, width = (round(n * share**0.5 * x) for n, x in zip(pixels.shape, (aspect, 1 / aspect), strict=False))
    top, left = (int(u * (n - side)) for u, n, side in zip(places, pixels.shape, (height, width), strict=False))
    covered: Pixels = pixels.copy()
    covered[top : top + height, left : left + width] = colour
    return covered


def _to_pixels(values: Any) -> Pixels:
    return np.asarray(np.rint(np.clip(values, 0, 255)), np.uint8)


def _slow(pcm: Pcm, times: float, rng: Generator) -> Pcm:
    """Said so many times as slowly at the same pitch (WSOLA, Verhelst 1993), at most until it fills the sound.

    Half of each grain lies over the one before, which it goes on from: it is taken where it looks most as that does.
    """
    heard = int(np.flatnonzero(pcm)[-1]) + 1 if pcm.any() else 0
    times = min(times, len(pcm) / max(heard, 1))
    hop, window = GRAIN // 2, np.hanning(GRAIN + 1)[:-1]  # windows a half apart add up to 1
    padded = np.pad(pcm, (REACH, REACH + 2 * GRAIN))  # where sample n stands at REACH + n
    slow = np.zeros(len(pcm) + 2 * GRAIN)
    at = 0
    for start in range(0, min(int(times * heard), len(pcm)), hop):
        wanted = int(start / times)
        follows = padded[REACH + at : REACH + at + GRAIN]
        near = padded[wanted : wanted + 2 * REACH + GRAIN]
        summed = np.cumsum(np.square(near), dtype=np.float64)
        energy = summed[GRAIN - 1 :] - np.append(0, summed[:-GRAIN])  # without it the loudest place would win
        alike = np.correlate(near, follows) / np.sqrt(energy + QUIET**2)
        at = wanted - REACH + int(alike.argmax()) if start else wanted
        slow[start : start + GRAIN] += window * padded[REACH + at : REACH + at + GRAIN]
        at += hop
    first = pcm[:hop]  # which lies over nothing
    slow[: len(first)] += first * (1 - window[: len(first)])
    return _to_pcm(slow[: len(pcm)])


def _reverberation(pcm: Pcm, rt60_s: float, rng: Generator) -> Pcm:
    """The direct sound and noise that decays by 60 dB in `rt60_s` (Polack 1988), its energy proportional to that."""
    time_s = np.arange(len(pcm)) / RATE_HZ
    tail = rng.standard_normal(len(pcm)) * 10 ** (-3 * time_s / rt60_s)
    response = tail * np.sqrt(rt60_s / EQUAL_RT60_S / max(np.square(tail).sum(), 1e-12))
    response[0] = 1.0
    size = 2 * len(pcm)  # so that the end does not wrap round to the beginning
    wet = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(response, size), size)
    return _to_pcm(wet[: len(pcm)])


def _babble(pcm: Pcm, snr_db: float, rng: Generator) -> Pcm:
    """A crowd that has the sound's own voice: several copies of it, backwards, shifted, slower or faster."""
    loud = np.flatnonzero(np.abs(pcm) > 0.01 * np.abs(pcm).max())
    backwards = pcm[loud[0] : loud[-1] + 1][::-1] if len(loud) else pcm
    starts, speeds = rng.random(TALKERS) * len(backwards), rng.uniform(*SPEEDS, TALKERS)
    places = (starts[:, None] + speeds[:, None] * np.arange(len(pcm))) % len(backwards)  # [TALKERS, T]
    return _mixed(pcm, np.interp(places, np.arange(len(backwards)), backwards).sum(axis=0), snr_db)


def _hiss(pcm: Pcm, snr_db: float, rng: Generator) -> Pcm:
    """Noise between white and pink: its power falls as 1 / frequency ** colour."""
    colour, white = rng.random(), rng.standard_normal(len(pcm))
    falling = np.maximum(np.arange(len(pcm) // 2 + 1), 1) ** (-colour / 2)  # [T / 2 + 1]
    return _mixed(pcm, np.fft.irfft(np.fft.rfft(white) * falling, len(pcm)), snr_db)


def _band_limit(pcm: Pcm, cut_hz: float, rng: Generator) -> Pcm:
    """Nothing above `cut_hz`, as from a telephone or a synthesizer whose rate is twice that."""
    frequency_hz = np.fft.rfftfreq(len(pcm), 1 / RATE_HZ)
    gain = np.clip(0.5 + (cut_hz - frequency_hz) / EDGE_HZ, 0, 1)
    return _to_pcm(np.fft.irfft(np.fft.rfft(pcm) * gain, len(pcm)))


def _clipping(pcm: Pcm, gain_db: float, rng: Generator) -> Pcm:
    """Driven so far over its own peak."""
    peak = np.abs(pcm).max()
    return _to_pcm(np.clip(pcm * 10 ** (gain_db / 20), -peak, peak))


def _cut(pcm: Pcm, below_db: float, rng: Generator) -> Pcm:
    """What a hasty voice detector hears: from the first to the last frame that is not so far below the loudest."""
    power = _powers(pcm)  # [frames]
    loud = np.flatnonzero(power >= power.max() / 10 ** (below_db / 10))
    heard = pcm[loud[0] * FRAME : (loud[-1] + 1) * FRAME]
    return np.pad(heard, (0, len(pcm) - len(heard)))


def _mixed(pcm: Pcm, noise: Any, snr_db: float) -> Pcm:
    """`noise` under a sound, so far below what it is where it is not paused; the pauses are filled too."""
    power = _powers(pcm)  # [frames]
    loud = power[power >= QUIET * power.max()].mean()
    return _to_pcm(pcm + noise * np.sqrt(loud / 10 ** (snr_db / 10) / max(np.square(noise).mean(), 1e-12)))


def _powers(pcm: Pcm) -> NDArray[np.float64]:
    """Of each FRAME of the sound, the last one filled up with silence."""
    frames = np.pad(pcm, (0, -len(pcm) % FRAME)).reshape(-1, FRAME)
    powers: NDArray[np.float64] = np.square(frames, dtype=np.float64).mean(axis=1)
    return powers


def _to_pcm(values: Any) -> Pcm:
    """As a recorder sets its gain: what would clip is turned down."""
    return np.asarray(values / max(1.0, np.abs(values).max()), np.float32)


def _typos(text: str, share: float, rng: Generator) -> str:
    """Letters left out, doubled, hit beside, or swapped with the one before."""
    hit, kind, side = rng.random(len(text)), rng.integers(4, size=len(text)), rng.choice((-1, 1), len(text))
    typed: list[str] = []
    for place, letter in enumerate(text):
        if hit[place] >= share or not letter.isalpha():
            typed.append(letter)
        elif kind[place] == 1:
            typed += [letter, letter]
        elif kind[place] == 2:
            typed.append(_beside(letter, side[place]))
        elif kind[place] == 3:
            typed.insert(max(len(typed) - 1, 0), letter)
    return "".join(typed) if "".join(typed).strip() else text


def _beside(letter: str, side: int) -> str:
    """The key to the left (-1) or right (1), or the other one at the end of a row; an unknown letter itself."""
    place = KEYBOARD.find(letter.lower())
    near = f"{KEYBOARD} "[place + side], f"{KEYBOARD} "[place - side]  # " " stands at both ends of a row
    return next((key for key in near if place >= 0 and key != " "), letter)


def _truncation(text: str, share: float, rng: Generator) -> str:
    words = text.strip()
    return words[: max(1, round(len(words) * (1 - share)))]


# In the order in which they happen on the way to the model.
CORRUPTIONS = {
    "dark": Corruption("image", "share of the light", (0.5, 0.25, 0.12, 0.06, 0.03), _dark),
    "occlusion": Corruption("image", "share of the area", (0.05, 0.1, 0.2, 0.35, 0.5), _occlusion),
    "blur": Corruption("image", "sigma as a share of the shorter side", (0.01, 0.02, 0.03, 0.05, 0.08), _blur),
    "noise": Corruption("image", "standard deviation as a share of 255", (0.08, 0.16, 0.25, 0.35, 0.5), _noise),
    "slow": Corruption("audio", "times as slow", (1.1, 1.25, 1.4, 1.6, 1.8), _slow),
    "reverberation": Corruption("audio", "s to decay by 60 dB", (0.15, 0.3, 0.6, 1.0, 1.6), _reverberation),
    "babble": Corruption("audio", "dB of sound over noise", (20, 15, 10, 5, 0), _babble),
    "hiss": Corruption("audio", "dB of sound over noise", (30, 20, 10, 5, 0), _hiss),
    "band_limit": Corruption("audio", "Hz kept", (6000, 5000, 4000, 3000, 2000), _band_limit),
    "clipping": Corruption("audio", "dB over the peak", (6, 12, 18, 24, 30), _clipping),
    "cut": Corruption("audio", "dB below the loudest that is cut off the ends", (30, 24, 18, 12, 6), _cut),
    "typos": Corruption("text", "share of the letters", (0.03, 0.06, 0.1, 0.16, 0.25), _typos),
    "truncation": Corruption("text", "share cut off", (0.1, 0.2, 0.35, 0.5, 0.7), _truncation),
}
