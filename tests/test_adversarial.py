"""The worst case: closed forms on linear models, ball and range are kept, nothing else of the model moves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.adversarial import moved, with_adversary, worst_case
from edgefuse.train.data import Batch
from edgefuse.train.fit import fit
from edgefuse.train.losses import task_loss
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_logits, settle_norms
from edgefuse.train.recipe import parse_recipe
from edgefuse.train.settings import AdversarialSettings
from tests.train_fixtures import corpus, loader_of, new_model, steps_of, tiny_document, tiny_recipe

OFF = AdversarialSettings()


class Linear(nn.Module):
    """Stands in for a model: one score per line, linear in the pixels, the samples and the word embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.pixels, self.samples = torch.randn(2, 2, 3), torch.randn(6)
        self.words = torch.randn(3, 4)
        text = nn.Module()
        text.bert = SimpleNamespace(get_input_embeddings=lambda: self.table)  # type: ignore[assignment]
        self.encoders = nn.ModuleDict({"text": text})
        self.table = nn.Embedding(9, 4)

    def score(self, batch: Batch) -> Tensor:
        embedded = self.table(batch.inputs["input_ids"]) * batch.inputs["attention_mask"][:, :, None]
        parts = (
            (batch.inputs["image"] * self.pixels).flatten(1).sum(dim=1),
            (batch.inputs["audio"] * self.samples).sum(dim=1),
            (embedded * self.words).flatten(1).sum(dim=1),
        )
        return torch.stack(parts).sum(dim=0)  # [B]


def linear_batch() -> Batch:
    """Three lines; the second text has padding."""
    torch.manual_seed(2)
    inputs = {
        "image": torch.randint(0, 256, (3, 2, 2, 3), dtype=torch.uint8),
        "audio": torch.rand(3, 6) * 2 - 1,
        "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]),
    }
    index = {m: torch.arange(3) for m in ("image", "audio", "text")}
    return Batch(inputs, index, torch.ones(3, 3), torch.zeros(3, dtype=torch.int64), torch.full((3,), -1))


def attack(reach: AdversarialSettings, batch: Batch, *, random_start: bool = False) -> tuple[Any, dict[str, Tensor]]:
    model: Any = Linear()
    return model, worst_case(model, batch, reach, lambda near: model.score(near).sum(), random_start=random_start)


def test_fgsm_on_a_linear_model_is_the_sign_of_its_weights_within_the_range() -> None:
    batch = linear_batch()
    model, moves = attack(AdversarialSettings(image=4, audio=0.01), batch)
    pixels, samples = batch.inputs["image"].float(), batch.inputs["audio"]
    torch.testing.assert_close(moves["image"], (pixels + 4 * model.pixels.sign()).clamp(0, 255) - pixels)
    torch.testing.assert_close(moves["audio"], (samples + 0.01 * model.samples.sign()).clamp(-1, 1) - samples)
    assert set(moves) == {"image", "audio"}


def test_the_worst_sentence_lies_along_the_gradient_on_the_edge_of_its_ball() -> None:
    batch = linear_batch()
    model, moves = attack(AdversarialSettings(text=0.1), batch)
    mask = batch.inputs["attention_mask"][:, :, None]
    embedded = model.table(batch.inputs["input_ids"]) * mask
    weights = model.words * mask  # [U, L, D]
    unit = weights / weights.flatten(1).norm(dim=1)[:, None, None]
    expected = 0.1 * embedded.flatten(1).norm(dim=1)[:, None, None] * unit
    torch.testing.assert_close(moves["text"], expected.detach(), atol=1e-6, rtol=1e-4)
    assert not moves["text"][1, 2].any()  # padding


@pytest.mark.parametrize("steps", [2, 5])
def test_pgd_from_anywhere_ends_in_the_same_corner_of_a_linear_model(steps: int) -> None:
    batch, reach = linear_batch(), AdversarialSettings(image=4, audio=0.01, steps=steps)
    corner = attack(AdversarialSettings(image=4, audio=0.01), batch)[1]
    for seed in range(3):
        torch.manual_seed(seed)
        moves = attack(reach, batch, random_start=True)[1]
        torch.testing.assert_close(moves["image"], corner["image"])
        torch.testing.assert_close(moves["audio"], corner["audio"])


@settings(max_examples=25)
@given(st.floats(0, 40), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_no_move_leaves_its_ball_and_no_sensor_its_range(
    image: float, audio: float, text: float, steps: int, random_start: bool, seed: int
) -> None:
    batch, reach = linear_batch(), AdversarialSettings(image=image, audio=audio, text=text, steps=steps)
    torch.manual_seed(seed)
    model, moves = attack(reach, batch, random_start=random_start)
    assert set(moves) == {m for m, far in (("image", image), ("audio", audio), ("text", text)) if far}
    with moved(model, batch, moves) as near:
        assert 0 <= float(near.inputs["image"].min()) <= float(near.inputs["image"].max()) <= 255
        assert float(near.inputs["audio"].abs().max()) <= 1 + 1e-6
    for m, far in (("image", image), ("audio", audio)):
        assert m not in moves or float(moves[m].abs().max()) <= far * (1 + 1e-6)
    if text:
        embedded = model.table(batch.inputs["input_ids"]) * batch.inputs["attention_mask"][:, :, None]
        share = moves["text"].flatten(1).norm(dim=1) / embedded.flatten(1).norm(dim=1)
        assert float(share.detach().max()) <= text * (1 + 1e-4)
        assert not moves["text"][1, 2].any()


def test_the_moves_of_a_batch_are_gone_after_the_block() -> None:
    recipe = tiny_recipe()
    model, batch = new_model(recipe), loader_batch(recipe)
    with torch.no_grad():
        before = batch_logits(model, batch)[0]
        far = {"text": torch.ones(*batch.inputs["input_ids"].shape, model.dims["text"])}
        with moved(model, batch, far):
            assert not torch.allclose(batch_logits(model, batch)[0], before)
        assert torch.equal(batch_logits(model, batch)[0], before)


def loader_batch(recipe: Any) -> Batch:
    lines = read_manifest(corpus(), split="train")[:6]
    return loader_of(recipe).batch(lines, [e.audio for e in lines], [set(e.sensors) for e in lines])


def test_the_search_makes_a_real_model_worse_and_leaves_it_as_it_was() -> None:
    recipe = tiny_recipe()
    model, batch = new_model(recipe).train(), loader_batch(recipe)
    settle_norms(model, batch)  # without that no picture reaches the head
    model.encoders["image"].eval()  # as where it is frozen
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(near: Batch) -> Tensor:
        return task_loss(batch_logits(model, near)[0], near.labels, 0.0)

    # Each by itself: a move found beside others need not be the worst without them.
    reaches: list[dict[str, float]] = [{"image": 0.5}, {"audio": 0.01}, {"text": 0.2}]
    moves: dict[str, Tensor] = {}
    for reach in reaches:
        moves |= worst_case(model, batch, AdversarialSettings(steps=3, **reach), loss, random_start=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        clean = float(loss(batch))
        for m, move in moves.items():
            assert move.any()
            with moved(model, batch, {m: move}) as near:
                assert float(loss(near)) > clean, m


def test_without_a_reach_the_guide_stays_what_it_is_and_with_one_it_gets_a_term() -> None:
    recipe = tiny_recipe()
    model, batch = new_model(recipe), loader_batch(recipe)

    def loss(near: Batch) -> Tensor:
        return task_loss(batch_logits(model, near)[0], near.labels, 0.0)

    def guide(batch: Batch, logits: Tensor, fused: Tensor) -> dict[str, Tensor]:
        return {"taught": logits.sum()}

    assert with_adversary(None, model, OFF, loss) is None
    assert with_adversary(guide, model, OFF, loss) is guide
    reach = AdversarialSettings(image=4, weight=0.25)
    both = with_adversary(guide, model, reach, loss)
    assert both is not None
    logits = batch_logits(model, batch)[0]
    torch.manual_seed(0)
    terms = both(batch, logits, logits)
    torch.manual_seed(0)
    with moved(model, batch, worst_case(model, batch, reach, loss, random_start=True)) as near:
        torch.testing.assert_close(terms["adversarial"], 0.25 * loss(near))
    assert set(terms) == {"taught", "adversarial"}


def test_two_trainings_with_everything_on_end_alike(tmp_path: Path) -> None:
    hard = {"image": 4, "audio": 0.005, "text": 0.1}
    augment = {"noise": {"rate": 0.5}, "hiss": {"rate": 0.5}, "typos": {"rate": 0.5}}
    document = {**tiny_document(train={"epochs": 1, "mixup": 0.2}), "adversarial": hard, "augment": augment}
    recipe = parse_recipe(document)
    lines, models = read_manifest(corpus(), split="val"), list[FusedModel]()
    for number in range(2):
        model = new_model(recipe)
        torch.manual_seed(number)
        fit(model, steps_of(recipe), loader_of(recipe), lines, ["image+text"], recipe, tmp_path / str(number))
        models.append(model)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
