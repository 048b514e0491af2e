"""How fast every weight learns: the schedule, rates of encoders and layers, and encoders that stand still."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from edgefuse.train.fit import optimise
from edgefuse.train.objective import batch_loss
from edgefuse.train.optimizers import _layer_factors, hold_frozen, learning_rate, new_optimizer
from edgefuse.train.recipe import TrainSettings
from tests.train_fixtures import STEPS, new_model, steps_of, tiny_recipe


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


def test_every_parameter_learns_at_its_encoders_rate_and_only_matrices_decay() -> None:
    recipe = tiny_recipe(audio={"rate": 0.5}, text={"rate": 0.0})
    model = new_model(recipe)
    optimizer = new_optimizer(model, recipe)
    groups = optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["rate"] == {"audio": 0.5, "text": 0.0}.get(name.split(".")[1], 1.0)
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimise(
        model.train(),
        optimizer,
        steps_of(recipe)[0],
        recipe.train,
        0,
        STEPS,
        lambda batch: batch_loss(model, batch, recipe.train),
    )
    peak = learning_rate(0, STEPS, recipe.train)
    assert [group["lr"] for group in optimizer.param_groups] == [peak * group["rate"] for group in groups]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert not any(name.startswith("encoders.text.") for name in changed)
    assert any(name.startswith("encoders.audio.") for name in changed)


def test_layers_learn_the_slower_the_further_they_are_from_the_top() -> None:
    recipe = tiny_recipe(text={"rate": 0.5, "layer_decay": 0.8})
    model = new_model(recipe)
    rate = {id(p): group["rate"] for group in new_optimizer(model, recipe).param_groups for p in group["params"]}
    layers = model.encoders["text"].bert.transformer.layer
    assert len(layers) == 2
    expected = {layers[1]: 0.5, layers[0]: 0.4, model.encoders["text"].bert.embeddings: 0.32, model.head: 1.0}
    for module, value in expected.items():
        assert [rate[id(p)] for p in module.parameters()] == pytest.approx([value] * len(list(module.parameters())))


def test_berts_layers_are_told_apart_too() -> None:
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    names = [f"bert.{name}" for name, _ in BertModel(config).named_parameters()]
    factors = _layer_factors(names, 0.5)
    assert factors["bert.embeddings.word_embeddings.weight"] == 0.125
    assert factors["bert.encoder.layer.0.attention.self.query.weight"] == 0.25
    assert factors["bert.encoder.layer.2.output.dense.bias"] == 1.0


def test_what_needs_no_gradient_is_left_out_of_the_optimizer() -> None:
    recipe = tiny_recipe()
    model = new_model(recipe)
    model.encoders["audio"].requires_grad_(False)
    listed = {id(p) for group in new_optimizer(model, recipe).param_groups for p in group["params"]}
    assert listed == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("freeze", "frozen"), [(False, [False] * 3), (True, [True] * 3), (0, [False] * 3), (2, [True, True, False])]
)
def test_an_encoder_is_frozen_for_good_or_in_the_first_epochs(freeze: int, frozen: list[bool]) -> None:
    recipe = tiny_recipe(image={"freeze": freeze})
    model = new_model(recipe).train()
    optimizer, image = new_optimizer(model, recipe), model.encoders["image"]
    for epoch, expected in enumerate(frozen):
        model.train()  # as a validation leaves it
        hold_frozen(model, optimizer, recipe, epoch)
        assert image.training is not expected
        assert {p.requires_grad for p in image.parameters()} == {not expected}
        assert model.head.training
        assert all(p.requires_grad for p in model.head.parameters())
