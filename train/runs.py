"""A run's folder: how it starts, is found again, ends, and what later stages read in it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import nn

from edgefuse.runtime.bundle import TOKENIZER_FILE
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, fingerprint
from edgefuse.runtime.preprocess import Tokenizer
from edgefuse.train.checkpoint import short_reason
from edgefuse.train.encoders import TEXT_ENCODERS, TextEncoder
from edgefuse.train.model import FusedModel, specs_of
from edgefuse.train.pretrained import MODEL_FILE, start_hash, without_weights
from edgefuse.train.recipe import Recipe, parse_recipe
from edgefuse.train.signal_encoder import settle, signal_statistics
from edgefuse.train.wordpiece import tokenizer_document

Model = TypeVar("Model", bound=nn.Module)

RUN_FILE = "run.json"
HARMLESS = ("data.workers", "train.checkpoint_every_s")  # settings that change nothing in what is learned


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

    @property
    def vocabulary(self) -> int:
        """Rows of the text encoder's table, 0 without text."""
        tokenizer, text = self.text_tokenizer(), self.recipe.text
        return max(tokenizer.vocabulary_size, text.table_rows) if tokenizer and text else 0

    def new_model(self) -> FusedModel:
        """The run's model before training, seeded by the recipe."""
        torch.manual_seed(self.recipe.train.seed)
        return self.settled(FusedModel(self.recipe, len(self.labels), self.vocabulary))

    def settled(self, model: Model) -> Model:
        """The model, with what its encoders know of the training data before they learn."""
        if self.recipe.signal and self.recipe.signal.weights is None:  # those stand on constants of their own
            settle(model.get_submodule("encoders.signal"), self.document["signal"])
        return model

    def trained_model(self) -> FusedModel:
        """The model after training, in evaluation mode.

        Raises:
            RecipeError: the run was not trained to its end, or its weights are damaged.
        """
        path = self._weights()
        if not self.labels:
            raise RecipeError(f"{self.folder} was pretrained and answers nothing yet; train with its encoders' weights")
        recipe, config = without_weights(self.recipe), self.document.get("text_config")
        model = FusedModel(recipe, len(self.labels), self.vocabulary, config)
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

    def finish(self, model: nn.Module, results: dict[str, Any]) -> None:
        """Write the trained weights, then run.json with `results`, which ends the run."""
        _write_weights(self.folder, model)
        text = self.recipe.text
        if text and text.encoder not in TEXT_ENCODERS:  # so that whoever reads the run needs neither hub nor folder
            encoder = model.get_submodule("encoders.text")
            assert isinstance(encoder, TextEncoder)
            self.document["text_config"] = encoder.bert.config.to_dict()
        self.document.update(results)
        self.write_document()

    def write_next(self, out: Path, model: nn.Module, results: dict[str, Any]) -> None:
        """A new run in `out` that differs in its weights and `results`; run.json, which makes it one, comes last."""
        out.mkdir(parents=True, exist_ok=True)
        if self.tokenizer is not None:
            write_atomic(out / TOKENIZER_FILE, self.tokenizer)
        _write_weights(out, model)
        replace(self, folder=out, document={**self.document, **results}).write_document()

    def write_document(self) -> None:
        """Write run.json."""
        write_atomic(self.folder / RUN_FILE, json.dumps(self.document, indent=2).encode())

    def _weights(self) -> Path:
        path = self.folder / MODEL_FILE
        if not path.exists():
            raise RecipeError(
                f"{self.folder} is not trained to its end; go on with `edgefuse train ... --out {self.folder}`"
            )
        return path


def open_or_start(
    out: Path,
    recipe: Recipe,
    labels: tuple[str, ...],
    training: Sequence[Example],
    teachers: Sequence[dict[str, str]] = (),
) -> Run:
    """The run in `out`, which is of this recipe and data, or a new one.

    Raises:
        RecipeError: `out` holds another run.
    """
    data = fingerprint(training)
    if (out / RUN_FILE).exists():
        run = Run.open(out)
        changed = [key for key in _differences(run.recipe.model_dump(), recipe.model_dump()) if key not in HARMLESS]
        if changed:
            raise RecipeError(
                f"{out} holds a run of another recipe (differs in {', '.join(changed)}); choose another --out"
            )
        if run.document["data_fingerprint"] != data:
            raise RecipeError(
                f"{out} was trained on other data than {recipe.data.manifest} has now; choose another --out"
            )
        if run.labels != labels:
            known = ", ".join(run.labels) or "none, it was pretrained"
            raise RecipeError(f"{out} holds a run with other labels ({known}); choose another --out")
        if made := [name for name in ("qat", "soup") if name in run.document]:
            raise RecipeError(f"{out} holds what `edgefuse {made[0]}` made; choose another --out")
        start = start_hash(recipe)
        if start and run.document.get("start", start) != start:
            raise RecipeError(
                f"{out} went on from other weights than {recipe.train.start} has now; choose another --out"
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
    document: dict[str, Any] = {
        "recipe": recipe.model_dump(),
        "labels": labels,
        "data_fingerprint": data,
        "versions": versions,
    }
    if recipe.signal:
        document["signal"] = signal_statistics(specs_of(recipe)["signal"], training)
    if start := start_hash(recipe):
        document["start"] = start
    if teachers:
        document["teachers"] = list(teachers)
    run = Run(out, recipe, labels, document, tokenizer)
    run.write_document()
    return run


def _write_weights(folder: Path, model: nn.Module) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(folder / MODEL_FILE, save(weights))


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    names: list[str] = []
    for key in {**old, **new}:
        first, second = old.get(key), new.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            names += _differences(first, second, f"{prefix}{key}.")
        elif first != second:
            names.append(prefix + key)
    return names
