"""Memory over many decisions: a recording replayed at the fastest speed, in a process of its own.

Two passes, since tracemalloc takes memory itself: what Python holds, and what the system gives the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

from edgefuse.benchmarks.loop_rates import stream
from edgefuse.benchmarks.loop_readings import Readings
from edgefuse.runtime.record import INDEX, Recorder

MODULE = "edgefuse.benchmarks.loop_memory"  # run as a script, it measures its own memory
GAP_EVERY_S = 60  # of the recording: then sensors are away for longer than their limit
MOMENTS = 20  # at which memory is read
WARM = 0.2  # of the decisions, before the first of them: caches fill, tables of the interpreter grow


def write_recording(folder: Path, readings: Readings, sample_rate: int, decisions: int) -> None:
    """A recording for so many decisions and those to warm up: 30 pictures and 10 sounds per second, with gaps."""
    with Recorder(folder, sample_rate) as recorder:
        for modality, each in readings.items():
            for reading in each:
                recorder.keep(modality, reading, 0)
    lines: dict[str, list[str]] = {modality: [] for modality in readings}  # without their moment
    for line in (folder / INDEX).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        del row["t_ms"]
        lines[next(iter(row)) if len(row) == 1 else "text"].append(json.dumps(row)[1:])
    with (folder / INDEX).open("w", encoding="utf-8") as file:
        for t_ns, modality, number in stream(2 * GAP_EVERY_S + round((1 + WARM) * decisions / 36)):
            if t_ns // 10**9 % GAP_EVERY_S < GAP_EVERY_S - 2 or modality == "text":
                file.write(f'{{"t_ms": {t_ns / 1e6}, {lines[modality][number % len(lines[modality])]}\n')


def measure_memory(bundle: Path, recording: Path, decisions: int) -> dict[str, Any]:
    """{decisions, traced_growth_bytes, resident_growth_bytes, ...}: the most held less what was held while warm."""
    found = {}
    for way in ("traced", "resident"):
        command = [sys.executable, "-m", MODULE, str(bundle), str(recording), str(decisions), way]
        found[way] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return {
        "decisions": decisions,
        **{f"{way}_growth_bytes": row["growth_bytes"] for way, row in found.items()},
        **{f"{way}_bytes": row["bytes"] for way, row in found.items()},
    }


def _measure_self(bundle: str, recording: str, decisions: int, way: str) -> dict[str, Any]:
    """{growth_bytes, bytes: at MOMENTS}."""
    import psutil

    from edgefuse.runtime.run import run

    process = psutil.Process()
    if way == "traced":
        tracemalloc.start()
    held = []
    warm, every = round(WARM * decisions), max(1, decisions // MOMENTS)
    made = run(bundle, replay=recording, speed=0.0, threads=1, count=warm + decisions)
    for number, _ in enumerate(made, start=-warm):
        if number >= 0 and number % every == 0:
            held.append(tracemalloc.get_traced_memory()[0] if way == "traced" else process.memory_info().rss)
    return {"growth_bytes": max(held) - held[0], "bytes": held}


if __name__ == "__main__":
    print(json.dumps(_measure_self(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
