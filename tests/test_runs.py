"""Runs: what starts and finds a folder again, what later stages read in it, and every refusal in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.preprocess import Tokenizer
from edgefuse.train import train as module
from edgefuse.train.pretrain import pretrain
from edgefuse.train.pretrained import MODEL_FILE
from edgefuse.train.runs import HARMLESS, RUN_FILE, Run
from edgefuse.train.train import train
from tests.train_fixtures import rows_of_corpus, trained_run, write_manifest, write_recipe

LABELS = ("blue", "green", "no", "red", "yes")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    return write_recipe(tmp_path / "tiny.yaml")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the loop: every answer is right after no step at all."""
    monkeypatch.setattr(module, "fit", lambda *_: {"image+text": 1.0})


def test_the_trained_model_is_the_one_that_was_saved_ready_to_answer() -> None:
    run = Run.open(trained_run())
    model = run.trained_model()
    saved = load_file(trained_run() / MODEL_FILE)
    assert not model.training
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    tokenizer = run.text_tokenizer()
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.encode(["is it red"])[0].shape == (1, 8)


def test_a_folder_of_another_recipe_is_refused_naming_what_differs(recipe: Path) -> None:
    changes = ["fusion.dim=32", "train.epochs=4", "audio=null", "data.subsets={image: 1}"]
    with pytest.raises(RecipeError) as caught:
        train(str(recipe), changes, trained_run())
    gone = ", ".join(f"data.subsets.{name}" for name in ("image+audio", "image+audio+text", "image+text"))
    told = f"differs in {gone}, data.subsets.image, audio, fusion.dim, train.epochs"
    assert told in str(caught.value)
    assert str(caught.value).endswith("choose another --out")


def test_a_setting_that_is_left_out_makes_another_recipe(tmp_path: Path, no_training: None) -> None:
    changes = ["augment={hiss: {rate: 0.5}, noise: {rate: 0.5}}"]
    train(str(write_recipe(tmp_path / "tiny.yaml")), changes, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"another recipe \(differs in augment\.noise\)"):
        train(str(tmp_path / "tiny.yaml"), ["augment={hiss: {rate: 0.5}}"], tmp_path / "run")


def test_a_pretraining_and_a_training_need_folders_of_their_own(tmp_path: Path, no_training: None) -> None:
    recipe = str(write_recipe(tmp_path / "tiny.yaml", data={"subsets": {}}))
    train(recipe, [], tmp_path / "run")
    with pytest.raises(RecipeError, match=r"holds a run with other labels \(blue, "):
        pretrain(recipe, [], tmp_path / "run")
    before = (tmp_path / "run" / MODEL_FILE).read_bytes()
    pretrain(recipe, ["train.epochs=1"], tmp_path / "pretrained")
    with pytest.raises(RecipeError, match=r"holds a run with other labels \(none, it was pretrained\)"):
        train(recipe, ["train.epochs=1"], tmp_path / "pretrained")
    assert (tmp_path / "run" / MODEL_FILE).read_bytes() == before


@pytest.mark.parametrize("made", ["qat", "soup"])
def test_a_training_does_not_pass_for_what_was_made_of_one(made: str, tmp_path: Path, no_training: None) -> None:
    recipe = str(write_recipe(tmp_path / "tiny.yaml"))
    train(recipe, [], tmp_path / "run")
    document = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps({**document, made: {}}))
    with pytest.raises(RecipeError, match=f"holds what `edgefuse {made}` made; choose another --out"):
        train(recipe, [], tmp_path / "run")


def test_a_run_knows_the_weights_that_it_went_on_from(tmp_path: Path, no_training: None) -> None:
    recipe, start = str(write_recipe(tmp_path / "tiny.yaml")), tmp_path / "start"
    shutil.copytree(trained_run(), start)
    told = train(recipe, [f"train.start={start}"], tmp_path / "run")
    assert train(recipe, [f"train.start={start}"], tmp_path / "run") == told
    weights = load_file(start / MODEL_FILE)
    save_file({name: value + 1 for name, value in weights.items()}, start / MODEL_FILE)
    with pytest.raises(RecipeError, match=f"went on from other weights than {start} has now; choose another --out"):
        train(recipe, [f"train.start={start}"], tmp_path / "run")
    shutil.rmtree(start)
    assert train(recipe, [f"train.start={start}"], tmp_path / "run") == told, "what is finished needs it no more"


def test_a_folder_of_other_data_is_refused(tmp_path: Path, no_training: None) -> None:
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows_of_corpus())
    recipe = str(write_recipe(tmp_path / "tiny.yaml", manifest))
    train(recipe, [], tmp_path / "run")
    write_manifest(manifest, rows_of_corpus()[1:])
    with pytest.raises(RecipeError, match=r"was trained on other data than .*manifest\.jsonl has now; choose another"):
        train(recipe, [], tmp_path / "run")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (RUN_FILE, None, "is not a run: no run.json in it; make one with `edgefuse train`"),
        ("tokenizer.json", None, "is not a run: no tokenizer.json in it"),
        (RUN_FILE, b"{", "run.json cannot be read (Expecting property name"),
        (RUN_FILE, b"[]", "run.json cannot be read (list indices"),
        (RUN_FILE, b"{}", "run.json cannot be read ('recipe')"),
        (RUN_FILE, b"\xff", "run.json cannot be read ('utf-8' codec"),
        (RUN_FILE, b'{"recipe": {}, "labels": []}', "run.json cannot be read (recipe name: Field required"),
        ("tokenizer.json", b"{}", "tokenizer.json cannot be read"),
        (MODEL_FILE, None, "is not trained to its end"),
        (MODEL_FILE, b"", "model.safetensors cannot be loaded"),
        (MODEL_FILE, pickle.dumps({"a": 1}), "model.safetensors cannot be loaded"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    shutil.copytree(trained_run(), tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    if content is not None:
        (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # RecipeError and BundleError, by their common base
        Run.open(tmp_path / "run").trained_model()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_folder_that_is_not_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is not a run: no run\.json in it"):
        Run.open(tmp_path / "nowhere")


def test_a_run_without_text_has_no_tokenizer(tmp_path: Path, no_training: None) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", audio=None, text=None, data={"subsets": {}})
    train(str(recipe), [], tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.text_tokenizer() is None
    assert run.trained_model().modalities == ("image",)
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def test_an_embedding_table_has_at_least_the_rows_of_the_recipe(tmp_path: Path) -> None:
    shutil.copytree(trained_run(), tmp_path / "run")
    pieces = Run.open(tmp_path / "run").text_tokenizer()
    assert pieces is not None
    for rows, expected in ((0, pieces.vocabulary_size), (1, pieces.vocabulary_size), (500, 500)):
        document = json.loads((trained_run() / RUN_FILE).read_bytes())
        document["recipe"]["text"]["table_rows"] = rows
        (tmp_path / "run" / RUN_FILE).write_text(json.dumps(document))
        model = Run.open(tmp_path / "run").new_model()
        assert model.encoders["text"].bert.get_input_embeddings().num_embeddings == expected


@pytest.mark.parametrize("change", ["data.workers=1", "train.checkpoint_every_s=9", None])
def test_settings_that_change_nothing_may_differ(
    tmp_path: Path,
    recipe: Path,
    no_training: None,
    change: str | None,
) -> None:
    changes = [change] if change else []
    assert {f"{change}".partition("=")[0]} <= {*HARMLESS, "None"}
    train(str(recipe), [], tmp_path / "run")
    document = json.loads((tmp_path / "run" / RUN_FILE).read_bytes())
    del document["accuracy"]  # as a run looks that was stopped
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps(document))
    assert train(str(recipe), changes, tmp_path / "run")["accuracy"] == {"image+text": 1.0}


def test_a_run_of_a_pretrained_text_encoder_is_read_without_it(
    tmp_path: Path,
    no_training: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    text = {"encoder": str(tmp_path / "bert")}
    path = write_recipe(tmp_path / "tiny.yaml", audio=None, text=text, data={"subsets": {}})
    train(str(path), [], tmp_path / "run")
    shutil.rmtree(tmp_path / "bert")
    run = Run.open(tmp_path / "run")
    saved = load_file(tmp_path / "run" / MODEL_FILE)
    found = run.trained_model().state_dict()
    assert set(found) == set(saved)
    assert all(torch.equal(value, saved[name]) for name, value in found.items())
    with pytest.raises(RecipeError, match="could not be loaded"):
        run.new_model()
