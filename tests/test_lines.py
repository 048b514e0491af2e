"""Lines of a pipe: whole ones, in order, however the bytes come, and never more memory than a line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefuse.runtime import lines as module
from edgefuse.runtime.lines import LineReader


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6))
def test_lines_come_whole_and_in_order_and_the_last_one_at_the_end(pieces: list[bytes]) -> None:
    read, write = os.pipe()
    reader, found = LineReader(read), []
    for piece in pieces:
        os.write(write, piece)
        found += reader.read()
    os.close(write)
    found += reader.read()
    with pytest.raises(EOFError):
        reader.read()
    os.close(read)
    *whole, last = b"".join(pieces).split(b"\n")
    assert found == [*whole, *([last] if last else [])]


def test_nothing_is_waited_for_half_a_second_at_most(pipe: list[int]) -> None:
    started = time.monotonic()
    assert LineReader(pipe[0]).read() == []
    assert 0.4 < time.monotonic() - started < 5


def test_a_line_that_never_ends_does_not_fill_the_memory(pipe: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LINE", 100)
    reader = LineReader(pipe[0])
    for _ in range(50):
        os.write(pipe[1], b"x" * 100)
        assert reader.read() == []
    os.write(pipe[1], b"end\n")
    (line,) = reader.read()
    assert line.endswith(b"xend")
    assert len(line) <= 104
