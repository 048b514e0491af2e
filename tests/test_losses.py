"""The losses against scikit-learn, SciPy and torch's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from scipy.spatial.distance import cosine as cosine_distance
from scipy.special import huber, log_softmax, logsumexp, rel_entr, softmax
from scipy.stats import ortho_group
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from edgefuse.train.losses import (
    accuracy,
    alignment_loss,
    angle_loss,
    contrastive_loss,
    distance_loss,
    distillation_loss,
    embedding_loss,
    ensemble_logits,
    found_partners,
    task_loss,
)


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


def test_softened_answers_are_torchs_kl_loss(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, _ = answers
    student = teacher.roll(1, dims=0)
    loss = torch.nn.KLDivLoss(reduction="batchmean")
    expected = 9 * loss((student / 3).log_softmax(dim=1), (teacher / 3).softmax(dim=1))
    assert float(distillation_loss(student, teacher, 3.0)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_an_ensemble_answers_with_the_mean_of_the_softened_probabilities(temperature: float) -> None:
    each = np.random.default_rng(2).normal(0, 3, (4, 6, 5))
    found = softmax(ensemble_logits(torch.tensor(each), temperature).numpy() / temperature, axis=1)
    np.testing.assert_allclose(found, softmax(each / temperature, axis=2).mean(axis=0), rtol=1e-9)


def test_an_ensemble_of_one_or_of_equals_is_that_one(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, _ = answers
    for count in (1, 3):
        found = ensemble_logits(logits.expand(count, -1, -1), 4.0)
        torch.testing.assert_close(found.softmax(dim=1), logits.softmax(dim=1))


def test_the_embedding_loss_is_scikit_learns_squared_error_of_the_first_columns() -> None:
    random = np.random.default_rng(3)
    student, teacher = random.normal(size=(7, 6)), random.normal(size=(7, 4))
    found = float(embedding_loss(torch.tensor(student), torch.tensor(teacher)))
    assert found == pytest.approx(mean_squared_error(teacher, student[:, :4]), rel=1e-9)


def lines_in_two_spaces() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the same lines by a student [7, 6] and a teacher [7, 9]; both have two lines in one place."""
    random = np.random.default_rng(4)
    student, teacher = random.normal(size=(7, 6)), 5 * random.normal(size=(7, 9))
    student[2], teacher[5] = student[1], teacher[4]
    return student, teacher


def test_the_distance_loss_is_scipys_huber_of_scipys_distances_over_their_mean() -> None:
    student, teacher = lines_in_two_spaces()
    first, second = (pdist(lines) / pdist(lines).mean() for lines in (student, teacher))
    found = float(distance_loss(torch.tensor(student), torch.tensor(teacher)))
    assert found == pytest.approx(huber(1.0, first - second).mean(), rel=1e-9)


def test_the_angle_loss_is_scipys_huber_of_the_cosines_at_every_line() -> None:
    student, teacher = lines_in_two_spaces()

    def cosine(lines: np.ndarray, i: int, j: int, k: int) -> float:
        """At line j between i and k."""
        first, second = lines[i] - lines[j], lines[k] - lines[j]
        return 1 - cosine_distance(first, second) if first.any() and second.any() else 0.0

    triplets = itertools.product(range(7), repeat=3)
    expected = np.mean([huber(1.0, cosine(student, *t) - cosine(teacher, *t)) for t in triplets])
    assert float(angle_loss(torch.tensor(student), torch.tensor(teacher))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_relations_do_not_change_when_a_space_is_turned_moved_and_stretched(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    student = torch.tensor(lines_in_two_spaces()[0])
    turned = 3 * student @ torch.tensor(ortho_group.rvs(6, random_state=0)) + 2
    assert float(loss(turned, student)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student.flip(0), student)) > 1e-3


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_relations_of_lines_in_one_place_have_a_finite_gradient(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    arrays = lines_in_two_spaces()
    for student in (arrays[0], np.ones((7, 6))):  # as where lines differ in the sensor that is missing
        lines = torch.tensor(student, dtype=torch.float32, requires_grad=True)
        loss(lines, torch.tensor(arrays[1], dtype=torch.float32)).backward()
        assert lines.grad is not None
        assert float(lines.grad.abs().max()) < 10


def test_the_contrastive_loss_is_clips_where_nothing_occurs_twice() -> None:
    torch.manual_seed(0)
    first, second, scale = torch.randn(6, 8).double(), torch.randn(6, 8).double(), torch.tensor(14.0).double()
    similarity = scale * torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T
    found = contrastive_loss(first, second, torch.eye(6, dtype=torch.bool), scale)
    assert float(found) == pytest.approx(float(image_text_contrastive_loss(similarity)), rel=1e-9)


def test_what_occurs_twice_is_no_wrong_answer() -> None:
    """Two pictures have the same sentence: neither is a mistake for it, and each counts as if the other were away."""
    random = np.random.default_rng(2)
    first, second = random.normal(size=(4, 8)), random.normal(size=(3, 8))
    paired = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    cosine = 1 - cdist(first, second, "cosine")
    forth, back = [], []
    for i, j in zip(*paired.nonzero(), strict=True):
        row = [cosine[i, k] for k in range(3) if k == j or not paired[i, k]]
        column = [cosine[k, j] for k in range(4) if k == i or not paired[k, j]]
        forth.append(logsumexp(9 * np.array(row)) - 9 * cosine[i, j])
        back.append(logsumexp(9 * np.array(column)) - 9 * cosine[i, j])
    found = contrastive_loss(*map(torch.tensor, (first, second, paired)), torch.tensor(9.0))
    assert float(found) == pytest.approx((np.mean(forth) + np.mean(back)) / 2, rel=1e-9)


def test_where_all_belong_together_there_is_nothing_to_learn() -> None:
    first, second = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4)
    loss = contrastive_loss(first, second, torch.ones(2, 3, dtype=torch.bool), torch.tensor(100.0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert first.grad is not None
    assert not first.grad.any()


def test_partners_are_found_where_the_nearest_is_one() -> None:
    first = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    second = torch.tensor([[2.0, 0.1], [0.1, 3]])
    paired = torch.tensor([[True, False], [True, False], [False, False]])  # the second is nearer to the other one
    assert found_partners(first, second, paired) == pytest.approx(2 / 3)  # the third and the last have no partner
