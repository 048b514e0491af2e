"""What a batch gives: sensors encoded once, every subset of them answered, a loss that is the sum of its terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train.data import Batch
from edgefuse.train.losses import alignment_loss, balanced_weights, task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_logits, batch_loss, settle_norms, validate
from edgefuse.train.recipe import Recipe
from tests.train_fixtures import corpus, loader_of, new_model, steps_of, tiny_recipe

TENSORS = {"image": ("image",), "audio": ("audio",), "text": ("input_ids", "attention_mask")}


def lines_of(split: str) -> list[Example]:
    return read_manifest(corpus(), split=split)


def batch_of(recipe: Recipe, lines: Sequence[Example], present: Sequence[set[str]] | None = None) -> Batch:
    """The lines as one batch, showing all their sensors unless said."""
    shown = present or [set(line.sensors) for line in lines]
    return loader_of(recipe).batch(lines, [line.audio for line in lines], shown)


def plain_logits(model: FusedModel, recipe: Recipe, lines: Sequence[Example], presence: Tensor) -> Tensor:
    """What the model answers when every line brings its own sensors, one row each."""
    batch = batch_of(recipe, lines)
    inputs = {name: batch.inputs[name][batch.index[m]] for m in model.modalities for name in TENSORS[m]}
    return model(inputs, presence)[0]


def subset(*names: str) -> Tensor:
    """Presence [M] of these modalities."""
    return torch.tensor([float(m in names) for m in ("image", "audio", "text")])


@pytest.mark.parametrize("kind", ["concat", "attention"])
def test_each_distinct_sensor_is_encoded_once_and_the_answer_is_that_of_the_plain_batch(kind: str) -> None:
    tokens = "all" if kind == "attention" else "pooled"
    recipe = tiny_recipe(fusion={"kind": kind}, **{m: {"tokens": tokens} for m in TENSORS})
    model, lines = new_model(recipe), lines_of("train")
    rows: dict[str, list[int]] = {m: [] for m in model.modalities}
    for m in model.modalities:
        model.encoders[m].register_forward_hook(lambda _, given, __, m=m: rows[m].append(len(given[0])))
    with torch.no_grad():
        found, distinct = batch_logits(model, batch_of(recipe, lines))
        assert rows == {m: [len({getattr(line, m) for line in lines})] for m in model.modalities}
        assert {m: len(tokens) for m, tokens in distinct.items()} == {m: n[0] for m, n in rows.items()}
        expected = plain_logits(model, recipe, lines, torch.ones(len(lines), 3))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_lines_that_show_different_sensors_are_answered_as_if_alone() -> None:
    recipe = tiny_recipe()
    model, lines = new_model(recipe), lines_of("train")[:6]
    shown: list[set[str]] = [{"image"}, {"audio"}, {"text"}, {"image", "text"}, {"audio", "text"}, {"image", "audio"}]
    presence = torch.stack([subset(*names) for names in shown])
    with torch.no_grad():
        found, _ = batch_logits(model, batch_of(recipe, lines, shown))
        torch.testing.assert_close(found, plain_logits(model, recipe, lines, presence), atol=1e-5, rtol=1e-4)


def test_an_encoder_that_no_line_needs_does_not_run() -> None:
    recipe = tiny_recipe()
    model, lines = new_model(recipe), lines_of("train")[:3]
    model.encoders["audio"].register_forward_hook(lambda *_: pytest.fail("the sound was encoded"))
    with torch.no_grad():
        found, distinct = batch_logits(model, batch_of(recipe, lines, [{"image", "text"}] * 3))
    assert set(distinct) == {"image", "text"}
    assert found.shape == (3, 5)


def test_the_loss_is_the_task_plus_the_weighted_alignment_of_sounds_with_their_texts() -> None:
    recipe = tiny_recipe(train={"alignment": 0.25, "label_smoothing": 0.1})
    model, lines = new_model(recipe), lines_of("train")
    shown: list[set[str]] = [{"image", "audio"} if i % 4 == 0 else {"image", "text"} for i in range(len(lines))]
    batch = batch_of(recipe, lines, shown)
    batch.same_text[0] = -1  # as if nobody had typed what this one says
    loss, terms = batch_loss(model, batch, recipe.train)
    logits, distinct = batch_logits(model, batch)
    sounds, texts = distinct["audio"].mean(dim=1)[1:], distinct["text"].mean(dim=1)
    task = task_loss(logits, batch.labels, 0.1)
    aligned = alignment_loss(sounds, texts, batch.same_text[1:])
    assert float(loss.detach()) == pytest.approx(float((task + 0.25 * aligned).detach()), rel=1e-5)
    assert terms["task"] == pytest.approx(float(task.detach()), rel=1e-5)
    assert terms["alignment"] == pytest.approx(float(aligned.detach()), rel=1e-5)
    assert terms["accuracy"] == float((logits.argmax(dim=1) == batch.labels).double().mean())


def test_the_alignment_pulls_the_sound_towards_the_text_and_not_the_other_way() -> None:
    recipe = tiny_recipe(train={"alignment": 1.0}, image=None, data={"subsets": {}, "group_by": None})
    model, lines = new_model(recipe), lines_of("train")
    loss, _ = batch_loss(model, batch_of(recipe, lines), recipe.train)
    task = task_loss(batch_logits(model, batch_of(recipe, lines))[0], batch_of(recipe, lines).labels, 0.02)
    gradients = torch.autograd.grad(loss - task, list(model.encoders.parameters()), allow_unused=True)
    moved = {name for (name, _), g in zip(model.encoders.named_parameters(), gradients, strict=True) if _moves(g)}
    assert any(name.startswith("audio.") for name in moved)
    assert not any(name.startswith("text.") for name in moved)


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.abs().amax() > 1e-6)


def test_without_pairs_or_without_weight_there_is_no_alignment() -> None:
    lines = lines_of("train")
    for recipe, shown in (
        (tiny_recipe(), [{"image", "audio"}] * len(lines)),
        (tiny_recipe(train={"alignment": 0}), [set(line.sensors) for line in lines]),
    ):
        _, terms = batch_loss(new_model(recipe), batch_of(recipe, lines, shown), recipe.train)
        assert set(terms) == {"task", "accuracy"}


def test_validation_counts_the_right_answers_of_every_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe()
    model, lines = new_model(recipe), lines_of("test")
    monkeypatch.setattr("edgefuse.train.objective.VALIDATION_BATCH", 4)
    found = validate(model, loader_of(recipe), lines, ["image+text", "audio", "image+audio+text"])
    assert model.training
    model.eval()
    labels = batch_of(recipe, lines).labels
    for name, value in found.items():
        with torch.no_grad():
            logits = plain_logits(model, recipe, lines, subset(*name.split("+")).expand(len(lines), -1))
        assert value == pytest.approx(float((logits.argmax(dim=1) == labels).double().mean()))


def test_validation_takes_lines_that_lack_a_sensor() -> None:
    recipe = tiny_recipe()
    lines = [
        Example(line.where, line.image, None, None if row % 2 else line.text, line.label, line.split, None)
        for row, line in enumerate(lines_of("val"))
    ]
    found = validate(new_model(recipe), loader_of(recipe), lines, ["image+text", "audio"])
    assert 0 <= found["image+text"] <= 1


def test_a_line_without_any_of_a_subset_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe()
    model, lines = new_model(recipe), lines_of("val")
    heard = [replace(line, image=None, audio=None if row % 2 else line.audio) for row, line in enumerate(lines)]
    right = batch_of(recipe, heard).labels

    def hear(_: object, presence: Tensor) -> tuple[Tensor, Tensor]:
        """Right wherever there is a sound."""
        told = torch.where(presence[:, 1] > 0, right, 1 - right.clamp(max=1))
        return nn.functional.one_hot(told, 5).float(), presence

    monkeypatch.setattr(model.head, "fuse", hear)
    found = validate(model, loader_of(recipe), heard, ["audio", "audio+text", "image"])
    assert found == {"audio": 1.0, "audio+text": (len(lines) + 1) // 2 / len(lines)}, "no line has a picture"


def test_settled_norms_have_the_statistics_of_one_batch_and_the_momentum_of_before() -> None:
    recipe = tiny_recipe()
    model, batch = new_model(recipe), steps_of(recipe)[0]
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    weights = {name: value.clone() for name, value in model.named_parameters()}
    seen: dict[nn.Module, Tensor] = {}
    for norm in norms:
        norm.register_forward_hook(lambda norm, given, _: seen.update({norm: given[0].detach()}))
    settle_norms(model, batch)
    assert set(seen) == set(norms)
    assert [norm.momentum for norm in norms] == momenta
    for norm, values in seen.items():
        others = [axis for axis in range(values.ndim) if axis != 1]
        torch.testing.assert_close(norm.running_mean, values.mean(dim=others), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(norm.running_var, values.var(dim=others), atol=1e-5, rtol=1e-3)
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_an_untrained_picture_does_not_fade_once_the_norms_are_settled() -> None:
    recipe = tiny_recipe()
    model, batch = new_model(recipe), steps_of(recipe)[0]
    with torch.no_grad():
        assert model.encode("image", batch.inputs).std() < 1e-3
        settle_norms(model, batch)
        assert model.eval().encode("image", batch.inputs).std() > 0.01


def test_balanced_classes_weigh_as_in_sklearn_and_reach_the_loss() -> None:
    recipe = tiny_recipe(train={"alignment": 0, "label_smoothing": 0})
    model, lines = new_model(recipe), lines_of("train")
    batch = batch_of(recipe, lines)
    numbers = batch.labels.numpy()
    expected = compute_class_weight("balanced", classes=np.unique(numbers), y=numbers)
    weights = balanced_weights(loader_of(recipe).numbers(lines))
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    loss, _ = batch_loss(model, batch, recipe.train, None, weights)
    probabilities = batch_logits(model, batch)[0].softmax(dim=1).detach().numpy()
    reference = log_loss(numbers, probabilities, sample_weight=expected[numbers], labels=np.arange(5))
    assert float(loss.detach()) == pytest.approx(reference, rel=1e-5)
