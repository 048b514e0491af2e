"""LoRA (Hu 2021) on the text encoder: small matrices learn in place of its weights, and are merged at the end.

The model that is saved and exported has the very layers it had before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from torch import nn

from edgefuse.runtime.errors import MissingExtraError, RecipeError
from edgefuse.train.encoders import TEXT_ENCODERS, TextEncoder
from edgefuse.train.recipe import Recipe

_IN_LAYER = re.compile(r"\.layer\.\d+\.")  # not the pooler, which nothing reads


@contextmanager
def lora_adapters(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Within the block the text encoder learns by adapters of rank `text.lora` alone; 0 changes nothing."""
    if recipe.text is None or not recipe.text.lora:
        yield
        return
    if recipe.text.encoder in TEXT_ENCODERS and recipe.text.weights is None and recipe.train.start is None:
        raise RecipeError(
            f"text.lora is {recipe.text.lora}, which leaves the random weights of {recipe.text.encoder} as they are; "
            "give text.weights or train.start, or a hub name or folder as text.encoder"
        )
    encoder = model.get_submodule("encoders.text")
    assert isinstance(encoder, TextEncoder)
    trained, total = add_lora(encoder, recipe.text.lora)
    told = f"text: LoRA of rank {recipe.text.lora} trains {trained:,} of {total:,} parameters ({trained / total:.2%})"
    Console(stderr=True).print(told, highlight=False)
    try:
        yield
    finally:
        merge_lora(encoder)


def add_lora(encoder: TextEncoder, rank: int) -> tuple[int, int]:
    """Give every matrix of the encoder's layers an adapter and freeze the rest.

    Returns:
        How many parameters learn now, and how many the encoder had.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise MissingExtraError("text.lora needs peft; install edgefuse[train]") from None
    total = sum(parameter.numel() for parameter in encoder.parameters())
    matrices = [name for name, m in encoder.bert.named_modules() if isinstance(m, nn.Linear) and _IN_LAYER.search(name)]
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=matrices)
    adapted: Any = LoraModel(encoder.bert, settings, "default")  # stands in for the model
    encoder.bert = adapted
    return sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad), total


def merge_lora(encoder: TextEncoder) -> None:
    """Add the adapters to the weights they stand beside, and take them out."""
    adapted: Any = encoder.bert
    encoder.bert = adapted.merge_and_unload()
    encoder.requires_grad_(True)
