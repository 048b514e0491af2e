"""Pretrain a recipe's encoders without labels: `python train/pretrain.py RECIPE --out runs/p`, as `edgefuse pretrain`.

What one line of the manifest shows, sounds and says belongs together: each encoder learns to tell the partner of its
sensor among all distinct ones of the step (InfoNCE, van den Oord 2018, both ways and with a learned temperature as in
CLIP, Radford 2021). A training starts from all of the run with `train.start=runs/p`, or from the encoder of one
modality with `image.weights=runs/p`.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from edgefuse.runtime.bundle import SENSOR_TENSORS
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example, label_names, read_manifest
from edgefuse.train.adapters import lora_adapters
from edgefuse.train.data import Batch, Loader, TrainingSteps, training_lines
from edgefuse.train.devices import on_device
from edgefuse.train.distributed import agreed, first, gathered, here, joined, part_ways
from edgefuse.train.fit import run_steps
from edgefuse.train.losses import contrastive_loss, found_partners
from edgefuse.train.model import new_encoders, new_projections
from edgefuse.train.pretrained import start_from
from edgefuse.train.recipe import Recipe, load_recipe
from edgefuse.train.runs import Run, open_or_start
from edgefuse.train.train import readable

FIRST_TEMPERATURE, LEAST_TEMPERATURE = 0.07, 0.01  # CLIP's
RETRIEVAL_BATCH = 256  # validation lines among whose sensors a partner is looked for


class Aligner(nn.Module):
    """The encoders of a recipe, and a projection of each into the space where they meet."""

    def __init__(self, recipe: Recipe, vocabulary: int) -> None:
        super().__init__()
        self.encoders = new_encoders(recipe, vocabulary)
        encoders: dict[str, Any] = dict(self.encoders.items())
        dims = {m: encoder.dim for m, encoder in encoders.items()}
        self.head = nn.ModuleDict({"project": new_projections(dims, recipe.fusion.dim)})  # named as FusedModel's
        self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The embeddings [U, D] of a batch's distinct sensors; of several processes each encodes its share."""
        tokens = {m: self.encoders[m](*(batch.inputs[name] for name in SENSOR_TENSORS[m])) for m in batch.index}
        project: Any = self.head["project"]
        return {m: gathered(project[m](x.mean(dim=1)), batch.distinct(m)) for m, x in tokens.items()}

    @property
    def scale(self) -> Tensor:
        """What cosine similarities are multiplied by, 1 / temperature."""
        return self.log_scale.clamp(max=-math.log(LEAST_TEMPERATURE)).exp()


def pretrain(recipe: str, overrides: list[str], out: Path) -> dict[str, Any]:
    """Pretrain the encoders of a recipe into the folder `out`; the same call goes on where it stopped.

    Returns:
        {run, retrieval: {pair: share}}: how often the nearest sensor is a partner, among the sensors of 256 validation
        lines, for each pair of modalities, both ways; no pairs where the manifest has no val lines.

    Raises:
        RecipeError: the recipe does not fit, or `out` holds a run of another recipe.
        ManifestError: a line of the data cannot be used.
    """
    with joined():
        return _pretrain(_every_sensor(load_recipe(recipe, overrides)), out)


def _pretrain(recipe: Recipe, out: Path) -> dict[str, Any]:
    with first():
        training, validation, labels = _lines(recipe)
        run = open_or_start(out, recipe, (), training)
    if "retrieval" in run.document:
        return _result(run)
    torch.manual_seed(recipe.train.seed)
    model = run.settled(Aligner(recipe, run.vocabulary))
    if recipe.train.start:
        start_from(model, recipe.train.start, run.tokenizer)
    loader = Loader(recipe, labels, run.text_tokenizer(), here())
    with lora_adapters(model, recipe):
        scores = run_steps(
            model,
            TrainingSteps(recipe, training, loader),
            recipe,
            out,
            loss=lambda batch: aligned_loss(model, batch),
            score=lambda candidate: retrieval(candidate, loader, validation),
        )
    if here().rank == 0:
        run.finish(model, {"retrieval": scores})
    run.document["retrieval"] = scores
    return _result(run)


def aligned_loss(model: Aligner, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The mean contrastive loss over the pairs of modalities that the batch has, and its terms for the log."""
    part_ways()
    embeddings = model(batch)
    losses, found = [], []
    for one, other, paired in _pairs(batch, list(model.encoders)):
        losses.append(contrastive_loss(embeddings[one], embeddings[other], paired, model.scale))
        found.append(found_partners(embeddings[one], embeddings[other], paired))
    if not losses:  # a step whose lines have one sensor each learns nothing
        return 0.0 * model.log_scale, {}
    loss = torch.stack(losses).mean()
    return loss, {"contrast": float(loss.detach()), "found": fmean(found)}


@torch.no_grad()
def retrieval(model: Aligner, loader: Loader, examples: Sequence[Example]) -> dict[str, float]:
    """For each pair of modalities ("image+text"), the share of sensors whose nearest one is a partner, 0..1."""
    model.eval()
    place = next(model.parameters()).device
    shares: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(examples), RETRIEVAL_BATCH):
        batch = loader.whole(examples[start : start + RETRIEVAL_BATCH]).to(place)
        with on_device(place):
            embeddings = model(batch)
        for one, other, paired in _pairs(batch, list(model.encoders)):
            shares[f"{one}+{other}"].append(found_partners(embeddings[one], embeddings[other], paired))
    model.train()
    return agreed({pair: fmean(values) for pair, values in shares.items()})


def _pairs(batch: Batch, modalities: Sequence[str]) -> Iterator[tuple[str, str, Tensor]]:
    """Every two modalities, and which of their distinct sensors a line shows together [U_one, U_other]."""
    column = {m: number for number, m in enumerate(modalities)}
    for one, other in itertools.combinations(batch.index, 2):
        lines = (batch.presence[:, [column[one], column[other]]] > 0.5).all(dim=1)  # [B]
        if lines.any():
            paired = torch.zeros(batch.distinct(one), batch.distinct(other), dtype=torch.bool, device=lines.device)
            paired[batch.index[one][lines], batch.index[other][lines]] = True
            yield one, other, paired


def _every_sensor(recipe: Recipe) -> Recipe:
    """The recipe with all that a line has shown to the model: a sensor that is left out would have no partner."""
    if len(recipe.modalities) < 2:
        raise RecipeError(f"the recipe reads {recipe.modalities[0]} alone; pretraining pairs two sensors or more")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"subsets": {}})})


def _paired(recipe: Recipe, examples: Sequence[Example]) -> list[Example]:
    """The lines that have two sensors or more."""
    paired = [example for example in examples if len(recipe.seen(example)) > 1]
    if examples and not paired:
        found = f"{recipe.data.manifest}: no {examples[0].split} line has two of {', '.join(recipe.modalities)}"
        raise RecipeError(f"{found}; pretraining pairs what a line shows together")
    return paired


def _lines(recipe: Recipe) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """Training lines, validation lines where there are some, and the labels, which nothing asks for."""
    data = recipe.data
    examples = read_manifest(data.manifest)
    training = readable(recipe, _paired(recipe, training_lines(recipe)))
    validation = _paired(recipe, [example for example in examples if example.split == "val"])
    if recipe.train.patience and not validation:
        raise RecipeError(f"{data.manifest}: no val line to stop early by; add some, or set train.patience=0")
    return training, validation, label_names(examples)


def _result(run: Run) -> dict[str, Any]:
    return {"run": str(run.folder), "retrieval": run.document["retrieval"]}


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["pretrain", *sys.argv[1:]])
