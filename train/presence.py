"""Shares among the modalities that are there: a softmax that a missing sensor takes no part in."""

from __future__ import annotations

import torch
from torch import Tensor

MASKED_SCORE = -1e4  # the softmax score of what is not there; finite, so that FP16 never sees -inf


def shares(score: Tensor, presence: Tensor) -> Tensor:
    """Softmax of scores over the modalities that are present: both [B, M], or what broadcasts to [B, M, ...].

    The shares are 0 where a modality is missing, and all 0 where every one is.
    """
    present = presence > 0.5
    return torch.where(present, score, MASKED_SCORE).softmax(dim=1) * present
