"""Waits for what other threads do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 10.0


def until(condition: Callable[[], object]) -> None:
    """Until it holds; fails where it does not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
