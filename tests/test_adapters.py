"""LoRA: little learns, the rest stands still, and what is merged is what was trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from edgefuse.optimize.export import export
from edgefuse.runtime.errors import MissingExtraError, RecipeError
from edgefuse.train import adapters
from edgefuse.train.adapters import add_lora, lora_adapters, merge_lora
from edgefuse.train.checkpoint import Checkpoint
from edgefuse.train.encoders import TextEncoder
from edgefuse.train.fit import fit
from edgefuse.train.model import FusedModel
from edgefuse.train.recipe import Recipe
from edgefuse.train.runs import Run
from edgefuse.train.settings import TextSettings
from edgefuse.train.train import train
from tests.test_encoders import distilbert_folder  # noqa: F401  # a fixture
from tests.train_fixtures import loader_of, new_model, steps_of, tiny_recipe, tiny_tokenizer, trained_run, write_recipe

IN_LAYERS = ("lin.weight", "lin1.weight", "lin2.weight")  # the matrices of a DistilBERT layer end so


def lora_recipe(**text: Any) -> Recipe:
    """The tiny recipe, its text encoder from the trained run with adapters."""
    text = {"weights": str(trained_run()), "lora": 2, **text}
    return tiny_recipe(audio=None, text=text, data={"subsets": {}, "groups_per_step": 4}, train={"alignment": 0})


def fitted(recipe: Recipe, folder: Path, seed: int = 0) -> FusedModel:
    """A model of `recipe` after the loop."""
    model = new_model(recipe, seed=seed)
    lines = steps_of(recipe).examples[:3]
    fit(model, steps_of(recipe), loader_of(recipe), lines, ["image+text"], recipe, folder)
    return model


def tiny_encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(TextSettings(encoder="distilbert_nano", max_tokens=8), 50).eval()


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tiny_tokenizer().encode(["is it red", "which color is it"])
    return torch.from_numpy(ids), torch.from_numpy(mask)


@pytest.mark.parametrize("family", ["table", "bert"])
def test_the_merged_encoder_computes_what_the_adapted_one_did(family: str, distilbert_folder: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    name = "distilbert_nano" if family == "table" else str(distilbert_folder)
    encoder = TextEncoder(TextSettings(encoder=name, max_tokens=8), 50).eval()
    plain = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        before = encoder(*texts())
        add_lora(encoder, 4)
        assert torch.equal(encoder.eval()(*texts()), before)  # B starts at zero
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        adapted = encoder(*texts())
        merge_lora(encoder)
        merged = encoder(*texts())
    assert (adapted - before).abs().amax() > 1e-3
    torch.testing.assert_close(merged, adapted, atol=1e-6, rtol=0)
    assert set(encoder.state_dict()) == set(plain)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("vocabulary", [30_522, 1_000])
def test_a_rank_of_8_trains_less_than_a_fiftieth_of_the_base_row(vocabulary: int) -> None:
    with torch.device("meta"):
        encoder = TextEncoder(TextSettings(encoder="distilbert_base"), vocabulary)
        trained, total = add_lora(encoder, 8)
    layers = 6 * 8 * (4 * (768 + 768) + 2 * (768 + 3072))  # rank * (in + out) of each matrix
    assert trained == layers == sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert total == sum(p.numel() for p in encoder.parameters()) - layers
    assert trained <= 0.02 * total


def test_only_the_matrices_of_the_layers_are_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = lora_recipe()
    before, after = new_model(recipe).state_dict(), fitted(recipe, tmp_path).state_dict()
    assert set(after) == set(before)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    ours = {name for name in moved if name.startswith("encoders.text.")}
    assert ours == {name for name in before if name.startswith("encoders.text.") and name.endswith(IN_LAYERS)}
    assert any(name.startswith("encoders.image.") for name in moved)
    assert "text: LoRA of rank 2 trains " in capsys.readouterr().err


def test_a_killed_training_of_adapters_ends_with_the_very_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = lora_recipe()
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"ema": 0.5})})
    whole, save = fitted(recipe, tmp_path / "whole"), Checkpoint.save

    def save_and_die(self: Checkpoint, model: nn.Module, optimizer: Any, step: int, selection: Any) -> None:
        save(self, model, optimizer, step, selection)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        fitted(recipe, tmp_path / "killed")
    monkeypatch.setattr(Checkpoint, "save", save)
    resumed = fitted(recipe, tmp_path / "killed", seed=5).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())


def test_the_exported_graph_is_that_of_a_run_without_adapters(tmp_path: Path) -> None:
    text = {"weights": str(trained_run()), "lora": 2}
    train(str(write_recipe(tmp_path / "tiny.yaml", text=text, train={"epochs": 1})), [], tmp_path / "run")
    assert Run.open(tmp_path / "run").recipe.text == lora_recipe().text
    graphs = []
    for name, run in (("plain", trained_run()), ("lora", tmp_path / "run")):
        export(run, tmp_path / name)
        graph = onnx.load(tmp_path / name / "parts" / "fp32" / "text.onnx").graph
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        graphs.append(([(node.op_type, list(node.input), list(node.output)) for node in graph.node], shapes))
    assert graphs[0] == graphs[1]


def test_adapters_on_random_weights_are_refused_and_rank_0_changes_nothing() -> None:
    recipe = tiny_recipe(text={"lora": 2})
    refused = r"leaves the random weights of distilbert_nano as they are; give text\.weights or train\.start"
    with pytest.raises(RecipeError, match=refused), lora_adapters(new_model(recipe), recipe):
        pytest.fail("it was entered")
    started = tiny_recipe(text={"lora": 2}, train={"start": "runs/a"})
    with lora_adapters(new_model(started), started):
        pass  # its weights are those of that run
    model = new_model(tiny_recipe())
    with lora_adapters(model, tiny_recipe()):
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_peft_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"text\.lora needs peft; install edgefuse\[train\]"):
        adapters.add_lora(tiny_encoder(), 2)
