"""Every number that the on-device loop must reach, asked and measured: `python benchmarks/loop.py runs/demo/bundle`.

    python benchmarks/loop.py runs/demo/bundle [--quick] [--only rates load] [--realtime] [--install] [--out FILE]

Takes half an hour, most of it for 50 faults of each kind at the pace of real sensors and for 100,000 decisions; --quick
takes three minutes. Timings mean something only where nothing else runs; --realtime keeps others off the core (root).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.benchmarks.decision import measure_overhead
from edgefuse.benchmarks.environment import describe_environment
from edgefuse.benchmarks.fault_check import judge
from edgefuse.benchmarks.loop_explain import measure_explain
from edgefuse.benchmarks.loop_faults import REAL, run_faults
from edgefuse.benchmarks.loop_install import installed
from edgefuse.benchmarks.loop_load import measure_load
from edgefuse.benchmarks.loop_memory import measure_memory, write_recording
from edgefuse.benchmarks.loop_rates import compare_rates
from edgefuse.benchmarks.loop_readings import Readings, examples_of, readings_of
from edgefuse.benchmarks.loop_start import first_answer_s
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.show import show

MB = 1e6


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and how much of it."""

    bundle: Bundle
    examples: list[Example]
    readings: Readings
    is_quick: bool
    is_realtime: bool

    def effort(self, quick: int, full: int) -> int:
        """How many of something."""
        return quick if self.is_quick else full

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No other process on this core, where that was asked for."""
        if not self.is_realtime:
            yield
            return
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        try:
            yield
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


Rows = list[dict[str, Any]]
Section = Callable[[Subject], tuple[Rows, Any]]  # what was asked beside what was measured, and the details


def _row(what: str, measured: Any, asked: str, kept: bool | None) -> dict[str, Any]:
    return {"what": what, "measured": measured, "asked": asked, "kept": {True: "yes", False: "NO", None: "-"}[kept]}


def overhead(subject: Subject) -> tuple[Rows, Any]:
    """A full fused decision against its bare parts."""
    with subject.quiet():
        found = measure_overhead(subject.bundle.folder, subject.effort(4, 20))
    allowed_us, allowed_ms = found["allowed_us"], found["allowed_p99_ms"]
    return [
        _row("loop overhead, us", found["overhead_us"], f"<= {allowed_us:.0f}", found["overhead_is_kept"]),
        _row("decision p99, ms", found["loop_p99_ms"], f"<= {allowed_ms:.2f}", found["p99_is_kept"]),
    ], found


def rates(subject: Subject) -> tuple[Rows, Any]:
    """Each part at its own rate against every part every time."""
    with subject.quiet():
        found = compare_rates(subject.bundle, subject.readings, subject.effort(10, 60))
    same, free = found["ratio"], found["free_running_ratio"]
    return [
        _row("decisions per CPU second, one per reading, against every part every time", same, ">= 3", same >= 3),
        _row("computed: the same of a loop that decides as often as it can", free, ">= 3", free >= 3),
        _row("answers identical to the last bit", found["identical"], "yes", found["identical"]),
    ], found


def load(subject: Subject) -> tuple[Rows, Any]:
    """Ages at 80 % and at 200 % load, where the newest reading is half a decision old at most when it is taken."""
    with subject.quiet():
        found = measure_load(subject.bundle, subject.readings, subject.effort(2, 5), subject.effort(1, 5))
    rows = []
    for modality, row in found.items():
        at_80, at_200, growth = row["ratio_at_80"], row["ratio_at_200"], row["growth_at_200"]
        rows += [
            _row(f"{modality} age p95 at 80 % load / decision time", at_80, "<= 1.5", at_80 <= 1.5),
            _row(f"{modality} age p95 at 200 % load / decision time", at_200, "<= 2", at_200 <= 2),
            _row(f"{modality} age at 200 % load, second half / first half", growth, "<= 1.2", growth <= 1.2),
            _row(f"{modality} readings dropped at 200 % load", row["dropped_at_200"], "0.5", None),
        ]
    return rows, found


def memory(subject: Subject) -> tuple[Rows, Any]:
    """Memory over many decisions of a replay."""
    decisions = subject.effort(2000, 100_000)
    audio = subject.bundle.info.audio
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording"
        write_recording(recording, subject.readings, audio.sample_rate if audio else 0, decisions)
        found = measure_memory(subject.bundle.folder, recording, decisions)
    return [
        _row(f"{way} MB grown over {decisions} decisions", grown, "<= 2", grown <= 2)
        for way in ("traced", "resident")
        for grown in [found[f"{way}_growth_bytes"] / MB]
    ], found


def faults(subject: Subject) -> tuple[Rows, Any]:
    """Many faults of each kind in one run."""
    count = subject.effort(2, 50)
    bundle = subject.bundle
    evidence = run_faults(bundle.info, lambda: OnnxBackend(bundle, threads=1), subject.readings, REAL, count)
    verdict = judge(evidence)
    rows = [
        _row(f"{kind}, {len(seconds)} times: longest recovery, s", max(seconds), "<= 2", max(seconds) <= 2)
        for kind, seconds in sorted(verdict.recovery_s.items())
    ]
    wrong = len(verdict.wrong)
    rows.append(
        _row(f"wrong of {len(evidence.decisions)} decisions and {len(evidence.notices)} notices", wrong, "0", not wrong)
    )
    return rows, {"wrong": verdict.wrong[:200], "recovery_s": verdict.recovery_s, "decisions": len(evidence.decisions)}


def start(subject: Subject) -> tuple[Rows, Any]:
    """From the start of `edgefuse run` to an answer that every sensor counts in."""
    example = subject.examples[0]
    arguments = [f"--camera={example.image}", f"--mic={example.audio}", f"--text={example.text}"]
    found = {}
    for name, sensors in (("first answer", ()), ("first answer with every sensor", subject.bundle.info.modalities)):
        taken_s = [first_answer_s(subject.bundle.folder, arguments, sensors) for _ in range(subject.effort(3, 9))]
        found[name] = statistics.median(taken_s)
    return [_row(f"start of edgefuse run to its {name}, s", s, "<= 1.5", s <= 1.5) for name, s in found.items()], found


def explain(subject: Subject) -> tuple[Rows, Any]:
    """Shapley values of the sensors."""
    with subject.quiet():
        found = measure_explain(subject.bundle, subject.readings, subject.effort(40, 200))
    error, ratio = found["sum_error"], found["ratio"]
    return [
        _row("Shapley values: sum against the difference of the log-odds", error, "<= 1e-4", error <= 1e-4),
        _row("Shapley values: time / time of one decision", ratio, "<= 10", ratio <= 10),
    ], found


def size(subject: Subject) -> tuple[Rows, Any]:
    """What the device must carry beside the bundle."""
    found = installed()
    return [_row("installed size of edgefuse[cpu], MB", found["bytes"] / MB, "reported", None)], found


SECTIONS: dict[str, Section] = {
    section.__name__: section for section in (overhead, rates, load, start, explain, memory, faults)
}


def measure(subject: Subject, sections: list[str]) -> dict[str, Any]:
    """{rows, details, environment} of some sections."""
    environment = describe_environment()  # first: its load is that of the others
    rows: Rows = []
    details = {}
    for name in sections:
        print(f"{name} ...", file=sys.stderr)
        more, details[name] = ({**SECTIONS, "size": size})[name](subject)
        rows += more
    about = {"quick": subject.is_quick, "fingerprint": subject.bundle.fingerprint}
    return {"rows": rows, **about, "details": details, "environment": environment}


def main() -> None:
    """Run it, print the table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--manifest", type=Path, help="labelled data; that of the training otherwise")
    parser.add_argument("--out", type=Path, help="write the figures here")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "size"], help="these sections, and no others")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--realtime", action="store_true", help="let no other process interrupt (SCHED_RR)")
    parser.add_argument("--install", action="store_true", help="install edgefuse[cpu] in a fresh venv and weigh it")
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    manifest = given.manifest or Path(str(bundle.info.lineage.get("manifest", "")))
    examples = examples_of(bundle, manifest, 8)
    subject = Subject(bundle, examples, readings_of(bundle, examples), given.quick, given.realtime)
    result = measure(subject, given.only or [*SECTIONS, *(["size"] if given.install else [])])
    if given.out:
        write_atomic(given.out, json.dumps(result, indent=1, default=_plain).encode() + b"\n")
    show({"measured": result["rows"]})


def _plain(value: Any) -> Any:
    """A numpy scalar as a number."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


if __name__ == "__main__":
    main()
