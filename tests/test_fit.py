"""The loop: its schedule, its loss, its validation, and what ctrl-C may interrupt."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train.checkpoint import CHECKPOINT_FILE, Checkpoint
from edgefuse.train.data import Batch
from edgefuse.train.fit import (
    _interrupt_held_back,
    _optimise,
    _parameter_groups,
    batch_logits,
    batch_loss,
    fit,
    learning_rate,
    settle_norms,
    validate,
)
from edgefuse.train.losses import alignment_loss, task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.recipe import Recipe, TrainSettings
from tests.train_fixtures import STEPS, corpus, loader_of, new_model, steps_of, tiny_recipe

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


@pytest.mark.parametrize(("warmup", "total"), [(0.15, 100), (0.0, 40), (0.5, 7), (1.0, 10)])
def test_the_learning_rate_is_torchs_linear_warm_up_and_cosine(warmup: float, total: int) -> None:
    settings = TrainSettings(learning_rate=0.3, warmup=warmup)
    peak = max(1, round(warmup * total))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / peak, total_iters=peak - 1)
    expected = []
    for step in range(total):
        if step == peak:
            fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - peak)
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < peak - 1:
            rise.step()
        elif step >= peak:
            fall.step()
    found = [learning_rate(step, total, settings) for step in range(total)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


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
    monkeypatch.setattr("edgefuse.train.fit.VALIDATION_BATCH", 4)
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


def test_every_parameter_learns_at_its_encoders_rate_and_only_matrices_decay() -> None:
    recipe = tiny_recipe(audio={"rate": 0.5}, text={"rate": 0.0})
    model = new_model(recipe)
    groups = _parameter_groups(model, recipe)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["rate"] == {"audio": 0.5, "text": 0.0}.get(name.split(".")[1], 1.0)
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    _optimise(model.train(), optimizer, steps_of(recipe)[0], recipe.train, 0, STEPS)
    peak = learning_rate(0, STEPS, recipe.train)
    assert [group["lr"] for group in optimizer.param_groups] == [peak * group["rate"] for group in groups]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert not any(name.startswith("encoders.text.") for name in changed)
    assert any(name.startswith("encoders.audio.") for name in changed)


def test_the_model_learns_to_look_at_the_picture_and_to_read_the_question() -> None:
    recipe = tiny_recipe(
        data={"subsets": {}},
        audio=None,
        text={"rate": 0.3},
        fusion={"kind": "concat", "dim": 32, "hidden": 32},
        train={"learning_rate": 0.01},
    )
    model, lines = new_model(recipe).train(), lines_of("train")
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), lr=0)
    batch = batch_of(recipe, lines)
    losses = [_optimise(model, optimizer, batch, recipe.train, step, 40)["task"] for step in range(40)]
    assert losses[0] > 1.3  # five labels: log 5 is 1.6
    assert losses[-1] < 0.5  # the best without the picture is 0.77, the mean entropy of the answers to a question


def test_a_step_draws_from_the_seed_and_its_number() -> None:
    recipe = tiny_recipe()
    batch = steps_of(recipe)[3]
    results = []
    for noise in (1, 2):
        model = new_model(recipe).train()
        optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), lr=0)
        torch.manual_seed(noise)
        _optimise(model, optimizer, batch, recipe.train, 3, STEPS)
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_finished_training_is_only_validated_again(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = new_model(recipe)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), lr=0)
    Checkpoint(tmp_path).save(model, optimizer, STEPS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = fit(model, steps_of(recipe), loader_of(recipe), lines_of("val"), ["image+text"], recipe, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scores == validate(model, loader_of(recipe), lines_of("val"), ["image+text"])


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


def test_fit_writes_checkpoints_as_often_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, model, optimizer, step: saved.append(step))
    for every_s, expected in ((0.0, [1, 2, 2]), (1000.0, [2])):
        recipe = _image_recipe(every_s)
        saved.clear()
        fit(new_model(recipe), steps_of(recipe), loader_of(recipe), lines_of("val"), ["image"], recipe, tmp_path)
        assert saved == expected


def _image_recipe(checkpoint_every_s: float) -> Recipe:
    """Two quick steps on pictures only."""
    return tiny_recipe(
        data={"subsets": {}, "groups_per_step": 4},
        train={"epochs": 1, "checkpoint_every_s": checkpoint_every_s},
        audio=None,
        text=None,
    )


def test_ctrl_c_leaves_a_checkpoint_of_whole_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _image_recipe(1000.0)
    model = new_model(recipe)
    running: list[nn.Module] = []

    def press_ctrl_c(module: nn.Module, *_: object) -> None:
        if not running:
            running.append(module)
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of the first step

    model.head.register_forward_hook(press_ctrl_c)
    model.encoders["image"].register_forward_hook(press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        fit(model, steps_of(recipe), loader_of(recipe), lines_of("val"), ["image"], recipe, tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).exists()

    interrupted, whole = new_model(recipe, seed=1), new_model(recipe)
    optimizer = torch.optim.AdamW(_parameter_groups(interrupted, recipe), lr=0)
    assert Checkpoint(tmp_path).restore(interrupted, optimizer) == 1
    its_optimizer = torch.optim.AdamW(_parameter_groups(whole, recipe), lr=0)
    _optimise(whole.train(), its_optimizer, steps_of(recipe)[0], recipe.train, 0, 2)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in interrupted.state_dict().items())


def test_an_interrupt_waits_for_the_end_of_the_block_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = []

    def work() -> None:
        with _interrupt_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the whole block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the whole block"]
    assert signal.getsignal(signal.SIGINT) is before
    with _interrupt_held_back():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _interrupt_held_back():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_training_in_another_thread_is_left_alone() -> None:
    done = []

    def work() -> None:
        with _interrupt_held_back():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_tensorboard_gets_the_terms_and_the_validation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = _image_recipe(1000.0)
    fit(new_model(recipe), steps_of(recipe), loader_of(recipe), lines_of("val"), ["image"], recipe, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/task", "train/accuracy", "val/image"}
    assert [event.step for event in events.Scalars("train/task")] == [1, 2]
    assert [event.step for event in events.Scalars("val/image")] == [2]
