"""Facts of files: measured values against closed forms, and a problem instead of an error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from edgefuse.train import media_facts
from edgefuse.train.media_facts import SILENCE_DB, read_facts


def test_a_sine_has_the_level_of_a_sine(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 100 * np.arange(8_000) / 8_000), 8_000, subtype="FLOAT")
    [facts] = read_facts([("audio", str(path))]).values()
    assert facts.level_db == pytest.approx(20 * np.log10(0.1 / np.sqrt(2)), abs=0.01)
    assert (facts.seconds, facts.rate, facts.clipped, facts.problem) == (1.0, 8_000, 0.0, None)


def test_flat_tops_are_counted_and_zeros_are_silence(tmp_path: Path) -> None:
    square = np.repeat([1.0, -1.0], 100)  # 98 samples of each half begin three equal ones
    soundfile.write(tmp_path / "square.wav", square, 8_000, subtype="PCM_16")
    soundfile.write(tmp_path / "zero.wav", np.zeros(100), 8_000, subtype="PCM_16")
    square_facts, zero_facts = read_facts([("audio", str(tmp_path / f"{n}.wav")) for n in ("square", "zero")]).values()
    assert square_facts.clipped == pytest.approx(196 / 200)
    assert zero_facts.level_db == SILENCE_DB


def test_contrast_is_the_largest_standard_deviation_of_a_channel(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 3:, 2] = 200  # half of the blue channel
    cv2.imwrite(str(tmp_path / "half.png"), pixels[:, :, ::-1])
    [facts] = read_facts([("image", str(tmp_path / "half.png"))]).values()
    assert (facts.height, facts.width, facts.contrast) == (4, 6, 100.0)


def test_files_of_other_sensors_are_known_by_their_bytes_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"speed\n1\n")
    [facts] = read_facts([("signal", str(tmp_path / "a.csv"))]).values()
    assert facts.digest == hashlib.blake2b(b"speed\n1\n", digest_size=16).digest()
    assert facts.problem is None


def test_more_files_than_may_wait_are_read_each_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_facts, "AHEAD", 3)
    files = [("signal", str(tmp_path / f"{number}.csv")) for number in range(8)]
    for _, path in files[:-1]:
        Path(path).write_text(path)
    facts = read_facts(files)
    assert list(facts) == files
    assert len({each.digest for each in facts.values()}) == 8
    assert [bool(each.problem) for each in facts.values()] == [False] * 7 + [True]
