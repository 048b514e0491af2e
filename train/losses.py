"""What is minimised: pure functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def task_loss(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy of logits [B, C] against class numbers [B], with label smoothing (Szegedy 2016).

    Where there are `weights` [C], each line counts as much as its label's says.
    """
    weights = None if weights is None else weights.to(logits.device)
    return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)


def balanced_weights(labels: Tensor) -> Tensor:
    """A weight for each class number that occurs in `labels`, so that classes count alike (King & Zeng 2001)."""
    return len(labels) / (labels.bincount() * len(labels.unique()))  # [C]


def alignment_loss(first: Tensor, second: Tensor, same: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE (van den Oord 2018): each row of `first` [A, D] must find its partner in `second` [B, D].

    Args:
        first: embeddings that learn to be near their partners.
        second: embeddings to choose from.
        same: for each row of `first`, the number of its partner's row [A].
        temperature: cosine similarities are divided by it.
    """
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature  # [A, B]
    return F.cross_entropy(similarity, same)


def contrastive_loss(first: Tensor, second: Tensor, paired: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford 2021): of two sensors that belong together, each has to find the other.

    A sensor that belongs to several (a sentence said of many pictures) takes none of them for a wrong answer when it
    looks for another.

    Args:
        first: embeddings [A, D] of one modality's distinct sensors.
        second: those of the other one [B, D].
        paired: which belong together [A, B]; at least two do.
        scale: cosine similarities are multiplied by it, 1 / temperature.
    """
    similarity = scale * F.normalize(first, dim=1) @ F.normalize(second, dim=1).T  # [A, B]
    return (_miss(similarity, paired) + _miss(similarity.T, paired.T)) / 2


def _miss(similarity: Tensor, paired: Tensor) -> Tensor:
    """Mean over the pairs of -log softmax among the partner and all that are none."""
    others = similarity.masked_fill(paired, -1e4).logsumexp(dim=1, keepdim=True)  # [A, 1]
    return (torch.logaddexp(similarity, others) - similarity)[paired].mean()


def found_partners(first: Tensor, second: Tensor, paired: Tensor) -> float:
    """Share of the embeddings with a partner whose nearest one of the other modality is one, both ways, 0..1."""
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T  # [A, B]
    hits = [
        known.gather(1, near.argmax(dim=1, keepdim=True))[known.any(dim=1)]
        for known, near in ((paired, similarity), (paired.T, similarity.T))
    ]
    return float(torch.cat(hits).to(torch.float64).mean())


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence of the student's logits [B, C] from the teacher's, both softened (Hinton 2015).

    The factor temperature^2 keeps the size of the gradient independent of it.
    """
    log_student = F.log_softmax(student / temperature, dim=1)  # [B, C]
    log_teacher = F.log_softmax(teacher / temperature, dim=1)  # [B, C]
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def ensemble_logits(logits: Tensor, temperature: float) -> Tensor:
    """Logits [B, C] whose softened probabilities are the mean of those of an ensemble [K, B, C] (Hinton 2015)."""
    log_each = F.log_softmax(logits / temperature, dim=2)  # [K, B, C]
    return temperature * (log_each.logsumexp(dim=0) - math.log(len(logits)))


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the student's first columns [B, D] from the teacher's [B, E <= D], as FitNets' hint.

    FitNets (Romero 2015) learn a map between the widths; here the teacher's is turned to its principal axes before,
    so that nothing more is to be learned, saved and resumed.
    """
    return F.mse_loss(student[:, : teacher.shape[1]], teacher)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise relational distillation (RKD-D, Park 2019): lines [B, D] and [B, E] lie alike to each other.

    Each distance between two lines is taken in units of their mean; Huber loss between those of student and teacher.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(lines: Tensor) -> Tensor:
    distances = F.pdist(lines)  # [B * (B - 1) / 2]
    return distances / distances.mean().clamp(min=1e-6)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Angle-wise relational distillation (RKD-A, Park 2019): Huber loss between the cosines of all triplets of lines.

    It takes [B, B, B] cosines: some dozen lines are enough.
    """
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _cosines(lines: Tensor) -> Tensor:
    """At every line, the cosines of the angles between all others [B, B, B]; 0 where two lines lie in one place."""
    apart = lines[None] - lines[:, None]  # [B, B, D]
    squared = apart.square().sum(dim=2, keepdim=True)  # [B, B, 1]
    distinct = squared > 1e-6 * squared.mean()  # a direction between equal lines would have an endless gradient
    direction = torch.where(distinct, apart, 0.0) * torch.where(distinct, squared, 1.0).rsqrt()  # [B, B, D]
    return direction @ direction.transpose(1, 2)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label, 0..1."""
    return float((logits.argmax(dim=1) == labels).to(torch.float64).mean())
