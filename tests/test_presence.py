"""Shares among the modalities that are there."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.train.presence import shares


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_shares_are_a_softmax_over_those_present(present: list[list[bool]]) -> None:
    presence = torch.tensor(present, dtype=torch.float32)
    score = torch.randn(presence.shape, generator=torch.Generator().manual_seed(0)) * 5
    found = shares(score, presence)
    for row, there, scores in zip(found, presence.bool(), score, strict=True):
        torch.testing.assert_close(row[there], scores[there].softmax(dim=0), atol=1e-6, rtol=1e-5)
        assert not row[~there].any()


def test_shares_of_several_channels_are_taken_over_the_modalities() -> None:
    score = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    found = shares(score, torch.tensor([[1.0, 0, 1]]).expand(2, -1)[..., None])
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 5))
    torch.testing.assert_close(found[0, :, 4], shares(score[:1, :, 4], torch.tensor([[1.0, 0, 1]]))[0])
