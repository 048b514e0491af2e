"""A recipe as commented YAML: its keys, comments and ranges are those of the settings, so that it never goes stale."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from edgefuse.runtime.bundle import MODALITIES
from edgefuse.train.recipe import Recipe, parse_recipe
from edgefuse.train.recipe_text import commented, meanings, ranges
from edgefuse.train.settings import DataSettings, FusionSettings, Settings, TrainSettings

SIGNAL = {"features": ["speed"], "steps": 8, "rate_hz": 10.0}


class Example(BaseModel):
    """Settings of every form."""

    plain: int
    # What stands above,
    # on two lines.
    above: float = Field(1.0, gt=0, le=2)  # and behind
    choice: Literal["a", "b"] | None = None  # one # of two
    share: Annotated[int, Field(multiple_of=4)] = 4
    long: str = "a value on lines of its own"  # inside
    flag: bool = False

    def method(self) -> None:
        # no meaning of anything
        later: int = 3  # nor this
        del later


def document(*sensors: str) -> dict[str, object]:
    values = {"name": "mine", "data": {"manifest": "my.jsonl"}, "signal": SIGNAL}
    return yaml.safe_load(commented(sensors, values))


def test_comments_above_and_behind_a_field_are_its_meaning() -> None:
    assert meanings(Example) == {
        "plain": "",
        "above": "What stands above, on two lines. and behind",
        "choice": "one # of two",
        "share": "",
        "long": "inside",
        "flag": "",
    }


def test_ranges_are_those_that_pydantic_holds() -> None:
    assert ranges(Example) == {
        "plain": "",
        "above": "> 0, <= 2",
        "choice": "a | b | null",
        "share": "a multiple of 4",
        "long": "",
        "flag": "true | false",
    }


@pytest.mark.parametrize("sensors", [("image",), ("image", "text"), ("audio", "signal"), MODALITIES])
def test_it_is_the_recipe_that_the_required_keys_alone_would_give(sensors: tuple[str, ...]) -> None:
    required = {"name": "mine", "data": {"manifest": "my.jsonl"}, **{sensor: {} for sensor in sensors}}
    if "signal" in sensors:
        required["signal"] = SIGNAL
    assert parse_recipe(document(*sensors)) == parse_recipe(required)


def test_every_setting_is_there_and_those_of_other_sensors_are_not() -> None:
    said = document("image", "text")
    assert set(said) == set(Recipe.model_fields) - {"audio", "signal"}
    for name, value in parse_recipe(said):
        if isinstance(value, Settings):
            assert set(said[name]) == set(type(value).model_fields), name  # type: ignore[call-overload]


@pytest.mark.parametrize("settings", [DataSettings, FusionSettings, TrainSettings])
def test_every_comment_of_the_settings_code_is_in_it(settings: type[BaseModel]) -> None:
    """The comments as a regular expression finds them in the source, word by word."""
    text = " ".join(re.sub(r"\n\s*#", " ", commented(MODALITIES, {"signal": SIGNAL})).split())
    comments = re.findall(r"# (.+)$", inspect.getsource(settings), flags=re.MULTILINE)
    assert len(comments) > 2
    for comment in comments:
        assert comment.rstrip(".") in text


def test_values_are_written_so_that_yaml_reads_them_back() -> None:
    values = {"name": "no: # 1", "data": {"manifest": "a 'b'.jsonl", "subsets": {"image+text": 2.0}}}
    said = yaml.safe_load(commented(["text"], values))
    assert said["name"] == values["name"]
    assert said["data"]["manifest"] == "a 'b'.jsonl"
    assert said["data"]["subsets"] == {"image+text": 2.0}


def test_no_line_is_too_wide() -> None:
    assert max(map(len, commented(MODALITIES, {"signal": SIGNAL}).splitlines())) <= 120
