"""The comparison with plain batches: the same lines with the same answers, and numbers of three real trainings."""

from __future__ import annotations

from pathlib import Path

import torch

from edgefuse.train.objective import batch_logits
from edgefuse.train.throughput import plain, throughput
from tests.train_fixtures import new_model, steps_of, tiny_recipe, write_recipe


def test_a_plain_batch_has_a_row_for_every_sensor_that_a_line_shows_and_the_same_answers() -> None:
    recipe = tiny_recipe(data={"groups_per_step": 4})
    model, batch = new_model(recipe), steps_of(recipe)[0]
    unshared = plain(batch, recipe.modalities)
    for column, m in enumerate(recipe.modalities):
        shown = int(batch.presence[:, column].sum())
        assert len(unshared.inputs["input_ids" if m == "text" else m]) == shown > batch.distinct(m)
    with torch.no_grad():
        found, expected = batch_logits(model, unshared)[0], batch_logits(model, batch)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_comparison_says_speeds_and_that_the_losses_are_the_same(tmp_path: Path) -> None:
    said = throughput(str(write_recipe(tmp_path / "tiny.yaml", train={"alignment": 0.1})), None, steps=3)
    assert said["steps"] == 3
    assert said["loss_apart"] < 1e-4
    assert said["ratio_range"][0] <= said["ratio"] <= said["ratio_range"][1]
    assert min(said["samples_per_s"].values()) > 0  # which is faster is a measurement, not a test
    assert 0 < said["data_share"] < 1
    assert 0 < said["curves_apart"] < 1
