"""Plays recorded readings again: one thread, a clock that stands at the recorded moments, the same answers every time.

A recording is what `record.py` writes, or a hand-written readings.jsonl with any of

{"t_ms": 0, "image": "a.png"}
{"t_ms": 40, "audio": "a.wav", "signal": "a.csv"}
{"t_ms": 50, "text": "what colour is it?"}
{"t_ms": 90, "text": null}                                 withdrawn: missing from here on
{"t_ms": 95, "input_ids": [...], "attention_mask": [...]}  a text as the model gets it

with paths relative to it, and several sensors in one line where they share a moment.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgefuse.runtime.bundle import MODALITIES, SENSOR_TENSORS, BundleInfo
from edgefuse.runtime.decision import Decision
from edgefuse.runtime.errors import ManifestError, MediaError
from edgefuse.runtime.loop import Loop
from edgefuse.runtime.mailbox import Mailbox, Writer
from edgefuse.runtime.manifest import existing_file, is_unicode, parse_object, read_lines
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.record import INDEX

_IDS = SENSOR_TENSORS["text"]
_KEYS = ("t_ms", *MODALITIES, *_IDS)
MOST_MS = 1e12  # 31 years, in either direction


class Recorded(NamedTuple):
    """One reading of a recording."""

    t_ns: int  # when it was captured
    modality: str
    value: str | dict[str, list[int]] | None  # a path or words; token ids; None where it was withdrawn
    where: str  # "readings.jsonl:17", the start of every message about it


class Clock:
    """Tells the recorded moment that the replay is at, as time.monotonic_ns does the present one."""

    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Replay:
    """Gives recorded readings to a loop.

    Args:
        path: folder of a recording, or a .jsonl file.
        info: the contract of the bundle.
        preprocessor: that of the bundle.
        speed: times as fast as recorded; 0 does not wait at all.
        gap_s: least time between two decisions, on the recorded clock.

    Raises:
        ManifestError: a line cannot be used; the message starts with file:line.
    """

    def __init__(
        self, path: str | Path, info: BundleInfo, preprocessor: Preprocessor, speed: float = 0.0, gap_s: float = 0.0
    ) -> None:
        self.clock = Clock()
        self._preprocessor = preprocessor
        self._modalities = info.modalities
        self._speed = speed
        self._gap_ns = int(gap_s * 1e9)
        self._readings = read_recording(path, info)
        self.clock.now_ns = self._free_ns = self._readings[0].t_ns  # no decision is made before _free_ns
        self._due_ns: int | None = None  # when what was put is to be decided on
        self._started_ns = 0  # on the real clock

    def decisions(self, loop: Loop, mailbox: Mailbox, stop: threading.Event) -> Iterator[Decision]:
        """A decision for each moment at which something was given, or became too old; once.

        Args:
            loop: one on `self.clock` and `mailbox`.
            mailbox: no one else writes to it.
            stop: ends the replay once it is set.

        Raises:
            ManifestError: a file of the recording cannot be used.
        """
        writers = {modality: mailbox.writer(modality) for modality in self._modalities}
        self._started_ns = time.monotonic_ns()
        for t_ns, readings in itertools.groupby(self._readings, key=lambda reading: reading.t_ns):
            yield from self._decisions_before(t_ns, loop, stop)
            if stop.is_set():
                return
            for reading in readings:
                self._put(reading, writers[reading.modality])
            self.clock.now_ns = self._due_ns = t_ns
        yield from self._decisions_before(max(t_ns, self._free_ns) + 1, loop, stop)

    def _decisions_before(self, end_ns: int, loop: Loop, stop: threading.Event) -> Iterator[Decision]:
        """Step at each moment before `end_ns` at which there is something to decide."""
        while True:
            change_ns = loop.next_change_ns() if self._due_ns is None else self._due_ns
            if change_ns is None or (step_ns := max(change_ns, self._free_ns)) >= end_ns:
                return
            if stop.wait(self._wait_s(step_ns)):
                return
            self.clock.now_ns, self._due_ns = step_ns, None
            decision = loop.step()
            if decision is not None:
                self._free_ns = step_ns + self._gap_ns
                yield decision

    def _wait_s(self, step_ns: int) -> float:
        """Seconds until a recorded moment comes."""
        if not self._speed:
            return 0.0
        due_ns = self._started_ns + (step_ns - self._readings[0].t_ns) / self._speed
        return max(0.0, (due_ns - time.monotonic_ns()) / 1e9)

    def _put(self, reading: Recorded, writer: Writer) -> None:
        if reading.value is None:
            writer.clear()
            return
        if isinstance(reading.value, dict):
            for name, ids in reading.value.items():
                writer.tensors[name][:] = ids  # [1, L]
        else:
            try:
                decoded = self._preprocessor.decode(reading.modality, reading.value)
                self._preprocessor.fill(reading.modality, decoded, writer.tensors)
            except MediaError as error:
                raise ManifestError(f"{reading.where}: {error}") from None
        writer.put(reading.t_ns)


def read_recording(path: str | Path, info: BundleInfo) -> list[Recorded]:
    """The readings of a recording in the order of their moments.

    A last line that is cut off is left out: what was being recorded was killed.

    Args:
        path: its folder, or a .jsonl file.
        info: the contract of the bundle that is to take them.

    Raises:
        ManifestError: the file or a line cannot be used; the message starts with file:line.
    """
    path = Path(path)
    path = path / INDEX if path.is_dir() else path
    lines = read_lines(path)
    if _is_cut_off(lines[-1]):
        lines.pop()
    known_files: dict[str, str | None] = {}
    readings = [
        reading
        for number, line in enumerate(lines, start=1)
        if line.strip()
        for reading in _parse_line(f"{path}:{number}", line, path.parent, info, known_files)
    ]
    if not readings:
        raise ManifestError(f'{path}: no readings in it; write lines like {{"t_ms": 0, "image": "a.png"}}')
    return sorted(readings, key=lambda reading: reading.t_ns)


def _parse_line(
    where: str, line: str, root: Path, info: BundleInfo, known_files: dict[str, str | None]
) -> Iterator[Recorded]:
    row = parse_object(where, line, _KEYS)
    t_ns = _moment_ns(where, row.pop("t_ms", None))
    ids = {name: row.pop(name) for name in _IDS if name in row}
    if not row and not ids:
        raise ManifestError(f"{where}: no sensor; give at least one of {', '.join(MODALITIES)}")
    if ids and "text" in row:
        raise ManifestError(f"{where}: found text and {_IDS[0]}; give one of them")
    for modality in (*row, *(["text"] if ids else [])):
        if modality not in info.modalities:
            raise ManifestError(f"{where}: the model has no {modality} encoder; it takes: {', '.join(info.modalities)}")
    for modality, value in row.items():
        yield Recorded(t_ns, modality, _value(where, modality, value, root, known_files), where)
    if ids and info.text:
        yield Recorded(t_ns, "text", _checked_ids(where, ids, info.text.max_tokens), where)


def _moment_ns(where: str, t_ms: Any) -> int:
    if isinstance(t_ms, (int, float)) and not isinstance(t_ms, bool) and -MOST_MS < t_ms < MOST_MS:
        return round(t_ms * 1e6)
    raise ManifestError(f"{where}: t_ms is {json.dumps(t_ms)}, it must be the milliseconds of the reading")


def _value(where: str, modality: str, value: Any, root: Path, known_files: dict[str, str | None]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        kind = "words" if modality == "text" else "the name of a file"
        raise ManifestError(
            f"{where}: {modality} is {json.dumps(value)}, it must be {kind}, or null where it goes away"
        )
    return value if modality == "text" else existing_file(where, modality, value, root, known_files)


def _checked_ids(where: str, ids: dict[str, Any], length: int) -> dict[str, list[int]]:
    for name in _IDS:
        values = ids.get(name)
        if not isinstance(values, list) or len(values) != length or not all(map(_is_id, values)):
            raise ManifestError(f"{where}: {name} must be {length} whole numbers, as this model takes them")
    return ids


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_cut_off(line: str) -> bool:
    return bool(line.strip()) and not line.rstrip().endswith("}")
