"""What distillation gives: `python train/gain.py av_digits --teacher runs/t --out runs/gain`, as `edgefuse gain`.

For each seed two students are trained on the same steps from the same weights, one of them with the teachers, and both
are tested on the lines of split "test". Every student is a run of its own in the folder, so a call that was cut off
goes on where it stopped, and finished runs are kept.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train.crossval import student_p
from edgefuse.train.data import Loader
from edgefuse.train.distill import distill
from edgefuse.train.losses import accuracy, ensemble_logits
from edgefuse.train.macs import model_cost
from edgefuse.train.objective import validate
from edgefuse.train.recipe import Recipe
from edgefuse.train.runs import Run
from edgefuse.train.teacher import answers
from edgefuse.train.train import train

RESULT_FILE = "gain.json"
QUICK_SEEDS, QUICK_EPOCHS = 2, 2
TEACHER_SEED = 1000  # of the first of an ensemble, far from those of the students


def gain(
    recipe: str,
    overrides: list[str],
    teachers: Sequence[Path],
    out: Path,
    size: str | None = None,
    seeds: int = 5,
    ensemble: int = 0,
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """Train `seeds` pairs of students and test them.

    Args:
        recipe: of the students.
        overrides: settings that differ, as key=value.
        teachers: folders of finished runs.
        out: a folder with gain.json and a run for every student.
        size: of the students.
        seeds: how many pairs.
        ensemble: train so many more teachers first, each like an undistilled student.
        quick: 2 pairs and 2 epochs.

    Returns:
        {n, seeds, kept, subsets: {subset: {plain, distilled, difference, low, high}}, cost: {student, teacher, share}}:
        mean accuracies, and the mean of the paired differences with its 95 % interval; `kept` is the distilled
        students' share of the accuracy of the teacher (all of them averaged), both shown all sensors.

    Raises:
        OptionError: no teacher is given nor to be trained.
        RecipeError: as of `train` and `distill`.
        ManifestError: as of these, or there are no test lines.
    """
    if quick:
        seeds, overrides = QUICK_SEEDS, [*overrides, f"train.epochs={QUICK_EPOCHS}"]
    if not ensemble and not teachers:
        raise OptionError("no teacher; give finished runs as --teacher, or train some by --ensemble 5")
    trained = [out / f"teacher{number}" for number in range(ensemble)]
    for number, folder in enumerate(trained):
        train(recipe, [*overrides, f"train.seed={TEACHER_SEED + number}"], folder, size)
    teachers = [*teachers, *trained]
    scores: dict[str, list[dict[str, float]]] = {"plain": [], "distilled": []}
    for seed in range(seeds):
        changes = [*overrides, f"train.seed={seed}"]
        train(recipe, changes, out / f"plain{seed}", size)
        distill(recipe, changes, teachers, out / f"distilled{seed}", size)
        for kind, rows in scores.items():
            rows.append(_test(Run.open(out / f"{kind}{seed}")))
            told = "  ".join(f"{subset} {value:.4f}" for subset, value in rows[-1].items())
            Console(stderr=True).print(f"seed {seed} {kind}: {told}", highlight=False)
    result = _result(scores, Run.open(out / "distilled0"), [Run.open(folder) for folder in teachers])
    write_atomic(out / RESULT_FILE, json.dumps(result, indent=2).encode())
    return {**result, "file": str(out / RESULT_FILE)}


def _result(scores: dict[str, list[dict[str, float]]], student: Run, teachers: Sequence[Run]) -> dict[str, Any]:
    """What `gain` returns, from the accuracies of all students."""
    teacher_accuracy = _ensemble_accuracy(teachers, student)
    with_all = float(np.mean([score[_all(student.recipe)] for score in scores["distilled"]]))
    return {
        "n": len(_test_lines(student)),
        "seeds": len(scores["plain"]),
        "teacher_accuracy": teacher_accuracy,
        "kept": with_all / teacher_accuracy if teacher_accuracy else None,
        "subsets": {name: _row(*([s[name] for s in scores[kind]] for kind in scores)) for name in scores["plain"][0]},
        "cost": _costs(student, teachers),
        "accuracies": scores,
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t (Gosset 1908)."""
    low, high = 0.0, 1e3  # between them lies the t that only 5 % exceed
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, len(values) - 1) > 0.05 else (low, middle)
    half = high * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _row(plain: Sequence[float], distilled: Sequence[float]) -> dict[str, float]:
    differences = np.subtract(distilled, plain).tolist()
    low, high = mean_interval(differences)
    means = {"plain": float(np.mean(plain)), "distilled": float(np.mean(distilled))}
    return {**means, "difference": float(np.mean(differences)), "low": low, "high": high}


def _all(recipe: Recipe) -> str:
    return "+".join(recipe.modalities)


def _test_lines(run: Run) -> list[Example]:
    lines = read_manifest(run.recipe.data.manifest, split="test", labels=run.labels)
    return [line for line in lines if run.recipe.seen(line)]


def _test(run: Run) -> dict[str, float]:
    """Accuracy on the test lines with all sensors, and with each subset that the recipe trains."""
    subsets = list(dict.fromkeys([_all(run.recipe), *run.recipe.data.subsets]))
    loader = Loader(run.recipe, run.labels, run.text_tokenizer())
    return validate(run.trained_model(), loader, _test_lines(run), subsets)


def _ensemble_accuracy(teachers: Sequence[Run], student: Run) -> float:
    """How often the mean of the teachers' probabilities is right, shown all sensors."""
    lines = _test_lines(student)
    each = [answers(teacher, lines).rows("logits", range(len(lines))) for teacher in teachers]  # K x [n, C]
    labels = torch.tensor([student.labels.index(str(line.label)) for line in lines])
    return accuracy(ensemble_logits(torch.stack(each), 1.0), labels)


def _costs(student: Run, teachers: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Multiply-adds and parameters of the student and of all teachers together, and the student's share."""
    one, *others = [_cost(run, _test_lines(student)) for run in (student, *teachers)]
    together = {key: sum(cost[key] for cost in others) for key in one}
    return {"student": {**one}, "teacher": {**together}, "share": {key: one[key] / together[key] for key in one}}


def _cost(run: Run, lines: Sequence[Example]) -> dict[str, int]:
    line = max(lines, key=lambda line: len(run.recipe.seen(line)))
    batch = Loader(run.recipe, run.labels, run.text_tokenizer()).whole([line])
    return model_cost(run.trained_model(), batch)


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["gain", *sys.argv[1:]])
