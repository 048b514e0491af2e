"""MixUp: partners show the same sensors, tokens and losses are mixed in one share, shares follow the Beta law."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.fit import fit
from edgefuse.train.mixup import Mix
from edgefuse.train.objective import batch_fused, batch_loss
from tests.train_fixtures import corpus, loader_of, new_model, steps_of, tiny_recipe

PRESENCE = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1], [1, 0], [1, 1], [1, 0], [1, 1]]).float()


def test_partners_show_the_same_sensors_and_every_line_goes_into_one() -> None:
    torch.manual_seed(0)
    moved = 0
    for _ in range(20):
        partner = Mix.draw(PRESENCE, 0.2).partner
        assert torch.equal(PRESENCE[partner], PRESENCE)
        assert sorted(partner.tolist()) == list(range(8))
        moved += int((partner != torch.arange(8)).sum())
    assert moved > 60


def test_the_share_follows_the_beta_law() -> None:
    torch.manual_seed(0)
    shares = [Mix.draw(PRESENCE, 0.2).share for _ in range(500)]
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.2, 0.2).cdf).pvalue > 0.01


def test_the_loss_is_the_cross_entropy_of_the_mixed_labels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 5), torch.randint(0, 5, (8,))
    mix = Mix.draw(PRESENCE, 1.0)
    soft = mix.share * F.one_hot(labels, 5) + (1 - mix.share) * F.one_hot(labels[mix.partner], 5)
    found = mix.loss(labels, lambda wanted: F.cross_entropy(logits, wanted))
    torch.testing.assert_close(found, F.cross_entropy(logits, soft))


def test_a_whole_share_changes_nothing_and_none_exchanges_the_lines() -> None:
    recipe = tiny_recipe()
    model, batch = new_model(recipe), steps_of(recipe)[0]
    partner = Mix.draw(batch.presence, 1.0).partner
    with torch.no_grad():
        plain, _ = batch_fused(model, batch)
        torch.testing.assert_close(batch_fused(model, batch, Mix(partner, 1.0))[0], plain)
        torch.testing.assert_close(batch_fused(model, batch, Mix(partner, 0.0))[0], plain[partner])
        assert not torch.allclose(batch_fused(model, batch, Mix(partner, 0.5))[0], plain)


def test_a_recipe_switches_it_on_and_the_seed_repeats_it() -> None:
    recipe, mixing = tiny_recipe(), tiny_recipe(train={"mixup": 0.4})
    model, batch = new_model(recipe), steps_of(recipe)[0]
    losses = []
    for settings in (recipe.train, mixing.train, mixing.train):
        torch.manual_seed(3)
        losses.append(float(batch_loss(model, batch, settings)[0].detach()))
    assert losses[1] == losses[2] != losses[0]


def test_it_does_not_go_with_teachers(tmp_path: object) -> None:
    recipe = tiny_recipe(train={"mixup": 0.4})
    lines = read_manifest(corpus(), split="val")
    arguments = (new_model(recipe), steps_of(recipe), loader_of(recipe), lines, ["image"], recipe, tmp_path)
    with pytest.raises(RecipeError, match=r"train\.mixup mixes lines, and teachers answer them one by one"):
        fit(*arguments, guide=lambda batch, logits, fused: {})  # type: ignore[arg-type]
