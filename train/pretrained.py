"""Weights that an encoder starts from: a .safetensors file of that encoder, or a run that has trained one like it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

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


def without_weights(recipe: Recipe) -> Recipe:
    """The recipe of the same model with nothing to start from."""
    sections = {m: getattr(recipe, m).model_copy(update={"weights": None}) for m in recipe.modalities}
    return recipe.model_copy(update=sections)
