"""Sizes: the table's rows exist, and any recipe takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgefuse.runtime.errors import RecipeError
from edgefuse.train.encoders import AUDIO_ENCODERS, IMAGE_ENCODERS, TEXT_ENCODERS
from edgefuse.train.recipe import RECIPES, load_recipe
from edgefuse.train.signal_encoder import SIGNAL_ENCODERS
from edgefuse.train.sizes import FUSION, ROWS, resize
from tests.train_fixtures import write_recipe

ENCODERS: dict[str, dict[str, Any]] = {
    "tcn": SIGNAL_ENCODERS,
    "mobilenet": IMAGE_ENCODERS,
    "conformer": AUDIO_ENCODERS,
    "distilbert": TEXT_ENCODERS,
}
SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("family", ROWS)
def test_every_row_of_the_table_is_an_encoder_of_the_width_that_it_says(family: str) -> None:
    for encoder, width in ROWS[family].values():
        row = ENCODERS[family][encoder]
        assert width == (row["dim"] if family in ("conformer", "distilbert") else 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_comes_in_every_size(name: str) -> None:
    recipe = load_recipe(name, [])
    for size, fusion in FUSION.items():
        other = load_recipe(name, [], size)
        assert (other.fusion.dim, other.fusion.hidden) == (fusion["dim"], fusion["hidden"])
        assert other.data == recipe.data
        assert other.modalities == recipe.modalities


def test_the_rate_shrinks_as_the_width_grows_and_comes_back() -> None:
    recipe, base = load_recipe("easy_vqa", []), load_recipe("easy_vqa", [], "base")
    before, after = recipe.model_dump(), base.model_dump()
    assert {m: after[m]["encoder"] for m in recipe.modalities} == {
        "image": "mobilenet_v3_large",
        "audio": "conformer_base",
        "text": "distilbert_base",
    }
    rates = {m: after[m]["rate"] / before[m]["rate"] for m in recipe.modalities}
    assert rates == pytest.approx({"image": 1, "audio": 96 / 256, "text": 128 / 768})
    resize(after, "nano")
    assert after["audio"]["encoder"] == before["audio"]["encoder"]
    assert after["audio"]["rate"] == pytest.approx(before["audio"]["rate"])


def test_what_the_user_says_wins_over_the_size() -> None:
    changes = ["fusion.dim=32", "audio.encoder=conformer_nano", "text.rate=0.1", "image.encoder=mobilenet_v2"]
    recipe = load_recipe("easy_vqa", changes, "base").model_dump()
    assert recipe["image"]["encoder"] == "mobilenet_v2"
    found = (recipe["fusion"]["dim"], recipe["audio"]["encoder"], recipe["text"]["rate"])
    assert found == (32, "conformer_nano", 0.1)


def test_a_default_encoder_changes_and_a_hubs_stays(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "tiny.yaml", image={"encoder": "mobilenet_v2"}, text={"encoder": "some/bert"})
    recipe = load_recipe(str(path), [], "small").model_dump()
    found = (recipe["image"]["encoder"], recipe["text"]["encoder"], recipe["text"]["rate"])
    assert found == ("mobilenet_v2", "some/bert", 1.0)
    document: dict[str, Any] = {"audio": {"seconds": 1.0}}
    resize(document, "nano")
    assert document == {
        "audio": {"seconds": 1.0, "encoder": "conformer_nano", "rate": 144 / 96},
        "fusion": FUSION["nano"],
    }


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^size 'huge' is unknown; choose one of nano, small, base$"):
        load_recipe("easy_vqa", [], "huge")


def test_a_wrong_rate_is_refused_as_ever(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "tiny.yaml", audio={"rate": "fast"})
    with pytest.raises(RecipeError, match=r"audio\.rate"):
        load_recipe(str(path), [], "base")
