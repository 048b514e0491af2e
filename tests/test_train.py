"""Runs: what a folder holds, that a killed run ends as if nothing had happened, and every refusal in one line."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from edgefuse.runtime.errors import ManifestError, RecipeError
from edgefuse.runtime.manifest import fingerprint, read_manifest
from edgefuse.train import train as module
from edgefuse.train.checkpoint import CHECKPOINT_FILE
from edgefuse.train.pretrained import MODEL_FILE
from edgefuse.train.runs import RUN_FILE, Run
from edgefuse.train.teacher import ANSWERS
from edgefuse.train.train import train
from tests.train_fixtures import (
    LINES,
    STEPS,
    corpus,
    edgefuse_process,
    rows_of_corpus,
    tiny_recipe,
    trained_run,
    write_manifest,
    write_recipe,
)

LABELS = ("blue", "green", "no", "red", "yes")
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}  # of batch norms
TIMEOUT_S = 600  # much, for what may run beside the tests


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    return write_recipe(tmp_path / "tiny.yaml")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the loop: every answer is right after no step at all."""
    monkeypatch.setattr(module, "fit", lambda *_: {"image+text": 1.0})


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Return as soon as the run in `folder` has saved a checkpoint of `step` or more."""
    path, deadline = folder / CHECKPOINT_FILE, time.monotonic() + TIMEOUT_S
    while not path.exists() or saved_step(path) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def saved_step(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def test_a_run_folder_holds_all_that_later_stages_need() -> None:
    folder = trained_run()
    names = {path.name for path in folder.iterdir()} - {ANSWERS}  # this run is a teacher in other tests
    assert names == {RUN_FILE, MODEL_FILE, CHECKPOINT_FILE, "tokenizer.json", "tensorboard"}
    document = json.loads((folder / RUN_FILE).read_bytes())
    assert document["recipe"] == tiny_recipe().model_dump()
    assert document["labels"] == list(LABELS)
    assert document["data_fingerprint"] == fingerprint(read_manifest(corpus(), split="train"))
    assert document["versions"]["torch"] == torch.__version__
    assert set(document["accuracy"]) == {"image+text", "image+audio", "image+audio+text"}
    assert saved_step(folder / CHECKPOINT_FILE) == STEPS


def test_a_run_that_is_killed_and_resumed_ends_with_the_very_same_weights(tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "run"
    with edgefuse_process("train", recipe, "--out", out) as process:
        wait_for_step(process, out, 2)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= saved_step(out / CHECKPOINT_FILE) < STEPS
    assert not (out / MODEL_FILE).exists()
    with pytest.raises(RecipeError, match=r"not trained to its end; go on with `edgefuse train \.\.\. --out"):
        Run.open(out).trained_model()
    train(str(recipe), [], out)
    assert (out / MODEL_FILE).read_bytes() == (trained_run() / MODEL_FILE).read_bytes()


def test_with_all_that_a_recipe_can_switch_on_a_kill_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    text = {"weights": str(trained_run()), "lora": 2, "layer_decay": 0.9}
    loop = {"epochs": 2, "ema": 0.5, "patience": 2, "class_weights": "balanced", "checkpoint_every_s": 0}
    path = write_recipe(tmp_path / "tiny.yaml", text=text, image={"freeze": 1}, train=loop)
    train(str(path), [], tmp_path / "whole")
    at = random.randint(1, STEPS - 1)
    with edgefuse_process("train", path, "--out", tmp_path / "run") as process:
        wait_for_step(process, tmp_path / "run", at)
        process.kill()
        process.communicate()
    assert saved_step(tmp_path / "run" / CHECKPOINT_FILE) >= at
    train(str(path), [], tmp_path / "run")
    whole = (tmp_path / "whole" / MODEL_FILE).read_bytes()
    assert (tmp_path / "run" / MODEL_FILE).read_bytes() == whole, f"killed after step {at}"


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_finishes(tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "run"
    command = ("train", recipe, "--out", out, "--json")
    with edgefuse_process(*command) as process:
        wait_for_step(process, out, 2)
        process.send_signal(signal.SIGINT)
        answer, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert answer == ""
    assert log.splitlines()[-1] == "edgefuse: stopped; what was written so far is intact"
    assert "Traceback" not in log
    assert 2 <= saved_step(out / CHECKPOINT_FILE) < STEPS

    with edgefuse_process(*command) as process:
        answer, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, log
    told = json.loads(answer.splitlines()[-1])
    assert told["run"] == str(out)
    assert told["labels"] == list(LABELS)
    assert told["accuracy"] == json.loads((trained_run() / RUN_FILE).read_bytes())["accuracy"]
    assert (out / MODEL_FILE).read_bytes() == (trained_run() / MODEL_FILE).read_bytes()


def test_a_finished_run_is_returned_and_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fit", lambda *_: pytest.fail("it was trained again"))
    said = train(str(trained_run().parent / "tiny.yaml"), [], trained_run())
    assert said["accuracy"] == json.loads((trained_run() / RUN_FILE).read_bytes())["accuracy"]
    assert said["labels"] == list(LABELS)


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained_run(), out)
    document = json.loads((out / RUN_FILE).read_bytes())
    del document["accuracy"]  # as a run looks that was stopped
    (out / RUN_FILE).write_text(json.dumps(document))
    content = (out / CHECKPOINT_FILE).read_bytes()
    (out / CHECKPOINT_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(RecipeError, match=r"cannot be resumed .*; delete it to start the run again") as caught:
        train(str(recipe), [], out)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "same"}, "the training lines have 1 label; at least 2 are needed"),
        ({"label": None}, r":1: a training line needs a label"),
        ({"audio": None}, "no train line has audio, which the recipe reads; add some, or leave the section audio out"),
        ({"split": "train"}, "no line with split 'val'; splits found: train"),
    ],
)
def test_data_that_cannot_be_learned_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows_of_corpus(**change))
    with pytest.raises((RecipeError, ManifestError), match=message):
        train(str(write_recipe(tmp_path / "tiny.yaml", manifest)), [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_validation_label_that_training_never_had_is_refused(tmp_path: Path) -> None:
    rows = rows_of_corpus()
    rows[LINES["train"] + 1]["label"] = "purple"
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    with pytest.raises(ManifestError, match=rf":{LINES['train'] + 2}: label 'purple'; the model knows: blue, green"):
        train(str(write_recipe(tmp_path / "tiny.yaml", manifest)), [], tmp_path / "run")


def test_lines_without_any_sensor_of_the_model_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of_corpus()
    del rows[0]["image"], rows[LINES["train"]]["image"]
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    recipe = write_recipe(tmp_path / "tiny.yaml", manifest, audio=None, text=None, data={"subsets": {}})
    trained_on: list[Any] = []
    monkeypatch.setattr(module, "fit", lambda *given: trained_on.extend(given) or {"image": 1.0})
    train(str(recipe), [], tmp_path / "run")
    _, steps, _, validation, subsets, *_ = trained_on
    assert steps.steps_per_epoch == 4
    assert len(validation) == LINES["val"] - 1
    assert subsets == ["image"]


def test_a_picture_that_breaks_in_training_ends_in_one_line_that_names_it(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    rows = rows_of_corpus()
    broken.write_bytes(Path(rows[9]["image"]).read_bytes()[:-50])
    for row in rows[9:12]:
        row["image"] = str(broken)
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    recipe = write_recipe(tmp_path / "tiny.yaml", manifest)
    with pytest.raises(ManifestError, match=rf"^{manifest}:10: {broken}: the picture is cut off") as caught:
        train(str(recipe), [], tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_no_epochs_leave_the_weights_random_and_settle_the_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", lambda *_: pytest.fail("it was trained"))
    recipe = write_recipe(tmp_path / "tiny.yaml", train={"epochs": 0})
    said = train(str(recipe), [], tmp_path / "run")
    assert said["accuracy"] == {}
    run = Run.open(tmp_path / "run")
    new, saved = run.new_model().state_dict(), run.trained_model().state_dict()
    changed = {name for name, value in saved.items() if not torch.equal(value, new[name])}
    assert changed == {name for name in new if name.rpartition(".")[2] in STATISTICS}


def test_training_leaves_the_working_directory_alone(
    tmp_path: Path, recipe: Path, no_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train(str(recipe), [], tmp_path / "run")
    assert not list((tmp_path / "here").iterdir())
