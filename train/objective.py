"""What a batch gives: its embeddings and logits, its loss, and the accuracy of a model on many lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from edgefuse.runtime.manifest import Example
from edgefuse.train.data import Batch, Loader
from edgefuse.train.devices import on_device
from edgefuse.train.distributed import ALONE, agreed, gathered, part_ways
from edgefuse.train.losses import accuracy, alignment_loss, task_loss
from edgefuse.train.mixup import Mix
from edgefuse.train.model import FusedModel
from edgefuse.train.settings import TrainSettings

VALIDATION_BATCH = 512  # lines
# What a step learns beside its labels: batch, logits [B, C] and fused embedding [B, D] to weighted terms of the loss.
Guide = Callable[[Batch, Tensor, Tensor], dict[str, Tensor]]


def batch_logits(model: FusedModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [B, C] of a batch, and the projected tokens [U, N, D] of its distinct sensors."""
    fused, distinct = batch_fused(model, batch)
    return model.head.classify(fused), distinct


def batch_fused(model: FusedModel, batch: Batch, mix: Mix | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """What the classifier reads [B, D], and the projected tokens [U, N, D] of the batch's distinct sensors.

    Each distinct sensor is encoded once and gathered for the lines that share it; `mix` then mixes lines. Of several
    processes each encodes and fuses its share, and all of them return the whole.
    """
    distinct = _distinct_tokens(model, batch)
    lines = _gather(model, batch, distinct)
    tokens = mix.tokens(lines) if mix else lines
    own = batch.place.share(len(batch.labels))
    fused, _ = model.head.embed({m: x[own] for m, x in tokens.items()}, batch.presence[own])
    return gathered(fused, len(batch.labels)), distinct


def batch_loss(
    model: FusedModel,
    batch: Batch,
    settings: TrainSettings,
    guide: Guide | None = None,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step, and its terms for the log; `class_weights` [C] are those of `task_loss`."""
    mix = Mix.draw(batch.presence, settings.mixup) if settings.mixup else None
    part_ways()
    fused, distinct = batch_fused(model, batch, mix)
    logits = model.head.classify(fused)

    def task(labels: Tensor) -> Tensor:
        return task_loss(logits, labels, settings.label_smoothing, class_weights)

    loss = mix.loss(batch.labels, task) if mix else task(batch.labels)
    terms = {"task": float(loss.detach()), "accuracy": accuracy(logits, batch.labels)}
    paired = batch.same_text >= 0
    if settings.alignment and paired.any():
        sounds, texts = distinct["audio"].mean(dim=1)[paired], distinct["text"].mean(dim=1)  # [A, D], [B, D]
        aligned = alignment_loss(sounds, texts.detach(), batch.same_text[paired])
        terms["alignment"] = float(aligned.detach())
        loss = loss + settings.alignment * aligned
    for name, term in (guide(batch, logits, fused) if guide else {}).items():
        terms[name] = float(term.detach())
        loss = loss + term
    return loss, terms


def validate(
    model: FusedModel, loader: Loader, examples: Sequence[Example], subsets: Sequence[str]
) -> dict[str, float]:
    """Accuracy for each subset of sensors, 0..1, on those of `examples` that have any of it; none have: left out."""
    model.eval()
    place = next(model.parameters()).device
    correct, asked = dict.fromkeys(subsets, 0), dict.fromkeys(subsets, 0)
    with torch.no_grad():
        for start in range(0, len(examples), VALIDATION_BATCH):
            batch = loader.whole(examples[start : start + VALIDATION_BATCH]).to(place)
            with on_device(place):
                lines = _gather(model, batch, _distinct_tokens(model, batch))
                for name in subsets:
                    kept = torch.tensor([float(m in name.split("+")) for m in model.modalities])
                    presence = batch.presence * kept  # [B, M]
                    logits, _ = model.head.fuse(lines, presence)
                    seen = presence.any(dim=1)  # [B]
                    correct[name] += int((logits.argmax(dim=1) == batch.labels)[seen].sum())
                    asked[name] += int(seen.sum())
    model.train()
    return agreed({name: correct[name] / count for name, count in asked.items() if count})


def settle_norms(model: FusedModel, batch: Batch) -> None:
    """Take the statistics of batch norms from one batch: an untrained model then has activations of normal size."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # this batch alone
    with torch.no_grad():
        batch_logits(model.train(), batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _distinct_tokens(model: FusedModel, batch: Batch) -> dict[str, Tensor]:
    """The projected tokens [U, N, D] of the batch's distinct sensors."""
    own = {m: model.head.project_tokens(m, model.encode(m, batch.inputs)) for m in batch.index}
    return own if batch.place == ALONE else {m: gathered(tokens, batch.distinct(m)) for m, tokens in own.items()}


def _gather(model: FusedModel, batch: Batch, distinct: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projected tokens [B, N, D] of every line; zeros for a modality that no line of the batch has."""
    lines = len(batch.labels)
    return {
        m: distinct[m][batch.index[m]]
        if m in distinct
        else torch.zeros(lines, model.counts[m], len(model.head.placeholder[m]))
        for m in model.modalities
    }
