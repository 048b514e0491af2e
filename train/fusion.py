"""The fusions: each takes the projected tokens of every modality and says what each of them weighed.

One signature: tokens, a list of M tensors [B, N_m, D], and presence [B, M] -> fused [B, D], weights [B, M] that are 0
where a modality is missing and sum to 1 over those present.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgefuse.train.bottleneck import Bottleneck
from edgefuse.train.presence import MASKED_SCORE, shares


class Concat(nn.Module):
    """One linear layer over the concatenated means; the weights are the norm shares of what each modality adds."""

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(modalities * dim, dim)
        self.modalities = modalities

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """The layer is applied block by block (a sum of M products equals one product of the concatenation)."""
        blocks = self.mix.weight.chunk(self.modalities, dim=1)
        added = [F.linear(token.mean(dim=1), block) for token, block in zip(tokens, blocks, strict=True)]  # M x [B, D]
        return torch.stack(added).sum(dim=0) + self.mix.bias, _norm_shares(added, presence)


class Sum(nn.Module):
    """The sum of the means; the weights are their norm shares."""

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Add what is there, placeholders included."""
        added = [token.mean(dim=1) for token in tokens]  # M x [B, D]
        return torch.stack(added).sum(dim=0), _norm_shares(added, presence)


class LowRank(nn.Module):
    """Low-rank multimodal fusion (LMF, Liu 2018): the product of one affine map per modality, summed over RANK terms.

    The product of (1 + f_m(x_m)) holds every modality alone and every product of them, so that a question can select
    what it asks of a picture. The weights are the norm shares of the f_m.
    """

    RANK = 4

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.factor = nn.ModuleList(nn.Linear(dim, self.RANK * dim) for _ in range(modalities))

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply over the modalities, placeholders included, then add over the rank."""
        factors = _each(self.factor, _means(tokens)).unbind(dim=1)  # M x [B, R * D]
        product = torch.stack([1 + x for x in factors]).prod(dim=0)  # [B, R * D]
        return torch.stack(product.chunk(self.RANK, dim=1)).sum(dim=0), _norm_shares(factors, presence)


class Film(nn.Module):
    """Gains of FiLM (Perez 2018): what is said, in one token, scales each channel of what is shown, in many.

    ReLU leaves of every cell what was asked for, and the largest over all cells is the answer's. Nothing else reaches
    the classifier: with the question beside the picture, or the mean over the cells, it would learn what most pictures
    answer long before it looks for one object. Where every modality is one token, all are scaled. The weights are the
    norm shares of what is said, and of the largest of what is shown.
    """

    REACH = 6.0  # their deviation: where all sentences scale alike, it takes epochs until one asks for one object

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.tell = nn.ModuleList(nn.Linear(dim, dim) for _ in range(modalities))
        self.find = nn.Linear(dim, dim)

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Missing modalities say and show their placeholders."""
        told = [tell(token) for tell, token in zip(self.tell, tokens, strict=True)]  # M x [B, N_m, D]
        said = [x for x in told if x.shape[1] == 1]
        shown = [x for x in told if x.shape[1] > 1] or said
        gain = 1 + self.REACH * _standardised(torch.stack(said).sum(dim=0)) if said else 1.0  # [B, 1, D]
        fused = torch.stack([self.find(F.relu(x * gain)).amax(dim=1) for x in shown]).amax(dim=0)  # [B, D]
        return fused, _norm_shares([x.abs().amax(dim=1) for x in told], presence)


class Weighted(nn.Module):
    """A weighted sum of the means with one learned weight per modality, renormalised over those present."""

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(modalities))

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of the learned scores over the modalities that are present."""
        means = torch.stack([token.mean(dim=1) for token in tokens], dim=1)  # [B, M, D]
        return _blend(means, self.score.expand_as(presence), presence)


class Gated(nn.Module):
    """Gated multimodal unit (Arevalo 2017): what is heard and seen decides what each modality weighs."""

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.transform = nn.ModuleList(nn.Linear(dim, dim) for _ in range(modalities))
        self.gate = nn.Linear(modalities * dim, modalities)

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of the gate's scores over the modalities that are present, times the transformed means."""
        score = self.gate(torch.cat([token.mean(dim=1) for token in tokens], dim=1))  # [B, M]
        return _blend(torch.tanh(_each(self.transform, _means(tokens))), score, presence)


class Precise(nn.Module):
    """Precision-weighted: what a modality says counts as much as it is sure of it.

    The product of Gaussian experts of MVAE (Wu & Goodman 2018) with a prior of mean 0 and precision 1: each modality
    gives a mean and a log-precision, from its own tokens alone, and the fused mean is their precision-weighted average.
    So a sensor that sees its own noise steps back, whatever the others hold (as in the dynamic fusion of Han 2022,
    without its second classifiers); where all are unsure, the answer is the prior's.
    """

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(dim, dim) for _ in range(modalities))
        self.expert = nn.ModuleList(nn.Linear(dim, dim + 1) for _ in range(modalities))

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """A softmax of log-precisions divides by their sum; the prior, whose log-precision is 0, is always present."""
        hidden = F.gelu(_each(self.hidden, _means(tokens)))  # [B, M, D]
        told = _each(self.expert, hidden.transpose(0, 1))  # [B, M, D + 1]
        means, precision = told[:, :, :-1], told[:, :, -1]  # [B, M, D], [B, M]
        share = shares(F.pad(precision, (1, 0)), F.pad(presence, (1, 0), value=1.0))[:, 1:]  # [B, M]
        return (share[:, :, None] * means).sum(dim=1), shares(precision, presence)


class Attention(nn.Module):
    """One transformer layer over all tokens of all modalities, then a learned query that reads the answer.

    The weights are the shares of the query's attention, so they say which sensor the answer was read from.
    """

    HEADS = 4

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.kind = nn.Parameter(torch.randn(modalities, dim) * 0.02)  # tells the modalities' tokens apart
        self.mix = nn.TransformerEncoderLayer(dim, self.HEADS, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.query = nn.Parameter(torch.randn(dim) * 0.02)
        self.key, self.value, self.norm = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.LayerNorm(dim)

    def forward(self, tokens: list[Tensor], presence: Tensor) -> tuple[Tensor, Tensor]:
        """Missing modalities take part through their placeholders, but the answer is not read from them."""
        counts = [token.shape[1] for token in tokens]
        named = [token + kind for token, kind in zip(tokens, self.kind, strict=True)]
        mixed = self.norm(self.mix(torch.cat(named, dim=1)))  # [B, N, D]
        score = self.key(mixed) @ self.query / mixed.shape[-1] ** 0.5  # [B, N]
        there = torch.cat([presence[:, i : i + 1].expand(-1, n) for i, n in enumerate(counts)], dim=1)  # [B, N]
        share = torch.where(there > 0.5, score, MASKED_SCORE).softmax(dim=1)  # [B, N]
        fused = (share[:, :, None] * self.value(mixed)).sum(dim=1)  # [B, D]
        weights = torch.stack([part.sum(dim=1) for part in share.split(counts, dim=1)], dim=1)  # [B, M]
        return fused, weights * (presence > 0.5)


FUSIONS = {
    "concat": Concat,
    "sum": Sum,
    "low_rank": LowRank,
    "film": Film,
    "weighted": Weighted,
    "gated": Gated,
    "precise": Precise,
    "attention": Attention,
    "bottleneck": Bottleneck,
}


def _standardised(tokens: Tensor) -> Tensor:
    """Each token [..., D] with a mean of 0 and a deviation of 1 over its channels."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def _means(tokens: list[Tensor]) -> Tensor:
    """The mean of each modality's tokens, [M, B, D]."""
    return torch.stack([token.mean(dim=1) for token in tokens])


def _each(layers: nn.ModuleList, values: Tensor) -> Tensor:
    """Each modality's own linear layer on its values [M, B, D], as one batched product: [B, M, E]."""
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weight = torch.stack([linear.weight.T for linear in linears])  # [M, D, E]
    bias = torch.stack([linear.bias for linear in linears])[:, None]  # [M, 1, E]
    return (values @ weight + bias).transpose(0, 1)  # [B, M, E]


def _blend(means: Tensor, score: Tensor, presence: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of `score` [B, M] over the present modalities, applied to `means` [B, M, D]."""
    weights = shares(score, presence)  # [B, M]
    return (weights[:, :, None] * means).sum(dim=1), weights


def _norm_shares(added: Sequence[Tensor], presence: Tensor) -> Tensor:
    """Each present modality's share of the summed L2 norms, [B, M]."""
    norms = torch.stack([x.square().mean(dim=1).sqrt() for x in added], dim=1) * (presence > 0.5)  # [B, M]
    return norms / (norms.sum(dim=1, keepdim=True) + 1e-6)
