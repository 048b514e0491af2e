"""The main job, end to end, as the commands a user would type: data, train, export, quantize, build, bench, predict.

A step whose result is already there is skipped, so a second demo only asks the question again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from edgefuse.runtime.errors import EdgefuseError
from edgefuse.runtime.manifest import read_manifest

VOICES = 48  # fewer than the recipe's 120, to be quick
SM = ("86", "89")  # Ampere and Ada desktop GPUs


@dataclass(frozen=True)
class Step:
    """One command of the demo."""

    title: str
    arguments: tuple[str, ...]  # of the edgefuse command
    result: Path | None  # the file that the step leaves; where it exists the step is skipped


def demo(out: Path) -> dict[str, Any]:
    """Go all the way in the folder `out`, and return what was reached and how long each step took.

    Raises:
        EdgefuseError: a step failed; its own message stands above.
    """
    console = Console(stderr=True, highlight=False)
    seconds = {}
    for step in _steps(out):
        console.print(f"\n[bold]{step.title}[/bold]\n$ edgefuse {shlex.join(step.arguments)}")
        if step.result is not None and step.result.exists():
            console.print(f"{step.result} is there; delete it to do this again")
            continue
        started = time.monotonic()
        _edgefuse(*step.arguments)
        seconds[step.title] = round(time.monotonic() - started, 1)
    answers = [_ask(console, out, *sensors) for sensors in (("image", "audio"), ("image", "text"))]
    report = json.loads((out / "report" / "report.json").read_bytes())
    return {
        "bundle": str(out / "bundle"),
        "report": str(out / "report" / "index.html"),
        "seconds": seconds,
        "answers": answers,
        "accuracy": {part_set: _by_sensors(result) for part_set, result in report["accuracy"].items()},
    }


def _by_sensors(result: dict[str, Any]) -> dict[str, float]:
    """Accuracy with all sensors and with each subset of them."""
    return {name: round(scores["accuracy"], 4) for name, scores in result["by_subset"].items()}


def _steps(out: Path) -> list[Step]:
    data, run, bundle, report = out / "data", out / "run", out / "bundle", out / "report"
    manifest = data / "manifest.jsonl"
    recipe = ("easy_vqa_demo", f"data.manifest={manifest}")
    return [
        Step("data", ("data", "easy-vqa", "--out", str(data), "--voices", str(VOICES)), manifest),
        Step("train", ("train", *recipe, "--out", str(run)), run / "model.safetensors"),
        Step("export", ("export", str(run), "--out", str(bundle)), bundle / "bundle.json"),
        Step("quantize", ("quantize", str(bundle)), bundle / "parts" / "cpu"),
        Step("build for TensorRT-RTX", ("build", str(bundle), "--sm", *SM), bundle / "engines" / "tensorrt-rtx"),
        Step("check the CPU parts", ("build", str(bundle), "--target", "cpu"), None),
        Step("benchmark", ("bench", str(bundle), "--quick", "--out", str(report)), report / "index.html"),
    ]


def _ask(console: Console, out: Path, *sensors: str) -> dict[str, Any]:
    """Ask one question of the test split, in a voice and about a picture that training never had."""
    example = read_manifest(out / "data" / "manifest.jsonl", split="test", limit=3)[1]
    arguments = ["predict", str(out / "bundle")]
    for sensor in sensors:
        arguments += [f"--{sensor}", str(getattr(example, sensor))]
    console.print(f"\n[bold]ask about {' and '.join(sensors)}[/bold]\n$ edgefuse {shlex.join(arguments)}")
    answer: dict[str, Any] = json.loads(_edgefuse(*arguments, "--json", capture=True).splitlines()[-1])
    return {
        "question": example.text,
        "asked": "spoken" if "audio" in sensors else "typed",
        "answer": answer["label"],
        "right": example.label,
        "confidence": round(answer["confidence"], 3),
        "total_ms": round(answer["stages_ms"]["total"], 1),
    }


def _edgefuse(*arguments: str, capture: bool = False) -> str:
    command = [sys.executable, "-m", "edgefuse.runtime.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        raise EdgefuseError(f"`edgefuse {shlex.join(arguments)}` failed with exit code {done.returncode}; see above")
    return done.stdout or ""
