"""Records what the sensors give, as the model gets it: a folder that `--replay` plays again, exactly.

readings.jsonl      {"t_ms": 81.5, "image": "image/0000001.png"}, one line per reading, written after its file
image/*.png         the picture at the size of the model
audio/*.wav         the window of sound at the rate of the model, as float32
signal/*.npy        the rows as the model gets them
texts are token ids in the line itself; a modality that was withdrawn is null
"""

from __future__ import annotations

import contextlib
import io
import json
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import MODALITY_TABLE
from edgefuse.runtime.decision import Notice
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.mailbox import Mailbox, Writer

INDEX = "readings.jsonl"
LIMIT_BYTES = 4 << 30  # then recording stops and the run goes on
MOST_WAITING = 64  # readings that the disk has not taken yet; then the newest is dropped

Arrays = dict[str, NDArray[Any]]


class Recorder:
    """Writes readings to a folder, from a thread of its own; use it in a `with`.

    Args:
        folder: a new one, or one without a recording.
        sample_rate: of the model's sound, in Hz.
        on_notice: told when the recording stops early.
        limit_bytes: of all files together.

    Raises:
        OptionError: the folder holds a recording, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        sample_rate: int,
        on_notice: Callable[[Notice], None] = lambda notice: None,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._folder = Path(folder)
        self._sample_rate = sample_rate
        self._on_notice = on_notice
        self._bytes_left = limit_bytes
        self._index = _new_index(self._folder)
        self._waiting: queue.Queue[tuple[str, Arrays | None, int] | None] = queue.Queue(MOST_WAITING)
        self.kept = 0  # readings on disk
        self.dropped = 0  # readings that came faster than the disk takes them
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def keep(self, modality: str, tensors: Tensors | None, t_ns: int) -> None:
        """Record one reading, None for a modality that was withdrawn; returns at once."""
        arrays = None if tensors is None else {name: array.copy() for name, array in tensors.items()}
        try:
            self._waiting.put_nowait((modality, arrays, t_ns))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits."""
        self._waiting.put(None)
        self._thread.join()
        self._index.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        is_open = True
        while (reading := self._waiting.get()) is not None:
            if is_open:
                is_open = self._try_write(*reading)

    def _try_write(self, modality: str, arrays: Arrays | None, t_ns: int) -> bool:
        """Write one reading; False where the recording ends here."""
        try:
            line = {"t_ms": t_ns / 1e6, **self._content(modality, arrays)}
            self._bytes_left -= self._index.write(json.dumps(line) + "\n")
            self._index.flush()
        except OSError as error:
            return self._stop(error.strerror or str(error))
        self.kept += 1
        return self._bytes_left > 0 or self._stop("it has reached its limit")

    def _content(self, modality: str, arrays: Arrays | None) -> dict[str, Any]:
        """What the line says of a reading, after its file is written."""
        if arrays is None:
            return {modality: None}
        suffix = MODALITY_TABLE[modality].suffix
        if suffix is None:
            return {name: ids[0].tolist() for name, ids in arrays.items()}
        path = self._folder / modality / f"{self.kept + 1:07}{suffix}"
        path.parent.mkdir(exist_ok=True)
        self._bytes_left -= path.write_bytes(self._file(suffix, arrays[modality][0]))
        return {modality: f"{modality}/{path.name}"}

    def _file(self, suffix: str, array: NDArray[Any]) -> bytes:
        """The content of a reading's file, from which exactly `array` is decoded again."""
        file = io.BytesIO()  # not the disk: libsndfile does not tell why a write fails
        if suffix == ".png":
            return bytes(cv2.imencode(suffix, np.ascontiguousarray(array[:, :, ::-1]))[1].tobytes())  # BGR
        if suffix == ".wav":
            soundfile.write(file, array, self._sample_rate, format="WAV", subtype="FLOAT")
        else:
            np.save(file, array, allow_pickle=False)
        return file.getvalue()

    def _stop(self, why: str) -> bool:
        message = f"recording to {self._folder} stops after {self.kept} readings: {why}; the run goes on"
        self._on_notice(Notice(time.monotonic_ns() / 1e6, "recording", False, message))
        return False


class RecordedMailbox(Mailbox):
    """A mailbox whose accepted readings go to `keep` too, those that the loop never sees included."""

    def __init__(
        self,
        allocate: Callable[[str], Tensors],
        modalities: tuple[str, ...],
        keep: Callable[[str, Tensors | None, int], None],
    ) -> None:
        super().__init__(allocate, modalities)
        self._keep = keep

    def _put(self, writer: Writer, t_ns: int) -> bool:
        tensors = writer.tensors  # from here on the loop may read them; only this thread's next put gets them back
        is_accepted = super()._put(writer, t_ns)
        if is_accepted:
            self._keep(writer.modality, tensors, t_ns)
        return is_accepted

    def _clear(self, writer: Writer) -> None:
        super()._clear(writer)
        self._keep(writer.modality, None, time.monotonic_ns())


def _new_index(folder: Path) -> TextIO:
    try:
        with contextlib.suppress(FileExistsError):  # a file there fails in the next line
            folder.mkdir(parents=True)
        return (folder / INDEX).open("x", encoding="utf-8")
    except FileExistsError:
        raise OptionError(f"{folder} holds a recording; give another folder") from None
    except OSError as error:
        raise OptionError(f"{folder} cannot be recorded to ({error.strerror}); give another folder") from None
