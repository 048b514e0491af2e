"""The mailbox: the newest whole reading, whatever the threads do, and an account of the others."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.mailbox import Mailbox, Reading, Writer


def _mailbox(size: int = 1) -> Mailbox:
    return Mailbox(lambda modality: {"value": np.zeros(size, np.int64)}, ("image", "audio"))


def _put(writer: Writer, value: int) -> bool:
    writer.tensors["value"][:] = value
    return writer.put(value)


def _value(reading: Reading | None) -> int | None:
    return None if reading is None else int(reading.tensors["value"][0])


@given(st.lists(st.sampled_from(["put", "clear", "take", "take_clear"]), max_size=60))
def test_it_does_what_a_single_slot_does(actions: list[str]) -> None:
    mailbox = _mailbox()
    writer = mailbox.writer("image")
    slot: int | None = None
    cleared = False
    received = dropped = 0
    for number, action in enumerate(actions, start=1):
        if action == "put":
            assert _put(writer, number)
            received, dropped = received + 1, dropped + (slot is not None)
            slot, cleared = number, False
        elif action == "clear":
            writer.clear()
            slot, cleared = None, True
        elif action == "take":
            reading = mailbox.take("image")
            assert _value(reading) == slot
            assert reading is None or reading.t_ns == slot
            slot = None
        else:
            assert mailbox.take_clear("image") is cleared
            cleared = False
    assert mailbox.received == {"image": received, "audio": 0}
    assert mailbox.dropped == {"image": dropped, "audio": 0}


def test_what_was_taken_stays_while_the_sensor_writes_on() -> None:
    mailbox = _mailbox()
    writer = mailbox.writer("image")
    _put(writer, 1)
    reading = mailbox.take("image")
    for value in range(2, 9):
        _put(writer, value)
        assert _value(reading) == 1
    assert _value(mailbox.take("image")) == 8


def test_no_memory_is_made_after_the_start() -> None:
    made = []
    mailbox = Mailbox(lambda modality: made.append(modality) or {"value": np.zeros(1)}, ("image",))  # type: ignore[func-returns-value]
    writer = mailbox.writer("image")
    assert len(made) == 3
    arrays = set()
    for value in range(50):
        writer.tensors["value"][0] = value
        arrays.add(writer.tensors["value"].ctypes.data)
        writer.put(value)
        if value % 3:
            mailbox.take("image")
    assert len(made) == 3
    assert len(arrays) == 3


def test_an_earlier_writer_is_cut_off() -> None:
    mailbox = _mailbox()
    stuck, new = mailbox.writer("image"), mailbox.writer("image")
    assert _put(new, 2)
    assert not _put(stuck, 1)
    stuck.clear()
    assert not mailbox.take_clear("image")
    assert _value(mailbox.take("image")) == 2
    assert not _put(stuck, 3)
    assert mailbox.take("image") is None
    assert mailbox.received["image"] == 1


def test_a_reading_is_never_torn() -> None:
    mailbox = _mailbox(size=4096)
    stop = threading.Event()

    def write() -> None:
        writer = mailbox.writer("image")
        value = 0
        while not stop.is_set():
            value += 1
            _put(writer, value)

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    deadline = time.monotonic() + 10
    while seen < 500 and time.monotonic() < deadline:
        mailbox.wait(1.0)
        reading = mailbox.take("image")
        if reading is not None:
            values = reading.tensors["value"]
            assert values.min() == values.max() == reading.t_ns > seen
            seen = reading.t_ns
    stop.set()
    thread.join()
    assert seen >= 500
    assert mailbox.dropped["image"] <= mailbox.received["image"]


@pytest.mark.parametrize("wake", ["put", "clear", "poke"])
def test_who_waits_is_woken(wake: str) -> None:
    mailbox = _mailbox()
    writer = mailbox.writer("audio")
    action = {"put": lambda: _put(writer, 1), "clear": writer.clear, "poke": mailbox.poke}[wake]
    threading.Timer(0.05, action).start()
    begin = time.monotonic()
    assert mailbox.wait(10)
    assert time.monotonic() - begin < 5


def test_a_wait_without_news_ends_at_its_time() -> None:
    mailbox = _mailbox()
    assert not mailbox.wait(0.01)
    mailbox.poke()
    assert mailbox.wait(0.01)
    assert not mailbox.wait(0.01)
