"""Where and how precisely a training computes; the GPU's bfloat16 is played by that of the CPU."""

from __future__ import annotations

import pytest
import torch

from edgefuse.train.devices import keep_front_ends, on_device, prepare
from edgefuse.train.distributed import device
from edgefuse.train.objective import batch_loss
from tests.train_fixtures import new_model, steps_of, tiny_recipe


def test_without_a_gpu_nothing_changes() -> None:
    model = new_model(tiny_recipe())
    parts = [type(part) for part in model.modules()]
    assert prepare(model) == torch.device("cpu") == device()
    assert [type(part) for part in model.modules()] == parts
    with on_device(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


def test_new_tensors_lie_on_the_device() -> None:
    with on_device(torch.device("meta")):
        assert torch.zeros(3).device.type == "meta"
    assert torch.zeros(3).device.type == "cpu"


def test_front_ends_stay_in_fp32_where_the_rest_takes_bfloat16() -> None:
    recipe = tiny_recipe()
    model, batch = new_model(recipe), steps_of(recipe)[0]
    expected = model.encoders["audio"].frontend(batch.inputs["audio"])
    loss, _ = batch_loss(model, batch, recipe.train)
    keep_front_ends(model, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        found = model.encoders["audio"].frontend(batch.inputs["audio"])
        rough, _ = batch_loss(model, batch, recipe.train)
        assert model.encode("image", batch.inputs).dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(loss.detach()), rel=0.02)
    assert float(rough.detach()) != float(loss.detach())
