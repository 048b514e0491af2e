"""The race: every peer alone in a process that stays, asked in turns; and its cold starts, one after the other."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from edgefuse.benchmarks.peers.contract import Job, Query
from edgefuse.benchmarks.peers.environments import NotMeasuredError, last_line

LONGEST_S = 900.0  # until a line must come: torch.compile is slow
PAUSE_S = 0.02  # before each query, so that the threads of the one before have ended their busy waiting


@dataclass(frozen=True, slots=True)
class Start:
    """How a peer's process is started."""

    name: str
    python: Path  # of its environment
    module: str
    option: str
    log: Path  # what it says on stderr


class Process(AbstractContextManager["Process"]):
    """A peer's process, which answers queries until it is closed.

    Raises:
        NotMeasuredError: by `ask`, where it ended or does not answer.
    """

    def __init__(self, start: Start, job: Job) -> None:
        self._start = start
        module = ["-m", "edgefuse.benchmarks.peers.worker", start.module, start.option, json.dumps(asdict(job))]
        threads = {"OMP_NUM_THREADS": str(job.threads)}
        with start.log.open("wb") as log:
            self._child = subprocess.Popen(
                [str(start.python), *module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **threads},
            )

    def ask(self, queries: Sequence[Query]) -> dict[str, Any]:
        """{scores [B][C], host_ms, model_ms, torch}, or {error}."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        line = ""
        try:
            self._child.stdin.write(json.dumps(list(queries)) + "\n")
            self._child.stdin.flush()
            if select.select([self._child.stdout], [], [], LONGEST_S)[0]:  # one line a time: none waits in the buffer
                line = self._child.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            why = last_line(self._start.log.read_text(errors="replace")) or f"no answer in {LONGEST_S:.0f} s"
            raise NotMeasuredError(f"{self._start.name} does not answer: {why}")
        told: dict[str, Any] = json.loads(line)
        return told

    def pss_bytes(self) -> int:
        """Memory of the process and its children, what they share with others divided by how many share it."""
        process = psutil.Process(self._child.pid)
        return sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True)))

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()


@dataclass(slots=True)
class Times:
    """What a peer did in a race."""

    answers: list[dict[str, Any]] = field(default_factory=list)  # one per timed call

    def ms(self, *steps: str) -> list[float]:
        """Milliseconds of each call."""
        return [sum(answer[step] for step in steps or ("host_ms", "model_ms")) for answer in self.answers]


def race(
    starts: Sequence[Start], job: Job, calls: Sequence[Sequence[Query]], warmup: int
) -> tuple[dict[str, Times], dict[str, str]]:
    """Ask every peer each call in turn, each first equally often; the first `warmup` calls are not kept.

    Returns:
        What each peer did, and why those that fell out did.
    """
    times, fallen = {start.name: Times() for start in starts}, {}
    running = {start.name: Process(start, job) for start in starts}
    try:
        for number, call in enumerate(calls):
            order = list(running)
            turn = number % len(order) if order else 0
            for name in order[turn:] + order[:turn]:
                time.sleep(PAUSE_S)
                try:
                    answer = running[name].ask(call)
                    if "error" in answer:
                        raise NotMeasuredError(f"{name} cannot answer: {answer['error']}")
                except NotMeasuredError as error:
                    fallen[name] = str(error)
                    running.pop(name).__exit__()
                    del times[name]
                    continue
                if number >= warmup:
                    times[name].answers.append(answer)
    finally:
        for process in running.values():
            process.__exit__()
    return times, fallen


def first_answers(
    starts: Sequence[Start], job: Job, query: Query, runs: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Start each peer `runs` times, one after the other in rounds, and ask once: seconds from nothing, and memory then.

    A process is alone while it is weighed: peers of one environment would share its libraries. It is not counted once
    before, which brings its files into the page cache and fills compilers' own caches.

    Returns:
        peer -> {median_s, runs_s, pss_bytes, torch, answers_without: sensors that it can do without}, and why others
        are not there.
    """
    found: dict[str, list[dict[str, Any]]] = {start.name: [] for start in starts}
    fallen: dict[str, str] = {}
    for _ in range(runs + 1):
        for start in starts:
            if start.name not in fallen:
                try:
                    found[start.name].append(_first_answer(start, job, query))
                except NotMeasuredError as error:
                    fallen[start.name] = str(error)
    told = {}
    for name, starts_of in found.items():
        if name not in fallen:
            seconds = [start["seconds"] for start in starts_of[1:]]
            told[name] = {
                "median_s": statistics.median(seconds),
                "runs_s": seconds,
                "pss_bytes": int(statistics.median(start["pss_bytes"] for start in starts_of[1:])),
                "torch": starts_of[0]["torch"],
                "answers_without": starts_of[0]["answers_without"],
            }
    return told, fallen


def _first_answer(start: Start, job: Job, query: Query) -> dict[str, Any]:
    began = time.perf_counter()
    with Process(start, job) as process:
        answer = process.ask([query])
        seconds = time.perf_counter() - began
        if "error" in answer:
            raise NotMeasuredError(f"{start.name} cannot answer: {answer['error']}")
        pss = process.pss_bytes()
        without = [sensor for sensor in query if len(query) > 1 and "error" not in process.ask([_less(query, sensor)])]
    return {"seconds": seconds, "pss_bytes": pss, "torch": answer["torch"], "answers_without": without}


def _less(query: Mapping[str, str], sensor: str) -> dict[str, str]:
    return {name: value for name, value in query.items() if name != sensor}
