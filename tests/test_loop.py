"""The loop on a clock of its own, over a backend that writes down what it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefuse.runtime.backend import Outcome, Tensors
from edgefuse.runtime.bundle import BundleInfo
from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.errors import BackendError, BundleError, EngineError
from edgefuse.runtime.keeper import RETRY_MS
from edgefuse.runtime.loop import LOOK_AROUND_S, Loop
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.predictor import softmax

MODALITIES = ("image", "audio", "text")
LIMITS_MS = {"image": 100.0, "audio": 300.0, "text": None}


@dataclass
class Info:
    """What the loop reads of a contract."""

    modalities: tuple[str, ...] = MODALITIES
    labels: tuple[str, ...] = ("no", "yes")


@dataclass
class Device:
    """A backend and its pipeline; `works` and `opens` are what goes wrong next, `logits` the next answer."""

    runs: list[tuple[dict[str, int], list[int]]] = field(default_factory=list)  # what was encoded, presence
    logits: list[float] = field(default_factory=lambda: [0.0, 1.0])
    works: Exception | None = None
    opens: Exception | None = None
    opened: int = 0
    closed: int = 0

    def open(self) -> Device:
        if self.opens is not None:
            raise self.opens
        self.opened += 1
        return self

    def pipeline(self) -> Device:
        return self

    def run(self, fresh: Mapping[str, Tensors], presence: NDArray[np.float32]) -> Outcome:
        if self.works is not None:
            raise self.works
        self.runs.append(({m: int(tensors["value"][0]) for m, tensors in fresh.items()}, presence[0].tolist()))
        stages_ms = dict.fromkeys((*fresh, "head"), 1.0)
        return Outcome(np.array(self.logits, np.float32), presence[0] / presence.sum(), stages_ms)

    def close(self) -> None:
        self.closed += 1


class Rig:
    """A loop, its mailbox, its device, its clock and what it said."""

    def __init__(self) -> None:
        self.now_ms = 1000.0
        self.clock = lambda: int(self.now_ms * 1e6)
        self.device = Device()
        self.notices: list[Notice] = []
        self.mailbox = Mailbox(lambda modality: {"value": np.zeros(1)}, MODALITIES)
        self.writers = {m: self.mailbox.writer(m) for m in MODALITIES}
        info: BundleInfo = Info()  # type: ignore[assignment]
        self.loop = Loop(
            info,
            self.device.open,  # type: ignore[arg-type]
            self.mailbox,
            limits_ms=LIMITS_MS,
            clock=lambda: self.clock(),
            on_notice=self.notices.append,
        )

    def put(self, modality: str, value: int, age_ms: float = 0.0) -> None:
        self.writers[modality].tensors["value"][0] = value
        self.writers[modality].put(int((self.now_ms - age_ms) * 1e6))

    def step(self, later_ms: float = 0.0) -> Decision | None:
        self.now_ms += later_ms
        return self.loop.step()

    @property
    def said(self) -> list[tuple[str, bool]]:
        return [(notice.about, notice.is_well) for notice in self.notices]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_only_what_is_new_is_encoded_and_the_rest_is_kept(rig: Rig) -> None:
    rig.put("text", 1)
    rig.put("image", 2)
    rig.step()
    rig.put("image", 3)
    rig.step(10)
    rig.put("audio", 4)
    rig.step(10)
    encoded, presence = zip(*rig.device.runs, strict=True)
    assert list(encoded) == [{"image": 2, "text": 1}, {"image": 3}, {"audio": 4}]
    assert list(presence) == [[1, 0, 1], [1, 0, 1], [1, 1, 1]]


def test_nothing_new_is_no_decision(rig: Rig) -> None:
    assert rig.step() is None
    rig.put("text", 1)
    assert rig.step() is not None
    assert rig.step(10) is None
    assert len(rig.device.runs) == 1


def test_a_decision_tells_ages_skew_and_what_was_dropped(rig: Rig) -> None:
    rig.device.logits = [2.0, -1.0]
    rig.put("text", 1, age_ms=5000)
    rig.put("image", 1)
    rig.put("image", 2, age_ms=10)
    decision = rig.step(30)
    assert decision is not None
    assert decision.age_ms == {"image": 40.0, "text": 5030.0}
    assert decision.skew_ms == 4990.0
    assert decision.presence == {"image": True, "audio": False, "text": True}
    assert decision.weights == {"image": 0.5, "audio": 0.0, "text": 0.5}
    assert decision.dropped == {"image": 1, "audio": 0, "text": 0}
    assert decision.label == "no"
    np.testing.assert_allclose(decision.probabilities, softmax(np.array([2.0, -1.0])), rtol=1e-12)
    assert decision.confidence == pytest.approx(decision.probabilities[0])
    assert decision.t_ms == 1030.0
    assert list(decision.stages_ms) == ["image", "text", "head", "total"]


def test_a_reading_counts_until_its_limit_and_that_moment_is_told(rig: Rig) -> None:
    rig.put("text", 1)
    rig.put("image", 2)
    rig.step()
    change_ns = rig.loop.next_change_ns()
    assert change_ns == int(1100e6) + 1
    assert rig.step(100.0) is None  # as old as its limit: it counts still
    rig.now_ms = 1100.1
    decision = rig.step()
    assert decision is not None
    assert decision.presence == {"image": False, "audio": False, "text": True}
    assert "image" not in decision.age_ms
    assert rig.device.runs[-1] == ({}, [0, 0, 1])
    assert rig.loop.next_change_ns() is None


def test_a_reading_that_was_too_old_when_it_came_is_never_encoded(rig: Rig) -> None:
    rig.put("image", 1, age_ms=101)
    assert rig.step() is None
    rig.put("text", 2)
    rig.step()
    assert rig.device.runs == [({"text": 2}, [0, 0, 1])]


def test_what_is_withdrawn_is_missing_at_once_until_it_comes_again(rig: Rig) -> None:
    rig.put("text", 1)
    rig.put("image", 2)
    rig.step()
    rig.writers["text"].clear()
    decision = rig.step()
    assert decision is not None
    assert decision.presence["text"] is False
    rig.put("text", 3)
    rig.step()
    assert rig.device.runs[-1] == ({"text": 3}, [1, 0, 1])


def test_blindness_is_said_once_and_so_is_its_end(rig: Rig) -> None:
    rig.put("image", 1)
    rig.step()
    assert rig.step(200) is None
    assert rig.step(200) is None
    rig.put("image", 2)
    assert rig.step() is not None
    assert rig.said == [("loop", False), ("loop", True)]


def test_a_backend_that_failed_is_opened_again_and_gets_everything_anew(rig: Rig) -> None:
    rig.put("text", 1)
    rig.put("audio", 2)
    rig.step()
    rig.device.works = BackendError("CUDA_ERROR_LAUNCH_FAILED")
    rig.put("audio", 3)
    assert rig.step(10) is None
    assert rig.device.closed == 1
    assert rig.step(RETRY_MS[0] - 1) is None
    assert rig.device.opened == 1  # not yet
    rig.device.works = None
    decision = rig.step(1)
    assert decision is not None
    assert rig.device.opened == 2
    assert rig.device.runs[-1] == ({"audio": 3, "text": 1}, [0, 1, 1])
    assert rig.said == [("backend", False), ("backend", True)]
    assert "CUDA_ERROR_LAUNCH_FAILED" in rig.notices[0].message


@pytest.mark.parametrize("error", [BackendError("no memory"), EngineError("no driver"), BundleError("no disk")])
def test_a_backend_that_cannot_be_opened_again_is_tried_ever_more_slowly(rig: Rig, error: Exception) -> None:
    rig.put("text", 1)
    rig.step()
    rig.device.works = rig.device.opens = error if isinstance(error, BackendError) else BackendError("gone")
    rig.device.opens = error
    rig.put("text", 2)
    rig.step()
    waits = []
    for _ in range(6):
        change_ns = rig.loop.next_change_ns()
        assert change_ns is not None
        waits.append(round(change_ns / 1e6 - rig.now_ms))
        rig.now_ms = change_ns / 1e6
        assert rig.step() is None
    assert waits == [100, 200, 400, 800, 1000, 1000]
    assert rig.said == [("backend", False)]


def test_a_backend_that_stays_away_ends_the_loop_so_that_the_process_can_be_started_again(rig: Rig) -> None:
    rig.put("text", 1)
    rig.step()
    rig.device.works = rig.device.opens = BackendError("cudaErrorIllegalAddress")
    rig.put("text", 2)
    rig.step()
    began_ms = rig.now_ms
    while rig.now_ms <= began_ms + 60_000:
        assert rig.step() is None
        rig.now_ms += 500
    rig.now_ms += 1000
    with pytest.raises(BackendError, match=r"for 60 s \(cudaErrorIllegalAddress\); start this program again"):
        rig.step()


def test_a_backend_that_cannot_be_opened_at_all_is_the_callers_error(rig: Rig) -> None:
    rig.device.opens = EngineError("no engine")
    with pytest.raises(EngineError):
        rig.loop.open()
    rig.put("text", 1)
    with pytest.raises(EngineError):
        rig.loop.step()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_a_number_is_no_decision(rig: Rig, value: float) -> None:
    rig.device.logits = [0.0, value]
    rig.put("text", 1)
    assert rig.step() is None
    assert rig.said == [("backend", False)]
    rig.device.logits = [0.0, 1.0]
    assert rig.step(RETRY_MS[0]) is not None
    assert rig.said == [("backend", False), ("backend", True)]


def test_closing_twice_frees_once(rig: Rig) -> None:
    with rig.loop as loop:
        loop.open()
        loop.close()
    assert rig.device.closed == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(MODALITIES), st.floats(0, 400)),
        st.tuples(st.just("clear"), st.sampled_from(MODALITIES), st.just(0.0)),
        st.tuples(st.just("step"), st.just(""), st.floats(0, 400)),
    ),
    max_size=40,
)


@given(STEPS)
def test_presence_is_what_a_plain_account_says(steps: list[tuple[str, str, float]]) -> None:
    rig = Rig()
    captured_ms: dict[str, float] = {}
    newest: dict[str, int] = {}
    encoded: dict[str, int] = {}
    counted: set[str] = set()
    for number, (what, modality, amount) in enumerate(steps):
        if what == "put":
            rig.put(modality, number, age_ms=amount)
            captured_ms[modality], newest[modality] = rig.now_ms - amount, number
        elif what == "clear":
            rig.writers[modality].clear()
            captured_ms.pop(modality, None)
        else:
            runs = len(rig.device.runs)
            decision = rig.step(amount)
            there = {m for m in captured_ms if _is_young(rig.now_ms - captured_ms[m], LIMITS_MS[m])}
            is_due = bool(there) and (there != counted or any(encoded.get(m) != newest[m] for m in there))
            assert len(rig.device.runs) - runs == is_due == (decision is not None)
            counted = there
            if decision is not None:
                fresh, presence = rig.device.runs[-1]
                encoded |= fresh
                assert presence == [m in there for m in MODALITIES]
                assert all(encoded[m] == newest[m] for m in there)
                assert decision.presence == {m: m in there for m in MODALITIES}


def _is_young(age_ms: float, limit_ms: float | None) -> bool:
    return limit_ms is None or int(age_ms * 1e6) <= limit_ms * 1e6


@contextmanager
def _running(rig: Rig) -> Iterator[list[Decision]]:
    """The decisions of a thread that iterates, on the real clock; it has ended afterwards."""
    found: list[Decision] = []
    stop = threading.Event()
    rig.clock = time.monotonic_ns
    thread = threading.Thread(target=lambda: found.extend(rig.loop.decisions(stop)))
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        rig.mailbox.poke()
        thread.join(5)
        assert not thread.is_alive()


def test_iterating_wakes_when_a_reading_gets_too_old(rig: Rig) -> None:
    writer = rig.writers["image"]
    with _running(rig):
        rig.writers["text"].put(time.monotonic_ns())
        writer.put(time.monotonic_ns())
        deadline = time.monotonic() + 5
        while ({}, [0, 0, 1]) not in rig.device.runs:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert [1, 0, 1] in [presence for _, presence in rig.device.runs]


def test_waiting_takes_no_cpu(rig: Rig) -> None:
    rig.loop.open()
    rig.device.works = rig.device.opens = BackendError("gone")
    with _running(rig):
        rig.writers["text"].put(time.monotonic_ns())
        begin = time.process_time()
        time.sleep(2 * LOOK_AROUND_S)
        assert time.process_time() - begin < 0.2


def test_it_ends_when_the_sensors_have_ended_after_their_last_reading(rig: Rig) -> None:
    rig.put("text", 1)
    decisions = list(rig.loop.decisions(threading.Event(), lambda: True))
    assert len(decisions) == 1


def test_presence_is_right_where_a_failed_run_had_changed_it(rig: Rig) -> None:
    """A text comes, the run with it fails, and it is withdrawn: the next run is as the last one that went well."""
    rig.put("audio", 1)
    rig.step()
    rig.put("text", 2)
    rig.device.works = BackendError("gone")
    assert rig.step() is None
    rig.writers["text"].clear()
    rig.device.works = None
    decision = rig.step(RETRY_MS[0])
    assert decision is not None
    assert rig.device.runs[-1] == ({"audio": 1}, [0, 1, 0])
    assert decision.presence == {"image": False, "audio": True, "text": False}


def test_a_backend_whose_parts_do_not_load_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Device:
        raise BackendError("no memory")

    monkeypatch.setattr(rig.device, "pipeline", fail)
    with pytest.raises(BackendError, match="no memory"):
        rig.loop.open()
    assert (rig.device.opened, rig.device.closed) == (1, 1)


def test_logits_far_apart_have_probabilities(rig: Rig) -> None:
    rig.device.logits = [-1000.0, 2000.0]
    rig.put("text", 1)
    decision = rig.step()
    assert decision is not None
    assert decision.probabilities == (0.0, 1.0)


def test_a_decision_stays_what_it_was(rig: Rig) -> None:
    rig.put("image", 1)
    first = rig.step()
    assert first is not None
    before = repr(first)
    for number in range(3):
        rig.put("image", number)
        rig.put("text", number)
    rig.step(50)
    rig.step(500)
    assert repr(first) == before


def test_each_failure_and_each_recovery_is_said_once(rig: Rig) -> None:
    for round_number in range(2):
        rig.put("text", round_number)
        rig.device.works = BackendError("gone")
        assert rig.step() is None
        rig.device.works = None
        assert rig.step(RETRY_MS[0]) is not None  # the second one is the first in a row again
        for number in range(3):
            rig.put("text", 10 + number)
            assert rig.step(1) is not None
    assert rig.said == [("backend", False), ("backend", True)] * 2
