"""Samples a second with and without sharing: `python train/throughput.py easy_vqa_demo --data MANIFEST`.

A step of ours encodes every distinct picture, sound and text once, a plain one those of every line. Both take the same
lines, in turn, each with a model of its own from the same start. Decoding is timed apart: the plain step is not charged
for what it would decode more than once.

That both learn the same is shown twice: with nothing random (evaluation mode) each step's loss is the same number; and
the distance of the two curves is printed beside that of two trainings of ours which draw other noise (batch norms weigh
a picture by its lines in the one and not in the other).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from edgefuse.runtime.bundle import SENSOR_TENSORS
from edgefuse.runtime.manifest import label_names
from edgefuse.runtime.preprocess import Tokenizer
from edgefuse.train.data import Batch, Loader, TrainingSteps, training_lines
from edgefuse.train.fit import optimise
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_loss
from edgefuse.train.optimizers import new_optimizer
from edgefuse.train.recipe import Recipe, load_recipe
from edgefuse.train.wordpiece import tokenizer_document

WARM_UP = 1  # steps that are not counted


def plain(batch: Batch, modalities: tuple[str, ...]) -> Batch:
    """The same lines, each with rows of its own for every sensor that it shows."""
    inputs: dict[str, torch.Tensor] = {}
    index: dict[str, torch.Tensor] = {}
    for column, m in enumerate(modalities):
        if m in batch.index:
            shows = batch.presence[:, column] > 0.5  # [B]
            inputs |= {name: batch.inputs[name][batch.index[m][shows]] for name in SENSOR_TENSORS[m]}
            index[m] = torch.where(shows, shows.cumsum(dim=0) - 1, 0)
    return replace(batch, inputs=inputs, index=index, same_text=torch.full((len(inputs.get("audio", ())),), -1))


class Learner:
    """A model, its optimizer, and what its steps took."""

    def __init__(self, recipe: Recipe, labels: int, vocabulary: int, noise: int) -> None:
        torch.manual_seed(recipe.train.seed)
        self.model = FusedModel(recipe, labels, vocabulary).train()
        self._optimizer = new_optimizer(self.model, recipe)
        self._settings = recipe.train.model_copy(update={"seed": recipe.train.seed + noise})
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def quiet_loss(self, batch: Batch) -> float:
        """The loss with nothing random in it."""
        self.model.eval()
        with torch.no_grad():
            loss, _ = batch_loss(self.model, batch, self._settings)
        self.model.train()
        return float(loss)

    def step(self, batch: Batch, number: int, total: int) -> None:
        """One step of training, as `edgefuse train` takes it."""
        start = time.perf_counter()
        terms = optimise(
            self.model, self._optimizer, batch, self._settings, number, total,
            lambda near: batch_loss(self.model, near, self._settings),
        )  # fmt: skip
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(terms["task"])


def throughput(recipe: str, data: Path | None, steps: int) -> dict[str, Any]:
    """Train three models beside each other; see the module.

    Args:
        recipe: name or path; its contrastive term is left out, since it is one of distinct sounds.
        data: manifest in place of the recipe's.
        steps: how many are timed.
    """
    changes = ["train.alignment=0", *([f"data.manifest={json.dumps(str(data))}"] if data else [])]
    settings = load_recipe(recipe, changes)
    batches, labels, vocabulary = _open(settings)
    ours, again, other = (Learner(settings, labels, vocabulary, noise) for noise in (0, 1, 0))
    loads, lines, apart = [], [], []
    total = steps + WARM_UP
    for number in range(total):
        start = time.perf_counter()
        batch = batches[number]
        loads.append(time.perf_counter() - start)
        lines.append(len(batch.labels))
        unshared = plain(batch, settings.modalities)
        apart.append(abs(ours.quiet_loss(batch) - ours.quiet_loss(unshared)))
        turns = [(ours, batch), (other, unshared)]
        for learner, given in turns if number % 2 else turns[::-1]:
            learner.step(given, number, total)
        again.step(batch, number, total)
    return _told(ours, again, other, loads, lines, apart)


def _open(recipe: Recipe) -> tuple[TrainingSteps, int, int]:
    """The steps of a recipe, and how many labels and WordPieces there are."""
    training = training_lines(recipe)
    labels = label_names(training)
    tokenizer = None
    if recipe.text:
        document = tokenizer_document(recipe.text, [e.text for e in training if e.text])
        tokenizer = Tokenizer(document, recipe.text.max_tokens)
    steps = TrainingSteps(recipe, training, Loader(recipe, labels, tokenizer))
    return steps, len(labels), tokenizer.vocabulary_size if tokenizer else 0


def _told(
    ours: Learner, again: Learner, other: Learner, loads: list[float], lines: list[int], apart: list[float]
) -> dict[str, Any]:
    counted = slice(WARM_UP, None)
    ratios = [slow / fast for slow, fast in zip(other.seconds[counted], ours.seconds[counted], strict=True)]
    speeds = {
        name: round(median(n / s for n, s in zip(lines[counted], learner.seconds[counted], strict=True)), 1)
        for name, learner in (("distinct", ours), ("plain", other))
    }
    share = sum(loads[counted]) / (sum(loads[counted]) + sum(ours.seconds[counted]))
    return {
        "steps": len(ratios),
        "samples_per_s": speeds,
        "ratio": round(median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "data_share": round(share, 4),  # of the time, where the training process decodes by itself
        "loss_apart": max(apart),  # with nothing random
        "curves_apart": _apart(ours, other),
        "noise_apart": _apart(ours, again),
        "last_losses": {"distinct": ours.losses[-5:], "plain": other.losses[-5:], "other noise": again.losses[-5:]},
    }


def _apart(one: Learner, two: Learner) -> float:
    """The mean distance of two curves."""
    return sum(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True)) / len(one.losses)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Samples a second with distinct sensors encoded once, and without.")
    parser.add_argument("recipe")
    parser.add_argument("--data", type=Path, help="manifest in place of the recipe's")
    parser.add_argument("--steps", type=int, default=30)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    print(json.dumps(throughput(given.recipe, given.data, given.steps)))
