"""Manifests of the Free Spoken Digit Dataset (CC BY-SA 4.0) that each leave one speaker out; the sounds stay put."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.files import write_atomic
from edgefuse.train.digits import WORDS
from edgefuse.train.spoken import sound_name, speak_all

NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")  # digit, speaker, number of the recording
TRAIN_VOICES = 150  # synthesized, beside the people
VAL_EVERY = 10  # one recording in 10 of the training speakers is held out for validation


def fsdd(recordings: Path, out: Path, voices: int = TRAIN_VOICES, pico: int = 0) -> dict[str, Any]:
    """Write `out`/without_<speaker>.jsonl for every speaker of the folder: tested on that one, trained on the others.

    A handful of people do not say what voices have in common, so training also hears synthesized ones; the validation
    and the test are human.

    Args:
        recordings: the folder of <digit>_<speaker>_<number>.wav.
        out: the folder of the manifests, and of sounds/ with the synthesized digits.
        voices: how many eSpeak NG voices speak the digits; those of flite do too, where it is installed.
        pico: how many voices of SVOX Pico do.

    Returns:
        The manifests' paths, and how many lines each has and how many speakers there are.

    Raises:
        ManifestError: fewer than two speakers in the folder.
        MissingExtraError: there are to be voices, and espeakng-loader is not installed, or ttspico for Pico's.
    """
    found = [(path, match) for path in sorted(recordings.glob("*.wav")) if (match := NAME.fullmatch(path.name))]
    speakers = sorted({match[2] for _, match in found})
    if len(speakers) < 2:
        raise ManifestError(
            f"{recordings}: found recordings of {len(speakers)} speakers, named like 7_jackson_32.wav; "
            "at least 2 are needed: give the folder `recordings` of the dataset"
        )
    synthesized = _synthesized(out, voices, pico) if voices or pico else []
    manifests = [out / f"without_{speaker}.jsonl" for speaker in speakers]
    for manifest, left_out in zip(manifests, speakers, strict=True):
        lines = [
            json.dumps(
                {
                    "audio": os.path.relpath(path, out),
                    "label": WORDS[int(match[1])],
                    "split": _split(match[2] == left_out, int(match[3])),
                }
            )
            for path, match in found
        ] + synthesized
        write_atomic(manifest, ("\n".join(lines) + "\n").encode())
    return {
        "manifests": [str(path) for path in manifests],
        "lines": len(found) + len(synthesized),
        "speakers": len(speakers),
    }


def _synthesized(out: Path, voices: int, pico: int) -> list[str]:
    """Training lines of the digits in every synthesized voice."""
    spoken = speak_all(out, WORDS, voices, pico)
    return [
        json.dumps({"audio": sound_name(pool, voice, digit), "label": word, "split": "train"})
        for pool, count in spoken.voices.items()
        for voice in range(count)
        for digit, word in enumerate(WORDS)
    ]


def _split(left_out: bool, number: int) -> str:
    if left_out:
        return "test"
    return "train" if number % VAL_EVERY else "val"
