"""Pretraining without labels: partners are found, duplicates are no mistakes, and a training starts from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.train.checkpoint import Checkpoint
from edgefuse.train.data import Batch
from edgefuse.train.fit import optimise
from edgefuse.train.losses import contrastive_loss
from edgefuse.train.optimizers import new_optimizer
from edgefuse.train.pretrain import Aligner, _pairs, aligned_loss, pretrain
from edgefuse.train.pretrained import MODEL_FILE, start_from
from edgefuse.train.runs import Run
from tests.train_fixtures import COLOURS, corpus, loader_of, tiny_recipe, tiny_tokenizer, write_manifest, write_recipe


def unlabelled(path: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """The corpus's pictures and tones as lines without labels: each colour has a sentence and a tone of its own."""
    rows: list[dict[str, Any]] = []
    for line in read_manifest(corpus()):
        if line.split not in splits or line.answer_type != "color":
            continue
        number = list(COLOURS).index(str(line.label))
        tone = str(corpus().parent / f"{line.split}_0_{number}.wav")
        rows.append({"image": line.image, "audio": tone, "text": f"a {line.label} square", "split": line.split})
    return write_manifest(path, rows)


def recipe_file(folder: Path, manifest: Path, **changes: Any) -> str:
    data = {"group_by": None, "groups_per_step": 4, "flip": False, "subsets": {}}
    changes = {"audio": None, "data": data, "train": {"epochs": 2, "alignment": 0}, **changes}
    return str(write_recipe(folder / "tiny.yaml", manifest, **changes))


def batch_of(present: list[set[str]]) -> tuple[Batch, Aligner]:
    """The first lines of the corpus, showing these sensors, and a model for them."""
    recipe = tiny_recipe()
    lines: list[Example] = read_manifest(corpus(), split="train")[: len(present)]
    torch.manual_seed(0)
    model = Aligner(recipe, tiny_tokenizer().vocabulary_size).eval()
    return loader_of(recipe).batch(lines, [line.audio for line in lines], present), model


def test_what_a_line_shows_together_is_a_pair_and_nothing_else() -> None:
    three, two = {"image", "audio", "text"}, {"image", "text"}
    batch, _ = batch_of([three, two, two, three, {"image"}, {"text"}])  # two pictures, asked three questions each
    found = {(first, second): paired for first, second, paired in _pairs(batch, ["image", "audio", "text"])}
    assert set(found) == {("image", "audio"), ("image", "text"), ("audio", "text")}
    assert found["image", "text"].int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert found["image", "audio"].int().sum() == 2
    assert found["audio", "text"][:, 0].all()
    assert not found["audio", "text"][:, 1:].any()


def test_the_loss_is_the_mean_over_pairs_of_modalities_and_every_encoder_learns() -> None:
    batch, model = batch_of([{"image", "audio", "text"}] * 6)
    loss, terms = aligned_loss(model, batch)
    with torch.no_grad():
        embeddings = model(batch)
        pairs = list(_pairs(batch, list(model.encoders)))
        expected = [contrastive_loss(embeddings[a], embeddings[b], paired, model.scale) for a, b, paired in pairs]
    assert len(expected) == 3
    assert float(loss.detach()) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert set(terms) == {"contrast", "found"}
    loss.backward()
    for module in (*model.encoders.values(), *model.head["project"].values()):
        assert any(p.grad is not None and p.grad.abs().amax() > 0 for p in module.parameters())
    assert model.log_scale.grad is not None


def test_a_step_without_any_pair_teaches_nothing() -> None:
    batch, model = batch_of([{"image"}, {"text"}])
    loss, terms = aligned_loss(model, batch)
    loss.backward()
    assert (float(loss.detach()), terms) == (0.0, {})
    assert float(model.log_scale.grad) == 0.0


def test_the_temperature_stays_above_clips_least() -> None:
    _, model = batch_of([{"image"}])
    assert float(model.scale.detach()) == pytest.approx(1 / 0.07)
    model.log_scale.data.fill_(50.0)
    assert float(model.scale.detach()) == pytest.approx(100.0)


def test_a_killed_pretraining_ends_alike_and_a_training_starts_from_its_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_file(tmp_path, unlabelled(tmp_path / "manifest.jsonl"))
    said = pretrain(recipe, [], tmp_path / "whole")
    assert set(said["retrieval"]) == {"image+text"}
    assert 0 <= said["retrieval"]["image+text"] <= 1
    save = Checkpoint.save

    def save_and_die(self: Checkpoint, *given: Any) -> None:
        save(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, ["train.checkpoint_every_s=0"], tmp_path / "killed")
    monkeypatch.setattr(Checkpoint, "save", save)
    pretrain(recipe, [], tmp_path / "killed")
    whole = tmp_path / "whole" / MODEL_FILE
    assert whole.read_bytes() == (tmp_path / "killed" / MODEL_FILE).read_bytes()
    monkeypatch.setattr("edgefuse.train.pretrain.run_steps", lambda *_, **__: pytest.fail("it was trained again"))
    assert pretrain(recipe, [], tmp_path / "whole") == said

    run = Run.open(tmp_path / "whole")
    with pytest.raises(RecipeError, match=r"whole was pretrained and answers nothing yet; train with"):
        run.trained_model()
    started = tiny_recipe(
        audio=None, data={"subsets": {}}, image={"weights": str(run.folder)}, text={"weights": str(run.folder)}
    )
    document = {**run.document, "recipe": started.model_dump(), "labels": ["a", "b"]}
    model = Run(run.folder, started, ("a", "b"), document, run.tokenizer).new_model()
    trained = {n: t for n, t in load_file(whole).items() if n.startswith("encoders.")}
    assert len(trained) > 100
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.items())
    start_from(model, str(run.folder), run.tokenizer)
    met = {n: t for n, t in load_file(whole).items() if n.startswith("head.project.")}
    assert len(met) == 2 * 4  # a norm and a linear layer for each modality
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in met.items())


def test_a_pretraining_goes_on_from_a_run(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, unlabelled(tmp_path / "manifest.jsonl"))
    pretrain(recipe, ["train.epochs=1"], tmp_path / "first")
    still = [f"train.start={tmp_path / 'first'}", "train.epochs=1", "train.learning_rate=1e-12"]
    pretrain(recipe, still, tmp_path / "second")
    first, second = (load_file(tmp_path / name / MODEL_FILE) for name in ("first", "second"))
    weights = [name for name in first if "running_" not in name and "num_batches" not in name]
    for name in weights:
        torch.testing.assert_close(second[name], first[name], atol=1e-6, rtol=1e-5, msg=name)


def test_partners_are_learned() -> None:
    batch, model = batch_of([{"image", "text"}] * 24)
    batch.index["image"] = batch.index["text"].clone()  # one sentence for each of three pictures
    batch.inputs["image"] = batch.inputs["image"][:3]
    recipe = tiny_recipe(text={"rate": 0.3})
    optimizer = new_optimizer(model.train(), recipe)
    terms = [
        optimise(model, optimizer, batch, recipe.train, step, 25, lambda given: aligned_loss(model, given))
        for step in range(25)
    ]
    assert terms[0]["found"] < 0.7
    assert terms[0]["contrast"] > 1.0  # log 3 is 1.1
    assert terms[-1]["found"] == 1.0
    assert terms[-1]["contrast"] < 0.1


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({"text": None}, (), "the recipe reads image alone; pretraining pairs two sensors or more"),
        ({}, ("image", "audio"), "no train line has two of image, text; pretraining pairs what a line shows together"),
        ({"train": {"patience": 2}}, ("val",), r"no val line to stop early by; add some, or set train\.patience=0"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(
    tmp_path: Path, changes: dict[str, Any], keys: tuple[str, ...], message: str
) -> None:
    manifest = unlabelled(tmp_path / "manifest.jsonl")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in keys} for row in rows if row["split"] not in keys]
    recipe = recipe_file(tmp_path, write_manifest(manifest, rows), **changes)
    with pytest.raises(RecipeError, match=message):
        pretrain(recipe, [], tmp_path / "run")
    assert not (tmp_path / "run").exists()
