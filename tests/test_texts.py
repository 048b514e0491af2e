"""Texts: the newest line counts, an empty one withdraws it, and what is put is what predict would read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefuse.runtime import lines
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.sensors import Sensors
from edgefuse.runtime.source import SpoiledError
from edgefuse.runtime.texts import Lines, Typed, Words, open_text

LONE_SURROGATE = "\ud800"  # how Python hands over a byte that is not UTF-8
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def preprocessor(tiny) -> Preprocessor:
    return Preprocessor(Bundle.open(tiny.bundle))


@pytest.fixture
def mailbox(preprocessor) -> Mailbox:
    return Mailbox(preprocessor.empty, ("text",))


class Pipe:
    """Lines of a pipe, and the end that feeds it."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        self._read, self._write = os.pipe()
        self.lines = Lines(preprocessor, self._read)

    def write(self, data: bytes) -> None:
        os.write(self._write, data)

    def end(self) -> None:
        if self._write is not None:
            os.close(self._write)
            self._write = None

    def close(self) -> None:
        self.end()
        os.close(self._read)


@pytest.fixture
def pipe(preprocessor) -> Iterator[Pipe]:
    pipe = Pipe(preprocessor)
    yield pipe
    pipe.close()


def words_of(mailbox: Mailbox) -> list[int] | None:
    """The ids that were put, None where nothing was."""
    reading = mailbox.take("text")
    return None if reading is None else reading.tensors["input_ids"][0].tolist()


def test_words_are_put_once_as_predict_reads_them_and_end_in_silence(preprocessor, mailbox):
    source, writer = open_text("red green", preprocessor), mailbox.writer("text")
    source.open()

    assert source.read(writer)
    with pytest.raises(EOFError) as end:
        source.read(writer)
    source.close()

    reading = mailbox.take("text")
    for name, expected in preprocessor.prepare("text", "red green").items():
        np.testing.assert_array_equal(reading.tensors[name], expected)
    assert abs(time.monotonic_ns() - reading.t_ns) < PATIENCE_S * 1e9
    assert str(end.value) == ""


@pytest.mark.parametrize("words", ["", "  ", LONE_SURROGATE])
def test_words_that_cannot_be_used_are_an_error_at_once(preprocessor, words):
    with pytest.raises(MediaError):
        open_text(words, preprocessor)


def test_a_dash_is_stdin(preprocessor):
    assert isinstance(open_text("-", preprocessor), Lines)
    assert isinstance(open_text("red", preprocessor), Words)


def test_the_newest_line_counts_and_a_line_without_its_end_waits(pipe, mailbox, preprocessor):
    writer = mailbox.writer("text")
    pipe.write(b"red\ngreen\nbl")
    assert pipe.lines.read(writer)
    assert words_of(mailbox) == preprocessor.prepare("text", "green")["input_ids"][0].tolist()
    assert mailbox.received["text"] == 1

    pipe.write(b"u")
    assert not pipe.lines.read(writer)
    pipe.write(b"e\r\n")
    assert pipe.lines.read(writer)

    assert words_of(mailbox) == preprocessor.prepare("text", "blue")["input_ids"][0].tolist()


def test_the_last_line_counts_without_its_end_when_stdin_ends(pipe, mailbox, preprocessor):
    writer = mailbox.writer("text")
    pipe.write(b"red")
    pipe.end()
    pipe.lines.read(writer)

    assert pipe.lines.read(writer)
    with pytest.raises(EOFError):
        pipe.lines.read(writer)

    assert words_of(mailbox) == preprocessor.prepare("text", "red")["input_ids"][0].tolist()


def test_stdin_that_ends_at_once_ends(pipe, mailbox):
    pipe.end()
    assert not pipe.lines.read(mailbox.writer("text"))

    with pytest.raises(EOFError):
        pipe.lines.read(mailbox.writer("text"))


@pytest.mark.parametrize("line", [b"\n", b"  \r\n"])
def test_an_empty_line_withdraws_the_text(pipe, mailbox, line):
    writer = mailbox.writer("text")
    pipe.write(b"red\n")
    pipe.lines.read(writer)

    pipe.write(line)
    assert pipe.lines.read(writer)

    assert mailbox.take_clear("text")
    assert mailbox.take("text") is None


def test_a_line_that_is_not_utf8_is_named_and_the_next_one_counts(pipe, mailbox):
    writer = mailbox.writer("text")
    pipe.write(b"\xff\xfe\n")
    with pytest.raises(SpoiledError, match="not UTF-8"):
        pipe.lines.read(writer)

    pipe.write(b"red\n")

    assert pipe.lines.read(writer)


def test_nothing_on_stdin_is_waited_for_half_a_second_at_most(pipe, mailbox):
    started = time.monotonic()

    assert not pipe.lines.read(mailbox.writer("text"))

    assert 0.4 < time.monotonic() - started < 2


def test_a_line_that_never_ends_does_not_fill_the_memory(pipe, mailbox, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    for _ in range(50):
        pipe.write(b"x" * 100)
        pipe.lines.read(mailbox.writer("text"))

    assert len(pipe.lines._lines._begun) <= 100


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    lines=st.lists(st.sampled_from(["red", "green", "blue", "red blue", ""]), min_size=1, max_size=6), data=st.data()
)
def test_however_the_bytes_come_the_last_line_is_what_counts_in_the_end(preprocessor, lines, data):
    mailbox, pipe = Mailbox(preprocessor.empty, ("text",)), Pipe(preprocessor)
    writer, content = mailbox.writer("text"), "".join(line + "\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    held = None
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        if start < end:
            pipe.write(content[start:end])
            pipe.lines.read(writer)
            held = None if mailbox.take_clear("text") else words_of(mailbox) or held
    pipe.close()

    expected = preprocessor.prepare("text", lines[-1])["input_ids"][0].tolist() if lines[-1] else None
    assert held == expected


def test_what_is_typed_wakes_the_reader_and_the_newest_counts(preprocessor, mailbox):
    source = Typed(preprocessor, first="red")
    with Sensors({"text": source}, mailbox):
        for text in ("red", "green", "blue"):
            if text != "red":
                source.say(text)
            deadline = time.monotonic() + PATIENCE_S
            while not (words := words_of(mailbox)) and time.monotonic() < deadline:
                mailbox.wait(0.1)
            assert words == preprocessor.prepare("text", text)["input_ids"][0].tolist()
        source.say("")
        assert mailbox.wait(PATIENCE_S)
        assert mailbox.take_clear("text")


def test_of_what_is_typed_at_once_only_the_newest_is_read(preprocessor, mailbox):
    source = Typed(preprocessor)
    for text in ("red", "green"):
        threading.Thread(target=source.say, args=[text]).run()

    assert source.read(mailbox.writer("text"))

    assert words_of(mailbox) == preprocessor.prepare("text", "green")["input_ids"][0].tolist()
    assert mailbox.received["text"] == 1


def test_what_is_typed_and_is_not_unicode_is_rubbish(preprocessor, mailbox):
    source = Typed(preprocessor)
    source.say(LONE_SURROGATE)

    with pytest.raises(SpoiledError, match="not valid Unicode"):
        source.read(mailbox.writer("text"))
