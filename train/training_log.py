"""What a training says while it runs: a bar and lines on stderr, curves in tensorboard; one process of several."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from edgefuse.train.data import Batch
from edgefuse.train.distributed import here


class TrainingLog:
    """The log of one training; used as a context manager."""

    def __init__(self, folder: Path, step: int, total: int) -> None:
        speaks = here().rank == 0
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step) if speaks else None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, quiet=not speaks),
        )
        self._task = self._progress.add_task("training", total=total, completed=step, note="")
        self._waited_s = 0.0
        self._began = time.perf_counter()

    def __enter__(self) -> TrainingLog:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; what the loop waits for them is counted."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self._waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def step(self, step: int, terms: Mapping[str, float]) -> None:
        """The terms of the loss after `step` steps."""
        self._curve("train", step, terms)
        note = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
        self._progress.update(self._task, completed=step, note=note)

    def validation(self, step: int, epoch: float, scores: Mapping[str, float]) -> None:
        """The scores after `step` steps."""
        self._curve("val", step, scores)
        self._say(f"epoch {epoch:g}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    def end(self) -> None:
        """Say whether data was the bottleneck."""
        took_s = time.perf_counter() - self._began
        self._say(f"waited for data {self._waited_s / took_s:.1%} of {took_s:.0f} s")

    def _curve(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def _say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)
