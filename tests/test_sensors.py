"""The supervisor: what fails is opened again, what is stuck is replaced, a change is said once, and nothing grows."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgefuse.runtime import sensors as module
from edgefuse.runtime.decision import Notice
from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.mailbox import Mailbox, Writer
from edgefuse.runtime.sensors import Sensors
from edgefuse.runtime.source import SpoiledError
from tests.waiting import PATIENCE_S, until


class Scripted:
    """A source that does what its script says at each step; the last step goes on for ever.

    Steps: "give", "nothing", "gone", "spoiled", "end", "bug", "refuse" (to open), an Event (blocks until it is set).
    """

    def __init__(self, *script: Any, name: str = "camera 0") -> None:
        self.name = name
        self.opened = self.closed = self.given = 0
        self.readers: set[str] = set()
        self._script = list(script)
        self._lock = threading.Lock()

    def _next(self) -> Any:
        with self._lock:
            return self._script.pop(0) if len(self._script) > 1 else self._script[0]

    def open(self) -> None:
        self.opened += 1
        if self._script[0] == "refuse":
            self._next()
            raise SensorError("no such device")

    def read(self, writer: Writer) -> bool:
        step = self._next()
        if isinstance(step, threading.Event):
            step.wait(PATIENCE_S)
            writer.tensors[writer.modality][:] = 99
            return writer.put(0)
        if step == "give":
            self.given += 1
            writer.tensors[writer.modality][:] = self.given % 251
            return writer.put(time.monotonic_ns())
        if step in ("gone", "refuse"):
            raise SensorError("the cable is out")
        if step == "spoiled":
            raise SpoiledError("a grey picture")
        if step == "end":
            raise EOFError("a.mp4 has ended")
        if step == "bug":
            raise KeyError("image")
        time.sleep(0.001)
        return False

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox(lambda modality: {modality: np.zeros((1, 4), np.uint8)}, ("image", "audio"))


@pytest.fixture
def notices() -> list[Notice]:
    return []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FIRST_WAIT_S": 0.001, "LONGEST_WAIT_S": 0.004, "LOOK_S": 0.01, "CALM_S": 0.05}.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def watch(mailbox: Mailbox, notices: list[Notice]) -> Iterator[Callable[..., Sensors]]:
    running: list[Sensors] = []

    def start(*sources: Scripted, **options: float) -> Sensors:
        sensors = Sensors(dict(zip(("image", "audio"), sources, strict=False)), mailbox, notices.append, **options)
        running.append(sensors)
        sensors.start()
        return sensors

    yield start
    for sensors in running:
        sensors.close()


def messages(notices: list[Notice]) -> list[str]:
    return [notice.message for notice in notices]


def test_readings_reach_the_mailbox_and_nothing_is_said(mailbox, notices, watch):
    sensors = watch(Scripted("give", "nothing"))

    until(lambda: mailbox.received["image"] == 1)

    assert mailbox.take("image").tensors["image"][0, 0] == 1
    assert sensors.states["image"].status == "gives"
    assert notices == []


@pytest.mark.usefixtures("quick")
def test_a_source_that_is_gone_is_opened_again_and_both_are_said_once(mailbox, notices, watch):
    source = Scripted("give", "gone", "gone", "gone", "give", "nothing")
    sensors = watch(source)

    until(lambda: mailbox.received["image"] == 2 and len(notices) == 2)

    assert messages(notices) == [
        "camera 0 gives nothing (the cable is out); it is tried again",
        "camera 0 gives again",
    ]
    assert [(notice.about, notice.is_well) for notice in notices] == [("image", False), ("image", True)]
    assert (source.opened, source.closed) == (4, 3)
    assert (sensors.states["image"].failures, sensors.states["image"].opened) == (3, 4)


@pytest.mark.usefixtures("quick")
def test_a_source_that_cannot_be_opened_at_first_is_tried_until_it_can(mailbox, notices, watch):
    sensors = watch(Scripted(*["refuse"] * 5, "give", "nothing"))

    until(lambda: mailbox.received["image"])
    until(lambda: len(notices) == 2)

    assert messages(notices)[0] == "camera 0 gives nothing (no such device); it is tried again"
    assert sensors.states["image"].error == "no such device"


def test_a_source_is_back_within_two_seconds_however_long_it_was_gone(mailbox, notices, watch):
    source = Scripted(*["refuse"] * 6, "give", "nothing")  # 0.1 + 0.2 + 0.4 + 3 * 0.5 s
    watch(source)
    until(lambda: source.opened == 5)  # now the waits are the longest
    started = time.monotonic()

    until(lambda: mailbox.received["image"])

    assert 0.5 < time.monotonic() - started < 2


@pytest.mark.usefixtures("quick")
def test_rubbish_is_skipped_without_opening_again_and_said_once_while_it_comes_and_goes(
    mailbox, notices, watch, monkeypatch
):
    monkeypatch.setattr(module, "CALM_S", 1000.0)
    source = Scripted(*["spoiled", "give"] * 20, "nothing")
    sensors = watch(source)
    until(lambda: mailbox.received["image"] == 20)
    said = messages(notices)
    sensors._posts["image"]._calm_at = 0.0  # the time is over
    source._script[:] = ["give", "nothing"]

    until(lambda: len(notices) == 2)

    assert said == ["camera 0 gives rubbish (a grey picture); it is skipped"]
    assert messages(notices)[1] == "camera 0 gives again"
    assert (sensors.states["image"].spoiled, sensors.states["image"].failures, source.opened) == (20, 0, 1)


@pytest.mark.usefixtures("quick")
def test_a_source_that_gives_only_rubbish_is_opened_again(watch):
    source = Scripted("spoiled")
    sensors = watch(source)

    until(lambda: source.opened >= 3)

    assert sensors.states["image"].spoiled >= 2 * (module.MOST_SPOILED - 1)
    assert source.given == 0


@pytest.mark.usefixtures("quick")
def test_a_stuck_thread_is_replaced_and_what_it_brings_later_does_not_count(mailbox, notices, watch):
    stuck = threading.Event()
    source = Scripted("give", stuck, "give", "nothing")
    sensors = watch(source, stuck_s=0.05)

    until(lambda: mailbox.received["image"] == 2)
    old = next(thread for thread in threading.enumerate() if thread in sensors._posts["image"]._lost)
    stuck.set()
    old.join(PATIENCE_S)

    assert mailbox.received["image"] == 2
    assert mailbox.take("image").tensors["image"][0, 0] == 2
    assert source.closed == 0  # the late thread leaves alone what another one opened
    assert sensors.states["image"].stuck == 1
    assert messages(notices) == [
        "camera 0 gives nothing (it does not answer); it is tried again",
        "camera 0 gives again",
    ]


@pytest.mark.usefixtures("quick")
def test_a_source_that_is_always_stuck_does_not_pile_up_threads(watch):
    stuck = threading.Event()
    source = Scripted(stuck)
    sensors = watch(source, stuck_s=0.02)
    until(lambda: sensors.states["image"].stuck == module.MOST_STUCK)
    look = threading.Event()
    look.wait(0.2)  # the watchdog has looked some more times

    assert source.opened == module.MOST_STUCK
    source._script[:] = ["give"]
    stuck.set()
    until(lambda: source.opened > module.MOST_STUCK and source.given)


@pytest.mark.usefixtures("quick")
def test_opening_may_take_longer_than_reading(watch, mailbox):
    class Slow(Scripted):
        def open(self) -> None:
            time.sleep(0.3)

    sensors = watch(Slow("give", "nothing"), stuck_s=0.05)

    until(lambda: mailbox.received["image"])

    assert sensors.states["image"].stuck == 0


@pytest.mark.usefixtures("quick")
def test_one_stuck_sensor_does_not_hold_the_others_up(mailbox, watch):
    stuck = threading.Event()
    sensors = watch(Scripted(stuck), Scripted("give"))

    until(lambda: mailbox.received["audio"] > 100)

    assert (sensors.states["image"].status, sensors.states["audio"].status) == ("starts", "gives")
    stuck.set()


def test_done_when_every_source_has_ended(mailbox, notices, watch):
    sensors = watch(Scripted("give", "end"), Scripted("end", name="microphone"))
    deadline = time.monotonic() + PATIENCE_S

    while not sensors.done and time.monotonic() < deadline:
        mailbox.wait(PATIENCE_S)
        mailbox.take("image")

    assert sensors.done
    assert {state.status for state in sensors.states.values()} == {"ended"}
    assert messages(notices) == ["a.mp4 has ended"] * 2


def test_who_waits_for_readings_wakes_when_a_source_ends(mailbox, watch):
    source = Scripted("nothing")
    watch(source)
    end = threading.Timer(0.1, source._script.__setitem__, [0, "end"])
    end.start()

    assert mailbox.wait(PATIENCE_S)
    end.join()


@pytest.mark.usefixtures("quick")
def test_a_source_that_has_ended_is_closed_and_left_alone(watch):
    source = Scripted("give", "end")
    sensors = watch(source, stuck_s=0.02)
    until(lambda: sensors.done)
    until(lambda: source.closed == 1)

    threading.Event().wait(0.1)  # many looks of the watchdog, far past stuck_s

    assert (source.opened, source.closed) == (1, 1)
    assert sensors.states["image"].status == "ended"


@pytest.mark.usefixtures("quick")
def test_a_bug_in_a_source_is_reported_with_its_traceback_and_the_source_goes_on(mailbox, notices, watch, caplog):
    watch(Scripted("bug", "bug", "give", "nothing"))

    until(lambda: mailbox.received["image"])
    until(lambda: len(notices) == 2)

    assert messages(notices)[0] == "camera 0 gives nothing (KeyError: 'image'); it is tried again"
    assert len(caplog.records) == 1
    assert "Traceback" in caplog.text


def test_closing_takes_less_than_a_second_even_with_a_stuck_thread_and_closes_the_sources(mailbox):
    stuck = threading.Event()
    good, bad = Scripted("nothing"), Scripted(stuck, name="microphone")
    with Sensors({"image": good, "audio": bad}, mailbox) as sensors:
        until(lambda: good.opened and bad.opened)
        started = time.monotonic()
    took_s = time.monotonic() - started
    stuck.set()

    assert took_s < 1.5
    assert good.closed == 1
    assert sensors.states["image"].status == "starts"


@pytest.mark.usefixtures("quick")
def test_thousands_of_restarts_leave_nothing_behind(watch, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.0)
    source = Scripted("gone")
    watch(source)
    until(lambda: source.opened > 200)
    tracemalloc.start()
    try:
        gc.collect()
        before, threads, opened = tracemalloc.get_traced_memory()[0], threading.active_count(), source.opened
        until(lambda: source.opened > opened + 3000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert grown < 20_000  # bytes; seven for each restart would be seen
    assert threading.active_count() == threads
