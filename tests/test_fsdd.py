"""The spoken digits' manifests: who is left out is heard in the test only, and every recording has its digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.digits import WORDS
from edgefuse.train.fsdd import fsdd

SPEAKERS = ("ann", "bob", "cid")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """20 short recordings of each digit and speaker, and two files that are none."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for digit in (0, 9):
        for speaker in SPEAKERS:
            for number in range(20):
                soundfile.write(folder / f"{digit}_{speaker}_{number}.wav", np.zeros(80), 8000)
    (folder / "README.md").write_text("about")
    soundfile.write(folder / "noise.wav", np.zeros(80), 8000)
    return folder


def test_each_manifest_tests_one_speaker_and_trains_on_the_others(recordings: Path, tmp_path: Path) -> None:
    said = fsdd(recordings, tmp_path / "out", voices=0)
    assert said["manifests"] == [str(tmp_path / f"out/without_{speaker}.jsonl") for speaker in SPEAKERS]
    assert (said["lines"], said["speakers"]) == (120, 3)
    for manifest, speaker in zip(said["manifests"], SPEAKERS, strict=True):
        heard = {split: read_manifest(manifest, split=split) for split in ("train", "val", "test")}
        assert {split: len(lines) for split, lines in heard.items()} == {"train": 72, "val": 8, "test": 40}
        for split, lines in heard.items():
            for line in lines:
                digit, who, _ = Path(str(line.audio)).stem.split("_")
                assert (who == speaker) == (split == "test")
                assert line.label == WORDS[int(digit)]


def test_synthesized_voices_are_for_training_only(recordings: Path, tmp_path: Path) -> None:
    said = fsdd(recordings, tmp_path / "out", voices=2)
    lines = [line for line in read_manifest(said["manifests"][0]) if "sounds" in Path(str(line.audio)).parts]
    assert {line.split for line in lines} == {"train"}
    assert len(lines) >= 2 * len(WORDS)
    assert said["lines"] == 120 + len(lines)
    for line in lines:
        assert line.label == WORDS[int(Path(str(line.audio)).stem)]


def test_a_folder_without_speakers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="found recordings of 0 speakers, named like 7_jackson_32"):
        fsdd(tmp_path, tmp_path / "out")
