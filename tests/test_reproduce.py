"""The commands of a report: a shell takes each as it stands, whatever is in the names."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgefuse.benchmarks.reproduce import commands

REPORT = {
    "settings": {"manifest": "my data/it's.jsonl", "accuracy_limit": 500, "split": "test", "parity_lines": 64},
    "quick": True,
    "part_sets": {"fp32": {}, "trt": {}},
    "memory": {"fp32": {}},
    "engines": [{"target": "tensorrt-rtx", "part": part} for part in ("image", "head")],
    "example": {"image": "a b.png", "text": "-is it $1?"},
}


EVERYTHING = "everything else; times, energy, LoadGen's figures and those of engines come from it alone"


def test_every_figure_has_a_command_that_a_shell_takes_as_it_stands():
    found = dict(commands(REPORT, Path("my bundle"), Path("out"), ["--against", "other report.json"]))

    assert list(found) == [
        "sensor to decision; run it first",
        EVERYTHING,
        "accuracy, fp32 parts",
        "accuracy, trt parts",
        "parity ledger",
        "plan audit, tensorrt-rtx",
        "accuracy with latency",
        "ceilings",
        "memory, fp32 parts",
        "first answer",
        "size on disk",
    ]
    everything = shlex.split(found[EVERYTHING])
    assert everything[:5] == ["edgefuse", "bench", "my bundle", "--out", "out"]
    assert everything[5:] == ["--manifest", "my data/it's.jsonl", "--quick", "--against", "other report.json"]
    assert shlex.split(found["accuracy, trt parts"])[-3:] == ["--limit", "500", "--json"]
    assert shlex.split(found["accuracy with latency"])[2:] == [
        "my bundle",
        "--manifest",
        "my data/it's.jsonl",
        "--quick",
    ]
    assert "--text=-is it $1?" in shlex.split(found["first answer"])
