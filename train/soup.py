"""Average the weights of runs: `python train/soup.py runs/a runs/b --out runs/soup`, the same as `edgefuse soup`.

A model soup (Wortsman 2022): runs that went on from one run (`train.start`) with other seeds, lengths or rates end in
one basin, where the mean of their weights is right more often than each, above all on data unlike training's, and costs
what one of them costs. Runs that started apart have no such mean.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.data import Loader
from edgefuse.train.distributed import refuse_others
from edgefuse.train.model import FusedModel, specs_of
from edgefuse.train.objective import validate
from edgefuse.train.runs import RUN_FILE, Run
from edgefuse.train.train import readable


def soup(runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write to `out` the run whose weights are the mean of those of `runs`; batch norms' statistics are averaged too.

    Args:
        runs: the folders of two or more finished runs of one model, on from one start.
        out: a new folder, or that of this very soup, which is kept.

    Returns:
        {run, accuracy, each}: accuracies on the validation lines per subset of sensors, of the soup and of each run.

    Raises:
        RecipeError: too few runs, one is not finished, they differ in more than their training, or `out` holds a run.
        ManifestError: a validation line cannot be used.
        PeerError: called by torchrun.
    """
    refuse_others("soup")
    if len(runs) < 2:
        raise RecipeError(f"{len(runs)} run is nothing to average; give two or more that went on from one train.start")
    sources = [Run.open(folder) for folder in runs]
    models = [run.trained_model() for run in sources]
    _check_alike(sources, models)
    each = {str(run.folder): run.document["accuracy"] for run in sources}
    lineage = [{"run": str(run.folder), "sha256": run.weights_sha256()} for run in sources]
    if (out / RUN_FILE).exists():
        kept = Run.open(out)
        if kept.document.get("soup") != lineage:
            raise RecipeError(f"{out} holds a run; choose another --out")
        return {"run": str(out), "accuracy": kept.document["accuracy"], "each": each}
    one, model = sources[0], models[0]
    model.load_state_dict(_mean([model.state_dict() for model in models]))
    lines = read_manifest(one.recipe.data.manifest, split="val", labels=one.labels)
    loader = Loader(one.recipe, one.labels, one.text_tokenizer())
    accuracy = validate(model, loader, readable(one.recipe, lines), one.recipe.trained_subsets)
    one.write_next(out, model, {"accuracy": accuracy, "soup": lineage})
    return {"run": str(out), "accuracy": accuracy, "each": each}


def _check_alike(runs: Sequence[Run], models: Sequence[FusedModel]) -> None:
    """All are the same model, and went on from the same weights."""
    first, *others = [_facts(run, model) for run, model in zip(runs, models, strict=True)]
    for run, facts in zip(runs[1:], others, strict=True):
        if first["start"] is None or facts["start"] != first["start"]:
            starts = " and ".join(str(each.recipe.train.start) for each in (runs[0], run))
            raise RecipeError(
                f"{runs[0].folder} and {run.folder} started apart (train.start: {starts}), so the mean of their "
                "weights is no model; train both on from one run by train.start=RUN"
            )
        if differ := ", ".join(name for name in first if facts[name] != first[name]):
            raise RecipeError(
                f"{runs[0].folder} and {run.folder} differ in {differ}; only how they were trained may differ"
            )


def _facts(run: Run, model: FusedModel) -> dict[str, object]:
    """What runs must have alike, so that a weight of one means what the same weight of another does."""
    return {
        "start": run.document.get("start"),
        "the model": {name: tensor.shape for name, tensor in model.state_dict().items()},
        "preprocessing": specs_of(run.recipe),
        "labels": run.labels,
        "tokenizer.json": run.tokenizer,
        "data": run.document["data_fingerprint"],
    }


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor; counters are the first one's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["soup", *sys.argv[1:]])
