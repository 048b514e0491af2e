"""The loop: its steps, its checkpoints, what it ends with, and what ctrl-C may interrupt."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train.checkpoint import CHECKPOINT_FILE, Checkpoint
from edgefuse.train.data import Batch
from edgefuse.train.fit import _interrupt_held_back, fit, optimise
from edgefuse.train.losses import task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_logits, batch_loss, validate
from edgefuse.train.optimizers import learning_rate, new_optimizer
from edgefuse.train.recipe import Recipe
from edgefuse.train.selection import Selection
from edgefuse.train.train import train
from tests.train_fixtures import (
    STEPS,
    corpus,
    loader_of,
    new_model,
    rows_of_corpus,
    steps_of,
    tiny_recipe,
    write_manifest,
    write_recipe,
)


def lines_of(split: str) -> list[Example]:
    return read_manifest(corpus(), split=split)


def take_step(
    model: FusedModel, optimizer: torch.optim.Optimizer, batch: Batch, recipe: Recipe, step: int, total: int = STEPS
) -> dict[str, float]:
    """One step of the loop; returns its terms."""
    return optimise(
        model, optimizer, batch, recipe.train, step, total, lambda given: batch_loss(model, given, recipe.train)
    )


def train_tiny(recipe: Recipe, folder: Path, model: FusedModel | None = None) -> tuple[FusedModel, dict[str, float]]:
    """The model after the loop, and its scores."""
    model = model or new_model(recipe)
    subsets = list(recipe.data.subsets) or ["+".join(recipe.modalities)]
    scores = fit(model, steps_of(recipe), loader_of(recipe), lines_of("val"), subsets, recipe, folder)
    return model, scores


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether all weights and buffers are equal, bit by bit."""
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


def test_the_model_learns_to_look_at_the_picture_and_to_read_the_question() -> None:
    recipe = tiny_recipe(
        data={"subsets": {}},
        audio=None,
        text={"rate": 0.3},
        fusion={"kind": "concat", "dim": 32, "hidden": 32},
        train={"learning_rate": 0.01},
    )
    model, lines = new_model(recipe).train(), lines_of("train")
    optimizer = new_optimizer(model, recipe)
    batch = loader_of(recipe).batch(lines, [line.audio for line in lines], [set(line.sensors) for line in lines])
    losses = [take_step(model, optimizer, batch, recipe, step, 40)["task"] for step in range(40)]
    assert losses[0] > 1.3  # five labels: log 5 is 1.6
    assert losses[-1] < 0.5  # the best without the picture is 0.77, the mean entropy of the answers to a question


def test_a_step_draws_from_the_seed_and_its_number() -> None:
    recipe = tiny_recipe()
    batch = steps_of(recipe)[3]
    results = []
    for noise in (1, 2):
        model = new_model(recipe).train()
        optimizer = new_optimizer(model, recipe)
        torch.manual_seed(noise)
        take_step(model, optimizer, batch, recipe, 3)
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_finished_training_is_only_validated_again(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = new_model(recipe)
    optimizer = new_optimizer(model, recipe)
    Checkpoint(tmp_path).save(model, optimizer, STEPS, Selection(model, recipe.train))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = fit(model, steps_of(recipe), loader_of(recipe), lines_of("val"), ["image+text"], recipe, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scores == validate(model, loader_of(recipe), lines_of("val"), ["image+text"])


def test_fit_writes_checkpoints_as_often_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, model, optimizer, step, selection: saved.append(step))
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
    optimizer = new_optimizer(interrupted, recipe)
    assert Checkpoint(tmp_path).restore(interrupted, optimizer, Selection(interrupted, recipe.train)) == 1
    its_optimizer = new_optimizer(whole, recipe)
    take_step(whole.train(), its_optimizer, steps_of(recipe)[0], recipe, 0, 2)
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


def test_a_run_that_switches_nothing_on_takes_the_plain_steps_bit_by_bit(tmp_path: Path) -> None:
    """AdamW, the task's loss, one learning rate per encoder: as it was before there was anything to switch on."""
    recipe = tiny_recipe(audio=None, text={"rate": 0.5}, data={"subsets": {}}, train={"alignment": 0})
    found, _ = train_tiny(recipe, tmp_path)
    model, steps = new_model(recipe).train(), steps_of(recipe)
    rates = [(model.encoders["image"], 1.0), (model.encoders["text"], 0.5), (model.head, 1.0)]
    groups: list[dict[str, Any]] = []
    for module, rate in rates:
        weights = list(module.parameters())
        groups.append({"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.01, "rate": rate})
        groups.append({"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0, "rate": rate})
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    for step in range(STEPS):
        batch = steps[step]
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(step, STEPS, recipe.train)
        optimizer.zero_grad()
        task_loss(batch_logits(model, batch)[0], batch.labels, recipe.train.label_smoothing).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip_norm)
        optimizer.step()
    assert same(found, model)


def quick(**changes: Any) -> Recipe:
    """Pictures only, eight steps in four epochs; `changes` are of the loop."""
    image = {"freeze": changes.pop("freeze", False)}
    train = {"epochs": 4, "checkpoint_every_s": 0, "alignment": 0, **changes}
    return tiny_recipe(data={"subsets": {}, "groups_per_step": 4}, image=image, audio=None, text=None, train=train)


class KilledError(Exception):
    """Stands in for a kill."""


@pytest.mark.parametrize("at", range(1, 7))  # the sixth is the last: nothing gets better after the first epoch
def test_average_patience_and_a_thaw_survive_a_kill_at_any_step(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(ema=0.5, patience=2, freeze=2, class_weights="balanced")
    whole, scores = train_tiny(recipe, tmp_path / "whole")
    save = Checkpoint.save

    def save_and_die(self: Checkpoint, model: nn.Module, optimizer: Any, step: int, selection: Selection) -> None:
        save(self, model, optimizer, step, selection)
        if step == at:
            raise KilledError

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(KilledError):
        train_tiny(recipe, tmp_path / "killed")
    monkeypatch.setattr(Checkpoint, "save", save)
    resumed, its_scores = train_tiny(recipe, tmp_path / "killed", new_model(recipe, seed=9))
    assert same(resumed, whole)
    assert its_scores == scores


def test_a_training_that_gets_no_better_stops_and_ends_with_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([0.5, 0.7, 0.6, 0.7, 0.9])  # the validation after each epoch: the third is one too few
    weights: list[dict[str, torch.Tensor]] = []

    def score(model: FusedModel, *_: object) -> dict[str, float]:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"image": next(told)}

    monkeypatch.setattr("edgefuse.train.fit.validate", score)
    model, scores = train_tiny(quick(epochs=5, patience=2), tmp_path)
    assert scores == {"image": 0.9}  # asked once more, of the weights that it ends with
    assert len(weights) == 5
    assert all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())
    assert not all(torch.equal(value, weights[3][name]) for name, value in model.state_dict().items())


def test_ctrl_c_in_a_validation_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick(patience=1)
    whole, _ = train_tiny(recipe, tmp_path / "whole")
    calls: list[int] = []

    def press_ctrl_c(*given: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return validate(*given)

    monkeypatch.setattr("edgefuse.train.fit.validate", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(recipe, tmp_path / "run")
    resumed, _ = train_tiny(recipe, tmp_path / "run")
    assert same(resumed, whole)
    assert len(calls) >= 3


def test_ctrl_c_while_the_best_weights_are_kept_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(patience=3)
    judge, candidate, pressed = Selection.judge, Selection.candidate, []

    def pressing(self: Selection, step: int, scores: dict[str, float]) -> None:
        """As `judge`, and whoever then takes the weights presses ctrl-C, once."""

        def press(selection: Selection) -> Any:
            if not pressed:
                pressed.append(True)
                os.kill(os.getpid(), signal.SIGINT)
            return candidate.fget(selection)  # type: ignore[attr-defined]

        with monkeypatch.context() as patch:
            patch.setattr(Selection, "candidate", property(press))
            judge(self, step, scores)

    def trained(folder: str) -> FusedModel:
        worse = itertools.count()  # the first validation is the best one
        monkeypatch.setattr("edgefuse.train.fit.validate", lambda *_: {"image": 0.9 - 0.1 * next(worse)})
        return train_tiny(recipe, tmp_path / folder)[0]

    whole = trained("whole")
    monkeypatch.setattr(Selection, "judge", pressing)
    with pytest.raises(KeyboardInterrupt):
        trained("run")
    assert pressed
    assert same(trained("run"), whole)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # torch forks its workers
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_ends_the_training_in_one_line(workers: int, tmp_path: Path) -> None:
    rows = rows_of_corpus()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for row in rows:
        row["image"] = str(broken) if row["split"] == "train" else row["image"]
    recipe = str(write_recipe(tmp_path / "tiny.yaml", write_manifest(tmp_path / "manifest.jsonl", rows)))
    with pytest.raises(ManifestError, match=rf"^{tmp_path}/manifest\.jsonl:\d+: {broken}[^\n]*$"):
        train(recipe, [f"data.workers={workers}"], tmp_path / "run")


def test_the_average_of_the_weights_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    recipe, steps = quick(ema=0.8), steps_of(quick())
    found, scores = train_tiny(recipe, tmp_path)
    model = new_model(recipe).train()
    optimizer, expected = new_optimizer(model, recipe), {}
    for step in range(len(steps)):
        take_step(model, optimizer, steps[step], recipe, step, len(steps))
        now = {name: value.double() for name, value in model.named_parameters()}
        now |= {name: value.double() for name, value in model.named_buffers() if value.is_floating_point()}
        expected = {n: v.detach() if step == 0 else 0.8 * expected[n] + 0.2 * v.detach() for n, v in now.items()}
    for name in found.state_dict().keys() & expected.keys():
        value = expected[name]
        torch.testing.assert_close(found.state_dict()[name].double(), value, atol=1e-6, rtol=1e-5)
    assert not same(found, model)
    assert scores == validate(found, loader_of(recipe), lines_of("val"), ["image"])


def test_a_frozen_encoder_keeps_its_weights_and_the_statistics_of_its_norms(tmp_path: Path) -> None:
    recipe = quick(freeze=True)
    before = new_model(recipe).state_dict()
    after = train_tiny(recipe, tmp_path)[0].state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("head.") for name in moved)
    assert not any(name.startswith("encoders.") for name in moved)


def test_an_encoder_thaws_after_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick(freeze=2)
    states: list[torch.Tensor] = []
    take = Selection.take_step

    def remember(self: Selection) -> None:
        take(self)
        states.append(torch.cat([value.flatten() for value in self.candidate.encoders.state_dict().values()]))

    monkeypatch.setattr(Selection, "take_step", remember)
    train_tiny(recipe, tmp_path)
    still = [torch.equal(one, two) for one, two in itertools.pairwise(states)]
    assert still == [True] * 3 + [False] * 4
