"""Train a recipe: `python train/train.py easy_vqa train.epochs=3 --out runs/a`, the same as `edgefuse train`.

A run folder holds run.json (recipe, labels, data fingerprint, versions, result), tokenizer.json, model.safetensors,
checkpoint.safetensors and tensorboard/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgefuse.runtime.errors import PeerError, RecipeError
from edgefuse.runtime.manifest import Example, label_names, read_manifest
from edgefuse.train.data import Loader, TrainingSteps, training_lines
from edgefuse.train.distributed import ALONE, first, here, joined
from edgefuse.train.fit import fit
from edgefuse.train.objective import Guide, settle_norms
from edgefuse.train.pretrained import start_from
from edgefuse.train.recipe import Recipe, load_recipe
from edgefuse.train.runs import RUN_FILE, Run, open_or_start

# Training lines and labels to what a step learns beside them.
Lessons = Callable[[Sequence[Example], tuple[str, ...]], Guide]


def train(recipe: str, overrides: list[str], out: Path, size: str | None = None) -> dict[str, Any]:
    """Train a recipe into the folder `out`; the same call goes on where it stopped, or returns the finished run.

    Raises:
        RecipeError: the recipe does not fit, or `out` holds a run of another recipe.
        ManifestError: a line of the data cannot be used.
    """
    return train_recipe(load_recipe(recipe, overrides, size), out)


def train_recipe(
    settings: Recipe, out: Path, teachers: Sequence[dict[str, str]] = (), lessons: Lessons | None = None
) -> dict[str, Any]:
    """Train `settings` into `out`; `teachers` ({run, sha256}) go into run.json, `lessons` are what they teach."""
    with joined():
        return _train(settings, out, teachers, lessons)


def _train(settings: Recipe, out: Path, teachers: Sequence[dict[str, str]], lessons: Lessons | None) -> dict[str, Any]:
    with first():
        training = readable(settings, training_lines(settings))
        labels = label_names(training)
        _check_labels(settings, training, labels)
        validation = readable(settings, read_manifest(settings.data.manifest, split="val", labels=labels))
        if here().rank and not (out / RUN_FILE).exists():
            raise PeerError(f"{out} is not the folder that rank 0 made; --out must lie where all machines see it")
        run = open_or_start(out, settings, labels, training, teachers)
        guide = lessons(training, labels) if lessons and "accuracy" not in run.document else None
    if "accuracy" in run.document:
        return _result(run)
    model = run.new_model()
    if settings.train.start:
        taken, of = start_from(model, settings.train.start, run.tokenizer)
        Console(stderr=True).print(f"{taken} of {of} tensors from {settings.train.start}", highlight=False)
    loader = Loader(settings, labels, run.text_tokenizer(), here() if settings.train.epochs else ALONE)
    steps = TrainingSteps(settings, training, loader)
    if settings.train.epochs:
        scores = fit(model, steps, loader, validation, settings.trained_subsets, settings, out, guide)
    else:
        scores = {}
        settle_norms(model, steps[0])
    if here().rank == 0:
        run.finish(model, {"accuracy": scores})
    run.document["accuracy"] = scores
    return _result(run)


def _result(run: Run) -> dict[str, Any]:
    return {"run": str(run.folder), "accuracy": run.document["accuracy"], "labels": list(run.labels)}


def readable(recipe: Recipe, examples: Sequence[Example]) -> list[Example]:
    """The lines that have something for the model, which must find each of its modalities among them."""
    for modality in recipe.modalities:
        if not any(modality in example.sensors for example in examples):
            raise RecipeError(
                f"{recipe.data.manifest}: no {examples[0].split} line has {modality}, which the recipe reads; "
                f"add some, or leave the section {modality} out"
            )
    return [example for example in examples if recipe.seen(example)]


def _check_labels(recipe: Recipe, training: Sequence[Example], labels: tuple[str, ...]) -> None:
    unlabelled = next((example for example in training if example.label is None), None)
    if unlabelled is not None:
        raise RecipeError(f"{unlabelled.where}: a training line needs a label")
    if len(labels) < 2:
        raise RecipeError(f"{recipe.data.manifest}: the training lines have {len(labels)} label; at least 2 are needed")


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["train", *sys.argv[1:]])
