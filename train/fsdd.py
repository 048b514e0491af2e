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

NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")  # digit, speaker, number of the recording
VAL_EVERY = 10  # one recording in 10 of the training speakers is held out for validation


def fsdd(recordings: Path, out: Path) -> dict[str, Any]:
    """Write `out`/without_<speaker>.jsonl for every speaker of the folder: tested on that one, trained on the others.

    Args:
        recordings: the folder of <digit>_<speaker>_<number>.wav.
        out: the folder of the manifests.

    Returns:
        The manifests' paths, and how many lines each has and how many speakers there are.

    Raises:
        ManifestError: fewer than two speakers in the folder.
    """
    found = [(path, match) for path in sorted(recordings.glob("*.wav")) if (match := NAME.fullmatch(path.name))]
    speakers = sorted({match[2] for _, match in found})
    if len(speakers) < 2:
        raise ManifestError(
            f"{recordings}: found recordings of {len(speakers)} speakers, named like 7_jackson_32.wav; "
            "at least 2 are needed: give the folder `recordings` of the dataset"
        )
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
        ]
        write_atomic(manifest, ("\n".join(lines) + "\n").encode())
    return {"manifests": [str(path) for path in manifests], "lines": len(found), "speakers": len(speakers)}


def _split(left_out: bool, number: int) -> str:
    if left_out:
        return "test"
    return "train" if number % VAL_EVERY else "val"
