"""Fine-tune a run with INT8 rounding in the loop: `python train/qat.py runs/a --out runs/b`, as `edgefuse qat`.

Quantization-aware training (Jacob 2018) from the calibrated model: the float model that the run ended with is the
teacher, whose logits the rounded model has to give. The new folder is a run like any other, with float weights that
lose less when `edgefuse quantize` rounds them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from edgefuse.runtime.bundle import SENSOR_TENSORS
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example, fingerprint, read_manifest
from edgefuse.train.data import Loader, TrainingSteps, training_lines
from edgefuse.train.distributed import refuse_others
from edgefuse.train.fake_int8 import FakeInt8
from edgefuse.train.losses import distillation_loss, task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_logits, validate
from edgefuse.train.optimizers import learning_rate
from edgefuse.train.recipe import TrainSettings
from edgefuse.train.runs import RUN_FILE, Run
from edgefuse.train.train import readable

CALIBRATION_BATCH = 32  # lines


@dataclass(frozen=True)
class QatSettings:
    """The fine-tune."""

    epochs: int = 1  # passes over the training lines
    convolutions: bool = False  # round convolutions too, for `edgefuse quantize --precision int8`
    learning_rate: float = 1e-4  # the peak, far below that of the training
    warmup: float = 0.1  # share of all steps before the peak
    clip_norm: float = 1.0
    task: float = 0.5  # weight of the labels beside the teacher's logits
    temperature: float = 2.0  # that softens both logits
    calibration: int = 256  # training lines that the activations' ranges are read from


def qat(run: Path, out: Path, epochs: int = 1, *, convolutions: bool = False) -> dict[str, Any]:
    """Write to `out` a run whose weights quantize better than those of `run`.

    Args:
        run: the folder of a trained run.
        out: a new folder; run.json comes last, so that a call that was cut off leaves no run.
        epochs: passes over the training lines.
        convolutions: round convolutions too, for `edgefuse quantize --precision int8`.

    Returns:
        {run, layers, accuracy, int8: {before, after}}: how many layers were rounded, and accuracies on the validation
        lines per subset of sensors: of the new float model, and of the old and the new one rounded.

    Raises:
        RecipeError: `run` is no finished run, its data changed, or `out` holds a run.
        PeerError: called by torchrun.
        ManifestError: a line of the data cannot be used.
    """
    refuse_others("qat")
    settings = QatSettings(epochs=epochs, convolutions=convolutions)
    source = Run.open(run)
    teacher, model = source.trained_model(), source.trained_model()
    if (out / RUN_FILE).exists():
        raise RecipeError(f"{out} holds a run; choose another --out")
    training = readable(source.recipe, training_lines(source.recipe))
    lines = read_manifest(source.recipe.data.manifest, split="val", labels=source.labels)
    validation = readable(source.recipe, lines)
    if source.document["data_fingerprint"] != fingerprint(training):
        raise RecipeError(f"{run} was trained on other data than {source.recipe.data.manifest} has now; train it again")
    loader = Loader(source.recipe, source.labels, source.text_tokenizer())
    subsets = source.recipe.trained_subsets
    rounding = FakeInt8(
        dict(model.encoders.items()),
        _calibration(model, loader, training[:: max(1, len(training) // settings.calibration)]),
        convolutions=convolutions,
    )
    before = validate(model, loader, validation, subsets)
    _fine_tune(model, teacher, TrainingSteps(source.recipe, training, loader), settings)
    int8 = {"before": before, "after": validate(model, loader, validation, subsets)}
    rounding.remove()
    accuracy = validate(model, loader, validation, subsets)
    lineage = {"from": str(run), **asdict(settings), "layers": len(rounding.layers), "int8": int8}
    source.write_next(out, model, {"accuracy": accuracy, "qat": lineage})
    return {"run": str(out), "layers": len(rounding.layers), "accuracy": accuracy, "int8": int8}


def _calibration(model: FusedModel, loader: Loader, examples: Sequence[Example]) -> Iterator[dict[str, list[Tensor]]]:
    """The sensor tensors of `examples` as the encoders take them, CALIBRATION_BATCH lines at a time."""
    for start in range(0, len(examples), CALIBRATION_BATCH):
        batch = loader.whole(examples[start : start + CALIBRATION_BATCH])
        yield {m: [batch.inputs[name] for name in SENSOR_TENSORS[m]] for m in batch.index}


def _fine_tune(model: FusedModel, teacher: FusedModel, steps: TrainingSteps, settings: QatSettings) -> None:
    """Move the weights so that the rounded model answers like its teacher; nothing is dropped out or augmented.

    Batch norms keep their running statistics, which the export folds into the weights.
    """
    model.eval()
    schedule = TrainSettings(learning_rate=settings.learning_rate, warmup=settings.warmup)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    total = steps.steps_per_epoch * settings.epochs
    for step in track(range(total), "fine-tuning with INT8 rounding", console=Console(stderr=True)):
        batch = steps[step]
        with torch.no_grad():
            target, _ = batch_logits(teacher, batch)  # [B, C]
        logits, _ = batch_logits(model, batch)  # [B, C]
        loss = distillation_loss(logits, target, settings.temperature)
        loss = loss + settings.task * task_loss(logits, batch.labels, smoothing=0.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, total, schedule)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["qat", *sys.argv[1:]])
