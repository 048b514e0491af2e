"""Spoiled steps: the draw of the step alone decides, distinct sensors are spoiled once, nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgefuse.runtime.corruptions import CORRUPTIONS
from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train import data
from edgefuse.train.corrupt import spoil, spoil_tensors, spoil_texts
from edgefuse.train.data import Batch
from edgefuse.train.recipe import Recipe, load_recipe, parse_recipe
from edgefuse.train.settings import AugmentSettings
from tests.train_fixtures import QUESTIONS, STEPS, corpus, loader_of, new_model, steps_of, tiny_document

EVERYTHING = {name: {"rate": 1.0, "severity": [3, 5]} for name in CORRUPTIONS}


def recipe_with(**augment: object) -> Recipe:
    """The tiny recipe, which mirrors no picture, with this section."""
    document = tiny_document(data={"flip": False})
    return parse_recipe({**document, "augment": augment})


def equal(first: Batch, second: Batch) -> bool:
    return first.inputs.keys() == second.inputs.keys() and all(
        torch.equal(value, second.inputs[name]) for name, value in first.inputs.items()
    )


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_spoiled_step_depends_on_the_seed_and_its_number_only() -> None:
    first, second = steps_of(recipe_with(**EVERYTHING)), steps_of(recipe_with(**EVERYTHING))
    wanted = [first[step] for step in range(4)]
    assert all(equal(second[step], wanted[step]) for step in (3, 0, 2, 2, 1))
    other = recipe_with(**EVERYTHING)
    other = other.model_copy(update={"train": other.train.model_copy(update={"seed": 1})})
    assert not equal(steps_of(other)[0], wanted[0])


def test_only_the_sensors_change_and_without_a_section_nothing_does() -> None:
    plain, spoiled, empty = steps_of(recipe_with()), steps_of(recipe_with(**EVERYTHING)), steps_of(recipe_with())
    for step in range(STEPS):
        before, after = plain[step], spoiled[step]
        assert equal(before, empty[step])
        assert torch.equal(before.presence, after.presence)
        assert torch.equal(before.labels, after.labels)
        assert torch.equal(before.same_text, after.same_text)
        assert {m: rows.tolist() for m, rows in before.index.items()} == {m: r.tolist() for m, r in after.index.items()}
        for name, value in before.inputs.items():
            assert after.inputs[name].dtype == value.dtype
            assert after.inputs[name].shape == value.shape
            changed = (after.inputs[name] != value).flatten(1).any(dim=1)
            assert name == "attention_mask" or changed.float().mean() > 0.5


def test_a_section_spoils_its_own_sensor_only() -> None:
    plain, spoiled = steps_of(recipe_with())[0], steps_of(recipe_with(noise={"rate": 1.0}))[0]
    assert not torch.equal(spoiled.inputs["image"], plain.inputs["image"])
    assert all(torch.equal(value, plain.inputs[name]) for name, value in spoiled.inputs.items() if name != "image")


def test_a_corruption_comes_at_its_rate_and_within_its_severities() -> None:
    dark = {"dark": AugmentSettings(rate=0.3, severity=(2, 3))}
    white, rng = np.full((4, 4, 3), 255, np.uint8), draws()
    levels = np.array([spoil("image", white, dark, rng).mean() / 255 for _ in range(1000)])
    spoiled = levels[levels < 1]
    assert len(spoiled) / 1000 == pytest.approx(0.3, abs=0.05)
    brightest, darkest = CORRUPTIONS["dark"].levels[1], CORRUPTIONS["dark"].levels[2]
    assert spoiled.min() == pytest.approx(darkest, abs=0.01)
    assert spoiled.max() == pytest.approx(brightest, abs=0.01)


def test_each_picture_and_each_sound_has_a_draw_of_its_own() -> None:
    augment = {name: AugmentSettings(rate=1.0) for name in ("noise", "hiss")}
    inputs = {"image": torch.full((2, 8, 8, 3), 128, dtype=torch.uint8), "audio": torch.full((2, 500), 0.1)}
    spoiled = spoil_tensors(inputs, augment, draws())
    assert not torch.equal(spoiled["image"][0], spoiled["image"][1])
    assert not torch.equal(spoiled["audio"][0], spoiled["audio"][1])
    assert bool((inputs["image"] == 128).all())


def test_equal_texts_get_the_same_typos_and_missing_ones_stay_missing() -> None:
    lines = read_manifest(corpus(), split="train")[:9]
    lines[4] = replace(lines[4], text=None)
    spoiled = spoil_texts(lines, {"typos": AugmentSettings(rate=1.0, severity=(5, 5))}, draws())
    pairs = {(before.text, after.text) for before, after in zip(lines, spoiled, strict=True)}
    assert len(pairs) == len(QUESTIONS) + 1
    assert (None, None) in pairs
    assert sum(before != after for before, after in pairs) >= 2
    assert [replace(line, text=None) for line in spoiled] == [replace(line, text=None) for line in lines]


def test_the_ids_of_typos_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "KNOWN_TEXTS", 5)
    loader = loader_of(recipe_with())
    for number in range(12):
        first, _ = loader._encode(f"which color is {number}")
        assert np.array_equal(first, loader._encode(f"which color is {number}")[0])
        assert len(loader._known_texts) <= 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "augment.fog.rate=1",
            "augment names 'fog'; for this model there are dark, occlusion, blur, noise, slow, rever",
        ),
        ("augment.typos.rate=1", "augment names 'typos'; for this model there are dark"),  # it reads no text
        ("augment.noise.rate=2", "recipe augment.noise.rate: Input should be less than or equal to 1 (found 2)"),
        (
            "augment.noise.severity=[0, 3]",
            "recipe augment.noise.severity.0: Input should be greater than or equal to 1",
        ),
        ("augment.noise.rat=1", "unknown recipe key 'augment.noise.rat'; did you mean 'augment.<each>.rate'?"),
        ("adversarial.image=300", "recipe adversarial.image: Input should be less than or equal to 255 (found 300)"),
        ("train.mixup=-1", "recipe train.mixup: Input should be greater than or equal to 0 (found -1)"),
    ],
)
def test_a_section_that_does_not_fit_is_refused_in_one_line(change: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("av_digits", [change])
    assert message in str(caught.value)


def test_nothing_of_it_is_left_in_the_model() -> None:
    """So that what is exported, checked and built is what a plain recipe gives."""
    document = {**tiny_document(train={"mixup": 0.2}), "augment": EVERYTHING, "adversarial": {"image": 4, "text": 0.1}}
    hardened, plain = new_model(parse_recipe(document)), new_model(parse_recipe(tiny_document()))
    assert str(hardened) == str(plain)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in hardened.state_dict().items())
