"""A run: sensors or a recording, the loop, and what becomes of its decisions, put together and taken apart again."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgefuse.runtime.alarms import AlarmEvent, Alarms
from edgefuse.runtime.backends import DEFAULT, open_backend
from edgefuse.runtime.bundle import Bundle, BundleInfo
from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.loop import Loop
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.pace import Pace
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.run_options import Options
from edgefuse.runtime.sensors import Sensors
from edgefuse.runtime.source import Source
from edgefuse.runtime.texts import Typed, open_text

if TYPE_CHECKING:
    from edgefuse.runtime.board import Board
    from edgefuse.runtime.replay import Replay

_log = logging.getLogger(__name__)


def run(
    bundle: str | Path,
    *,
    on_decision: Callable[[Decision], None] | None = None,
    on_alarm: Callable[[AlarmEvent], None] | None = None,
    on_notice: Callable[[Notice], None] | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> Iterator[Decision]:
    """Decisions from the sensors until they end or the iterator is closed, which closes everything else.

    for decision in edgefuse.runtime.run("bundle", camera=0, mic="default", text="is the door open?"): ...

    Args:
        bundle: its folder.
        on_decision: gets each decision before the iterator gives it.
        on_alarm: gets the start and the stop of each alarm, after the decision that it comes from.
        on_notice: is told what fails and what works again, by any thread; None logs it.
        stop: ends the run once it is set, by whomever.
        options: see Options.

    Raises:
        EdgefuseError: a bundle, an option, a backend or a recording that cannot be used.
    """
    asked, opened = Options(**options), Bundle.open(bundle)
    asked.check(opened.info)
    alarms = Alarms(asked.alarms, opened.info.labels)
    told = _Told(_listed(on_decision), _listed(on_alarm), _listed(on_notice or _logged))
    with contextlib.ExitStack() as stack:
        if asked.webhook is not None:
            told.add_webhook(asked.webhook, stack)
        stack.callback(lambda: told.all_of(alarms.ended()))
        decisions = _decisions(opened, asked, told, stop or threading.Event(), stack)
        for number, decision in enumerate(decisions, start=1):
            told.decided(decision)
            told.all_of(alarms.decided(decision))
            yield decision
            if number == asked.count:
                return


@dataclass(slots=True)
class _Told:
    """Who is told what."""

    decisions: list[Callable[[Decision], None]]
    alarms: list[Callable[[AlarmEvent], None]]
    notices: list[Callable[[Notice], None]]

    def decided(self, decision: Decision) -> None:
        for tell in self.decisions:
            tell(decision)

    def all_of(self, events: Iterable[AlarmEvent]) -> None:
        for event in events:
            for tell in self.alarms:
                tell(event)

    def notice(self, notice: Notice) -> None:
        for tell in self.notices:
            tell(notice)

    def add_webhook(self, url: str, stack: contextlib.ExitStack) -> None:
        from edgefuse.runtime.webhook import Webhook

        webhook = stack.enter_context(Webhook(url, self.notice))
        self.alarms.append(lambda event: webhook.post(event.document()))


def _decisions(
    bundle: Bundle, asked: Options, told: _Told, stop: threading.Event, stack: contextlib.ExitStack
) -> Iterator[Decision]:
    """The decisions of the sensors or of a recording; `stack` closes what is opened for them."""
    info, preprocessor = bundle.info, Preprocessor(bundle)
    mailbox = _mailbox(asked, info, preprocessor, told, stack)
    replay = None if asked.replay is None else _replay(asked.replay, asked, info, preprocessor)
    typed = Typed(preprocessor, asked.text or "") if asked.takes_questions(info) else None
    board = None if asked.web is None else _board(asked.web, asked, info, mailbox, typed, told, stack)
    sources = _sources(asked, info, preprocessor, typed, board)
    loop = Loop(
        info,
        partial(open_backend, bundle, asked.backend, asked.threads),
        mailbox,
        limits_ms=asked.limits,
        clock=time.monotonic_ns if replay is None else replay.clock,
        on_notice=told.notice,
    )
    stack.enter_context(loop).open()
    if replay is not None:
        return replay.decisions(loop, mailbox, stop)
    told.decisions.append(Pace(told.notice).decided)
    sensors = stack.enter_context(Sensors(sources, mailbox, told.notice))
    if board is not None:
        board.metrics.sensors = sensors
    return _paced(loop.decisions(stop, lambda: sensors.done), asked.gap_s, stop)


def _mailbox(
    asked: Options, info: BundleInfo, preprocessor: Preprocessor, told: _Told, stack: contextlib.ExitStack
) -> Mailbox:
    if asked.record is None:
        return Mailbox(preprocessor.empty, info.modalities)
    from edgefuse.runtime.record import RecordedMailbox, Recorder

    recorder = Recorder(asked.record, info.audio.sample_rate if info.audio else 0, told.notice)
    return RecordedMailbox(preprocessor.empty, info.modalities, stack.enter_context(recorder).keep)


def _replay(path: str | Path, asked: Options, info: BundleInfo, preprocessor: Preprocessor) -> Replay:
    from edgefuse.runtime.replay import Replay

    return Replay(path, info, preprocessor, asked.speed, asked.gap_s)


def _board(
    port: int,
    asked: Options,
    info: BundleInfo,
    mailbox: Mailbox,
    typed: Typed | None,
    told: _Told,
    stack: contextlib.ExitStack,
) -> Board:
    """What the page shows; serves it."""
    from edgefuse.runtime.board import Board
    from edgefuse.runtime.web import Web

    board = Board(
        info,
        mailbox,
        ask=typed.say if typed else None,
        question=asked.text or "",
        backend=asked.backend or DEFAULT,
        gap_s=asked.gap_s,
    )
    web = stack.enter_context(Web(board, port, asked.web_host))
    told.notice(Notice(time.monotonic_ns() / 1e6, "page", True, f"open {web.url}"))
    told.decisions.insert(0, board.decision)  # before it is printed: who reads a decision may ask the page at once
    told.alarms.append(board.alarm)
    told.notices.append(board.notice)
    return board


def _sources(
    asked: Options, info: BundleInfo, preprocessor: Preprocessor, typed: Typed | None, board: Board | None
) -> dict[str, Source]:
    """Modality -> what gives it; each module is imported where its sensor is used."""
    sources: dict[str, Source] = {}
    if asked.camera is not None:
        from edgefuse.runtime.camera import open_camera

        sources["image"] = open_camera(str(asked.camera), preprocessor, board.frame if board else None)
    if asked.mic is not None and info.audio is not None:
        from edgefuse.runtime.gate import open_gate
        from edgefuse.runtime.microphone import open_microphone

        gate = open_gate(asked.gate, info.audio)
        sources["audio"] = open_microphone(str(asked.mic), info.audio, gate, board.level if board else None)
    if typed is not None:
        sources["text"] = typed
    elif asked.text is not None:
        sources["text"] = open_text(asked.text, preprocessor)
    if asked.signal is not None and info.signal is not None:
        from edgefuse.runtime.signal_source import open_signal

        sources["signal"] = open_signal(str(asked.signal), info.signal)
    return sources


def _paced(decisions: Iterator[Decision], gap_s: float, stop: threading.Event) -> Iterator[Decision]:
    """Take the next decision no sooner than `gap_s` after the one before; meanwhile newer readings replace older."""
    for decision in decisions:
        free_s = time.monotonic() + gap_s
        yield decision
        stop.wait(max(0.0, free_s - time.monotonic()))


def _listed(tell: Callable[[Any], None] | None) -> list[Callable[[Any], None]]:
    return [] if tell is None else [tell]


def _logged(notice: Notice) -> None:
    _log.log(logging.INFO if notice.is_well else logging.WARNING, "%s: %s", notice.about, notice.message)


class _Callable(ModuleType):
    """A module that can be called: `edgefuse.runtime.run` is this module once it was imported, and the function too."""

    def __call__(self, *arguments: Any, **options: Any) -> Iterator[Decision]:
        return run(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose cuda.py would stand before NVIDIA's package
    from edgefuse.runtime.cli import main

    main(["run", *sys.argv[1:]])
