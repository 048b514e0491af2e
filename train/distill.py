"""Train a student with finished runs as teachers: `python train/distill.py av_digits --teacher runs/t --out runs/s`.

The same as `edgefuse distill`. The student's steps draw subsets of its sensors as `data.subsets` says, and the
teachers' answers are those to all sensors: with a sensor missing or spoiled it learns what they saw in the others
(cross-modal distillation, Gupta 2016).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example
from edgefuse.train.data import Batch
from edgefuse.train.losses import angle_loss, distance_loss, distillation_loss, embedding_loss, ensemble_logits
from edgefuse.train.recipe import load_recipe
from edgefuse.train.runs import Run
from edgefuse.train.settings import DistillSettings
from edgefuse.train.teacher import Answers, answers
from edgefuse.train.train import train_recipe

ANGLE_LINES = 64  # lines of a step between which angles are taken: their triplets grow with the cube


class Lesson:
    """What a step learns from the teachers, as the loop asks for it."""

    def __init__(self, teachers: Sequence[Answers], examples: Sequence[Example], settings: DistillSettings) -> None:
        """`teachers` answered `examples`, in this order."""
        self._teachers = teachers
        self._settings = settings
        self._line = {example.where: number for number, example in enumerate(examples)}
        self._axes = teachers[0].axes() if settings.embedding else None

    def __call__(self, batch: Batch, logits: Tensor, fused: Tensor) -> dict[str, Tensor]:
        """The weighted terms for the student's logits [B, C] and fused embedding [B, D]."""
        settings, lines, place = self._settings, [self._line[where] for where in batch.where], logits.device
        logits, fused = logits.float(), fused.float()
        terms: dict[str, Tensor] = {}
        if settings.logits:
            each = torch.stack([teacher.rows("logits", lines) for teacher in self._teachers]).to(place)  # [K, B, C]
            target = ensemble_logits(each, settings.temperature)  # [B, C]
            terms["logits"] = settings.logits * distillation_loss(logits, target, settings.temperature)
        if self._axes is not None:
            mean, axes = self._axes
            target = (self._teachers[0].rows("fused", lines) - mean) @ axes[:, : fused.shape[1]]  # [B, <= D]
            terms["embedding"] = settings.embedding * embedding_loss(fused, target.to(place))
        if len(lines) > 2:  # a triplet
            terms |= self._relations(lines, fused)
        return terms

    def _relations(self, lines: Sequence[int], fused: Tensor) -> dict[str, Tensor]:
        """The relational terms, the mean over the teachers: each lays out the lines in a space of its own."""
        settings, terms, place = self._settings, {}, fused.device
        if settings.distance:
            each = [distance_loss(fused, teacher.rows("fused", lines).to(place)) for teacher in self._teachers]
            terms["distance"] = settings.distance * torch.stack(each).mean()
        if settings.angle:
            some = slice(None, None, -(-len(lines) // ANGLE_LINES))
            targets = [teacher.rows("fused", lines[some]).to(place) for teacher in self._teachers]
            each = [angle_loss(fused[some], target) for target in targets]
            terms["angle"] = settings.angle * torch.stack(each).mean()
        return terms


def distill(
    recipe: str, overrides: list[str], teachers: Sequence[Path], out: Path, size: str | None = None
) -> dict[str, Any]:
    """Train a recipe into `out` with finished runs as teachers; the same call goes on where it stopped.

    Raises:
        RecipeError: the recipe does not fit, a teacher is no finished run or answers with other labels.
        ManifestError: a line of the data cannot be used.
    """
    settings = load_recipe(recipe, overrides, size)
    runs = [Run.open(folder) for folder in teachers]
    if not runs:
        raise RecipeError("no teacher; give at least one finished run as --teacher")
    weights = {term: getattr(settings.distill, term) for term in ("logits", "embedding", "distance", "angle")}
    if not any(weights.values()):
        raise RecipeError(
            f"nothing to learn from a teacher: the weights distill.{', distill.'.join(weights)} are all 0"
        )
    if settings.distill.embedding and len(runs) > 1:
        raise RecipeError("distill.embedding needs one teacher: several have no common space; use distill.distance")
    if settings.train.mixup:
        raise RecipeError(
            "train.mixup mixes lines, and a teacher answered each by itself; add train.mixup=0 to distill"
        )
    lineage = [{"run": str(run.folder), "sha256": run.weights_sha256()} for run in runs]

    def lesson(training: Sequence[Example], labels: tuple[str, ...]) -> Lesson:
        for run in runs:
            if run.labels != labels:
                other = ", ".join(sorted(set(run.labels) ^ set(labels)))
                raise RecipeError(f"teacher {run.folder} has other labels (only one side has: {other}); choose another")
        return Lesson([answers(run, training) for run in runs], training, settings.distill)

    return train_recipe(settings, out, lineage, lesson)


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["distill", *sys.argv[1:]])
