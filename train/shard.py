"""Pack a manifest's files into tar shards: `python train/shard.py MANIFEST --out FOLDER`, as `edgefuse data shard`.

The shards are WebDataset's: a line is the files 00000017.image.png, 00000017.audio.wav and 00000017.json, complete, so
that any tool for that format can read them one after the other. index.json names the first copy of every file, for
reading in any order.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import SPLITS, Example, read_manifest
from edgefuse.runtime.media import read_media
from edgefuse.runtime.shards import INDEX_FILE, Index, is_index

MEGABYTE = 1_000_000  # bytes
BLOCK = 512  # bytes of a tar's header; content fills whole blocks
SAID = ("text", "label", "split", "answer_type")  # what a line says itself; its other sensors are files


def shard(manifest: str | Path, out: Path, megabytes: int = 256) -> dict[str, Any]:
    """Write the shards of a manifest, those of each split apart, and then their index.

    Args:
        manifest: data as `edgefuse train` takes it.
        out: a new folder.
        megabytes: most that a shard holds, unless one line alone has more.

    Returns:
        {index, shards, lines, files}: how many of each; `files` are the distinct ones.

    Raises:
        OptionError: `out` holds shards, or `manifest` is their index.
        ManifestError, MediaError: the manifest or a file that it names cannot be read.
    """
    if is_index(manifest):
        raise OptionError(f"{manifest} is an index of shards already; give the .jsonl file that they were made of")
    if (out / INDEX_FILE).exists():
        raise OptionError(f"{out} holds shards; choose another --out")
    examples = read_manifest(manifest)
    out.mkdir(parents=True, exist_ok=True)
    packer = _Packer(out, len(examples), megabytes * MEGABYTE)
    try:
        for split in SPLITS:
            for line, example in enumerate(examples):
                if example.split == split:
                    packer.add(line, example)
            packer.end_shard()
    finally:
        packer.drop_shard()
    write_atomic(out / INDEX_FILE, packer.index.model_dump_json().encode())  # last: a folder without it is not done
    counts = {"shards": len(packer.index.shards), "lines": len(examples), "files": len(packer.index.files)}
    return {"index": str(out / INDEX_FILE), **counts}


class _Packer:
    """Writes lines to one shard after the other, and notes where each file lies."""

    def __init__(self, out: Path, lines: int, most_bytes: int) -> None:
        self.index = Index(shards=[], files=[], lines=[{}] * lines)
        self._out, self._most_bytes = out, most_bytes
        self._tar: tarfile.TarFile | None = None
        self._numbers: dict[str, int] = {}  # path: which of the index's files it is

    def add(self, line: int, example: Example) -> None:
        """One line: its files, then what it says."""
        paths = {sensor: getattr(example, sensor) for sensor in example.sensors if sensor not in SAID}
        files = {sensor: read_media(path) for sensor, path in paths.items()}
        said = {key: value for key in SAID if (value := getattr(example, key)) is not None}
        self._make_room(example.split, sum(2 * BLOCK + len(data) for data in (*files.values(), json.dumps(said))))
        for sensor, path in paths.items():
            self._write(f"{line:08d}.{sensor}{Path(path).suffix.lower()}", files[sensor], path)
        self._write(f"{line:08d}.json", json.dumps(said).encode())
        self.index.lines[line] = {**{sensor: self._numbers[path] for sensor, path in paths.items()}, **said}

    def end_shard(self) -> None:
        """Give the shard its name."""
        if self._tar is not None:
            self._tar.close()
            self._file.close()
            self._temporary.replace(self._out / self.index.shards[-1])
        self._tar = None

    def drop_shard(self) -> None:
        """Leave nothing of a shard that did not come to its end."""
        if self._tar is not None:
            self._file.close()
            self._temporary.unlink()

    @property
    def _temporary(self) -> Path:
        return self._out / f".{self.index.shards[-1]}.tmp"

    def _make_room(self, split: str, need_bytes: int) -> None:
        if self._tar is not None and self._tar.offset + need_bytes > self._most_bytes:
            self.end_shard()
        if self._tar is None:
            part = sum(name.startswith(f"{split}-") for name in self.index.shards)
            self.index.shards.append(f"{split}-{part:06d}.tar")
            self._file = self._temporary.open("wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def _write(self, name: str, data: bytes, path: str | None = None) -> None:
        """Append a file; nothing of when and by whom goes in, so that the same data makes the same shards."""
        assert self._tar is not None
        if path is not None and path not in self._numbers:
            self._numbers[path] = len(self.index.files)
            place = (len(self.index.shards) - 1, self._tar.offset + BLOCK, len(data))
            self.index.files.append((*place, hashlib.sha256(data).hexdigest()))
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["data", "shard", *sys.argv[1:]])
