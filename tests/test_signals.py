"""Signals: tables are read as other readers read them, and one clear line, with its number, refuses everything else."""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefuse.runtime.bundle import SignalSpec
from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.signals import Columns, Signals, decode_signal, fill_signal

FEATURES = ("speed", "yaw")
SPEC = SignalSpec(steps=3, features=FEATURES, rate_hz=10.0)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def table(rows: list[list[float]], names: tuple[str, ...] = FEATURES) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([names, *rows])
    return file.getvalue().encode()


def npy(array: object, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


@given(st.lists(st.tuples(FLOATS, FLOATS).map(list), min_size=1, max_size=6))
def test_a_csv_gives_the_numbers_that_were_written_as_numpy_reads_them(rows: list[list[float]]) -> None:
    data = table(rows)
    found = decode_signal(data, "a.csv", FEATURES)
    expected = np.loadtxt(io.StringIO(data.decode()), np.float32, delimiter=",", skiprows=1, ndmin=2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(rows, np.float32))
    np.testing.assert_array_equal(found, expected)


def test_columns_are_found_by_name_and_others_are_passed_over() -> None:
    data = '\ufefftime, yaw ,note,speed\r\n0.1,2,a word,1\r\n\r\n0.2,4,"a, b",3\r\n'.encode()
    np.testing.assert_array_equal(decode_signal(data, "a.csv", FEATURES), [[1, 2], [3, 4]])


@given(st.lists(st.tuples(FLOATS, FLOATS).map(list), min_size=1, max_size=6))
def test_a_npy_gives_its_numbers(rows: list[list[float]]) -> None:
    np.testing.assert_array_equal(decode_signal(npy(np.array(rows)), "a.npy", FEATURES), np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"speed\n1\n", r"a:1: found no columns 'yaw' in 'speed'; the first line must name each of speed, yaw once"),
        (b"speed,yaw,yaw\n", r"a:1: found 2 columns 'yaw'"),
        (b"speed,yaw\n1,2\n3\n", r"a:3: found 1 cells, the first line names 2 columns; mend the line"),
        (b"speed,yaw\n1,fast\n", r"a:2: yaw is 'fast', it must be a finite number"),
        (b"speed,yaw\n\n1,nan\n", r"a:3: yaw is 'nan', it must be a finite number"),
        (b"speed,yaw\n1e39,1\n", r"a:2: speed is '1e39', it must be a finite number"),
        (b"speed,yaw\n1,\n", r"a:2: yaw is '', it must be a finite number"),
        (b"speed,yaw\n", r"a: found \[0, 2\]; give rows of 2: speed, yaw"),
        (b"\xff\xfe", r"a: neither CSV in UTF-8 nor .npy; give one of them"),
        (npy(np.zeros(4)), r"a: found \[4\]; give rows of 2: speed, yaw"),
        (npy(np.zeros((2, 3))), r"a: found \[2, 3\]; give rows of 2"),
        (npy(np.zeros((0, 2))), r"a: found \[0, 2\]"),
        (npy(np.array([[0, 1], [np.inf, 1]])), r"a: row 2 holds NaN or infinite numbers; replace it"),
        (npy(np.array([[1e300, 1]])), r"a: row 1 holds NaN or infinite numbers; replace it"),
        (npy(np.array([["1", "2"]])), r"a: found an array of <U1; save numbers"),
        (npy(np.zeros((2, 2)))[:-1], r"a: not an array of numbers in .npy"),
    ],
)
def test_what_is_no_signal_is_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        decode_signal(data, "a", FEATURES)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    data = npy(np.array([Trap(trap)], object), allow_pickle=True)
    for bad in (data, pickle.dumps(Trap(trap))):
        with pytest.raises(MediaError):
            decode_signal(bad, "a.npy", FEATURES)
    assert not trap.exists()


@settings(max_examples=300)
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x93NUMPY", b"speed,yaw\n", npy(np.zeros((2, 2)))[:40]]))
def test_any_bytes_are_rows_or_refused(data: bytes, start: bytes) -> None:
    try:
        rows = decode_signal(start + data, "a", FEATURES)
    except MediaError:
        return
    assert rows.shape[1] == 2
    assert np.isfinite(rows).all()


@given(st.integers(1, 9), st.integers(1, 5))
def test_the_newest_rows_count_and_before_the_first_it_was_as_in_the_first(count: int, steps: int) -> None:
    rows = np.arange(1, count + 1, dtype=np.float32)[:, None]
    into = np.full((steps, 1), 99, np.float32)
    fill_signal(rows, into)
    np.testing.assert_array_equal(
        into[:, 0],
        ([1] * steps + list(range(1, count + 1)))[-steps:] if count < steps else range(count - steps + 1, count + 1),
    )


def test_a_value_that_is_decoded_is_checked_and_a_file_is_read(tmp_path: Path) -> None:
    sensor = Signals(SPEC)
    rows = np.ones((5, 2), np.float32)
    assert sensor.decode(rows) is rows
    (tmp_path / "a.csv").write_bytes(table([[1, 2]]))
    tensors = sensor.empty()
    sensor.fill(sensor.decode(tmp_path / "a.csv"), tensors)
    np.testing.assert_array_equal(tensors["signal"], [[[1, 2]] * 3])
    for bad, message in (
        (rows.astype(float), r"signal: found float64; give a path or float32 \[n, 2\]"),
        ([[1.0, 2.0]], "signal: found list"),
        (rows[:, :1], r"signal: found \[5, 1\]"),
        (rows * np.float32(np.nan), "signal: row 1 holds NaN"),
    ):
        with pytest.raises(MediaError, match=message):
            sensor.decode(bad)
    with pytest.raises(MediaError, match=r"gone.csv: No such file or directory; check the path"):
        sensor.decode(tmp_path / "gone.csv")


def test_a_line_is_a_row_in_the_order_of_the_model() -> None:
    columns = Columns("yaw,other,speed", FEATURES, "a")
    assert columns.row("1,x,2", 7) == [2.0, 1.0]
