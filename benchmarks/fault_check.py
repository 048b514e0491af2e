"""Judges a run with faults: what each decision should have said, how soon a fault was over, how often it was told."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgefuse.benchmarks.fault_injection import ERROR, REOPEN, Fault, LoggedMailbox
from edgefuse.runtime.decision import Decision, Notice

SAME_NS = 1000  # a moment told as milliseconds in a float, against itself
SAME_PROBABILITY = 1e-6
OUTAGES = (ERROR, REOPEN)

Expect = Callable[[Mapping[str, int]], NDArray[np.float64]]  # modality that counts -> number of its reading -> [C]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a run left."""

    decisions: Sequence[Decision]
    notices: Sequence[Notice]
    faults: Sequence[Fault]
    mailbox: LoggedMailbox
    numbers: Mapping[str, Mapping[int, int]]  # modality -> moment of capture -> number of the reading
    limits_ms: Mapping[str, float | None]
    longest_say_s: Mapping[str, float]  # kind -> from a change until it must have been said
    expect: Expect  # what the model says of the readings that count


@dataclass(slots=True)
class Verdict:
    """What was found; well where `wrong` is empty."""

    wrong: list[str] = field(default_factory=list)  # a line per violation
    recovery_s: dict[str, list[float]] = field(default_factory=dict)  # kind -> one for each fault


def judge(evidence: Evidence) -> Verdict:
    """Every decision against the readings there were, every fault against the decisions and notices there were."""
    verdict = Verdict()
    logs = {m: _Log(rows) for m, rows in evidence.mailbox.log.items()}
    for decision in evidence.decisions:
        where = f"decision at {decision.t_ms:.1f} ms"
        verdict.wrong += [f"{where}: {what}" for what in _wrong_decision(decision, logs, evidence)]
    for fault in evidence.faults:
        recovery_s = _recovery_s(fault, evidence)
        if recovery_s is None:
            verdict.wrong.append(f"{_told(fault)}: no recovery")
        else:
            verdict.recovery_s.setdefault(fault.kind, []).append(recovery_s)
    verdict.wrong += _wrong_notices(evidence)
    return verdict


class _Log:
    """The readings of one modality that the mailbox accepted, in their order."""

    def __init__(self, rows: Sequence[tuple[int, int, int]]) -> None:
        self.t_ns = [t_ns for t_ns, _, _ in rows]
        self.after_ns = [after_ns for _, _, after_ns in rows]
        self.before_ns = {t_ns: before_ns for t_ns, before_ns, _ in rows}

    def newest(self, now_ns: float) -> int | None:
        """The newest reading that was surely there at `now_ns`."""
        index = bisect_left(self.after_ns, now_ns)
        return self.t_ns[index - 1] if index else None

    def nearest(self, t_ns: float) -> int | None:
        """The reading captured at `t_ns`."""
        index = bisect_left(self.t_ns, t_ns - SAME_NS)
        return self.t_ns[index] if index < len(self.t_ns) and self.t_ns[index] <= t_ns + SAME_NS else None


def _wrong_decision(decision: Decision, logs: Mapping[str, _Log], evidence: Evidence) -> Iterator[str]:
    ready_ns = decision.t_ms * 1e6
    started_ns = ready_ns - decision.stages_ms["total"] * 1e6
    used: dict[str, int] = {}
    for modality, is_there in decision.presence.items():
        limit_ms = evidence.limits_ms[modality]
        limit_ns = float("inf") if limit_ms is None else limit_ms * 1e6
        newest_ns = logs[modality].newest(started_ns - SAME_NS)
        if not is_there:
            if newest_ns is not None and started_ns - newest_ns < limit_ns - SAME_NS:
                yield f"{modality} is missing though a reading of {(started_ns - newest_ns) / 1e6:.1f} ms ago was there"
            if modality in decision.age_ms or decision.weights[modality] != 0:
                yield f"{modality} is missing and has an age or a weight"
            continue
        t_ns = logs[modality].nearest(ready_ns - decision.age_ms[modality] * 1e6)
        if t_ns is None or logs[modality].before_ns[t_ns] > ready_ns:
            yield f"{modality} has an age of {decision.age_ms[modality]:.3f} ms, which no reading had"
            continue
        if started_ns - t_ns > limit_ns + SAME_NS:
            yield f"{modality} counts with a reading of {(started_ns - t_ns) / 1e6:.1f} ms ago"
        if newest_ns is not None and t_ns < newest_ns:
            yield f"{modality} stands on an older reading than the newest"
        used[modality] = evidence.numbers[modality].get(t_ns, -1)
    ages = decision.age_ms.values()
    if abs(max(ages) - min(ages) - decision.skew_ms) > 1e-6:
        yield f"the skew is {decision.skew_ms}, the ages are {decision.age_ms}"
    if -1 in used.values() or not np.allclose(decision.probabilities, evidence.expect(used), 0, SAME_PROBABILITY):
        yield f"the answer is not that of the readings {used}"


def _recovery_s(fault: Fault, evidence: Evidence) -> float | None:
    """From the moment that all would work again to the first decision that shows it, None where there is none."""
    back_ns = fault.end_ns
    for other in evidence.faults:  # in their order; without a backend no sensor can be seen to be back
        if other.kind in OUTAGES and other.begin_ns <= back_ns + 1e9 and other.end_ns > back_ns:
            back_ns = other.end_ns
    for decision in evidence.decisions:
        ready_ns = decision.t_ms * 1e6
        if ready_ns < back_ns:
            continue
        age_ms = decision.age_ms.get(fault.about)
        is_sensor = fault.about in evidence.numbers
        if not is_sensor or (age_ms is not None and ready_ns - age_ms * 1e6 >= fault.end_ns):
            return (ready_ns - back_ns) / 1e9
    return None


def _wrong_notices(evidence: Evidence) -> Iterator[str]:
    """Each fault must be said once and taken back once, in time, and nothing else may be said of what it is about."""
    for about in dict.fromkeys(fault.about for fault in evidence.faults):
        faults = [fault for fault in evidence.faults if fault.about == about]
        begins_ms = [fault.begin_ns / 1e6 for fault in faults]
        said: list[list[Notice]] = [[] for _ in range(len(faults) + 1)]  # before the first fault, from each fault on
        for notice in evidence.notices:
            if notice.about == about:
                said[bisect_right(begins_ms, notice.t_ms)].append(notice)
        yield from (f"said without need: {notice.message}" for notice in said[0])
        for fault, of_it in zip(faults, said[1:], strict=True):
            yield from _wrong_telling(fault, of_it, evidence.longest_say_s[fault.kind])


def _wrong_telling(fault: Fault, said: Sequence[Notice], longest_s: float) -> Iterator[str]:
    if [notice.is_well for notice in said] != [False, True]:
        messages = [notice.message for notice in said]
        yield f"{_told(fault)}: said {messages}, not once that it is and once that it is over"
        return
    for notice, changed_ns, what in zip(said, (fault.begin_ns, fault.end_ns), ("begin", "end"), strict=True):
        late_s = notice.t_ms / 1e3 - changed_ns / 1e9
        if not 0 <= late_s <= longest_s:
            yield f"{_told(fault)}: its {what} was said after {late_s:.2f} s"


def _told(fault: Fault) -> str:
    return f"{fault.kind} at {fault.begin_ns / 1e6:.1f} ms, for {(fault.end_ns - fault.begin_ns) / 1e9:.2f} s"
