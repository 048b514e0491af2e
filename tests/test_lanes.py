"""Lanes: every job is done once, side by side, its error comes back, and no two share a core while others idle."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime import lanes as module
from edgefuse.runtime.lanes import Lanes
from tests.waiting import until

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture
def three() -> Iterator[Lanes]:
    lanes = Lanes(3)
    yield lanes
    lanes.close()


def named(prefix: str = "edgefuse lane") -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


@given(st.integers(1, 5), st.dictionaries(st.text(max_size=3), st.integers(), max_size=8))
def test_every_job_is_done_once_and_results_are_in_the_order_of_the_jobs(count, numbers):
    lanes, done = Lanes(count), []
    jobs = {name: lambda name=name, number=number: done.append(name) or 2 * number for name, number in numbers.items()}

    results, took_ms = lanes.run(jobs)

    assert list(results.items()) == [(name, 2 * number) for name, number in numbers.items()]
    assert list(took_ms) == list(numbers)
    assert all(time_ms >= 0 for time_ms in took_ms.values())
    assert sorted(done) == sorted(numbers)
    lanes.close()


def test_jobs_run_at_the_same_time(three):
    """Each waits for the others, so one after the other they would never end."""
    together = threading.Barrier(3, timeout=10)

    results, _ = three.run({str(k): together.wait for k in range(3)})

    assert sorted(results.values()) == [0, 1, 2]


def test_one_lane_is_no_thread():
    lanes, before = Lanes(1), threading.active_count()

    results, _ = lanes.run({"a": threading.get_ident, "b": threading.get_ident})

    assert set(results.values()) == {threading.get_ident()}
    assert threading.active_count() == before


def test_a_single_job_runs_where_it_is_given(three):
    assert three.run({"a": threading.get_ident})[0] == {"a": threading.get_ident()}
    assert three.run({}) == ({}, {})


def test_the_longest_of_the_last_time_is_begun_first(three):
    begun: list[str] = []

    def job(name: str, seconds: float):
        def work() -> None:
            begun.append(name)
            time.sleep(seconds)

        return work

    two = Lanes(2)
    jobs = {"short": job("short", 0.0), "middle": job("middle", 0.03), "long": job("long", 0.06)}
    two.run(jobs)
    begun.clear()
    two.run(jobs)
    two.close()

    assert set(begun[:2]) == {"long", "middle"}


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_is_raised_once_all_have_ended_and_the_first_of_several(count):
    lanes, ended = Lanes(count), []

    def fail(name: str):
        raise ValueError(name)

    jobs = {
        "a": lambda: ended.append("a"),
        "b": lambda: fail("b"),
        "c": lambda: fail("c"),
        "d": lambda: time.sleep(0.05) or ended.append("d"),
    }
    with pytest.raises(ValueError, match="b"):
        lanes.run(jobs)

    assert sorted(ended) == ["a", "d"]
    assert lanes.run({"e": lambda: 1, "f": lambda: 2})[0] == {"e": 1, "f": 2}, "they go on after an error"
    lanes.close()


@pytest.mark.parametrize("count", [2, 3])
def test_a_job_may_give_jobs_itself_which_it_does_one_after_the_other(count):
    lanes, together = Lanes(count), threading.Barrier(2, timeout=10)

    def job(name: str) -> dict[str, int]:
        together.wait()  # so that no lane is free for what it gives
        return lanes.run({name + str(k): threading.get_ident for k in range(3)})[0]

    for _ in range(20):
        results, _ = lanes.run({name: lambda name=name: job(name) for name in "ab"})

        assert [list(inner) for inner in results.values()] == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
        assert all(len(set(inner.values())) == 1 for inner in results.values())
    lanes.close()


def test_what_ends_the_program_is_raised_sooner_than_another_error(three):
    def fail(error: BaseException):
        raise error

    with pytest.raises(KeyboardInterrupt):
        three.run({"a": lambda: fail(ValueError("a")), "b": lambda: fail(KeyboardInterrupt())})


def test_the_longest_is_done_where_the_jobs_are_given(three):
    def long() -> int:
        time.sleep(0.02)
        return threading.get_ident()

    jobs = {"short": threading.get_ident, "long": long, "other": threading.get_ident}
    three.run(jobs)

    assert all(three.run(jobs)[0]["long"] == threading.get_ident() for _ in range(10))


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_ctrl_c_in_a_job_is_raised_once_the_others_have_ended():
    lanes, ended = Lanes(2), []

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(10)

    jobs = {name: lambda name=name: time.sleep(0.1) or ended.append(name) for name in "bc"}
    lanes._took_ms = {"here": 9.0}  # so that it is done here
    with pytest.raises(KeyboardInterrupt):
        lanes.run({"here": interrupted, **jobs})

    assert sorted(ended) == ["b", "c"]
    lanes.close()


@pytest.mark.usefixtures("interruptible")
def test_a_ctrl_c_while_waiting_is_raised_once_what_has_begun_has_ended():
    lanes, ended = Lanes(2), []

    def beside() -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        ended.append("b")

    lanes._took_ms = {"here": 9.0}
    with pytest.raises(KeyboardInterrupt):
        lanes.run({"here": lambda: time.sleep(0.05), "b": beside})

    assert ended == ["b"]
    assert lanes.run({"d": lambda: 1, "e": lambda: 2})[0] == {"d": 1, "e": 2}
    lanes.close()


def test_where_no_thread_can_start_the_error_is_told_and_later_it_is_tried_again(monkeypatch):
    lanes, start = Lanes(3), threading.Thread.start
    left = [1]

    def refuse(self: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(self)

    before = set(named())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            lanes.run({"a": lambda: 1, "b": lambda: 2})

    until(lambda: set(named()) <= before)
    assert lanes.run({"a": lambda: 1, "b": lambda: 2})[0] == {"a": 1, "b": 2}
    lanes.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_was_forked_starts_threads_of_its_own(three):
    together = threading.Barrier(3, timeout=10)
    jobs = {str(k): together.wait for k in range(3)}
    three.run(jobs)
    threads = list(three._threads)

    child = os.fork()
    if not child:
        status = 1
        try:
            three.run(jobs)
            status = 0 if three._threads != threads else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(three.run(jobs)[0].values()) == [0, 1, 2]
    assert three._threads == threads


def test_a_failed_job_leaves_no_circle_that_holds_its_tensors(three):
    class Tensor:
        pass

    def fail(tensor: Tensor) -> None:
        raise ValueError("it does not fit")

    gc.disable()
    try:
        tensor = Tensor()
        gone = weakref.ref(tensor)
        with contextlib.suppress(ValueError):
            three.run({name: partial(fail, tensor) for name in "abc"})
        del tensor
        until(lambda: gone() is None)
    finally:
        gc.enable()


def test_several_threads_may_give_jobs_at_once(three):
    found: dict[int, dict[str, int]] = {}

    def ask(number: int) -> None:
        for _ in range(50):
            found[number] = three.run({str(k): lambda k=k: 10 * number + k for k in range(4)})[0]

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()

    assert found == {number: {str(k): 10 * number + k for k in range(4)} for number in range(4)}


def test_threads_end_when_they_are_closed_or_forgotten_and_start_again():
    lanes, before = Lanes(3), set(named())
    jobs = {"a": lambda: 1, "b": lambda: 2}
    lanes.run(jobs)
    assert len(set(named()) - before) == 2

    lanes.close()
    lanes.close()
    until(lambda: set(named()) <= before)
    lanes.run(jobs)
    assert len(set(named()) - before) == 2
    del lanes
    gc.collect()
    until(lambda: set(named()) <= before)


def test_a_query_is_not_held_on_to(three):
    class Tensor:
        pass

    tensor = Tensor()
    count = len(gc.get_referrers(tensor))
    three.run({name: lambda tensor=tensor: None for name in "abc"})
    until(lambda: len(gc.get_referrers(tensor)) == count)


def test_many_runs_do_not_grow(three):
    """But for what Python keeps to use again, at first more and more of it."""
    jobs, kept = dict.fromkeys("abc", lambda: None), []
    tracemalloc.start()
    for _ in range(10):
        for _ in range(300):
            three.run(jobs)
        time.sleep(0.05)
        kept.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()

    assert min(kept[5:]) < max(kept[:5]) + 2000  # an object kept of each run would take 10 kB more


@pytest.mark.parametrize(
    ("cores", "taken", "threads", "shares"),
    [
        ({0, 1}, 1, 1, [{0}]),
        ({0, 1}, 0, 1, [{1}]),
        (set(range(6)), 2, 2, [{0, 3, 5}, {1, 4}]),
        ({0, 1}, 0, 2, [{1}, {1}]),
        ({3}, 3, 2, [{3}, {3}]),
    ],
)
def test_every_core_but_the_callers_goes_to_one_thread(monkeypatch, cores, taken, threads, shares):
    told: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, share: told.append((thread, set(share))))

    module._deal_out([100 + k for k in range(threads)], taken, cores)

    assert told == [(100 + k, share) for k, share in enumerate(shares)]


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_the_thread_of_a_second_lane_keeps_off_the_core_that_the_caller_is_on_now(monkeypatch):
    lanes, together = Lanes(2), threading.Barrier(2, timeout=10)

    def allowed() -> tuple[int, set[int]]:
        together.wait()
        return threading.get_ident(), os.sched_getaffinity(0)

    for core in (*CORES[:2], CORES[0]):
        monkeypatch.setattr(module, "_GET_CORE", lambda core=core: core)
        shares = dict(lanes.run({"a": allowed, "b": allowed})[0].values())
        assert shares.pop(threading.get_ident()) == set(CORES), "the caller stays free"
        assert list(shares.values()) == [set(CORES) - {core}]
    lanes.close()


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_a_caller_that_was_let_off_its_only_core_lets_its_helper_off_it(monkeypatch):
    monkeypatch.setattr(module, "_GET_CORE", lambda: CORES[0])
    lanes, together = Lanes(2), threading.Barrier(2, timeout=10)

    def allowed() -> set[int]:
        together.wait()
        return os.sched_getaffinity(0)

    try:
        os.sched_setaffinity(0, {CORES[0]})
        bound = lanes.run({"a": allowed, "b": allowed})[0]
    finally:
        os.sched_setaffinity(0, CORES)
    free = lanes.run({"a": allowed, "b": allowed})[0]
    lanes.close()

    assert list(bound.values()) == [{CORES[0]}, {CORES[0]}]
    assert sorted(map(len, free.values())) == [len(CORES) - 1, len(CORES)]


def test_a_system_that_does_not_tell_its_cores_lets_the_threads_be(monkeypatch):
    monkeypatch.setattr(module, "_GET_CORE", None)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("not asked for"))
    lanes = Lanes(2)

    assert lanes.run({"a": lambda: 1, "b": lambda: 2})[0] == {"a": 1, "b": 2}
    lanes.close()
