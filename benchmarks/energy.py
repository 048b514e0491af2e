"""Energy per decision: what each meter of the machine counts while decisions are made, less what it counts at rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgefuse.benchmarks.meters import Meter

NO_METER = (
    "no energy counter to read: RAPL (/sys/class/powercap, as root), a Jetson's INA3221 or NVML; "
    "a virtual machine has none"
)


def measure_energy(
    meters: Sequence[Meter],
    decide: Mapping[str, Callable[[], object]],
    decisions: int,
    rest_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Joules of one decision of each part set, by every meter; of the whole machine, so nothing else should run.

    Args:
        meters: open; they are closed here.
        decide: part set -> makes one decision.
        decisions: how many of each are made, one right after the other.
        rest_s: how long the machine rests before each part set, to learn what it takes at rest.
        sleep, clock: those of `time`.

    Returns:
        {part set: {meter: {joules_per_decision, at_rest_watts, decisions, seconds}}}, or {not_measured: why}. A
        difference that is below the noise may be negative, and is told as it is.
    """
    if not meters:
        return {"not_measured": NO_METER}
    try:
        return {name: _measure(meters, one, decisions, rest_s, sleep, clock) for name, one in decide.items()}
    finally:
        for meter in meters:
            meter.close()


def _measure(
    meters: Sequence[Meter],
    decide: Callable[[], object],
    decisions: int,
    rest_s: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> dict[str, Any]:
    moments = [_moment(meters, clock)]
    sleep(rest_s)
    moments.append(_moment(meters, clock))
    for _ in range(decisions):
        decide()
    moments.append(_moment(meters, clock))
    (rest, seconds), found = (moments[1][0] - moments[0][0], moments[2][0] - moments[1][0]), {}
    for index, meter in enumerate(meters):
        before, between, after = (joules[index] for _, joules in moments)
        watts = (between - before) / rest
        found[meter.name] = {
            "joules_per_decision": (after - between - watts * seconds) / decisions,
            "at_rest_watts": watts,
            "decisions": decisions,
            "seconds": round(seconds, 3),
        }
    return found


def _moment(meters: Sequence[Meter], clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Now, and what each meter shows."""
    return clock(), [meter.joules() for meter in meters]
