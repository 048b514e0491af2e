"""The loop: optimise, validate, checkpoint, resume."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgefuse.runtime.errors import EdgefuseError, RecipeError
from edgefuse.runtime.manifest import Example
from edgefuse.train.adapters import lora_adapters
from edgefuse.train.adversarial import with_adversary
from edgefuse.train.checkpoint import Checkpoint
from edgefuse.train.data import Batch, Loader, TrainingSteps
from edgefuse.train.devices import on_device, prepare
from edgefuse.train.distributed import average_gradients, device
from edgefuse.train.losses import balanced_weights, task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import Guide, batch_logits, batch_loss, validate
from edgefuse.train.optimizers import hold_frozen, learning_rate, new_optimizer, set_rates
from edgefuse.train.recipe import Recipe, TrainSettings
from edgefuse.train.selection import Selection
from edgefuse.train.training_log import TrainingLog

# The loss of a batch and its terms for the log, and the validation scores of a model.
Loss = Callable[[Batch], tuple[Tensor, dict[str, float]]]
Score = Callable[[Any], dict[str, float]]


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
        Validation accuracy per subset, of the weights that the model ends with.
    """
    settings = recipe.train
    balanced = settings.class_weights == "balanced"
    weights = balanced_weights(loader.numbers(steps.examples)).to(device()) if balanced else None  # [C]
    if settings.mixup and guide:
        raise RecipeError("train.mixup mixes lines, and teachers answer them one by one; set it to 0 to distill")

    def loss(near: Batch) -> Tensor:
        return task_loss(batch_logits(model, near)[0], near.labels, settings.label_smoothing, weights)

    guide = with_adversary(guide, model, recipe.adversarial, loss)
    with lora_adapters(model, recipe):
        return run_steps(
            model,
            steps,
            recipe,
            folder,
            loss=lambda batch: batch_loss(model, batch, settings, guide, weights),
            score=lambda candidate: validate(candidate, loader, validation, subsets),
        )


def run_steps(
    model: nn.Module, steps: TrainingSteps, recipe: Recipe, folder: Path, loss: Loss, score: Score
) -> dict[str, float]:
    """The loop of any training, resumed from the checkpoint in `folder`; returns the scores of the final weights."""
    settings = recipe.train
    place = prepare(model)
    optimizer, selection = new_optimizer(model, recipe), Selection(model, settings)
    checkpoint = Checkpoint(folder)
    step = checkpoint.restore(model, optimizer, selection)
    total, validate_every = len(steps), steps.steps_per_epoch * settings.validate_every
    scores: dict[str, float] = {}
    saved_at = time.monotonic()
    model.train()
    with TrainingLog(folder, step, total) as log:

        def judge() -> None:
            nonlocal scores
            if selection.judged_step < step and (step % validate_every == 0 or step == total):
                scores = score(selection.candidate)
                with _interrupt_held_back():
                    selection.judge(step, scores)
                log.validation(step, step / steps.steps_per_epoch, scores)

        try:
            judge()  # where ctrl-C came before it
            numbers = range(total if selection.stops else step, total)
            for batch in log.timed(_batches(steps, numbers, recipe.data.workers)):
                with _interrupt_held_back():
                    hold_frozen(model, optimizer, recipe, epoch=step // steps.steps_per_epoch)
                    terms = optimise(model, optimizer, batch.to(place), settings, step, total, loss)
                    selection.take_step()
                    step += 1
                log.step(step, terms)
                judge()
                if selection.stops:
                    break
                if time.monotonic() - saved_at >= settings.checkpoint_every_s:
                    checkpoint.save(model, optimizer, step, selection)
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            checkpoint.save(model, optimizer, step, selection)
            raise
        log.end()
    checkpoint.save(model, optimizer, step, selection)
    selection.settle()
    return scores if scores and not settings.patience else score(model)


def optimise(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: TrainSettings,
    step: int,
    total: int,
    loss_of: Loss,
) -> dict[str, float]:
    """One step; dropout and augmentation draw from a generator seeded by the step, so that resuming is exact."""
    torch.manual_seed(settings.seed * 1_000_003 + step)
    set_rates(optimizer, learning_rate(step, total, settings))
    with on_device(batch.labels.device):
        loss, terms = loss_of(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(model.parameters())
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


class _Told(Dataset[Batch | EdgefuseError]):
    """Steps whose errors come as values: what a worker raises, torch makes a traceback of in the message."""

    def __init__(self, steps: TrainingSteps) -> None:
        self._steps = steps

    def __getitem__(self, number: int) -> Batch | EdgefuseError:
        try:
            return self._steps[number]
        except EdgefuseError as error:
            return error


def _batches(steps: TrainingSteps, numbers: range, workers: int) -> Iterator[Batch]:
    for batch in DataLoader(_Told(steps), batch_size=None, sampler=numbers, num_workers=workers):
        if isinstance(batch, EdgefuseError):
            raise batch
        yield batch
