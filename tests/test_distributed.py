"""Several processes: the loss and the weights are those of one, a death ends all, and a resumed run ends the same."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgefuse.runtime.errors import PeerError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train import distributed as module
from edgefuse.train.data import Batch, Loader, TrainingSteps
from edgefuse.train.devices import prepare
from edgefuse.train.distributed import ALONE, Place, agreed, average_gradients, first, gathered, here, joined, summed
from edgefuse.train.fit import optimise
from edgefuse.train.objective import batch_loss, validate
from edgefuse.train.pretrained import MODEL_FILE
from edgefuse.train.qat import qat
from edgefuse.train.recipe import Recipe
from edgefuse.train.soup import soup
from tests.test_train import rows_of_corpus, saved_step, wait_for_step
from tests.train_fixtures import corpus, loader_of, new_model, tiny_recipe, write_manifest, write_recipe

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 600
STEPS = 6


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def two_processes(*command: str | Path) -> Iterator[list[subprocess.Popen[str]]]:
    """A command twice, with the environment that torchrun gives; they end with the block at the latest."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def quiet_model(recipe: Recipe) -> Any:
    """A model that draws no noise: nothing is dropped out, no sound is warped."""
    model = new_model(recipe)
    model.encoders["audio"].augment = nn.Identity()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


@contextmanager
def double_precision() -> Iterator[None]:
    """Tensors of float64: batch norms of three tiny pictures amplify the last bits of float32 greatly."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def in_double(batch: Batch) -> Batch:
    return replace(batch, inputs={name: x.double() if x.is_floating_point() else x for name, x in batch.inputs.items()})


def learn(recipe: Recipe, place: Place) -> dict[str, Tensor]:
    """What `STEPS` steps leave: the terms of the losses, the first gradient, the weights, the validation."""
    model = quiet_model(recipe).double()
    prepare(model)
    with double_precision():
        return _learn(model, recipe, place)


def _learn(model: Any, recipe: Recipe, place: Place) -> dict[str, Tensor]:
    model.train()
    loader = loader_of(recipe)
    loader.place = place
    steps = TrainingSteps(recipe, read_manifest(recipe.data.manifest, split="train"), loader)
    batches = [in_double(steps[number]) for number in range(STEPS)]
    torch.manual_seed(0)
    batch_loss(model, batches[0], recipe.train)[0].backward()
    average_gradients(model.parameters())
    found = {f"gradient.{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "rate": 1.0}])
    terms = [
        optimise(model, optimizer, batch, recipe.train, n, STEPS, lambda near: batch_loss(model, near, recipe.train))
        for n, batch in enumerate(batches)
    ]
    found["terms"] = torch.tensor([list(values.values()) for values in terms])
    read = loader.batch
    loader.batch = lambda *lines: in_double(read(*lines))  # type: ignore[method-assign]
    scores = validate(model, loader, read_manifest(recipe.data.manifest, split="val"), ["image+text", "audio"])
    found["scores"] = torch.tensor(list(scores.values()))
    return found | {f"weights.{name}": value for name, value in model.state_dict().items()}


def learn_together(manifest: str, out: str, mixup: float) -> None:
    """The work of one of the processes; each leaves what it found."""
    torch.set_num_threads(1)
    with joined():
        found = learn(recipe_of(Path(manifest), mixup), here())
        save_file({name: value.contiguous() for name, value in found.items()}, f"{out}/{here().rank}.safetensors")


def recipe_of(manifest: Path, mixup: float) -> Recipe:
    """Groups of pictures whose sounds and texts are shared across the shares of the processes."""
    changes = {"groups_per_step": 3}
    return tiny_recipe(manifest, data=changes, train={"alignment": 0.5, "learning_rate": 1e-3, "mixup": mixup})


@pytest.mark.slow
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_two_processes_learn_what_one_does(tmp_path: Path, mixup: float) -> None:
    call = f"from tests.test_distributed import learn_together as l; l({str(corpus())!r}, {str(tmp_path)!r}, {mixup})"
    with two_processes("-W", "error", "-c", call) as processes:
        for process in processes:
            _, log = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, log
    alone = learn(recipe_of(corpus(), mixup), ALONE)
    found, other = load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in found.items())  # and stay alike bit by bit
    assert set(found) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=lambda told, name=name: name + told)
    assert alone["terms"][:, 0].std() > 0.02  # the curve is no flat line, which anything would follow


@pytest.mark.slow
def test_torchrun_trains_with_one_log_and_a_killed_process_changes_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml")
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
    command = ("train/train.py", recipe, "--json", "--out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [sys.executable, *torchrun, *map(str, command), str(tmp_path / "whole")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)["run"] == str(tmp_path / "whole")  # one document, not two
    assert whole.stderr.count("waited for data") == 1
    assert len(list((tmp_path / "whole" / "tensorboard").iterdir())) == 1

    out = tmp_path / "killed"
    with two_processes(*command, out) as (one, two):
        wait_for_step(one, out, 2)
        two.send_signal(signal.SIGKILL)
        answer, log = one.communicate(timeout=TIMEOUT_S)
    assert one.returncode == 1
    assert answer == ""
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("edgefuse: another process of this training ended; what it said stands")
    assert 2 <= saved_step(out / "checkpoint.safetensors") < 8
    with two_processes(*command, out) as processes:
        for process in processes:
            _, log = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, log
    assert (out / MODEL_FILE).read_bytes() == (tmp_path / "whole" / MODEL_FILE).read_bytes()


@pytest.mark.slow
def test_a_process_that_fails_says_why_and_ends_all(tmp_path: Path) -> None:
    rows = rows_of_corpus()
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(rows[9]["image"]).read_bytes()[:-50])
    for row in rows[9:12]:
        row["image"] = str(broken)
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    recipe = write_recipe(tmp_path / "tiny.yaml", manifest)
    with two_processes("train/train.py", recipe, "--out", tmp_path / "run") as processes:
        logs = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
    said = [line for log in logs for line in log.splitlines() if line.startswith("edgefuse: ")]
    assert [process.returncode for process in processes] == [1, 1]
    assert "Traceback" not in "".join(logs)
    assert sum("broken.png: the picture is cut off" in line for line in said) == 1
    assert len(said) <= 2  # rank 0 may add that another one ended


@pytest.mark.slow
def test_what_all_would_refuse_is_said_once(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", write_manifest(tmp_path / "m.jsonl", rows_of_corpus(label="same")))
    with two_processes("train/train.py", recipe, "--out", tmp_path / "run") as processes:
        logs = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert logs[0].splitlines()[-1].endswith("the training lines have 1 label; at least 2 are needed")
    assert logs[1] == ""


def test_shares_are_disjoint_and_whole_and_as_equal_as_can_be() -> None:
    for world in range(1, 9):
        for count in range(world, 40):
            shares = [range(count)[Place(rank, world).share(count)] for rank in range(world)]
            assert [row for share in shares for row in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_where_there_is_less_than_one_row_for_each_all_take_all() -> None:
    assert [Place(rank, 4).share(3) for rank in range(4)] == [slice(0, 3)] * 4


def test_alone_nothing_is_changed() -> None:
    tensor = torch.rand(3, 2, requires_grad=True)
    assert here() == ALONE
    assert gathered(tensor, 3) is tensor
    assert summed(tensor) is tensor
    assert agreed({"a": 0.5}) == {"a": 0.5}
    with joined(), first():
        assert not dist.is_initialized()


def test_an_environment_that_lacks_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(PeerError, match=r"WORLD_SIZE is 2 but MASTER_ADDR.* is not set; start the processes by"),
        joined(),
    ):
        pass


@pytest.mark.parametrize("verb", [soup, qat])
def test_what_one_process_does_is_refused_in_several(
    verb: Callable[[Any, Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PeerError, match=f"^{verb.__name__} works in one process, and WORLD_SIZE is 2"):
        verb(tmp_path / "run", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(PeerError, match="process 2 of this machine has no GPU; it has 2: start --nproc_per_node=2"):
        module._own_gpu()


def test_a_batch_holds_its_own_sensors_and_all_lines() -> None:
    recipe = tiny_recipe(data={"groups_per_step": 4})
    whole = steps_for(recipe, ALONE)[1]
    parts = [steps_for(recipe, Place(rank, 2))[1] for rank in range(2)]
    for part in parts:
        assert torch.equal(part.labels, whole.labels)
        assert torch.equal(part.same_text, whole.same_text)
        assert all(torch.equal(rows, whole.index[m]) for m, rows in part.index.items())
    for name, tensor in whole.inputs.items():  # mirrored alike too
        assert torch.equal(torch.cat([part.inputs[name] for part in parts]), tensor)


def steps_for(recipe: Recipe, place: Place) -> TrainingSteps:
    loader = loader_of(recipe)
    assert isinstance(loader, Loader)
    loader.place = place
    return TrainingSteps(recipe, read_manifest(recipe.data.manifest, split="train"), loader)
