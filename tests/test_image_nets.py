"""The picture networks: their cells stand where the table says, and their layers let cells know of each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from edgefuse.runtime.errors import RecipeError
from edgefuse.train.encoders import ImageEncoder
from edgefuse.train.image_nets import (
    IMAGE_ENCODERS,
    CellLayer,
    CellLayers,
    NearAndFar,
    Slots,
    distances,
    middles,
    plane_waves,
)
from edgefuse.train.presence import MASKED_SCORE
from edgefuse.train.recipe import ImageSettings
from tests.test_encoders import pictures


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
@pytest.mark.parametrize("size", [(64, 96), (75, 75), (65, 33)])
def test_the_feature_map_has_the_channels_and_the_stride_of_the_row(name: str, size: tuple[int, int]) -> None:
    row = IMAGE_ENCODERS[name]
    features = row.build(weights=None).features[: row.blocks].eval()
    with torch.no_grad():
        found = features(torch.zeros(1, 3, *size))
    assert found.shape == (1, row.dim, *(math.ceil(side / row.stride) for side in size))


@pytest.mark.parametrize("name", ["mobilenet_v3_small_16", "conv4"])
@pytest.mark.parametrize("tokens", ["pooled", "all"])
def test_cells_that_met_become_tokens_of_one_width(name: str, tokens: str) -> None:
    settings = ImageSettings(encoder=name, height=64, width=96, layers=2, tokens=tokens)
    encoder = ImageEncoder(settings).eval()
    with torch.no_grad():
        found = encoder(pictures())
    assert encoder.count == (1 if tokens == "pooled" else 24)
    assert found.shape == (2, encoder.count, encoder.dim) == (2, encoder.count, CellLayers.DIM)


@pytest.mark.parametrize("layers", [0, 1])
def test_slots_stand_in_for_the_cells(layers: int) -> None:
    settings = ImageSettings(encoder="conv4", height=64, width=96, slots=5, layers=layers, tokens="all")
    encoder = ImageEncoder(settings).eval()
    with torch.no_grad():
        found = encoder(pictures())
    assert found.shape == (2, encoder.count, encoder.dim) == (2, 5, CellLayers.DIM)


def test_a_slot_reads_as_torchs_scaled_dot_product_does() -> None:
    torch.manual_seed(0)
    slots, cells = Slots(3, 16), torch.randn(2, 9, 16)
    normed = slots.norm(cells)
    read = F.scaled_dot_product_attention(slots.query.expand(2, -1, -1), normed, normed)
    found, _ = slots(cells, middles(3, 3)[None])
    torch.testing.assert_close(found, slots.value(read) + slots.query, atol=1e-5, rtol=1e-4)


def test_pooled_cells_that_met_are_their_mean() -> None:
    torch.manual_seed(0)
    settings = ImageSettings(encoder="conv4", height=64, width=96, layers=1)
    pooled = ImageEncoder(settings).eval()
    cells = ImageEncoder(settings.model_copy(update={"tokens": "all"})).eval()
    cells.load_state_dict(pooled.state_dict())
    with torch.no_grad():
        expected = cells(pictures()).mean(dim=1, keepdim=True)
        torch.testing.assert_close(pooled(pictures()), expected, atol=1e-5, rtol=1e-4)


def test_a_cell_knows_of_one_far_away_only_with_layers() -> None:
    torch.manual_seed(0)
    for layers, knows in ((0, False), (1, True)):
        encoder = ImageEncoder(ImageSettings(encoder="conv4", height=128, width=128, layers=layers, tokens="all"))
        before = torch.full((1, 128, 128, 3), 128, dtype=torch.uint8)
        after = before.clone()
        after[:, 112:, 112:] = 255  # the last of 64 cells
        with torch.no_grad():
            change = (encoder.eval()(after) - encoder(before)).abs().amax(dim=2)[0]  # [64]
        assert change[-1] > 1e-4
        assert (change[0] > 1e-5) == knows


def test_a_cell_layer_begins_as_nearly_nothing() -> None:
    torch.manual_seed(0)
    cells = torch.randn(2, 9, 16)
    with torch.no_grad():
        change = CellLayer(16).eval()(cells, distances(middles(3, 3)[None])) - cells
    assert 0 < change.abs().mean() < 0.05 * cells.abs().mean()


def test_a_cell_layer_at_full_scale_is_torchs_pre_norm_transformer_layer_with_scores_by_distance() -> None:
    torch.manual_seed(0)
    ours = CellLayer(16).eval()
    nn.init.ones_(ours.met)
    nn.init.ones_(ours.thought)
    theirs = nn.TransformerEncoderLayer(16, 4, 32, 0.0, activation=F.silu, batch_first=True, norm_first=True).eval()
    attention, feed_forward = ours.attention, ours.feed_forward
    pairs = {
        theirs.norm1: attention.norm,
        theirs.self_attn.out_proj: attention.out,
        theirs.norm2: feed_forward[0],
        theirs.linear1: feed_forward[1],
        theirs.linear2: feed_forward[4],
    }
    apart = torch.rand(2, 9, 9)
    score = torch.stack([slope * apart for slope in NearAndFar.SLOPES], dim=1)  # [2, 4, 9, 9]
    score = score.masked_fill(torch.eye(9, dtype=torch.bool), -torch.inf)
    with torch.no_grad():
        for copy, source in pairs.items():
            copy.load_state_dict(source.state_dict())
        theirs.self_attn.in_proj_weight.copy_(attention.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(attention.qkv.bias)
        cells = torch.randn(2, 9, 16)
        expected = theirs(cells, src_mask=score.flatten(0, 1))
        torch.testing.assert_close(ours(cells, apart), expected, atol=1e-5, rtol=1e-4)


def test_a_head_of_a_cell_layer_reads_the_nearest_and_another_the_furthest() -> None:
    places = torch.tensor([[0.1, 0.1], [0.2, 0.1], [0.5, 0.5], [0.9, 0.9]])
    score = NearAndFar(16).slope * distances(places[None]) + MASKED_SCORE * torch.eye(4)  # [4, 4, 4]
    share = score.softmax(dim=2).detach()
    assert share[0, 0].argmax() == 1
    assert share[3, 0].argmax() == 3


def test_distances_are_scipys() -> None:
    places = torch.rand(2, 5, 2)
    for found, given in zip(distances(places), places, strict=True):
        np.testing.assert_allclose(found, cdist(given, given), atol=0.01)


def test_the_middles_of_cells_are_in_longer_sides_of_the_picture() -> None:
    assert middles(1, 2).tolist() == [[0.25, 0.25], [0.25, 0.75]]


def test_a_slot_is_where_it_looks() -> None:
    torch.manual_seed(0)
    slots, cells = Slots(1, 8), torch.randn(1, 4, 8)
    with torch.no_grad():
        slots.query.copy_(100 * slots.norm(cells)[:, 2])
        tokens, places = slots(cells, middles(2, 2)[None])
    assert tokens.shape == (1, 1, 8)
    torch.testing.assert_close(places, torch.tensor([[[0.75, 0.25]]]))


def test_two_cells_have_the_more_alike_positions_the_nearer_they_are() -> None:
    waves = plane_waves(6, 6, 128).view(6, 6, 128)
    alike = waves[0] @ waves[0, 0]  # [6], along a row
    assert waves.shape == (6, 6, 128)
    assert (alike[:3].diff() < 0).all()
    torch.testing.assert_close(waves[:, 0] @ waves[0, 0], alike)  # height counts as width does


def test_positions_are_learned() -> None:
    layers = CellLayers(8, 3, 3, layers=1, slots=0)
    layers(torch.randn(2, 9, 8)).square().sum().backward()
    assert layers.position.grad is not None


@pytest.mark.parametrize("name", ["conv4", "conv3"])
def test_a_network_without_pretrained_weights_refuses_them_in_one_line(name: str) -> None:
    with pytest.raises(RecipeError, match=r"image\.weights: found imagenet, which conv4 has none of; name a"):
        ImageEncoder(ImageSettings(encoder=name, weights="imagenet"))
