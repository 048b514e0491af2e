"""What an attack takes from a run: `python train/attack.py RUN MANIFEST --eps 4`, the same as `edgefuse attack`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from edgefuse.runtime.bundle import SENSOR_TENSORS
from edgefuse.runtime.errors import ManifestError, OptionError
from edgefuse.runtime.evaluate import score, subsets
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train.adversarial import moved, worst_case
from edgefuse.train.data import Batch, Loader
from edgefuse.train.losses import task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_logits
from edgefuse.train.runs import Run
from edgefuse.train.settings import AdversarialSettings

BATCH = 64  # lines


def attack(
    run: Path, manifest: Path, eps: float, *, sensor: str = "image", steps: int = 1, split: str = "test",
    limit: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy before and after each line's own sensor was moved so that the model, whose weights are known, errs.

    Args:
        run: folder of a trained run.
        manifest: labelled lines.
        eps: how far: of 255 for pixels, of full scale for sound, of the norm of a sentence's embeddings for text.
        sensor: what is attacked.
        steps: 1 is FGSM (Goodfellow 2015), more are PGD from a random start (Madry 2018).
        split: whose lines.
        limit: use this many lines at most, evenly spread.

    Returns:
        {clean, attacked, by_subset, run, manifest, split, sensor, eps, steps}: accuracies with intervals, of all the
        sensors and of each subset with the attacked one, on the lines that have it entirely.

    Raises:
        RecipeError, ManifestError: the run or a line cannot be used.
        OptionError: no such sensor, or a reach outside its range.
    """
    opened = Run.open(run)
    model, loader = opened.trained_model(), Loader(opened.recipe, opened.labels, opened.text_tokenizer())
    if sensor not in model.modalities:
        raise OptionError(f"--sensor {sensor}: this run has none; it reads {', '.join(model.modalities)}")
    try:
        settings = AdversarialSettings.model_validate({sensor: eps, "steps": steps})
    except ValidationError as error:
        raise OptionError(f"--eps {eps} --steps {steps} for {sensor}: {error.errors()[0]['msg']}") from None
    examples = read_manifest(manifest, split=split, labels=opened.labels, limit=limit)
    torch.manual_seed(0)  # of the random starts
    by_subset = {}
    for subset in subsets(model.modalities):
        lines = [example for example in examples if set(subset) <= set(example.sensors)]
        if sensor in subset and lines:
            by_subset["+".join(subset)] = _under_attack(model, loader, lines, set(subset), settings)
    if not by_subset:
        raise ManifestError(f"{examples[0].where}: no line of split {split!r} has {sensor}; give other lines")
    told = {"run": str(run), "manifest": str(manifest), "split": split, "sensor": sensor, "eps": eps, "steps": steps}
    return {**list(by_subset.values())[-1], "by_subset": by_subset, **told}


def _under_attack(
    model: FusedModel, loader: Loader, lines: Sequence[Example], shown: set[str], settings: AdversarialSettings
) -> dict[str, Any]:
    clean, attacked = [], []
    for start in range(0, len(lines), BATCH):
        part = lines[start : start + BATCH]
        batch = _unshared(loader.batch(part, [example.audio for example in part], [shown] * len(part)))
        moves = worst_case(model, batch, settings, lambda near: _loss(model, near), random_start=settings.steps > 1)
        clean.append(_right(model, batch))
        with moved(model, batch, moves) as near:
            attacked.append(_right(model, near))
    return {"clean": score(np.concatenate(clean)), "attacked": score(np.concatenate(attacked))}


def _unshared(batch: Batch) -> Batch:
    """Every line with copies of its own: a picture that many lines share would have to fool them all at once."""
    inputs = {name: batch.inputs[name][rows] for m, rows in batch.index.items() for name in SENSOR_TENSORS[m]}
    return replace(batch, inputs=inputs, index={m: torch.arange(len(rows)) for m, rows in batch.index.items()})


def _loss(model: FusedModel, batch: Batch) -> Tensor:
    return task_loss(batch_logits(model, batch)[0], batch.labels, smoothing=0.0)


def _right(model: FusedModel, batch: Batch) -> Any:
    with torch.no_grad():
        return (batch_logits(model, batch)[0].argmax(dim=1) == batch.labels).numpy()


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["attack", *sys.argv[1:]])
