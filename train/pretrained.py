"""Weights that an encoder starts from: a .safetensors file of that encoder, or a run that has trained one like it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from edgefuse.runtime.bundle import TOKENIZER_FILE
from edgefuse.runtime.errors import RecipeError
from edgefuse.train.checkpoint import short_reason
from edgefuse.train.recipe import Recipe
from edgefuse.train.selection import below

MODEL_FILE = "model.safetensors"  # in the folder of a run


def load_encoder(encoder: nn.Module, modality: str, source: str) -> None:
    """Load what the recipe gives as `<modality>.weights`, all names matching.

    Raises:
        RecipeError: there is nothing, or the weights of another encoder.
    """
    key, path = f"{modality}.weights {source!r}", Path(source)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise RecipeError(f"{key} does not exist; give a .safetensors file of the same encoder, or a finished run")
    try:
        tensors = load_file(file)
        encoder.load_state_dict(below(f"encoders.{modality}.", tensors) if path.is_dir() else tensors)
    except Exception as error:  # safetensors raises its own error, torch RuntimeError
        raise RecipeError(f"{key} does not fit this encoder: {short_reason(error)}") from None


def start_from(model: nn.Module, source: str, tokenizer: bytes | None) -> tuple[int, int]:
    """Take from the run that the recipe gives as `train.start` every weight whose name and shape the model has.

    What the run has not, such as layers that the model has besides, stays new. `tokenizer` is the model's.

    Returns:
        How many tensors were taken, of how many that the model has.

    Raises:
        RecipeError: no finished run is there, none of its weights fits, or its text encoder knows other pieces.
    """
    key, folder = f"train.start {source!r}", Path(source)
    try:
        given = load_file(folder / MODEL_FILE)
        pieces = (folder / TOKENIZER_FILE).read_bytes() if (folder / TOKENIZER_FILE).exists() else None
    except Exception as error:  # safetensors raises its own error
        raise RecipeError(f"{key} cannot be read ({short_reason(error)}); give the folder of a finished run") from None
    if tokenizer and pieces and tokenizer != pieces:
        raise RecipeError(f"{key} knows other pieces of words than this text; give text.tokenizer={source} as well")
    wanted = model.state_dict()
    taken = {name: value for name, value in given.items() if name in wanted and wanted[name].shape == value.shape}
    if not taken:
        raise RecipeError(f"{key}: none of its {len(given)} weights has a name and shape of this model")
    model.load_state_dict(taken, strict=False)
    return len(taken), len(wanted)


def start_hash(recipe: Recipe) -> str | None:
    """The hash of the weights that the recipe goes on from; None where there are none, or none any more."""
    path = Path(recipe.train.start or "") / MODEL_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if recipe.train.start and path.exists() else None


def without_weights(recipe: Recipe) -> Recipe:
    """The recipe of the same model with nothing to start from."""
    sections = {m: getattr(recipe, m).model_copy(update={"weights": None}) for m in recipe.modalities}
    return recipe.model_copy(update=sections)
