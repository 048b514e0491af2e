"""Batch norms of several processes: alone, they are torch's own, value by value and gradient by gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgefuse.train.synced_norm import SyncedNorm, share_statistics
from tests.train_fixtures import new_model, tiny_recipe


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(5), (7, 5, 3)), (nn.BatchNorm2d(5), (4, 5, 6, 2))])
def test_it_computes_what_torchs_own_does(norm: nn.BatchNorm1d | nn.BatchNorm2d, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    synced = SyncedNorm(norm)
    for _ in range(3):
        planes = 3 + 2 * torch.randn(shape)
        results = []
        for module in (norm, synced):
            given = planes.clone().requires_grad_()
            found = module.train()(given)
            (found**3).sum().backward()
            results.append((found, given.grad))
        torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dict(synced.state_dict()), dict(norm.state_dict()))
    torch.testing.assert_close(synced.weight.grad, norm.weight.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(synced.eval()(planes), norm.eval()(planes))


def test_a_large_mean_costs_no_digits() -> None:
    norm = nn.BatchNorm1d(1)
    planes = 10_000 + torch.randn(64, 1, 8)
    found = SyncedNorm(norm).train()(planes)
    torch.testing.assert_close(found, norm.train()(planes), atol=2e-3, rtol=1e-3)


def test_every_norm_of_a_model_is_replaced_under_its_name() -> None:
    model = new_model(tiny_recipe())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    share_statistics(model)
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, SyncedNorm) and not norm.training for norm in norms)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
