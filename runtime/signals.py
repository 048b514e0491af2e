"""Signals, as of radar and GPS: tables of numbers with a row for each moment, from CSV or .npy, and their newest rows.

A CSV names its columns in the first line; columns that the model does not take are passed over. A .npy holds [n, F] in
the order of the model's features. Rows stand in the order of time, at the model's rate, the newest last.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import SignalSpec
from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.media import read_media

Rows = NDArray[np.float32]  # [n, F] in the sensors' own units, the newest last

LARGEST = float(np.finfo(np.float32).max)
_NPY = b"\x93NUMPY"


class Columns:
    """Reads CSV lines by the names in the first one.

    Args:
        header: the first line.
        features: the columns to read, in the order of the model.
        name: of the table, for messages.

    Raises:
        MediaError: a feature has no column, or two.
    """

    def __init__(self, header: str, features: Sequence[str], name: str) -> None:
        self._name = name
        self._names = _cells(header, name, 1)
        for feature in features:
            if (found := self._names.count(feature)) != 1:
                raise MediaError(
                    f"{name}:1: found {found or 'no'} columns {feature!r} in {_cut(header)!r}; "
                    f"the first line must name each of {', '.join(features)} once"
                )
        self._places = [self._names.index(feature) for feature in features]

    def row(self, line: str, number: int) -> list[float]:
        """The features [F] of line `number`.

        Raises:
            MediaError: a cell is missing or not a finite number.
        """
        cells = _cells(line, self._name, number)
        if len(cells) != len(self._names):
            raise MediaError(
                f"{self._name}:{number}: found {len(cells)} cells, the first line names {len(self._names)} columns; "
                "mend the line"
            )
        return [self._number(cells[place], self._names[place], number) for place in self._places]

    def _number(self, cell: str, column: str, number: int) -> float:
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if not abs(value) <= LARGEST:
            raise MediaError(f"{self._name}:{number}: {column} is {_cut(cell)!r}, it must be a finite number")
        return value


class Signals:
    """What stands between a table of numbers and the tensor of the signal encoder."""

    def __init__(self, spec: SignalSpec) -> None:
        self._spec = spec

    def decode(self, value: Any) -> Rows:
        """The rows [n, F] of a file, given by its path or its bytes, or `value` itself if it is that.

        Raises:
            MediaError: it cannot be read, or is something else.
        """
        if isinstance(value, (str, Path)):
            return decode_signal(read_media(value), str(value), self._spec.features)
        if isinstance(value, bytes):
            return decode_signal(value, "signal", self._spec.features)
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise MediaError(f"signal: found {found}; give a path or float32 [n, {len(self._spec.features)}]")
        return _checked(value, "signal", self._spec.features)

    def empty(self) -> dict[str, NDArray[Any]]:
        """Zeros as the encoder takes them, batch of one."""
        return {"signal": np.zeros((1, self._spec.steps, len(self._spec.features)), np.float32)}  # [1, S, F]

    def fill(self, decoded: Rows, tensors: Tensors) -> None:
        """Write the newest rows."""
        fill_signal(decoded, tensors["signal"][0])


def decode_signal(data: bytes, name: str, features: Sequence[str]) -> Rows:
    """Decode a table to its columns `features`, [n, F]; `name` is used in messages.

    Raises:
        MediaError: neither CSV nor .npy, without rows, or with something that is no finite number.
    """
    if data.startswith(_NPY):
        return _decode_npy(data, name, features)
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise MediaError(f"{name}: neither CSV in UTF-8 nor .npy; give one of them") from None
    columns = Columns(lines[0], features, name)
    rows = [columns.row(line, number) for number, line in enumerate(lines[1:], start=2) if line.strip()]
    return _checked(np.array(rows, np.float32).reshape(-1, len(features)), name, features)


def column_names(data: bytes, name: str) -> list[str]:
    """The columns that the first line of a CSV names; `name` is used in messages.

    Raises:
        MediaError: not CSV in UTF-8, or a column without a name or with that of another.
    """
    try:
        header = data.decode("utf-8-sig").split("\n")[0]
    except UnicodeDecodeError:
        raise MediaError(f"{name}: not CSV in UTF-8; save it so") from None
    names = _cells(header, name, 1)
    if not names or not all(names) or len(set(names)) < len(names):
        raise MediaError(f"{name}:1: found {_cut(header)!r}; the first line must give every column a name of its own")
    return names


def _cells(line: str, name: str, number: int) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error as error:
        raise MediaError(f"{name}:{number}: not a line of CSV ({error}); mend the line") from None


def fill_signal(rows: Rows, into: Rows) -> None:
    """Write the newest of `rows` [n, F] into [S, F]; before the first one it was as it is in the first one.

    Zeros there would be readings, such as of something at no distance.
    """
    kept = rows[-len(into) :]
    missing = len(into) - len(kept)
    into[:missing] = kept[0]
    into[missing:] = kept


def _decode_npy(data: bytes, name: str, features: Sequence[str]) -> Rows:
    try:
        table = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MediaError(f"{name}: not an array of numbers in .npy ({reason}); save it with numpy.save") from None
    if table.dtype.kind not in "fiu":
        raise MediaError(f"{name}: found an array of {table.dtype}; save numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return _checked(table.astype(np.float32), name, features)


def _checked(rows: NDArray[Any], name: str, features: Sequence[str]) -> Rows:
    if rows.ndim != 2 or rows.shape[1] != len(features) or not len(rows):
        raise MediaError(f"{name}: found {list(rows.shape)}; give rows of {len(features)}: {', '.join(features)}")
    if not np.isfinite(rows).all():
        number = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise MediaError(f"{name}: row {number + 1} holds NaN or infinite numbers; replace it")
    return rows


def _cut(text: str) -> str:
    return text.strip()[:40]
