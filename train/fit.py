"""The loop: optimise, validate, checkpoint, resume."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from edgefuse.runtime.manifest import Example
from edgefuse.train.checkpoint import Checkpoint
from edgefuse.train.data import Batch, Loader, TrainingSteps
from edgefuse.train.losses import accuracy, alignment_loss, task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.recipe import Recipe, TrainSettings

VALIDATION_BATCH = 512  # lines
# What a step learns beside its labels: batch, logits [B, C] and fused embedding [B, D] to weighted terms of the loss.
Guide = Callable[[Batch, Tensor, Tensor], dict[str, Tensor]]


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Linear warm-up to the peak, then half a cosine to zero (Loshchilov & Hutter 2017); depends on the step only."""
    peak = max(1, round(settings.warmup * total))
    if step < peak:
        return settings.learning_rate * (step + 1) / peak
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1, total - peak)))


def batch_logits(model: FusedModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [B, C] of a batch, and the projected tokens [U, N, D] of its distinct sensors."""
    fused, distinct = batch_fused(model, batch)
    return model.head.classify(fused), distinct


def batch_fused(model: FusedModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """What the classifier reads [B, D], and the projected tokens [U, N, D] of the batch's distinct sensors.

    Each distinct sensor is encoded once and gathered for the lines that share it.
    """
    distinct = {m: model.head.project_tokens(m, model.encode(m, batch.inputs)) for m in batch.index}
    return model.head.embed(_gather(model, batch, distinct), batch.presence)[0], distinct


def batch_loss(
    model: FusedModel, batch: Batch, settings: TrainSettings, guide: Guide | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step, and its terms for the log."""
    fused, distinct = batch_fused(model, batch)
    logits = model.head.classify(fused)
    loss = task_loss(logits, batch.labels, settings.label_smoothing)
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
    """Accuracy on `examples` for each subset of sensors, 0..1."""
    model.eval()
    correct = dict.fromkeys(subsets, 0.0)
    with torch.no_grad():
        for start in range(0, len(examples), VALIDATION_BATCH):
            part = examples[start : start + VALIDATION_BATCH]
            present = [set(e.sensors) & set(model.modalities) for e in part]
            batch = loader.batch(part, [e.audio for e in part], present)
            distinct = {m: model.head.project_tokens(m, model.encode(m, batch.inputs)) for m in batch.index}
            gathered = _gather(model, batch, distinct)
            for name in subsets:
                kept = torch.tensor([float(m in name.split("+")) for m in model.modalities])
                logits, _ = model.head.fuse(gathered, batch.presence * kept)
                correct[name] += accuracy(logits, batch.labels) * len(part)
    model.train()
    return {name: value / len(examples) for name, value in correct.items()}


def _gather(model: FusedModel, batch: Batch, distinct: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projected tokens [B, N, D] of every line; zeros for a modality that no line of the batch has."""
    lines = len(batch.labels)
    return {
        m: distinct[m][batch.index[m]]
        if m in distinct
        else torch.zeros(lines, model.counts[m], len(model.head.placeholder[m]))
        for m in model.modalities
    }


def fit(
    model: FusedModel,
    steps: TrainingSteps,
    loader: Loader,
    validation: Sequence[Example],
    subsets: Sequence[str],
    recipe: Recipe,
    folder: Path,
    guide: Guide | None = None,
) -> dict[str, float]:
    """Train to the end of the schedule, from the checkpoint in `folder` where there is one.

    Ctrl-C writes a checkpoint before it ends the run, so the same command goes on.

    Returns:
        Validation accuracy per subset after the last step.
    """
    settings = recipe.train
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), lr=settings.learning_rate)
    checkpoint = Checkpoint(folder)
    step = checkpoint.restore(model, optimizer)
    total, per_epoch = len(steps), steps.steps_per_epoch
    scores: dict[str, float] = {}
    saved_at = time.monotonic()
    model.train()
    with closing(SummaryWriter(str(folder / "tensorboard"), purge_step=step)) as board, _progress() as progress:
        task = progress.add_task("training", total=total, completed=step, note="")
        try:
            for batch in _batches(steps, range(step, total), recipe.data.workers):
                with _interrupt_held_back():
                    terms = _optimise(model, optimizer, batch, settings, step, total, guide)
                    step += 1
                for name, value in terms.items():
                    board.add_scalar(f"train/{name}", value, step)
                progress.update(task, completed=step, note=f"loss {terms['task']:.3f} acc {terms['accuracy']:.3f}")
                if step % (per_epoch * settings.validate_every) == 0 or step == total:
                    scores = validate(model, loader, validation, subsets)
                    _log_validation(progress, board, step, step / per_epoch, scores)
                if time.monotonic() - saved_at >= settings.checkpoint_every_s:
                    checkpoint.save(model, optimizer, step)
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            checkpoint.save(model, optimizer, step)
            raise
    checkpoint.save(model, optimizer, step)
    return scores or validate(model, loader, validation, subsets)


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


def _optimise(
    model: FusedModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: TrainSettings,
    step: int,
    total: int,
    guide: Guide | None = None,
) -> dict[str, float]:
    """One step; dropout and augmentation draw from a generator seeded by the step, so that resuming is exact."""
    torch.manual_seed(settings.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * learning_rate(step, total, settings)
    loss, terms = batch_loss(model, batch, settings, guide)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    return terms


@contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Let ctrl-C wait for the end of the block: a checkpoint of half a step could not be resumed exactly."""
    in_main = threading.current_thread() is threading.main_thread()  # only that one may set handlers
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as under nohup
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt


def _parameter_groups(model: FusedModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Every encoder at its own rate; weight decay on matrices and kernels only, not on biases, norms, placeholders."""
    rates = [(model.encoders[m], getattr(recipe, m).rate) for m in model.modalities] + [(model.head, 1.0)]
    groups = []
    for module, rate in rates:
        decayed = [p for p in module.parameters() if p.ndim > 1]
        others = [p for p in module.parameters() if p.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": recipe.train.weight_decay, "rate": rate})
        groups.append({"params": others, "weight_decay": 0.0, "rate": rate})
    return groups


def _batches(steps: TrainingSteps, numbers: range, workers: int) -> Iterator[Batch]:
    yield from DataLoader(steps, batch_size=None, sampler=numbers, num_workers=workers)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _log_validation(
    progress: Progress, board: SummaryWriter, step: int, epoch: float, scores: dict[str, float]
) -> None:
    for name, value in scores.items():
        board.add_scalar(f"val/{name}", value, step)
    progress.console.print(
        f"epoch {epoch:g}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()), highlight=False
    )
