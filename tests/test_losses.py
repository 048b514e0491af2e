"""The losses against scikit-learn and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics import accuracy_score, log_loss

from edgefuse.train.losses import accuracy, alignment_loss, distillation_loss, task_loss


@pytest.fixture
def answers() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [20, 5] and labels [20]."""
    random = np.random.default_rng(0)
    return torch.tensor(random.normal(0, 3, (20, 5))), torch.tensor(random.integers(0, 5, 20))


def test_the_task_loss_is_scikit_learns_log_loss(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = answers
    expected = log_loss(labels.numpy(), softmax(logits.numpy(), axis=1), labels=range(5))
    assert float(task_loss(logits, labels, smoothing=0.0)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.02, 0.3, 1.0])
def test_smoothing_mixes_the_label_with_the_uniform_distribution(
    answers: tuple[torch.Tensor, torch.Tensor], smoothing: float
) -> None:
    logits, labels = answers
    target = (1 - smoothing) * np.eye(5)[labels.numpy()] + smoothing / 5
    expected = -(target * log_softmax(logits.numpy(), axis=1)).sum(axis=1).mean()
    assert float(task_loss(logits, labels, smoothing)) == pytest.approx(expected, rel=1e-9)


def test_the_alignment_loss_is_the_log_loss_of_choosing_the_partner_by_cosine() -> None:
    random = np.random.default_rng(1)
    first, second, same = random.normal(size=(6, 8)), random.normal(size=(4, 8)), np.array([0, 1, 2, 3, 1, 0])
    cosine = (first / np.linalg.norm(first, axis=1, keepdims=True)) @ (
        second / np.linalg.norm(second, axis=1, keepdims=True)
    ).T
    expected = log_loss(same, softmax(cosine / 0.1, axis=1), labels=range(4))
    found = alignment_loss(torch.tensor(first), torch.tensor(second), torch.tensor(same))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_partners_in_one_place_have_no_alignment_loss() -> None:
    corners = 5 * torch.eye(4)
    assert float(alignment_loss(corners, corners, torch.arange(4))) < 1e-3
    assert float(alignment_loss(corners, corners, torch.arange(4).flip(0))) > 9


def test_accuracy_is_scikit_learns(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = answers
    assert accuracy(logits, labels) == accuracy_score(labels.numpy(), logits.numpy().argmax(axis=1))
    assert accuracy(logits, logits.argmax(dim=1)) == 1.0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_scipys_relative_entropy(
    answers: tuple[torch.Tensor, torch.Tensor], temperature: float
) -> None:
    teacher, _ = answers
    student = teacher.flip(0)
    first, second = (softmax(logits.numpy() / temperature, axis=1) for logits in (teacher, student))
    expected = temperature**2 * rel_entr(first, second).sum(axis=1).mean()
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-9)
    assert float(distillation_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-12)
