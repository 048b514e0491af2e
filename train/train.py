"""Train a recipe: `python train/train.py easy_vqa train.epochs=3 --out runs/a`, the same as `edgefuse train`.

A run folder holds run.json (recipe, labels, data fingerprint, versions, result), tokenizer.json, model.safetensors,
checkpoint.safetensors and tensorboard/.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from edgefuse.runtime.bundle import TOKENIZER_FILE
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, fingerprint, label_names, read_manifest
from edgefuse.runtime.preprocess import Tokenizer
from edgefuse.train.checkpoint import short_reason
from edgefuse.train.data import Loader, TrainingSteps
from edgefuse.train.fit import fit
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import Guide, settle_norms
from edgefuse.train.recipe import Recipe, load_recipe, parse_recipe
from edgefuse.train.wordpiece import tokenizer_document

RUN_FILE, MODEL_FILE = "run.json", "model.safetensors"
# Training lines and labels to what a step learns beside them.
Lessons = Callable[[Sequence[Example], tuple[str, ...]], Guide]


@dataclass(frozen=True)
class Run:
    """A run on disk, as export and distillation read it."""

    folder: Path
    recipe: Recipe
    labels: tuple[str, ...]
    document: dict[str, Any]  # run.json
    tokenizer: bytes | None  # tokenizer.json

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run folder.

        Raises:
            RecipeError: no run there, or one that this edgefuse cannot read.
        """
        try:
            document = json.loads((folder / RUN_FILE).read_bytes())
            recipe, labels = parse_recipe(document["recipe"]), tuple(document["labels"])
            tokenizer = (folder / TOKENIZER_FILE).read_bytes() if recipe.text else None
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise RecipeError(f"{folder} is not a run: no {missing} in it; make one with `edgefuse train`") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{folder / RUN_FILE} cannot be read ({error}); train the run again") from None
        return cls(folder, recipe, labels, document, tokenizer)

    def text_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the run's texts."""
        if self.tokenizer is None or self.recipe.text is None:
            return None
        return Tokenizer(self.tokenizer, self.recipe.text.max_tokens)

    def new_model(self) -> FusedModel:
        """The run's model before training, seeded by the recipe."""
        torch.manual_seed(self.recipe.train.seed)
        tokenizer, text = self.text_tokenizer(), self.recipe.text
        rows = max(tokenizer.vocabulary_size, text.table_rows) if tokenizer and text else 0
        return FusedModel(self.recipe, len(self.labels), rows)

    def trained_model(self) -> FusedModel:
        """The model after training, in evaluation mode.

        Raises:
            RecipeError: the run was not trained to its end, or its weights are damaged.
        """
        path = self._weights()
        model = self.new_model()
        try:
            model.load_state_dict(load_file(path))
        except Exception as error:  # safetensors raises its own error, torch RuntimeError
            raise RecipeError(f"{path} cannot be loaded ({short_reason(error)}); train the run again") from None
        return model.eval()

    def weights_sha256(self) -> str:
        """The hash of the trained weights' file.

        Raises:
            RecipeError: the run was not trained to its end.
        """
        return hashlib.sha256(self._weights().read_bytes()).hexdigest()

    def _weights(self) -> Path:
        path = self.folder / MODEL_FILE
        if not path.exists():
            raise RecipeError(
                f"{self.folder} is not trained to its end; go on with `edgefuse train ... --out {self.folder}`"
            )
        return path


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
    data = settings.data
    training = _readable(settings, read_manifest(data.manifest, split="train", limit=data.limit))
    labels = label_names(training)
    _check_labels(settings, training, labels)
    validation = _readable(settings, read_manifest(data.manifest, split="val", labels=labels))
    run = _open_or_start(out, settings, labels, training, teachers)
    if "accuracy" in run.document:
        return _result(run)
    model = run.new_model()
    loader = Loader(settings, labels, run.text_tokenizer())
    steps = TrainingSteps(settings, training, loader)
    subsets = list(settings.data.subsets) or ["+".join(settings.modalities)]
    guide = lessons(training, labels) if lessons else None
    if settings.train.epochs:
        scores = fit(model, steps, loader, validation, subsets, settings, out, guide)
    else:
        scores = {}
        settle_norms(model, steps[0])
    write_atomic(out / MODEL_FILE, save({name: t.contiguous() for name, t in model.state_dict().items()}))
    run.document["accuracy"] = scores
    _write_document(run)
    return _result(run)


def _open_or_start(
    out: Path,
    recipe: Recipe,
    labels: tuple[str, ...],
    training: Sequence[Example],
    teachers: Sequence[dict[str, str]],
) -> Run:
    data = fingerprint(training)
    if (out / RUN_FILE).exists():
        run = Run.open(out)
        changed = _differences(run.recipe.model_dump(), recipe.model_dump())
        if changed:
            raise RecipeError(
                f"{out} holds a run of another recipe (differs in {', '.join(changed)}); choose another --out"
            )
        if run.document["data_fingerprint"] != data:
            raise RecipeError(
                f"{out} was trained on other data than {recipe.data.manifest} has now; choose another --out"
            )
        hashes = [sorted(t["sha256"] for t in taught) for taught in (run.document.get("teachers", ()), teachers)]
        if hashes[0] != hashes[1]:
            names = ", ".join(t["run"] for t in run.document.get("teachers", ())) or "no teacher"
            raise RecipeError(f"{out} holds a run with other teachers ({names}); choose another --out")
        return run
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_document(recipe.text, [e.text for e in training if e.text]) if recipe.text else None
    if tokenizer is not None:
        write_atomic(out / TOKENIZER_FILE, tokenizer)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    document = {
        "recipe": recipe.model_dump(),
        "labels": labels,
        "data_fingerprint": data,
        "versions": versions,
    }
    if teachers:
        document["teachers"] = list(teachers)
    run = Run(out, recipe, labels, document, tokenizer)
    _write_document(run)
    return run


def _write_document(run: Run) -> None:
    write_atomic(run.folder / RUN_FILE, json.dumps(run.document, indent=2).encode())


def _result(run: Run) -> dict[str, Any]:
    return {"run": str(run.folder), "accuracy": run.document["accuracy"], "labels": list(run.labels)}


def _readable(recipe: Recipe, examples: Sequence[Example]) -> list[Example]:
    """The lines that have something for the model, which must find each of its modalities among them."""
    for modality in recipe.modalities:
        if not any(modality in example.sensors for example in examples):
            raise RecipeError(
                f"{recipe.data.manifest}: no {examples[0].split} line has {modality}, which the recipe reads; "
                f"add some, or leave the section {modality} out"
            )
    return [example for example in examples if set(example.sensors) & set(recipe.modalities)]


def _check_labels(recipe: Recipe, training: Sequence[Example], labels: tuple[str, ...]) -> None:
    unlabelled = next((example for example in training if example.label is None), None)
    if unlabelled is not None:
        raise RecipeError(f"{unlabelled.where}: a training line needs a label")
    if len(labels) < 2:
        raise RecipeError(f"{recipe.data.manifest}: the training lines have {len(labels)} label; at least 2 are needed")


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    names: list[str] = []
    for key in new:
        first, second = old.get(key), new[key]
        if isinstance(first, dict) and isinstance(second, dict):
            names += _differences(first, second, f"{prefix}{key}.")
        elif first != second:
            names.append(prefix + key)
    return names


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["train", *sys.argv[1:]])
