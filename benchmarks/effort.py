"""How much `edgefuse bench` measures, in full and in a hurry."""

from __future__ import annotations

from dataclasses import dataclass

from edgefuse.benchmarks import loadgen


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    queries: int  # with every sensor; MLPerf's single stream asks for 1024 at least
    scenario_queries: int  # with each smaller subset of sensors
    warmup_queries: int  # answered before each of them, and not counted
    memory_runs: int  # fresh processes per part set
    cold_starts: int  # fresh processes
    accuracy_limit: int | None  # examples at most, evenly spread; None takes the whole split
    energy_decisions: int  # of each part set, where there is a meter
    ceiling_runs: int  # of each part and number of threads, against the CPU's peaks
    parity_lines: int  # of split val
    load: loadgen.Load


FULL = Effort(
    1024,
    256,
    32,
    3,
    5,
    accuracy_limit=None,
    energy_decisions=1024,
    ceiling_runs=100,
    parity_lines=256,
    load=loadgen.FULL,
)
QUICK = Effort(
    200, 100, 10, 1, 3, accuracy_limit=500, energy_decisions=200, ceiling_runs=20, parity_lines=64, load=loadgen.QUICK
)
