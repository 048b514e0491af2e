"""Runs the loop over replayed sensors while things go wrong by a script, many of each kind in one run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgefuse.benchmarks import fault_injection as inject
from edgefuse.benchmarks.fault_check import Evidence
from edgefuse.benchmarks.fault_injection import Fault, LoggedMailbox, Replayed, Script
from edgefuse.runtime.backend import Backend, Tensors
from edgefuse.runtime.bundle import BundleInfo
from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.loop import LIMITS_MS, Loop
from edgefuse.runtime.pace import HOLD_MS, Pace
from edgefuse.runtime.predictor import softmax
from edgefuse.runtime.sensors import Sensors

RATES_HZ = {"image": 30.0, "audio": 10.0}  # of the replayed sensors
LEAD_S = 2.0  # before the first fault: the pace learns what is normal


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    name: str
    about: str  # what it happens to
    lane: str  # faults of one lane come one after the other, lanes run side by side
    seconds: tuple[float, float]  # shortest and longest
    calm_s: float  # before the next one of its lane, so that it is over and taken back by then


@dataclass(frozen=True, slots=True)
class Setting:
    """How long things last."""

    kinds: tuple[Kind, ...]
    limits_ms: Mapping[str, float | None]  # of the loop
    stuck_s: float  # of the watchdog
    hold_ms: float  # of the pace
    lead_s: float = LEAD_S
    longest_say_s: float = 2.0  # from a change until it is said, beyond what watchdog and pace wait
    stage_ms: float | None = None  # what a part is said to take; None tells what it took


def kinds(limit_s: float, stuck_s: float, hold_s: float, calm_s: float = 2.0) -> tuple[Kind, ...]:
    """Every kind, each longer than what would hide it."""
    long = (1.2 * limit_s, 2 * limit_s)
    hot = (hold_s + 1.0, hold_s + 2.0)
    return (
        Kind(inject.UNPLUGGED, "image", "camera", long, calm_s),
        Kind(inject.CORRUPT, "image", "camera", (0.3, 1.5 * limit_s), calm_s),
        Kind(inject.STALL, "image", "camera", (0.8 * stuck_s, 1.2 * stuck_s), calm_s),
        Kind(inject.GONE, "audio", "microphone", long, calm_s),
        Kind(inject.ERROR, "backend", "backend", (0.3, 1.0), calm_s),
        Kind(inject.REOPEN, "backend", "backend", (0.3, 1.0), calm_s),
        Kind(inject.SLOW, "pace", "backend", hot, calm_s + hold_s),
    )


STUCK_S = 3.0  # of Sensors, where nothing else is asked
REAL = Setting(  # as `edgefuse run` has them; only the script makes it slow, whatever else the machine does
    kinds(1.0, STUCK_S, HOLD_MS / 1e3), LIMITS_MS, STUCK_S, HOLD_MS, stage_ms=5.0
)


def schedule(setting: Setting, count: int, begin_ns: int, seed: int = 0) -> list[Fault]:
    """`count` faults of each kind in a random order, lanes side by side."""
    chance = random.Random(seed)
    faults = []
    for number, lane in enumerate(dict.fromkeys(kind.lane for kind in setting.kinds)):
        due = [kind for kind in setting.kinds if kind.lane == lane for _ in range(count)]
        chance.shuffle(due)
        at_s = setting.lead_s + number  # each lane begins alone
        for kind in due:
            length_s = chance.uniform(*kind.seconds)
            begin, end = (begin_ns + int(moment_s * 1e9) for moment_s in (at_s, at_s + length_s))
            faults.append(Fault(kind.name, kind.about, begin, end))
            at_s += length_s + kind.calm_s * chance.uniform(1.0, 1.2)
    return sorted(faults, key=lambda fault: fault.begin_ns)


def run_faults(
    info: BundleInfo,
    open_backend: Callable[[], Backend],
    readings: Mapping[str, Sequence[Tensors]],
    setting: Setting,
    count: int,
) -> Evidence:
    """One run of the loop with `count` faults of each kind.

    Args:
        info: the contract of the bundle, with a picture, a sound and a text.
        open_backend: opens the real backend.
        readings: modality -> recorded readings, given again and again; of the text only the first, once.
        setting: how long things last.
        count: faults of each kind.
    """
    script = Script(schedule(setting, count, time.monotonic_ns()))
    mailbox = LoggedMailbox(lambda m: {name: np.empty_like(t) for name, t in readings[m][0].items()}, info.modalities)
    sources = {m: Replayed(m, readings[m], rate_hz, script) for m, rate_hz in RATES_HZ.items()}
    numbers = {**{m: source.given for m, source in sources.items()}, "text": _say(mailbox, readings["text"][0])}
    decisions: list[Decision] = []
    notices: list[Notice] = []
    pace = Pace(notices.append, hold_ms=setting.hold_ms)
    loop = Loop(
        info,
        inject.faulty(open_backend, script, setting.stage_ms),
        mailbox,
        limits_ms=setting.limits_ms,
        on_notice=notices.append,
    )
    stop = threading.Event()
    left_s = (max(fault.end_ns for fault in script.faults) - time.monotonic_ns()) / 1e9
    end_s = left_s + max(kind.calm_s for kind in setting.kinds)
    timer = threading.Timer(end_s, stop.set)
    with Sensors(sources, mailbox, notices.append, stuck_s=setting.stuck_s), loop:
        timer.start()
        for decision in loop.decisions(stop):
            pace.decided(decision)
            decisions.append(decision)
        for source in sources.values():
            source.release()
    longest_say_s = dict.fromkeys((kind.name for kind in setting.kinds), setting.longest_say_s)
    longest_say_s[inject.STALL] += setting.stuck_s
    longest_say_s[inject.SLOW] += setting.hold_ms / 1e3
    expect = _expecter(info, open_backend, readings)
    return Evidence(decisions, notices, script.faults, mailbox, numbers, setting.limits_ms, longest_say_s, expect)


def _say(mailbox: LoggedMailbox, text: Tensors) -> dict[int, int]:
    """Put the text, which stays; the moment and number of its reading."""
    writer = mailbox.writer("text")
    for name, tensor in text.items():
        np.copyto(writer.tensors[name], tensor)
    t_ns = time.monotonic_ns()
    writer.put(t_ns)
    return {t_ns: 0}


def _expecter(
    info: BundleInfo, open_backend: Callable[[], Backend], readings: Mapping[str, Sequence[Tensors]]
) -> Callable[[Mapping[str, int]], NDArray[np.float64]]:
    """What the model says of some readings, by a pipeline of its own that encodes all of them anew."""
    pipeline = open_backend().pipeline()

    @lru_cache(None)
    def answer(used: tuple[tuple[str, int], ...]) -> NDArray[np.float64]:
        presence = np.array([[m in dict(used) for m in info.modalities]], np.float32)  # [1, M]
        outcome = pipeline.run({m: readings[m][number] for m, number in used}, presence)
        return softmax(outcome.logits)  # [C]

    return lambda used: answer(tuple(sorted(used.items())))
