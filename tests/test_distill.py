"""Distillation: what a step learns from teachers, what a run says of them, exact resume, and that it helps."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from edgefuse.optimize.export import export
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train import train as loop
from edgefuse.train.distill import ANGLE_LINES, Lesson, distill
from edgefuse.train.losses import angle_loss, distance_loss, distillation_loss, embedding_loss
from edgefuse.train.pretrained import MODEL_FILE
from edgefuse.train.runs import RUN_FILE, Run
from edgefuse.train.settings import DistillSettings
from edgefuse.train.teacher import answers
from edgefuse.train.train import train
from tests.test_train import TIMEOUT_S, saved_step, wait_for_step
from tests.train_fixtures import (
    STEPS,
    corpus,
    edgefuse_process,
    loader_of,
    tiny_recipe,
    trained_run,
    write_manifest,
    write_recipe,
)

ALL_TERMS = {"logits": 1.0, "embedding": 0.5, "distance": 0.25, "angle": 2.0}
FEW = 6  # lines


@functools.cache
def lines() -> list[Example]:
    return read_manifest(corpus(), split="train")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe as a file, with every term of distillation."""
    return write_recipe(tmp_path / "tiny.yaml")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the loop: every answer is right after no step at all; the list holds what it was given."""
    given: list[Any] = []
    monkeypatch.setattr(loop, "fit", lambda *arguments: given.extend(arguments) or {"image+text": 1.0})
    return given


def all_terms() -> list[str]:
    return [f"distill.{term}={weight}" for term, weight in ALL_TERMS.items()]


def lesson_of(settings: DistillSettings, teachers: int = 1) -> Lesson:
    return Lesson([answers(Run.open(trained_run()), lines())] * teachers, lines(), settings)


def test_a_student_that_only_hears_learns_what_the_teacher_answers_who_saw_all() -> None:
    chosen = [lines()[i] for i in (5, 0, 17)]
    batch = loader_of(tiny_recipe()).batch(chosen, [line.audio for line in chosen], [{"audio"}] * 3)
    teacher = Run.open(trained_run()).trained_model()
    whole = loader_of(tiny_recipe()).batch(chosen, [line.audio for line in chosen], [{"image", "audio", "text"}] * 3)
    inputs = {
        name: tensor[whole.index["text" if name in ("input_ids", "attention_mask") else name]]
        for name, tensor in whole.inputs.items()
    }
    with torch.no_grad():
        target, _ = teacher(inputs, torch.ones(3, 3))
    logits = torch.randn(3, 5)
    terms = lesson_of(DistillSettings(temperature=3.0, logits=0.5))(batch, logits, torch.randn(3, 16))
    assert list(terms) == ["logits"]
    assert float(terms["logits"]) == pytest.approx(float(0.5 * distillation_loss(logits, target, 3.0)), rel=1e-4)


def test_each_term_is_its_loss_times_its_weight_and_zero_leaves_it_out() -> None:
    few = lines()[:FEW]
    batch = loader_of(tiny_recipe()).batch(few, [line.audio for line in few], [{"image"}] * FEW)
    found = answers(Run.open(trained_run()), lines())
    fused, logits = torch.randn(FEW, 16), torch.randn(FEW, 5)
    target, (mean, axes) = found.rows("fused", range(FEW)), found.axes()
    expected = {
        "logits": distillation_loss(logits, found.rows("logits", range(FEW)), 4.0),
        "embedding": 0.5 * embedding_loss(fused, (target - mean) @ axes),
        "distance": 0.25 * distance_loss(fused, target),
        "angle": 2.0 * angle_loss(fused, target),
    }
    terms = lesson_of(DistillSettings(**ALL_TERMS))(batch, logits, fused)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {name: float(term) for name, term in expected.items()}, rel=1e-5
    )
    for term in ALL_TERMS:
        alone = dict.fromkeys(ALL_TERMS, 0.0) | {term: 1.0}
        assert list(lesson_of(DistillSettings(**alone))(batch, logits, fused)) == [term]
    for narrow in (torch.randn(FEW, 8), torch.randn(FEW, 24)):  # than the teacher's 16, and wider
        assert lesson_of(DistillSettings(**ALL_TERMS))(batch, logits, narrow)["embedding"].isfinite()


def test_relations_are_the_mean_over_the_teachers_and_angles_take_some_lines_only() -> None:
    many = (lines() * 4)[: ANGLE_LINES + 1]
    batch = loader_of(tiny_recipe()).batch(many, [line.audio for line in many], [{"image"}] * len(many))
    settings = DistillSettings(logits=0, distance=1.0, angle=1.0)
    fused, logits = torch.randn(len(many), 16), torch.randn(len(many), 5)
    first, second = (lesson_of(settings, teachers=count)(batch, logits, fused) for count in (1, 2))
    assert {name: float(term) for name, term in first.items()} == pytest.approx(
        {name: float(term) for name, term in second.items()}
    )
    target = answers(Run.open(trained_run()), lines()).rows("fused", [i % len(lines()) for i in range(len(many))])
    assert float(first["angle"]) == pytest.approx(float(angle_loss(fused[::2], target[::2])), rel=1e-5)


def test_two_lines_have_no_relations() -> None:
    few = lines()[:2]
    batch = loader_of(tiny_recipe()).batch(few, [None, None], [{"image"}] * 2)
    terms = lesson_of(DistillSettings(**ALL_TERMS))(batch, torch.randn(2, 5), torch.randn(2, 16))
    assert list(terms) == ["logits", "embedding"]


def test_a_distilled_run_that_is_killed_and_resumed_ends_with_the_very_same_weights(
    tmp_path: Path, recipe: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    distill(str(recipe), all_terms(), [trained_run()], whole)
    command = ("distill", recipe, *all_terms(), "--teacher", trained_run(), "--out", out)
    with edgefuse_process(*command) as process:
        wait_for_step(process, out, 2)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= saved_step(out / "checkpoint.safetensors") < STEPS
    with edgefuse_process(*command, "--json") as process:
        answer, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, log
    assert json.loads(answer.splitlines()[-1])["accuracy"] == Run.open(whole).document["accuracy"]
    assert (out / MODEL_FILE).read_bytes() == (whole / MODEL_FILE).read_bytes()
    assert (out / MODEL_FILE).read_bytes() != (trained_run() / MODEL_FILE).read_bytes()


def test_run_and_bundle_name_the_teachers_and_the_hash_of_their_weights(tmp_path: Path, no_training: list[Any]) -> None:
    changes: dict[str, Any] = {"audio": None, "text": None, "data": {"subsets": {}}}
    out = tmp_path / "run"
    recipe = write_recipe(tmp_path / "seeing.yaml", **changes)
    distill(str(recipe), ["fusion.dim=8"], [trained_run(), trained_run()], out)
    named = {
        "run": str(trained_run()),
        "sha256": hashlib.sha256((trained_run() / MODEL_FILE).read_bytes()).hexdigest(),
    }
    assert json.loads((out / RUN_FILE).read_bytes())["teachers"] == [named, named]
    assert isinstance(no_training[-1], Lesson)
    export(out, tmp_path / "bundle")
    lineage = Bundle.open(tmp_path / "bundle").info.lineage
    assert lineage["teachers"] == [named, named]
    assert lineage["recipe"]["distill"] == DistillSettings().model_dump()


def test_a_folder_belongs_to_its_teachers(tmp_path: Path, recipe: Path, no_training: list[Any]) -> None:
    other = tmp_path / "other"
    train(str(recipe), ["train.epochs=0"], other)
    distill(str(recipe), [], [trained_run()], tmp_path / "run")
    assert distill(str(recipe), [], [trained_run()], tmp_path / "run")["accuracy"] == {"image+text": 1.0}
    for again in (
        lambda: distill(str(recipe), [], [other], tmp_path / "run"),
        lambda: train(str(recipe), [], tmp_path / "run"),
    ):
        with pytest.raises(RecipeError, match=r"run holds a run with other teachers \(.*run\); choose another --out"):
            again()
    with pytest.raises(RecipeError, match=r"other holds a run with other teachers \(no teacher\)"):
        distill(str(recipe), ["train.epochs=0"], [trained_run()], other)


@pytest.mark.parametrize(
    ("changes", "teachers", "message"),
    [
        ([], 0, "no teacher; give at least one finished run as --teacher"),
        (["distill.logits=0"], 1, "nothing to learn from a teacher: the weights distill.logits, distill.embedding, "),
        (["distill.embedding=1"], 2, "distill.embedding needs one teacher: several have no common space"),
        (["train.mixup=0.2"], 1, "train.mixup mixes lines, and a teacher answered each by itself"),
    ],
)
def test_what_no_teacher_can_teach_is_refused(
    tmp_path: Path, recipe: Path, changes: list[str], teachers: int, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        distill(str(recipe), changes, [trained_run()] * teachers, tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_labels_is_refused(tmp_path: Path, no_training: list[Any]) -> None:
    rows = [json.loads(line) for line in corpus().read_text().splitlines()]
    for row in rows:
        row.update({key: str(corpus().parent / row[key]) for key in ("image", "audio")})
        row["label"] = "maybe" if row["label"] == "no" else row["label"]
    recipe = write_recipe(tmp_path / "tiny.yaml", write_manifest(tmp_path / "manifest.jsonl", rows))
    with pytest.raises(RecipeError, match=r"has other labels \(only one side has: maybe, no\); choose another"):
        distill(str(recipe), [], [trained_run()], tmp_path / "run")


def test_an_unfinished_teacher_is_refused(tmp_path: Path, recipe: Path) -> None:
    shutil.copytree(trained_run(), tmp_path / "teacher", ignore=shutil.ignore_patterns(MODEL_FILE))
    with pytest.raises(RecipeError, match="teacher is not trained to its end; go on with"):
        distill(str(recipe), [], [tmp_path / "teacher"], tmp_path / "run")


WORDS = {
    "low": ["north", "cold", "snow", "ice", "frost", "winter"],
    "high": ["south", "warm", "sun", "fire", "heat", "summer"],
}


def sentences(count: int, split: str, wrong: float = 0.0) -> list[dict[str, str]]:
    """Three words, two of them of the label's; some labels are wrong."""
    draw, rows = random.Random(f"{split} {count}"), []
    for _ in range(count):
        label, other = draw.sample(list(WORDS), 2)
        words = [*draw.choices(WORDS[label], k=2), draw.choice(WORDS[other])]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": other if draw.random() < wrong else label, "split": split})
    return rows


def test_a_student_of_few_and_partly_wrong_lines_is_right_only_with_a_teacher(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "image": None,
        "audio": None,
        "data": {"subsets": {}, "group_by": None, "flip": False, "groups_per_step": 16},
        "fusion": {"kind": "concat"},
        "train": {"epochs": 8, "validate_every": 8, "alignment": 0, "learning_rate": 1e-3, "checkpoint_every_s": 60},
    }
    rich = write_manifest(tmp_path / "rich.jsonl", sentences(240, "train") + sentences(200, "val"))
    poor = write_manifest(tmp_path / "poor.jsonl", sentences(48, "train", wrong=0.3) + sentences(200, "val"))
    teacher = train(str(write_recipe(tmp_path / "teacher.yaml", rich, **changes)), [], tmp_path / "teacher")
    student = str(write_recipe(tmp_path / "student.yaml", poor, **changes))
    plain = train(student, ["train.epochs=12"], tmp_path / "plain")
    weights = ["train.epochs=12", "distill.logits=10", "distill.temperature=2"]
    distilled = distill(student, weights, [tmp_path / "teacher"], tmp_path / "distilled")
    assert teacher["accuracy"]["text"] > 0.95
    assert plain["accuracy"]["text"] < 0.8
    assert distilled["accuracy"]["text"] > 0.9
