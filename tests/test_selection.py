"""Which weights a training ends with: the last, their average, or the best; and patience."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgefuse.train.selection import Selection, below
from edgefuse.train.settings import TrainSettings


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def move(model: nn.Module, step: int) -> None:
    """Stands in for a step: other weights and other statistics."""
    torch.manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor))


def flat(model: nn.Module) -> np.ndarray:
    """All that is averaged, in one row."""
    return torch.cat([t.flatten().double() for t in model.state_dict().values() if t.is_floating_point()]).numpy()


def test_switched_off_it_keeps_the_last_weights_and_never_stops() -> None:
    model = net()
    selection = Selection(model, TrainSettings())
    assert selection.candidate is model
    for step in range(1, 5):
        move(model, step)
        selection.take_step()
        selection.judge(step, {"image": -step})
        assert not selection.stops
    before = flat(model)
    selection.settle()
    np.testing.assert_array_equal(flat(model), before)
    assert set(selection.state_dict()) == {"judged_step", "stale", "best_score"}


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_is_exponential_over_weights_and_statistics(decay: float) -> None:
    model = net()
    selection = Selection(model, TrainSettings(ema=decay))
    seen = []
    for step in range(6):
        move(model, step)
        selection.take_step()
        seen.append(flat(model))
    weights = np.array([decay**5, *((1 - decay) * decay ** (5 - k) for k in range(1, 6))])  # the first one starts it
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(flat(selection.candidate), weights @ np.array(seen), rtol=1e-5, atol=1e-6)
    selection.settle()
    np.testing.assert_array_equal(flat(model), flat(selection.candidate))


def test_patience_counts_validations_since_the_best_mean_and_the_best_is_kept() -> None:
    model = net()
    selection = Selection(model, TrainSettings(patience=2))
    told = [(0.2, 0.4), (0.6, 0.4), (0.9, 0.1), (0.5, 0.5)]  # the last two are no better than the second
    seen = []
    for step, scores in enumerate(told, start=1):
        assert not selection.stops
        move(model, step)
        seen.append(flat(model))
        selection.judge(step, dict(zip(("image", "audio"), scores, strict=True)))
    assert selection.stops
    assert selection.judged_step == 4
    selection.settle()
    np.testing.assert_array_equal(flat(model), seen[1])


def test_the_best_of_averages_is_an_average() -> None:
    model = net()
    selection = Selection(model, TrainSettings(patience=5, ema=0.7))
    for step in (1, 2, 3):
        move(model, step)
        selection.take_step()
        selection.judge(step, {"image": 1.0 if step == 2 else 0.5})
        if step == 2:
            expected = flat(selection.candidate)
    selection.settle()
    np.testing.assert_array_equal(flat(model), expected)


def test_its_state_goes_on_in_another_process() -> None:
    model, other = net(), net()
    settings = TrainSettings(patience=3, ema=0.7)
    first, second = Selection(model, settings), Selection(other, settings)
    for step in range(1, 4):
        move(model, step)
        first.take_step()
        first.judge(step, {"image": 0.1 + (step == 1)})
    other.load_state_dict(model.state_dict())
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for selection, its_model in ((first, model), (second, other)):
        move(its_model, 4)
        selection.take_step()
        selection.judge(4, {"image": 0.2})
        assert selection.stops
        selection.settle()
    np.testing.assert_array_equal(flat(model), flat(other))


def test_below_takes_the_names_behind_a_prefix() -> None:
    tensors = {name: torch.zeros(1) for name in ("model.a", "model.b.c", "modelx", "other")}
    assert set(below("model.", tensors)) == {"a", "b.c"}
