"""Where and how precisely a training computes; the GPU's bfloat16 is played by that of the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from edgefuse.train.devices import keep_front_ends, on_device, prepare
from edgefuse.train.distributed import device
from edgefuse.train.losses import task_loss
from edgefuse.train.objective import batch_fused, batch_loss
from tests.train_fixtures import new_model, steps_of, tiny_recipe

ROOT = Path(__file__).parent.parent
ALONE = "EDGEFUSE_ALONE"


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


@pytest.mark.skipif(ALONE not in os.environ, reason="run by the test below, in a process of its own")
def test_a_step_on_a_gpu_makes_no_tensor_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors know their device and hold no numbers; torch refuses to mix devices as it does on a real GPU."""
    recipe = tiny_recipe()
    model, batch, gpu = new_model(recipe).train(), steps_of(recipe)[0], torch.device("cuda", 0)
    mode = FakeTensorMode()
    # Of the warp's own kernel there is no fake: what it reads must be on the GPU.
    monkeypatch.setattr(functional, "grid_sample", lambda planes, grid, **_: planes + grid.sum())

    def fake(tensor: Tensor) -> Tensor:
        with mode:
            return mode.from_tensor(tensor).to(gpu)

    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(fake(parameter.detach()))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake(buffer)
    inputs = {name: fake(tensor) for name, tensor in batch.inputs.items()}
    index = {name: fake(rows) for name, rows in batch.index.items()}
    moved = replace(batch, inputs=inputs, index=index, presence=fake(batch.presence), labels=fake(batch.labels))
    with mode, gpu:  # as on_device does
        fused, distinct = batch_fused(model, moved)
        loss = task_loss(model.head.classify(fused), moved.labels, smoothing=0.1)
    assert loss.device == gpu
    assert all(tokens.device == gpu for tokens in distinct.values())


def test_that_step_holds_in_a_process_of_its_own() -> None:
    """Torch's fake GPU minds which tests ran before."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "makes_no_tensor_on_the_cpu",
    ]
    found = subprocess.run(
        command, env={**os.environ, ALONE: "1"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "1 passed" in found.stdout, found.stdout[-2000:]
