"""`edgefuse run`: a line on stdout for each decision and alarm, notices on stderr, and a clean end at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.outputs import Lines
from edgefuse.runtime.run import run
from edgefuse.runtime.run_options import parse_limits


def run_lines(
    bundle: str | Path,
    *,
    mqtt: str | None = None,
    limits: Sequence[str] = (),
    ends_with_json: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Run until the sensors end, a signal comes or stdout is closed; leaves nothing to print.

    Args:
        bundle: its folder.
        mqtt: topic that each line begins with.
        limits: as parse_limits reads them.
        ends_with_json: print the summary as the last line of stdout, not on stderr.
        options: see Options.

    Raises:
        EdgefuseError: see `run`.
        KeyboardInterrupt: ctrl-C, after the summary.
    """
    lines = Lines(sys.stdout, mqtt, with_stages=options.get("replay") is None)
    summary = _Summary()
    stop = threading.Event()
    decisions = run(
        bundle,
        on_decision=lines.decision,
        on_alarm=lines.alarm,
        on_notice=_print_notice,
        stop=stop,
        limits_ms=parse_limits(limits),
        **options,
    )
    with _signals_set(stop) as caught, _closed_pipe_is_fine():
        for decision in decisions:
            summary.add(decision)
    with _closed_pipe_is_fine():
        if ends_with_json:
            print(json.dumps(summary.document()), flush=True)
        else:
            print(f"edgefuse: {summary}", file=sys.stderr)
    if signal.SIGINT in caught:
        raise KeyboardInterrupt
    return {}


class _Summary:
    """Counts decisions and what they stood on."""

    def __init__(self) -> None:
        self._decisions = 0
        self._first_s = self._last_s = 0.0
        self._runs: Counter[str] = Counter()  # modality -> times that it was encoded
        self._dropped: dict[str, int] = {}

    def add(self, decision: Decision) -> None:
        self._last_s = time.monotonic()
        self._first_s = self._first_s or self._last_s
        self._decisions += 1
        self._runs.update(part for part in decision.stages_ms if part in decision.presence)
        self._dropped = decision.dropped

    def document(self) -> dict[str, Any]:
        seconds = self._last_s - self._first_s
        return {
            "decisions": self._decisions,
            "seconds": round(seconds, 3),  # from the first to the last
            "per_s": round((self._decisions - 1) / seconds, 2) if seconds else None,
            "encoded": dict(self._runs),
            "dropped": self._dropped,
        }

    def __str__(self) -> str:
        found = self.document()
        rate = "" if found["per_s"] is None else f" ({found['per_s']} per second)"
        encoded, dropped = (
            ", ".join(f"{count} {modality}" for modality, count in counts.items() if count) or "nothing"
            for counts in (self._runs, self._dropped)
        )
        decisions = "1 decision" if self._decisions == 1 else f"{self._decisions} decisions"
        return f"{decisions} in {found['seconds']:.1f} s{rate}; encoded: {encoded}; dropped: {dropped}"


def _print_notice(notice: Notice) -> None:
    with contextlib.suppress(BrokenPipeError):
        # One write, as several threads say something.
        print(f"edgefuse: {notice.about}: {notice.message}\n", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals_set(stop: threading.Event) -> Iterator[list[int]]:
    """Let SIGTERM and ctrl-C set `stop`; the signals that came. A second one ends the process at once.

    A handler runs in the middle of whatever the main thread does, even of a line that it writes, and may not take a
    lock, which `stop` has. So the numbers of the signals go through a socket to a thread.
    """
    caught: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while number := reader.recv(1):
            if caught:
                os._exit(128 + number[0])
            caught.append(number[0])
            stop.set()

    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as in a shell's background job, which ctrl-C must not end
    }
    descriptor = signal.set_wakeup_fd(writer.fileno())
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield caught
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()


@contextlib.contextmanager
def _closed_pipe_is_fine() -> Iterator[None]:
    """Who reads stdout may stop reading, as `head` does; Python itself would complain at its exit."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
