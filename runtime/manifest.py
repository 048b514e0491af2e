"""The manifest: JSON lines that name what sensors gave and a label; any sensor may be absent in any line.

{"image": "a.jpg", "audio": "a.wav", "text": "...", "label": "yes", "split": "train", "answer_type": "yes/no"}
{"signal": "a.csv", "label": "brake"}

Paths are relative to the manifest. `split` is "train" unless said; `answer_type` is a free name that results are
grouped by. Where the files lie in tar shards, their index.json takes the manifest's place.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefuse.runtime.bundle import MODALITIES, MODALITY_TABLE
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.shards import index_lines, is_index, member

SPLITS = ("train", "val", "test")
_FILES = tuple(modality for modality, row in MODALITY_TABLE.items() if row.suffix is not None)
_KEYS = (*MODALITIES, "label", "split", "answer_type")


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a manifest."""

    where: str  # "manifest.jsonl:17", the start of every message about this line
    image: str | None  # path of the picture
    audio: str | None  # path of the sound
    text: str | None
    label: str | None  # absent in data that is to be labelled
    split: str
    answer_type: str | None
    signal: str | None = None  # path of a table of numbers

    @property
    def sensors(self) -> tuple[str, ...]:
        """The modalities that this line has."""
        return tuple(sensor for sensor in MODALITIES if getattr(self, sensor) is not None)


def read_manifest(
    path: str | Path,
    *,
    split: str | None = None,
    labels: Collection[str] | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Read and check the lines of `split` (all where None), at most `limit` of them, evenly spread.

    Args:
        path: the .jsonl file, or the index.json of shards, on disk or as a URL.
        split: one of SPLITS.
        labels: labels that are allowed; where given, every line needs one of them.
        limit: take this many lines at most, at even distances, so that a sorted manifest stays representative.

    Raises:
        ManifestError: the file or a line cannot be used; the message starts with file:line.
    """
    path = Path(path)
    known_files: dict[str, str | None] = {}
    examples = [
        _parse_line(f"{path}:{number}", line, path.parent, labels, known_files)
        for number, line in enumerate(read_lines(path), start=1)
        if line.strip()
    ]
    chosen = [example for example in examples if split is None or example.split == split]
    if not chosen:
        found = ", ".join(sorted({example.split for example in examples})) or "none, the file has no lines"
        raise ManifestError(f"{path}: no line with split {split or 'any'!r}; splits found: {found}")
    if limit is not None and limit < len(chosen):
        chosen = [chosen[index * len(chosen) // limit] for index in range(limit)]
    return chosen


def check_lines(path: Path) -> Iterator[Example | ManifestError]:
    """Every line as an example, or as what is wrong with it, for whoever wants to hear of all mistakes at once.

    Raises:
        ManifestError: the file cannot be read.
    """
    known_files: dict[str, str | None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                yield _parse_line(f"{path}:{number}", line, path.parent, None, known_files)
            except ManifestError as error:
                yield error


def read_lines(path: Path) -> list[str]:
    """The lines of a .jsonl file, or of an index of shards; the last is empty where the file ends with a line break.

    Raises:
        ManifestError: it cannot be read, or is not UTF-8.
    """
    if is_index(path):
        return index_lines(path)
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also cut at a U+2028 in a text
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); give the path of a .jsonl file") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def parse_object(where: str, line: str, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a line, which has some of `keys` and no others.

    Raises:
        ManifestError: it is something else.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: not a JSON object ({error}); write one object per line") from None
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: found {type(row).__name__}, a line must be a JSON object with {', '.join(keys)}")
    for key in row:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(keys)}"
            raise ManifestError(f"{where}: unknown key {key!r}; {hint}")
    return row


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """The labels of `examples` in the order of the model's outputs (sorted: the order is defined here only)."""
    return tuple(sorted({example.label for example in examples if example.label is not None}))


def fingerprint(examples: Sequence[Example]) -> str:
    """A short hash of what the lines say, for a bundle's lineage."""
    digest = hashlib.sha256()
    for example in examples:
        row = (_file_name(example.image), _file_name(example.audio))
        later = [_file_name(example.signal)] if example.signal else []  # a line without one keeps its old hash
        digest.update(json.dumps([*row, example.text, example.label, example.split, *later]).encode())
    return digest.hexdigest()[:16]


def _file_name(path: str | None) -> str | None:
    """Not by Path, which would take seconds for a million lines."""
    return path and path.rpartition("/")[2]


def _parse_line(
    where: str, line: str, root: Path, labels: Collection[str] | None, known_files: dict[str, str | None]
) -> Example:
    row = parse_object(where, line, _KEYS)
    for key, value in row.items():
        if value is not None and not isinstance(value, str):
            raise ManifestError(f"{where}: {key} is {json.dumps(value)}, it must be a string")
        if value is not None and not (value.strip() and is_unicode(value)):
            problem = "not valid Unicode" if value.strip() else "empty"
            raise ManifestError(f"{where}: {key} is {problem}; leave the key out where there is none")
    _check_values(where, row, labels)
    paths = {sensor: existing_file(where, sensor, row.get(sensor), root, known_files) for sensor in _FILES}
    return Example(
        where=where,
        text=row.get("text"),
        label=row.get("label"),
        split=row.get("split") or "train",
        answer_type=row.get("answer_type"),
        **paths,
    )


def _check_values(where: str, row: dict[str, Any], labels: Collection[str] | None) -> None:
    if all(row.get(sensor) is None for sensor in MODALITIES):
        raise ManifestError(f"{where}: no sensor; give at least one of {', '.join(MODALITIES)}")
    split = row.get("split") or "train"
    if split not in SPLITS:
        raise ManifestError(f"{where}: split {split!r} is unknown; allowed: {', '.join(SPLITS)}")
    label = row.get("label")
    if labels is not None and label not in labels:
        found = "no label" if label is None else f"label {label!r}"
        raise ManifestError(f"{where}: {found}; the model knows: {', '.join(sorted(labels))}")


def is_unicode(value: str) -> bool:
    """JSON can say half a surrogate pair, which no tokenizer and no file name takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def existing_file(
    where: str, sensor: str, name: str | None, root: Path, known_files: dict[str, str | None]
) -> str | None:
    """Path of a sensor's file in `root`; `known_files` keeps that of each name, None where there is no such file."""
    if name is None or member(name):  # a shard is opened when it is read
        return name
    if name not in known_files:
        path = root / name
        known_files[name] = str(path) if path.is_file() else None
    if known_files[name] is None:
        raise ManifestError(f"{where}: {sensor} {name!r} does not exist in {root}")
    return known_files[name]
