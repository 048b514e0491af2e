"""Fusion through attention bottlenecks (MBT, Nagrani 2021): a few tokens read every modality, round after round."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgefuse.train.conformer import FeedForward
from edgefuse.train.presence import shares


class Bottleneck(nn.Module):
    """TOKENS tokens read all modalities in ROUNDS rounds: what the first reads of a text steers what the second sees.

    No modality attends to another or to itself, as little work per question as can be: tokens of a picture stay as its
    encoder made them, and are read again for every question. MBT averages what the modalities tell a bottleneck; here a
    score of it decides its share, so that a sensor that tells nothing can be left out. The weights are these shares.
    """

    TOKENS, ROUNDS = 2, 2

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, self.TOKENS, dim) * 0.5)
        self.rounds = nn.ModuleList(Round(modalities, dim) for _ in range(self.ROUNDS))
        self.out = nn.Linear(self.TOKENS * dim, dim)

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """What the bottleneck holds in the end, and the mean share of each modality in it."""
        state, weights = self.start, []  # [1, S, D]: the first queries are the same for every line
        for read in self.rounds:
            state, share = read(state, tokens, presence)  # [B, S, D], [B, M]
            weights.append(share)
        return self.out(state.flatten(1)), torch.stack(weights).mean(dim=0)


class Round(nn.Module):
    """Every bottleneck token reads every modality, blends what it read, and thinks it over."""

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.read = nn.ModuleList(Read(dim) for _ in range(modalities))
        self.score = nn.Parameter(torch.zeros(modalities, dim))
        self.think = FeedForward(dim, 2 * dim, dropout=0.0)

    def forward(self, state: Tensor, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """State [B or 1, S, D] to the next one [B, S, D], and each modality's share of what it gained, [B, M]."""
        query = self.norm(state)
        told = torch.stack([read(query, x) for read, x in zip(self.read, tokens, strict=True)], dim=1)  # [B, M, S, D]
        score = (told * self.score[:, None]).sum(dim=3)  # [B, M, S]
        share = shares(score, presence[:, :, None])  # [B, M, S]
        state = state + (share[..., None] * told).sum(dim=1)
        return state + self.think(state), share.mean(dim=2)


class Read(nn.Module):
    """Multi-head cross attention with the products of K and V absorbed in those of Q and of the output.

    q (K x) = (K^T q) x: each head asks and answers in the full width D, and no product runs over the tokens, of which a
    picture has many and a line of data would need its own copy.
    """

    HEADS = 4

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, self.HEADS * dim)
        self.out = nn.Linear(self.HEADS * dim, dim)

    def forward(self, state: Tensor, tokens: Tensor) -> Tensor:
        """State [B or 1, S, D] reads tokens [B, N, D]: [B, S, D]."""
        lines, size, dim = state.shape
        query = self.query(state).reshape(lines, size * self.HEADS, dim)  # [B, S * H, D]
        share = (query @ tokens.transpose(1, 2) / dim**0.5).softmax(dim=2)  # [B, S * H, N]
        return self.out((share @ tokens).reshape(-1, size, self.HEADS * dim))  # [B, S, D]
