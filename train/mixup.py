"""MixUp (Zhang 2018) of the projected tokens of two lines, where a picture, a sound and a text have one space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """Which line goes into which, and how much of a line is left."""

    partner: Tensor  # the row that is mixed into each line [B]
    share: float  # of the line itself, 0..1

    @classmethod
    def draw(cls, presence: Tensor, alpha: float) -> Mix:
        """A share from Beta(alpha, alpha), and partners that show the same sensors (presence [B, M]) as the line."""
        partner = torch.arange(len(presence), device=presence.device)
        for pattern in presence.unique(dim=0):
            rows = (presence == pattern).all(dim=1).nonzero()[:, 0]
            partner[rows] = rows[torch.randperm(len(rows), device=rows.device)]
        return cls(partner, float(torch.distributions.Beta(alpha, alpha).sample()))

    def tokens(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens {modality: [B, N, D]} of the mixed lines."""
        return {m: self.share * x + (1 - self.share) * x[self.partner] for m, x in tokens.items()}

    def loss(self, labels: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss against the labels [B] of both lines, in the same shares."""
        return self.share * loss(labels) + (1 - self.share) * loss(labels[self.partner])
