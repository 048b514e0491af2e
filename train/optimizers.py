"""How fast every weight learns: the schedule, groups of weights with their own rates, and encoders that stand still."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from edgefuse.train.recipe import Recipe
from edgefuse.train.settings import Freeze, TrainSettings

_LAYER = re.compile(r"\.layer\.(\d+)\.")  # BERT's and DistilBERT's names


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Linear warm-up to the peak, then half a cosine to zero (Loshchilov & Hutter 2017); depends on the step only."""
    peak = max(1, round(settings.warmup * total))
    if step < peak:
        return settings.learning_rate * (step + 1) / peak
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1, total - peak)))


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over all weights that the recipe lets learn.

    Every encoder learns at its own rate; weight decay holds matrices and kernels only, not biases, norms, placeholders.
    """
    groups = []
    for m in recipe.modalities:
        groups += _groups(dict(model.get_submodule(f"encoders.{m}").named_parameters()), recipe, m)
    encoders = {id(parameter) for parameter in model.get_submodule("encoders").parameters()}
    groups += _groups({name: p for name, p in model.named_parameters() if id(p) not in encoders}, recipe, None)
    return torch.optim.AdamW(groups, lr=recipe.train.learning_rate)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the step's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * rate


def hold_frozen(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    """Take the encoders that are frozen in this epoch out of training, and the others back in.

    A frozen encoder runs as it does when it answers: its batch norms keep their statistics, nothing is dropped out.
    """
    if not any(getattr(recipe, m).freeze for m in recipe.modalities):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(not _is_frozen(group["freeze"], epoch))
    for m in recipe.modalities:
        model.get_submodule(f"encoders.{m}").train(not _is_frozen(getattr(recipe, m).freeze, epoch))


def _is_frozen(freeze: Freeze, epoch: int) -> bool:
    return freeze is True or epoch < freeze


def _groups(parameters: dict[str, nn.Parameter], recipe: Recipe, modality: str | None) -> list[dict[str, Any]]:
    """The parameters of one encoder (all others where `modality` is None), by rate and weight decay."""
    section = getattr(recipe, modality) if modality else None
    factors = _layer_factors(list(parameters), recipe.text.layer_decay if recipe.text and modality == "text" else 1.0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for decays in (True, False):
        for name, parameter in parameters.items():
            if parameter.requires_grad and (parameter.ndim > 1) == decays:
                groups[factors[name], decays].append(parameter)
    return [
        {
            "params": members,
            "weight_decay": recipe.train.weight_decay if decays else 0.0,
            "rate": factor * (section.rate if section else 1.0),
            "freeze": section.freeze if section else False,
        }
        for (factor, decays), members in groups.items()
    ]


def _layer_factors(names: list[str], decay: float) -> dict[str, float]:
    """Each parameter's factor: decay^k for the k-th layer from the top, one more for embeddings (Clark 2020)."""
    layer = {name: int(found[1]) if (found := _LAYER.search(name)) else -1 for name in names}
    top = max(layer.values(), default=-1)
    return {name: decay ** (top - layer[name]) if decay < 1 else 1.0 for name in names}
