"""Recipes: every shipped one loads, changes are checked, and whatever is wrong gets one line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.errors import RecipeError
from edgefuse.train.encoders import AUDIO_ENCODERS, IMAGE_ENCODERS, TEXT_ENCODERS
from edgefuse.train.fusion import FUSIONS
from edgefuse.train.recipe import RECIPES, FusionSettings, Recipe, load_recipe, parse_recipe
from tests.train_fixtures import tiny_document, tiny_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name, [])
    assert recipe.name == name
    assert recipe.image is None or recipe.image.encoder in IMAGE_ENCODERS
    assert recipe.audio is None or recipe.audio.encoder in AUDIO_ENCODERS
    assert recipe.text is None or recipe.text.encoder in TEXT_ENCODERS


def test_a_recipe_says_the_same_after_a_round_trip_through_json() -> None:
    recipe = load_recipe("easy_vqa", [])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_changes_are_read_as_yaml_and_applied_in_order() -> None:
    changes = ["train.epochs=3", "data.flip=off", "data.subsets={text: 2}", "train.epochs=4", "image.weights=imagenet"]
    recipe = load_recipe("easy_vqa", changes)
    assert recipe.train.epochs == 4
    assert recipe.data.flip is False
    assert recipe.data.subsets == {"text": 2}
    assert recipe.image is not None
    assert recipe.image.weights == "imagenet"


def test_a_section_can_be_taken_out_and_put_back() -> None:
    without = ["audio=null", "data.subsets={image+text: 1}", "data.sounds_per_step=0"]
    assert load_recipe("easy_vqa", without).modalities == ("image", "text")
    recipe = load_recipe("easy_vqa", [*without, "audio.seconds=1.5"])
    assert recipe.audio is not None
    assert (recipe.audio.seconds, recipe.audio.encoder) == (1.5, "conformer_small")


def test_a_yaml_file_of_ones_own_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_document(tmp_path / "mine.jsonl")), encoding="utf-8")
    assert load_recipe(str(path), []) == tiny_recipe(tmp_path / "mine.jsonl")


def test_modalities_stand_in_the_order_of_presence() -> None:
    document = tiny_document()
    shuffled = {key: document[key] for key in ("text", "audio", "image", "name", "data")}
    assert parse_recipe(shuffled).modalities == ("image", "audio", "text")


def test_every_fusion_can_be_chosen() -> None:
    for kind in FUSIONS:
        assert FusionSettings(kind=kind).kind == kind


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ("train.epoch=3", "train.epochs"),
        ("tain.epochs=3", "train"),
        ("image.heigth=64", "image.height"),
        ("fusion.knd=sum", "fusion.kind"),
        ("learning_rate=0.1", "train.learning_rate"),
        ("train.epochs.number=3", "train.epochs"),
        ("model=big", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(change: str, nearest: str | None) -> None:
    with pytest.raises(RecipeError, match="unknown recipe key") as caught:
        load_recipe("easy_vqa", [change])
    assert (f"did you mean {nearest!r}?" if nearest else "known: name, data, data.manifest") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs=-1", "recipe train.epochs: Input should be greater than or equal to 0 (found -1)"),
        ("text.table_rows=-1", "recipe text.table_rows: Input should be greater than or equal to 0 (found -1)"),
        ("train.epochs=many", "recipe train.epochs: Input should be a valid integer"),
        ("train.learning_rate=.inf", "recipe train.learning_rate: Input should be a finite number (found inf)"),
        ("train.label_smoothing=1.5", "recipe train.label_smoothing: Input should be less than or equal to 1"),
        ("train=3", "recipe train: "),
        ("image.height=16", "recipe image.height: Input should be greater than or equal to 32 (found 16)"),
        ("image.tokens=some", "recipe image.tokens: Input should be 'pooled' or 'all' (found 'some')"),
        ("fusion.kind=mean", "recipe fusion.kind: Input should be 'concat'"),
        ("fusion.dim=30", "recipe fusion.dim: Input should be a multiple of 4 (found 30)"),
        ("data.subsets={text: 0}", "recipe data.subsets.text: Input should be greater than 0 (found 0)"),
        ("data.subsets={smell: 1}", "data.subsets names 'smell', the model reads image, audio, text"),
        ("data.manifest=null", "recipe data.manifest: Input should be a valid string (found None)"),
        ("audio=null", "data.subsets names 'audio', the model reads image, text"),
        ("image=null", "data.group_by is image, the model reads audio, text"),
        ("train.epochs", "'train.epochs' is not a change; write section.key=value"),
        ("train.epochs=[1", "'train.epochs=[1': the value cannot be read; quote it as in YAML"),
        ("name=2001-99-99", "the value cannot be read"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_one_line(change: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("easy_vqa", [change])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_without_a_modality_is_refused() -> None:
    with pytest.raises(RecipeError, match="no modality; give at least one of image, audio, text"):
        parse_recipe({"name": "blind", "data": {"manifest": "a.jsonl"}})


def test_a_missing_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=f"no recipe 'easy'; shipped: {', '.join(SHIPPED)}"):
        load_recipe("easy", [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "a recipe is a mapping with the keys name, data, image"),
        (b"", "a recipe is a mapping"),
        (b"name: [1\n", "not a readable YAML file"),
        (b"name: \xff\n", "not a readable YAML file"),
        (b"name: 2001-99-99\n", "not a readable YAML file"),
        (b"!!python/object/apply:os.system ['true']", "not a readable YAML file"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(str(path), [])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


KEYS = ("train", "train.epochs", "data.subsets", "image", "audio.seconds", "fusion.kind", "a", "a.b", "")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(max_size=20) | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=20)))
def test_no_change_ends_in_anything_but_a_recipe_or_a_recipe_error(change: str) -> None:
    with contextlib.suppress(RecipeError):
        assert load_recipe("easy_vqa", [change]).modalities


@given(st.sampled_from(["name", "data", "image", "text", "train", "fusion", "other"]), VALUES)
def test_no_document_ends_in_anything_but_a_recipe_or_a_recipe_error(key: str, value: Any) -> None:
    with contextlib.suppress(RecipeError):
        assert parse_recipe({**tiny_document(), key: value}).modalities
