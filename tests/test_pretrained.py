"""Weights to start from: a run's encoder for the modality that asks, with its tokenizer; misfits in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgefuse.runtime.errors import RecipeError
from edgefuse.train.encoders import TextEncoder
from edgefuse.train.pretrained import MODEL_FILE, load_encoder, start_from, without_weights
from edgefuse.train.recipe import TextSettings
from edgefuse.train.runs import Run
from edgefuse.train.wordpiece import tokenizer_document
from tests.train_fixtures import new_model, tiny_recipe, tiny_tokenizer, trained_run


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_an_encoder_starts_from_that_of_a_run_and_the_others_do_not(modality: str) -> None:
    model, trained = (
        new_model(tiny_recipe(**{modality: {"weights": str(trained_run())}}), seed=4),
        new_model(tiny_recipe()),
    )
    saved = load_file(trained_run() / MODEL_FILE)
    for name, value in model.state_dict().items():
        if name.startswith(f"encoders.{modality}."):
            assert torch.equal(value, saved[name])
    matrices = [n for n, v in model.named_parameters() if v.ndim > 1 and not n.startswith(f"encoders.{modality}.")]
    assert not any(torch.equal(model.get_parameter(name), saved[name]) for name in matrices)
    assert set(trained.state_dict()) == set(model.state_dict())


def test_corpus_is_the_tokenizer_of_the_run_that_the_text_starts_from() -> None:
    learned = tokenizer_document(TextSettings(), ["other words"])
    kept = tokenizer_document(TextSettings(weights=str(trained_run())), ["other words"])
    assert kept != learned
    assert kept == tokenizer_document(TextSettings(tokenizer=str(trained_run())), [])


def test_the_encoder_of_another_size_is_refused_in_one_line() -> None:
    encoder = TextEncoder(TextSettings(encoder="distilbert_small", max_tokens=8), tiny_tokenizer().vocabulary_size)
    with pytest.raises(
        RecipeError, match=r"text\.weights '.*' does not fit this encoder: .*(size mismatch|Missing)"
    ) as caught:
        load_encoder(encoder, "text", str(trained_run()))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    shutil.copytree(trained_run(), tmp_path / "run")
    (tmp_path / "run" / MODEL_FILE).unlink()
    with pytest.raises(RecipeError, match=r"does not exist; give .* or a finished run"):
        new_model(tiny_recipe(audio={"weights": str(tmp_path / "run")}))


def test_a_trained_run_needs_what_it_started_from_no_more(tmp_path: Path) -> None:
    shutil.copytree(trained_run(), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    started = run.recipe.image.model_copy(update={"weights": "gone.safetensors"})  # type: ignore[union-attr]
    recipe = run.recipe.model_copy(update={"image": started})
    moved = Run(run.folder, recipe, run.labels, run.document, run.tokenizer)
    with pytest.raises(RecipeError, match="does not exist"):
        moved.new_model()
    assert moved.trained_model().modalities == run.recipe.modalities
    assert without_weights(recipe) == run.recipe


def test_a_training_starts_from_all_of_a_run_that_fits_and_the_rest_is_new() -> None:
    model = new_model(tiny_recipe(fusion={"kind": "weighted"}), seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taken, of = start_from(model, str(trained_run()), None)
    saved = load_file(trained_run() / MODEL_FILE)
    fitting = {name for name, value in before.items() if name in saved and saved[name].shape == value.shape}
    assert (taken, of) == (len(fitting), len(before))
    assert 0 < taken < of
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name] if name in fitting else before[name])


def test_a_start_of_other_pieces_or_of_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    model = new_model(tiny_recipe())
    with pytest.raises(RecipeError, match=r"train\.start '.*' knows other pieces of words than this text; give text"):
        start_from(model, str(trained_run()), b"{}")
    with pytest.raises(RecipeError, match=r"train\.start '.*' cannot be read \(.*\); give the folder"):
        start_from(model, str(tmp_path), None)
    with pytest.raises(RecipeError, match=r"none of its \d+ weights has a name and shape of this model"):
        start_from(torch.nn.Linear(2, 2), str(trained_run()), None)
