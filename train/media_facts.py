"""What there is to know of picture and sound files before training: decoded once each, side by side, none kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from rich.console import Console
from rich.progress import track

from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.media import decode_audio, decode_image, read_media

AHEAD = 1_000  # files that may wait for a thread
FULL_SCALE = 0.999  # a sample above it may have been cut off
SILENCE_DB = -120.0  # level that is given to a sound of zeros


@dataclass(frozen=True, slots=True)
class Facts:
    """What one file is; the values that its kind does not have are 0."""

    digest: bytes  # the same for the same bytes
    problem: str | None = None  # why it cannot be read
    width: int = 0  # pixels
    height: int = 0
    contrast: float = 0.0  # standard deviation of the pixels in steps of 255; the largest of the channels
    seconds: float = 0.0
    rate: int = 0  # Hz
    level_db: float = 0.0  # root mean square below full scale
    clipped: float = 0.0  # share of samples that begin three equal ones at full scale: a peak has no flat top


def read_facts(files: Collection[tuple[str, str]]) -> dict[tuple[str, str], Facts]:
    """The facts of every (sensor, path); what cannot be read has a problem and raises nothing."""
    facts: dict[tuple[str, str], Facts] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders and hashes let other threads run
        waiting = iter(files)
        progress = track(range(0, len(files), AHEAD), "reading files", console=Console(stderr=True))
        for _ in progress:
            some = list(islice(waiting, AHEAD))
            facts.update(zip(some, _in_order(pool, some), strict=True))
    return facts


def _in_order(pool: ThreadPoolExecutor, files: Collection[tuple[str, str]]) -> Iterator[Facts]:
    return pool.map(lambda file: _facts(*file), files)


def _facts(sensor: str, path: str) -> Facts:
    digest = b""
    try:
        data = read_media(path)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return READERS[sensor](data, path, digest) if sensor in READERS else Facts(digest)
    except MediaError as error:
        return Facts(digest, problem=str(error))


def _picture(data: bytes, path: str, digest: bytes) -> Facts:
    pixels = decode_image(data, path)
    contrast = max(float(np.std(pixels[:, :, channel])) for channel in range(3))
    return Facts(digest, width=pixels.shape[1], height=pixels.shape[0], contrast=contrast)


def _sound(data: bytes, path: str, digest: bytes) -> Facts:
    pcm, rate = decode_audio(data, path)  # [T]
    power = float(np.dot(pcm, pcm)) / len(pcm)
    level_db = max(SILENCE_DB, 10 * float(np.log10(power))) if power > 0 else SILENCE_DB
    flat = (pcm[:-2] == pcm[1:-1]) & (pcm[1:-1] == pcm[2:]) & (np.abs(pcm[:-2]) >= FULL_SCALE)  # [T - 2]
    clipped = float(np.count_nonzero(flat)) / len(pcm)
    return Facts(digest, seconds=len(pcm) / rate, rate=rate, level_db=level_db, clipped=clipped)


READERS = {"image": _picture, "audio": _sound}  # of other sensors only equal files are known
