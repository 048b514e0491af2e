"""Lanes: the parts of one query side by side, each on a core of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter, sleep
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
_here = threading.local()  # whether this thread is at a job of some lanes
_GET_CORE = getattr(ctypes.CDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None  # Linux


class _Done(NamedTuple):
    result: Any
    error: BaseException | None
    took_ms: float


class Lanes:
    """So many jobs at a time: one in the thread that gives them, the others in threads of these lanes.

    Those threads are kept off the core of the one that gives the jobs, and off each other's. A scheduler left to itself
    sees to that only at its next tick, 4 ms, where it takes an idle core for a busy one: the halted cores of a virtual
    machine count as preempted. Threads that a job starts by itself are not dealt out.

    Args:
        count: 1 or more. One lane has no threads; those of others start with the first jobs that need them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._took_ms: dict[str, float] = {}  # the last time of each job
        self._forget()

    def _forget(self) -> None:
        """No threads, whatever there was: a process that was forked has none of its parent's."""
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._jobs: queue.SimpleQueue[Any] | None = None  # of functions; None ends a thread
        self._threads: list[int] = []  # their numbers, as the system has them
        self._dealt: tuple[int, set[int]] | None = None  # the core that they are kept off, and those that there are

    def run(self, jobs: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, float]]:
        """Do all the jobs, the longest of the last time here, the others beside it; any thread may call.

        A job may call it too: its own jobs are done one after the other, since the lanes are taken.

        Returns:
            The result of each job and its milliseconds, in the order of `jobs`.

        Raises:
            BaseException: what a job raised, once all have ended; of several the first in the order of `jobs`, but
                sooner what ends the program. After a ctrl-C here, jobs that have not begun are not done.
        """
        if self.count == 1 or len(jobs) < 2 or getattr(_here, "is_at_work", False):
            done = {name: _do(work) for name, work in jobs.items()}
        else:
            done = self._beside(jobs)
        if errors := [each.error for each in map(done.__getitem__, jobs) if each.error is not None]:
            done.clear()  # with the error it would be a circle, which holds the jobs' tensors
            try:
                raise min(errors, key=lambda error: isinstance(error, Exception))
            finally:
                del errors
        took_ms = {name: done[name].took_ms for name in jobs}
        self._took_ms |= took_ms
        return {name: done[name].result for name in jobs}, took_ms

    def close(self) -> None:
        """End the threads once their jobs are done; twice is fine, and `run` starts new ones."""
        with self._starting:
            jobs, self._jobs = self._jobs, None
        if jobs is not None:
            _end(jobs, self.count - 1)

    def _beside(self, jobs: Mapping[str, Callable[[], Any]]) -> dict[str, _Done]:
        done: dict[str, _Done] = {}
        longest, *others = sorted(jobs, key=lambda name: -self._took_ms.get(name, 0.0))
        left, beside, taking = deque(others), list[str](), threading.Lock()
        caller, ended = threading.get_ident(), queue.SimpleQueue[None]()

        def do(name: str) -> None:
            done[name] = _do(jobs[name])
            ended.put(None)

        def take() -> str | None:
            with taking:
                if not left:
                    return None
                name = left.popleft()
                if threading.get_ident() != caller:
                    beside.append(name)
                return name

        def help_out() -> None:
            while (name := take()) is not None:
                do(name)

        waiting = self._started()
        for _ in range(min(self.count, len(jobs)) - 1):
            waiting.put(help_out)
        try:
            _here.is_at_work = True
            do(longest)
            help_out()
            while len(done) < len(jobs):
                ended.get()
        except BaseException:  # a ctrl-C: what has begun beside it still uses memory of the caller
            with taking:
                left.clear()
            while any(name not in done for name in beside):
                sleep(0.001)
            raise
        finally:
            _here.is_at_work = False
        return done

    def _started(self) -> queue.SimpleQueue[Any]:
        if self._process != os.getpid():
            self._forget()
        with self._starting:
            if self._jobs is None:
                self._threads, self._jobs = _start(self.count - 1)
                self._dealt = None
                weakref.finalize(self, _end, self._jobs, self.count - 1)  # the threads know the queue only
            if _GET_CORE is not None and (dealt := (int(_GET_CORE()), os.sched_getaffinity(0))) != self._dealt:
                self._dealt = dealt
                _deal_out(self._threads, *dealt)
            return self._jobs


def _start(count: int) -> tuple[list[int], queue.SimpleQueue[Any]]:
    """So many threads, and where they take their jobs from."""
    jobs, begun = queue.SimpleQueue[Any](), queue.SimpleQueue[int]()
    try:
        for lane in range(count):
            threading.Thread(target=_lane, args=(jobs, begun), name=f"edgefuse lane {lane + 1}", daemon=True).start()
        return [begun.get() for _ in range(count)], jobs
    except BaseException:  # as where no more threads are allowed
        _end(jobs, count)
        raise


def _lane(jobs: queue.SimpleQueue[Any], begun: queue.SimpleQueue[int]) -> None:
    _here.is_at_work = True
    begun.put(threading.get_native_id())
    while (job := jobs.get()) is not None:
        job()
        del job  # not to hold on to a query's tensors until the next one


def _do(work: Callable[[], Any]) -> _Done:
    began = perf_counter()
    try:
        result = work()
    except BaseException as error:  # for the one who waits
        return _Done(None, error, (perf_counter() - began) * 1e3)
    return _Done(result, None, (perf_counter() - began) * 1e3)


def _end(jobs: queue.SimpleQueue[Any], threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


def _deal_out(threads: list[int], taken: int, cores: set[int]) -> None:
    """Every core but the one that is taken goes to one of the threads, which keeps to those that it got."""
    left = sorted(cores - {taken}) or [taken]
    for place, thread in enumerate(threads):
        with contextlib.suppress(OSError):  # of a core that has gone meanwhile
            os.sched_setaffinity(thread, left[place % len(left) :: len(threads)])
