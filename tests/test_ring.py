"""The ring: what comes out is what a naive deque would give, and nothing is allocated on the way."""

from __future__ import annotations

import tracemalloc
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.ring import Ring


@given(capacity=st.integers(1, 50), sizes=st.lists(st.integers(0, 120), max_size=20), data=st.data())
def test_the_last_samples_are_those_of_a_naive_deque(capacity, sizes, data):
    ring, naive = Ring(capacity), deque([0.0] * capacity, maxlen=capacity)
    position = 0
    for size in sizes:
        pcm = np.arange(position + 1, position + size + 1, dtype=np.float32)
        position += size
        ring.write(pcm)
        naive.extend(pcm.tolist())

        length = data.draw(st.integers(0, capacity))
        start = data.draw(st.integers(ring.written - capacity, ring.written - length))
        into = np.full(length, -1, np.float32)
        ring.read(start, into)

        first = start - (ring.written - capacity)
        assert into.tolist() == list(naive)[first : first + length]
    assert ring.written == sum(sizes)


@pytest.mark.parametrize(("start", "length"), [(4, 1), (15, 2), (16, 1), (-1, 1)])
def test_what_is_forgotten_or_not_there_yet_is_not_made_up(start, length):
    ring = Ring(10)
    ring.write(np.ones(15, np.float32))

    with pytest.raises(ValueError, match="of 15, of which 10 are kept"):
        ring.read(start, np.zeros(length, np.float32))


def test_no_array_is_made_on_the_way():
    ring, pcm, into = Ring(16_000), np.ones(1_600, np.float32), np.zeros(8_000, np.float32)
    tracemalloc.start()
    try:
        for _ in range(25):
            ring.write(pcm)
            ring.read(ring.written - len(into), into)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < pcm.nbytes / 2
