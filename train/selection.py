"""Which weights a training ends with: the last ones, their moving average, or the best that were validated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgefuse.train.settings import TrainSettings


class Selection:
    """Follows a model through its training; all of its state goes into the checkpoint."""

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self._model = model
        self._patience = settings.patience
        self._average = None
        if settings.ema:  # Polyak & Juditsky 1992; batch norms' statistics are averaged with the weights
            decay = get_ema_multi_avg_fn(settings.ema)
            self._average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        self._best: dict[str, Tensor] = {}
        self._best_score = -math.inf
        self._stale = 0  # validations since the best one
        self.judged_step = 0  # the last one that was validated

    @property
    def candidate(self) -> Any:
        """The model to validate."""
        return self._average.module if self._average is not None else self._model

    @property
    def stops(self) -> bool:
        """Whether patience is at its end (early stopping, Prechelt 1998)."""
        return 0 < self._patience <= self._stale

    def take_step(self) -> None:
        """The model has made a step."""
        if self._average is not None:
            self._average.update_parameters(self._model)

    def judge(self, step: int, scores: Mapping[str, float]) -> None:
        """The candidate was validated after `step` steps; the mean over the subsets of sensors counts."""
        self.judged_step = step
        if not self._patience:
            return
        self._stale += 1
        if fmean(scores.values()) > self._best_score:
            self._best_score, self._stale = fmean(scores.values()), 0
            self._best = {name: value.clone() for name, value in self.candidate.state_dict().items()}

    def settle(self) -> None:
        """Give the model the weights that it ends with."""
        if self._best or self._average is not None:
            self._model.load_state_dict(self._best or self.candidate.state_dict())

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed training has to know."""
        counts = {"judged_step": self.judged_step, "stale": self._stale}
        tensors = {name: torch.tensor(value) for name, value in counts.items()}
        tensors["best_score"] = torch.tensor(self._best_score, dtype=torch.float64)
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.judged_step, self._stale = int(tensors["judged_step"]), int(tensors["stale"])
        self._best_score = float(tensors["best_score"])
        self._best = below("best.", tensors)
        if self._average is not None:
            self._average.load_state_dict(below("average.", tensors))


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
