"""What is minimised: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def task_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy of logits [B, C] against class numbers [B], with label smoothing (Szegedy 2016)."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


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


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence of the student's logits [B, C] from the teacher's, both softened (Hinton 2015).

    The factor temperature^2 keeps the size of the gradient independent of it.
    """
    log_student = F.log_softmax(student / temperature, dim=1)  # [B, C]
    log_teacher = F.log_softmax(teacher / temperature, dim=1)  # [B, C]
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label, 0..1."""
    return float((logits.argmax(dim=1) == labels).to(torch.float64).mean())
