"""The count of multiply-adds against published figures and a formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import (
    MobileNet_V3_Large_Weights,
    MobileNet_V3_Small_Weights,
    mobilenet_v3_large,
    mobilenet_v3_small,
)

from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.macs import count_macs, model_cost, parameters
from tests.train_fixtures import corpus, loader_of, new_model, tiny_recipe


@pytest.mark.parametrize(
    ("build", "weights", "paper_millions"),
    [
        (mobilenet_v3_small, MobileNet_V3_Small_Weights.IMAGENET1K_V1, 56),
        (mobilenet_v3_large, MobileNet_V3_Large_Weights.IMAGENET1K_V1, 219),
    ],
)
def test_mobilenet_counts_as_torchvision_and_howard_2019_say(build, weights, paper_millions) -> None:  # type: ignore[no-untyped-def]
    net = build().eval()
    macs = count_macs(lambda: net(torch.zeros(1, 3, 224, 224)))
    assert round(macs / 1e9, 3) == weights.meta["_ops"]
    assert macs / 1e6 == pytest.approx(paper_millions, rel=0.02)
    assert parameters(net) == weights.meta["num_params"]


def test_a_transformer_layer_hides_none_of_its_products() -> None:
    length, dim, hidden = 10, 16, 32
    layer = nn.TransformerEncoderLayer(dim, 4, hidden, batch_first=True).eval()
    macs = count_macs(lambda: layer(torch.zeros(1, length, dim)))
    assert macs == length * (4 * dim**2 + 2 * dim * hidden) + 2 * length**2 * dim


def test_a_models_cost_is_that_of_its_parts() -> None:
    recipe = tiny_recipe()
    model, lines = new_model(recipe), read_manifest(corpus(), split="train")[:1]
    batch = loader_of(recipe).batch(lines, [lines[0].audio], [{"image", "audio", "text"}])
    parts = [count_macs(lambda m=m: model.encode(m, batch.inputs)) for m in model.modalities]
    tokens = {m: model.encode(m, batch.inputs) for m in model.modalities}
    parts.append(count_macs(lambda: model.head(tokens, batch.presence)))
    cost = model_cost(model, batch)
    assert cost == {"macs": sum(parts), "parameters": sum(p.numel() for p in model.parameters())}
    assert all(parts)
