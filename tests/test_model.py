"""The fused model: a missing modality never matters, its placeholder does, and any subset of modalities is a model."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgefuse.train.fusion import FUSIONS
from edgefuse.train.model import FusedModel, Head, audio_samples
from edgefuse.train.recipe import FusionSettings
from tests.conftest import MODALITIES
from tests.train_fixtures import SECONDS, new_model, tiny_recipe, tiny_tokenizer

DIMS, COUNTS, LABELS = {"image": 12, "audio": 10, "text": 6}, {"image": 4, "audio": 1, "text": 3}, 5
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(MODALITIES, size)]


def head_of(kind: str) -> Head:
    """A head with random weights, placeholders too."""
    torch.manual_seed(0)
    head = Head(DIMS, LABELS, FusionSettings(kind=kind, dim=8, hidden=16)).eval()
    for placeholder in head.placeholder.values():
        torch.nn.init.normal_(placeholder)
    return head


def tokens_of(batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.randn(batch, COUNTS[m], DIMS[m], generator=generator) for m in DIMS}


def sensors(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids, mask = tiny_tokenizer().encode(["is it red", "is it blue"][:batch])
    return {
        "image": torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8, generator=generator),
        "audio": 0.1 * torch.randn(batch, round(16_000 * SECONDS), generator=generator),
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
    }


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("missing", MODALITIES)
@pytest.mark.parametrize("junk", ["zeros", "other", "huge", "nan"])
def test_what_a_missing_modality_holds_never_matters(kind: str, missing: str, junk: str) -> None:
    head, tokens = head_of(kind), tokens_of()
    presence = torch.ones(3, 3)
    presence[:, MODALITIES.index(missing)] = 0.0
    expected, expected_weights = head(tokens, presence)
    other = {"zeros": torch.zeros(1), "other": tokens_of(seed=1)[missing], "huge": torch.tensor(1e30)}
    held = other.get(junk, torch.tensor(float("nan"))).expand_as(tokens[missing])
    logits, weights = head({**tokens, missing: held}, presence)
    assert torch.equal(logits, expected)
    assert torch.equal(weights, expected_weights)
    assert not weights[:, MODALITIES.index(missing)].any()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", FUSIONS)
def test_what_a_present_modality_holds_matters(kind: str) -> None:
    head, tokens = head_of(kind), tokens_of()
    for m in MODALITIES:
        changed = {**tokens, m: tokens_of(seed=1)[m]}
        assert not torch.allclose(head(changed, torch.ones(3, 3))[0], head(tokens, torch.ones(3, 3))[0], atol=1e-3)


@pytest.mark.parametrize("kind", ["concat", "sum", "low_rank", "attention", "gated"])
def test_the_placeholder_stands_in_for_the_missing_modality(kind: str) -> None:
    head, tokens = head_of(kind), tokens_of()
    presence = torch.tensor([[1.0, 0.0, 1.0]]).expand(3, -1)
    before = head(tokens, presence)[0]
    untouched = head(tokens, torch.ones(3, 3))[0]
    with torch.no_grad():
        head.placeholder["audio"].neg_()  # LayerNorm would not see a shift
    assert not torch.allclose(head(tokens, presence)[0], before, atol=1e-3)
    assert torch.equal(head(tokens, torch.ones(3, 3))[0], untouched)


def test_the_placeholder_learns_where_its_modality_is_missing_only() -> None:
    head = head_of("concat")
    logits, _ = head(tokens_of(), torch.tensor([[1.0, 0.0, 1.0]]).expand(3, -1))
    logits.square().sum().backward()
    gradients = {m: p.grad is not None and bool(p.grad.any()) for m, p in head.placeholder.items()}
    assert gradients == {"image": False, "audio": True, "text": False}
    assert not any(p.grad is not None and p.grad.any() for p in head.project["audio"].parameters())


def test_a_line_that_shows_nothing_still_gets_finite_scores() -> None:
    for kind in FUSIONS:
        logits, weights = head_of(kind)(tokens_of(), torch.zeros(3, 3))
        assert logits.isfinite().all()
        assert not weights.any()


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_any_subset_of_the_modalities_is_a_model(subset: tuple[str, ...]) -> None:
    left_out = {m: None for m in MODALITIES if m not in subset}
    recipe = tiny_recipe(data={"subsets": {}, "group_by": None}, **left_out)
    model = new_model(recipe)
    with torch.no_grad():
        logits, weights = model(sensors(), torch.ones(2, len(subset)))
    assert model.modalities == subset
    assert logits.shape == (2, 5)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2), atol=1e-4, rtol=0)


def test_the_sizes_of_the_tokens_are_what_the_encoders_make() -> None:
    recipe = tiny_recipe(image={"tokens": "all", "height": 64}, audio={"tokens": "all"}, text={"tokens": "all"})
    model = new_model(recipe)
    inputs = {**sensors(), "image": torch.zeros(2, 64, 32, 3, dtype=torch.uint8)}
    for m in model.modalities:
        with torch.no_grad():
            assert model.encode(m, inputs).shape == (2, model.counts[m], model.dims[m])
    assert model.counts == {"image": 2, "audio": 12, "text": 8}


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = (new_model(tiny_recipe(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_the_length_of_a_sound_is_in_samples_at_16_khz() -> None:
    assert audio_samples(tiny_recipe(audio={"seconds": 2.8})) == 44_800


def test_a_model_without_text_needs_no_vocabulary() -> None:
    recipe = tiny_recipe(text=None, data={"subsets": {}})
    assert FusedModel(recipe, 2, 0).modalities == ("image", "audio")
