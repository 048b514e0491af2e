"""Checkpoints: exact, whole or absent, refused in one line where damaged, and never able to run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from edgefuse.runtime.errors import RecipeError
from edgefuse.train import checkpoint as module
from edgefuse.train.checkpoint import CHECKPOINT_FILE, Checkpoint, short_reason
from edgefuse.train.selection import Selection
from edgefuse.train.settings import TrainSettings

Parts = tuple[nn.Module, torch.optim.Optimizer, Selection]


def net(width: int = 5, seed: int = 0) -> Parts:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    settings = TrainSettings(ema=0.9, patience=3)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1), Selection(model, settings)


def take_steps(parts: Parts, steps: range) -> None:
    model, optimizer, selection = parts
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        selection.take_step()
        selection.judge(step, {"image": -float(step)})


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """A checkpoint after three steps."""
    parts = net()
    take_steps(parts, range(3))
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(*parts[:2], 3, parts[2])
    return checkpoint


def test_a_restored_training_goes_on_as_if_nothing_had_happened(saved: Checkpoint) -> None:
    whole, other = net(), net(seed=1)
    take_steps(whole, range(6))
    take_steps(other, range(saved.restore(*other), 6))
    for found, wanted in ((other[0], whole[0]), (other[2], whole[2])):
        expected = wanted.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
        assert set(found.state_dict()) == set(expected)


def test_without_a_file_training_starts_at_step_0(tmp_path: Path) -> None:
    model, optimizer, selection = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Checkpoint(tmp_path).restore(model, optimizer, selection) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_before_the_first_step_is_valid(tmp_path: Path) -> None:
    model, optimizer, selection = net()
    Checkpoint(tmp_path).save(model, optimizer, 0, selection)
    assert Checkpoint(tmp_path).restore(*net(seed=1)) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_file_that_is_cut_off_is_refused_in_one_line(saved: Checkpoint, share: float) -> None:
    whole = saved.path.read_bytes()
    try:
        saved.path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(RecipeError, match=r"cannot be resumed .* delete it to start the run again") as caught:
            saved.restore(*net())
    finally:
        saved.path.write_bytes(whole)
    assert str(saved.path) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused_in_one_line(saved: Checkpoint, share: float, bit: int) -> None:
    whole = saved.path.read_bytes()
    changed = bytearray(whole)
    changed[int(len(whole) * share)] ^= 1 << bit
    try:
        saved.path.write_bytes(changed)
        with pytest.raises(RecipeError, match=r"cannot be resumed .* delete it to start the run again") as caught:
            saved.restore(*net())
    finally:
        saved.path.write_bytes(whole)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_its_hash_is_refused(saved: Checkpoint) -> None:
    saved.path.write_bytes(save(load(saved.path.read_bytes()), metadata={"step": "3"}))
    with pytest.raises(RecipeError, match="its content is not what was saved"):
        saved.restore(*net())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_checkpoint_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    checkpoint = Checkpoint(tmp_path_factory.mktemp("bytes"))
    checkpoint.path.write_bytes(content)
    with pytest.raises(RecipeError, match="cannot be resumed"):
        checkpoint.restore(*net())


def test_the_checkpoint_of_another_model_is_refused_in_one_line(saved: Checkpoint) -> None:
    with pytest.raises(RecipeError, match=r"cannot be resumed \(Error.* size mismatch for 0\.weight") as caught:
        saved.restore(*net(width=6))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / CHECKPOINT_FILE).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(RecipeError, match="cannot be resumed"):
        Checkpoint(tmp_path).restore(*net())
    assert not (tmp_path / "harm").exists()
    pickle.loads((tmp_path / CHECKPOINT_FILE).read_bytes())
    assert (tmp_path / "harm").exists()  # it would have


def test_a_save_that_fails_leaves_the_checkpoint_before(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        saved.save(*net()[:2], 9, net()[2])
    assert saved.restore(*net()) == 3


def test_a_reason_is_one_short_line() -> None:
    assert short_reason(ValueError("a\n\tb  c")) == "a b c"
    assert len(short_reason(ValueError("long " * 1000))) <= 200
